"""The books of the rehearsed installation: accounts, subscribers, and what the books say of calls afterwards."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal

from core.sql import Connection, Database
from vagrant.rehearsal.sites_charging import account_of
from zdu.consistency import Match, compare
from zdu.standalone.audit import audit_delta, audit_main
from zdu.standalone.schema import install_main
from zdu.standalone.session import Binlog, Session

#: Whose table the new release changes.
SUBSCRIBERS = 2_000


def fill(books: Session, accounts: int) -> None:
    """The ledger's tables with their accounts, and the subscribers."""
    install_main(books)
    names = sorted({account_of(str(number), accounts) for number in range(50 * accounts)})
    limit = Decimal(1_000_000)
    books.insert("ledger_accounts", "id, credit_limit", [(name, books.put(limit)) for name in names])
    books.execute(
        "CREATE TABLE subscribers (id INT AUTO_INCREMENT PRIMARY KEY, account VARCHAR(16) NOT NULL,"
        " number VARCHAR(20) NOT NULL, tariff INT NOT NULL DEFAULT 1) ENGINE = InnoDB"
    )
    rows = [(names[n % accounts], f"+431555{n:06d}") for n in range(SUBSCRIBERS)]
    books.insert("subscribers", "account, number", rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """What the books say of the calls that were made. `missing`: calls without an xDR; `foreign`: xDRs without a call;
    `posted`: by the synchronisation; `wrong`: sums that do not hold; `differs`: tables that are not the same on the
    replica; `migrated`: on which sites all changes of the new release are there.
    """

    xdrs: int
    missing: int
    foreign: int
    posted: int
    wrong: tuple[str, ...]
    differs: tuple[str, ...]
    migrated: tuple[str, ...]


_MIGRATED = (
    "SELECT (SELECT count(*) FROM information_schema.statistics WHERE table_schema = 'billing'"
    " AND index_name = 'by_started') > 0"
    " AND (SELECT count(*) FROM information_schema.columns WHERE table_schema = 'billing'"
    " AND column_name = 'tariff_name') > 0"
    " AND (SELECT character_maximum_length FROM information_schema.columns WHERE table_schema = 'billing'"
    " AND table_name = 'subscribers' AND column_name = 'number') = 300"
)


def look(main: Database, replica: Database, delta: Database, calls: set[str]) -> Books:
    """Compare the books with the calls that were made; every call has been charged by then."""
    with Connection.open(main) as there:
        found = there.execute("SELECT id, origin FROM ledger_xdrs").rows
    with closing(Session(main)) as session:
        wrong = audit_main(session)
        held = session.one("SELECT sum(reserved), sum(locked) FROM ledger_accounts")
    with closing(Session(delta, binlog=Binlog.DOMAIN)) as session:
        wrong += audit_delta(session)
    wrong += [f"{amount} is still held" for amount in held or () if amount]
    ids = {str(row[0]) for row in found}
    tables = compare(main, replica, [main.database], timeout=120)
    migrated = []
    for site, database in (("A", main), ("B", replica)):
        with Connection.open(database) as there:
            row = there.one(_MIGRATED)
        migrated += [site] if row and row[0] else []
    return Books(
        xdrs=len(found),
        missing=len(calls - ids),
        foreign=len(ids - calls),
        posted=sum(bool(row[1]) for row in found),
        wrong=tuple(wrong),
        differs=tuple(f"{each.table}: {each.match}" for each in tables if each.match is not Match.SAME),
        migrated=tuple(migrated),
    )
