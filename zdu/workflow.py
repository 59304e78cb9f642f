"""The durable workflow: which pieces of a leg are called in which order (docs/adr/0012-dbos-for-the-controller.md).

The engine (DBOS) writes down the result of each piece before the next one begins; after a crash it calls the workflow
again from the top, and the pieces that have ended answer from what was written. So nothing here may look at a clock, at
the sites, or at anything else that could be different the second time: pieces do that.

Only whoever holds the lease of the installation starts it; all of them do so under one name (`_EXECUTOR`), so that each
one goes on with what the last one left.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetWorkflowID, StepReservation
from sqlalchemy.engine import URL

from core.errors import DatabaseFailed
from core.sql import DEFAULT_PORT, Database, Engine
from zdu.engine import Engine as Pieces
from zdu.records import RunState
from zdu.runbook import Step
from zdu.tables import make_file

#: Changes when the order of pieces does; open legs of another version are begun anew from the records.
VERSION: Final = "1"

_EXECUTOR: Final = "controller"

#: The one that works in this process: workflows are found by their name, and get plain data only.
_pieces: dict[str, Pieces] = {}


@DBOS.workflow(name="zdu-leg", max_recovery_attempts=None)
def leg(run: str, number: int) -> str:
    """Execute the runbook of a leg, batch by batch; the state that it leaves the run in."""
    pieces = _pieces[run]
    this = pieces.leg(number)
    outcome = RunState.ABORTED if this.runbook.back else RunState.DONE
    fault: dict[str, Any] = {}
    for batch in this.runbook.batches:
        steps = [step for step in batch if step.id not in this.passed]
        if not steps:
            continue
        if not DBOS.run_step({"name": f"permit {batch[0].id}"}, pieces.permit, number, batch[0].id)["go"]:
            outcome = RunState.ABORTING
            break
        answers = _perform(pieces, number, steps)
        failed = [answer["error"] for answer in answers if answer["state"] == "failed"]
        if failed:
            outcome, fault = RunState.STOPPED, failed[0]
            break
        if any(answer["state"] == "left" for answer in answers):
            outcome = RunState.ABORTING
            break
    DBOS.run_step({"name": "close"}, pieces.close, number, str(outcome), fault)
    return str(outcome)


def _perform(pieces: Pieces, number: int, steps: list[Step]) -> list[dict[str, Any]]:
    """The steps of a batch, as many at a time as it allows. All of them are seen to an end, whatever comes of one."""
    places = [DBOS.reserve_step() for _ in steps]  # in order: a piece is found again by its number

    def one(step: Step, place: StepReservation) -> dict[str, Any]:
        return place.run({"name": step.id}, pieces.perform, number, step.id)

    if len(steps) == 1:
        return [one(steps[0], places[0])]
    with ThreadPoolExecutor(max_workers=min(len(steps), steps[0].at_most), thread_name_prefix="zdu-step") as pool:
        together = [
            pool.submit(lambda context, *each: context.run(one, *each), contextvars.copy_context(), step, place)
            for step, place in zip(steps, places, strict=True)
        ]
        return [future.result() for future in together]


@contextmanager
def launched(database: Database, pieces: Pieces) -> Iterator[None]:
    """The workflow engine at work, for the run of these pieces; what the last controller left is taken up at once.

    Raises DatabaseFailed when its database cannot be used.
    """
    _quiet()
    config: DBOSConfig = {
        "name": "updater-zdu",
        "system_database_url": _url(database),
        "dbos_system_schema": "updater_workflow",
        "executor_id": f"{_EXECUTOR}:{pieces.run.installation}",
        "application_version": VERSION,
        "serializer": DBOSPortableJSONSerializer(),
        "enable_otlp": False,
        "log_level": "ERROR",
        "sys_db_pool_size": 8,
        "sys_db_idle_transaction_timeout_sec": 5.0,  # a controller that is frozen holds the next one up no longer
        "notification_listener_polling_interval_sec": 0.25,
    }
    _pieces[pieces.run.id] = pieces
    try:
        try:
            DBOS(config=config)
            DBOS.launch()
        except Exception as error:
            raise DatabaseFailed(
                "the workflow engine cannot be started",
                what=f"{database}: {' '.join(str(error).split())[:300]}",
                state="nothing was begun",
                next="updater zdu status    once the database answers",
            ) from error
        yield
    finally:
        DBOS.destroy()
        _pieces.pop(pieces.run.id, None)


def begin(run: str, number: int) -> bool:
    """Have a leg executed, in the background; one that was begun before goes on by itself. False: it is over, or of
    another version, which nobody here can go on with.
    """
    name = f"{run}/{number}"
    known = DBOS.get_workflow_status(name)
    if known is None:
        with SetWorkflowID(name):
            DBOS.start_workflow(leg, run, number)
        return True
    if known.app_version != VERSION:
        DBOS.cancel_workflow(name)  # a program of that version must not go on with it either
        return False
    return not over(run, number)


def over(run: str, number: int) -> bool:
    """Whether the workflow engine is through with a leg, well or not."""
    known = DBOS.get_workflow_status(f"{run}/{number}")
    return known is None or known.status not in ("PENDING", "ENQUEUED", "DELAYED")


def _url(database: Database) -> str:
    """The database as the engine wants it. SQLite: a file beside ours, so that neither waits for the other."""
    if database.engine is Engine.SQLITE:
        assert database.path is not None
        beside = database.path.with_name(f"{database.path.name}-workflow")
        make_file(beside)
        return URL.create("sqlite", database=str(beside)).render_as_string(hide_password=False)
    socket = str(database.socket.parent) if database.socket else ""
    port = database.socket.name.rpartition(".")[2] if database.socket else ""
    tls = {"sslmode": "verify-full", "sslrootcert": str(database.tls_ca)} if database.tls_ca else {}
    url = URL.create(
        "postgresql+psycopg",
        username=database.user or None,
        password=database.password() or None,
        host=None if socket else database.host,
        port=int(port) if port.isdigit() else database.port or DEFAULT_PORT[database.engine],
        database=database.database,
        query=tls | ({"host": socket} if socket else {}),
    )
    return url.render_as_string(hide_password=False)


def _quiet() -> None:
    """Its lines are for its own developers; what people need to know, the records say."""
    logger = logging.getLogger("dbos")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
