"""What the delta holds, copied to main: a lock for each account's charges, and the reservations of its calls.

An account is copied whole, as it stands, with the number of its last change; those whose number has moved on since are
copied again by the next pass. The pass that is made while nobody charges is exact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from core.errors import DatabaseFailed, ZduRefused
from core.faults import point
from zdu.standalone import fence as fences
from zdu.standalone.entries import Contradiction
from zdu.standalone.rows import RESERVATION
from zdu.standalone.session import Session, marks

_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What one pass, or several, copied; see `sync.Locked`."""

    accounts: int = 0
    calls: int = 0
    beyond: tuple[str, ...] = ()

    def __add__(self, other: Copied) -> Copied:
        return Copied(
            accounts=self.accounts + other.accounts,
            calls=self.calls + other.calls,
            beyond=tuple(dict.fromkeys((*self.beyond, *other.beyond))),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Some accounts as the delta has them: charged by account with the number of the last change; reservations as rows
    (call_id, account, amount, price, seconds); calls taken over from main.
    """

    charged: dict[str, Decimal]
    changes: dict[str, int]
    calls: list[tuple[Any, ...]]
    taken: list[str]


def copy_changes(run: str, fence: int, main: Session, delta: Session, *, size: int) -> Copied:
    """One pass over all accounts that changed since they were copied, `size` at a time."""
    total, last = Copied(), ""
    while part := _read(run, delta, last, size):
        last = max(part.charged)
        point("sync:copy")
        total = total + main.transaction(lambda part=part: _write(run, fence, main, part))  # type: ignore[misc]
        point("sync:copied")
        delta.transaction(lambda part=part: _mark(run, fence, delta, part))  # type: ignore[misc]
    return total


def _read(run: str, delta: Session, after: str, size: int) -> _Part | None:
    """The next accounts. The numbers are read first: what changes while the rest is read is copied again."""
    rows = delta.retried(
        lambda: delta.rows(
            "SELECT account, charged, changes FROM delta_accounts "
            "WHERE run = %s AND account > %s AND changes <> copied ORDER BY account LIMIT %s",
            (run, after, size),
        )
    )
    if not rows:
        return None
    names = [row[0] for row in rows]
    where = f"WHERE run = %s AND account IN {marks(names)}"
    calls = delta.retried(lambda: delta.rows(f"SELECT {RESERVATION} FROM delta_reservations {where}", (run, *names)))
    taken = delta.retried(lambda: delta.rows(f"SELECT call_id FROM delta_taken {where}", (run, *names)))
    return _Part(
        charged={row[0]: delta.take(row[1]) for row in rows},
        changes={row[0]: int(row[2]) for row in rows},
        calls=[(row[0], row[1], delta.take(row[2]), delta.take(row[3]), int(row[4])) for row in calls],
        taken=[name for (name,) in taken],
    )


def _write(run: str, fence: int, main: Session, part: _Part) -> Copied:
    """One transaction on main: the accounts of the part become what the delta says."""
    fences.require(main, "ledger_state", fence)
    state = main.one("SELECT mode, run FROM ledger_state WHERE id = 1")
    if state is None or state[0] != "closed" or state[1] != run:
        raise ZduRefused(f"the main ledger is not closed for run {run}", state="this part was not copied")
    names = sorted(part.charged)
    accounts = hold_accounts(main, names)
    copied = f"SELECT account, amount FROM ledger_reservations WHERE origin = %s AND account IN {marks(names)}"
    held_before = _sum_by(main, main.rows(copied, (run, *names)))
    if part.taken:
        taken = f"SELECT account, amount FROM ledger_reservations WHERE origin <> %s AND call_id IN {marks(part.taken)}"
        for account, amount in main.rows(taken, (run, *part.taken)):
            if account not in accounts:
                raise Contradiction(f"a call of account {account} on main is one of another account in the delta")
            held_before[account] += main.take(amount)
        main.execute(f"DELETE FROM ledger_reservations WHERE call_id IN {marks(part.taken)}", part.taken)
    main.execute(f"DELETE FROM ledger_reservations WHERE origin = %s AND account IN {marks(names)}", (run, *names))
    calls = [(call, account, main.put(amount), main.put(price), seconds, run)
             for call, account, amount, price, seconds in part.calls]  # fmt: skip
    main.insert("ledger_reservations", f"{RESERVATION}, origin", calls)
    held_now: defaultdict[str, Decimal] = defaultdict(Decimal)
    for _, account, amount, _, _ in part.calls:
        held_now[account] += amount
    locks = read_locks(main, run, names)
    rows, beyond = [], []
    for name in names:
        balance, limit, reserved, locked = accounts[name]
        reserved += held_now[name] - held_before[name]
        locked += part.charged[name] - locks.get(name, _ZERO)
        rows.append((name, main.put(reserved), main.put(locked)))
        if balance + reserved + locked > limit:
            beyond.append(name)
    main.replace("ledger_accounts", "id, reserved, locked", "id", rows)
    main.replace(
        "ledger_locks",
        "run, account, amount",
        "run, account",
        [(run, name, main.put(part.charged[name])) for name in names],
    )
    return Copied(accounts=len(names), calls=len(calls), beyond=tuple(beyond))


def _mark(run: str, fence: int, delta: Session, part: _Part) -> None:
    fences.require(delta, "delta_state", fence)
    rows = [(run, name, number) for name, number in sorted(part.changes.items())]
    delta.replace("delta_accounts", "run, account, copied", "run, account", rows)


def hold_accounts(main: Session, names: Sequence[str]) -> dict[str, tuple[Decimal, Decimal, Decimal, Decimal]]:
    """Balance, credit limit, reserved and locked of the accounts, held until the transaction ends; always in the same
    order, so that two who do this do not wait for each other. Raises DatabaseFailed when one is missing.
    """
    rows = main.rows(
        f"SELECT id, balance, credit_limit, reserved, locked FROM ledger_accounts WHERE id IN {marks(names)} "
        f"ORDER BY id{main.locked}",
        names,
    )
    take = main.take
    found = {row[0]: (take(row[1]), take(row[2]), take(row[3]), take(row[4])) for row in rows}
    if missing := sorted(set(names) - found.keys()):
        raise DatabaseFailed(
            f"{len(missing)} accounts with charges are not on main",
            what=missing[:10],
            state="this part was not copied; what was charged is safe in the delta database",
            next="add the accounts on main again, and go on",
        )
    return found


def read_locks(main: Session, run: str, names: Sequence[str]) -> dict[str, Decimal]:
    """What is locked for the run, by account."""
    rows = main.rows(
        f"SELECT account, amount FROM ledger_locks WHERE run = %s AND account IN {marks(names)}", (run, *names)
    )
    return {account: main.take(amount) for account, amount in rows}


def _sum_by(main: Session, rows: Iterable[tuple[Any, ...]]) -> defaultdict[str, Decimal]:
    sums: defaultdict[str, Decimal] = defaultdict(Decimal)
    for account, amount in rows:
        sums[account] += main.take(amount)
    return sums
