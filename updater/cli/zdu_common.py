"""What the commands of the group `zdu` share: the sites file, the records, a controller, and words passed on to one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from updater.cli.context import interruptible, print_json, settings
from updater.cli.zdu_plan import sites_path
from zdu.words import Word

if TYPE_CHECKING:
    from zdu.controller import Controller
    from zdu.records import Run
    from zdu.sites import Sites
    from zdu.tables import Tables

RunName = Annotated[str, typer.Option("--run", metavar="RUN", help="Which run.", show_default="the last one")]
Who = Annotated[str, typer.Option("--as", metavar="NAME", help="Who you are, for the record.", show_default="user")]


def load(sites: Path | None) -> Sites:
    """The sites file."""
    from zdu.sites import load_sites

    return load_sites(sites_path(sites))


@contextmanager
def tables_of(where: Sites) -> Iterator[Tables]:
    """The records, for reading."""
    from zdu.tables import Tables

    with Tables.open(where.controller.database, patience=5) as tables:
        yield tables


@contextmanager
def controller_of(where: Sites) -> Iterator[Controller]:
    """A controller of these sites; on a signal it leaves the run to the next one."""
    from core.errors import Interrupted
    from zdu.controller import Controller
    from zdu.effects import RealWorld
    from zdu.tables import Tables

    def world(known: Run, fence: int) -> RealWorld:
        return RealWorld(where, known.bundle, known.target, fence)

    with Tables.open(where.controller.database) as tables:
        try:
            with interruptible():
                yield Controller(where, tables, world, show=show_event)
        except Interrupted as error:
            error.state = "the run is left as it is; calls are served as before"
            error.next = (
                "updater zdu status",
                "updater zdu resume    goes on",
                "updater zdu abort    goes the way back",
            )
            raise


def run_of(tables: Tables, where: Sites, name: str) -> Run:
    """The run of this name, or the last one. Raises WrongState."""
    from core.errors import WrongState
    from zdu.runs import Runs

    runs = Runs(tables)
    found = runs.run(name) if name else runs.last(where.name)
    if found is None or found.installation != where.name:
        raise WrongState(
            f"there is no run {name}" if name else f"no run of {where.name} is on record",
            state="this command changed nothing",
            next="updater zdu history" if name else "updater zdu plan RELEASE",
        )
    return found


def passed_on(controller: Controller, where: Sites, word: Word, who: str, *, only_paused: bool = False) -> bool:
    """Leave a word with the controller that lives; False: none does, so the work is ours."""
    from zdu.controller import say
    from zdu.records import RunState

    known = controller.open_run()
    if only_paused and known.state is not RunState.PAUSED:
        return False  # `resume` then says who has it
    if not say(controller.tables, where, word, who):
        return False
    done(
        {"run": known.id, "said": str(word)}, f"{word} is passed on to the controller of {known.id}: updater zdu watch"
    )
    return True


def say_word(controller: Controller, where: Sites, word: Word, who: str) -> None:
    """Leave a word with the controller that works. Raises WrongState when none does."""
    from core.errors import WrongState
    from zdu.controller import say

    if not say(controller.tables, where, word, who):
        raise WrongState("no controller works on the run", next=f"updater zdu {word}")


def done(data: dict[str, Any], text: str) -> None:
    """Print how a verb ended."""
    if settings.json:
        print_json({"kind": "result", "data": data | {"text": text}})
    else:
        print(text)


def show_event(kind: str, step: str, text: str) -> None:
    """An event of a run that this process works on."""
    from updater.cli.context import unread
    from zdu.records import Told, now
    from zdu.screens import line_of

    try:
        if settings.json:
            print_json({"at": now(), "kind": kind, "step": step, "text": text})
        else:
            print(line_of(Told(id=0, at=now(), kind=kind, step=step, text=text, data={})), flush=True)
    except BrokenPipeError:
        unread()


def user() -> str:
    """Who works here."""
    from zdu.lease import user as of_this_process

    return of_this_process()
