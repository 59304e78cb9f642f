"""One controller at a time: each state row holds the token of the newest one, and refuses all older ones.

Every transaction of the synchronisation looks at the token and holds the row until it is committed. So once a newer
controller has claimed it, nothing that an older one still has on its way gets through.
"""

from __future__ import annotations

from core.errors import FencedOff
from zdu.standalone.session import Session


def claim(session: Session, table: str, fence: int) -> None:
    """Take the state row for this token; waits for transactions under way. Raises FencedOff when a newer token is
    there.
    """

    def work() -> None:
        row = session.one(f"SELECT fence FROM {table} WHERE id = 1{session.locked}")
        found = int(row[0]) if row else 0
        if found > fence:
            raise _stale(found, fence)
        if found < fence:
            session.execute(f"UPDATE {table} SET fence = %s WHERE id = 1", (fence,))

    session.transaction(work)


def seen(session: Session, table: str) -> int:
    """The highest token that has claimed the state row; 0: none has. Raises SqlError without the table."""
    row = session.retried(lambda: session.one(f"SELECT fence FROM {table} WHERE id = 1"))
    return int(row[0]) if row else 0


def require(session: Session, table: str, fence: int, *, change: bool = False) -> None:
    """Inside a transaction: hold the state row; `change` when the row itself will be written. Raises FencedOff."""
    row = session.one(f"SELECT fence FROM {table} WHERE id = 1{session.locked if change else session.shared}")
    found = int(row[0]) if row else 0
    if found != fence:
        raise _stale(found, fence)


def _stale(found: int, fence: int) -> FencedOff:
    return FencedOff(
        "another controller holds the synchronisation",
        what=f"its token is {found}, ours is {fence}",
        state="nothing was changed by us since it took over",
        next=[
            "leave it to the other controller",
            "updater zdu fence --raise    if the records of the controller were lost, and tokens begin anew",
        ],
    )
