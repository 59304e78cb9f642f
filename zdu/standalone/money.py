"""Money is a Decimal in whole micro-units (0.000001). Floats are refused, and nothing is rounded quietly.

Rounding happens in one place: what a call costs is rounded to the nearest micro-unit, halves up. How long a call may
last is rounded down to whole seconds. So a call that ends within its limit never costs more than was there.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

MICRO: Final = Decimal("0.000001")
_PER_UNIT: Final = 1_000_000

#: No amount, price or limit that comes in reaches the first; no sum of them that is stored the second, which both
#: engines hold.
MOST: Final = Decimal(10) ** 12
MOST_STORED: Final = MOST * 8


def money(value: object, name: str = "amount", *, least: Decimal | None = None, most: Decimal = MOST) -> Decimal:
    """The value as money; `least`: the smallest allowed. Raises ValueError on floats, on more than six decimals, on
    what is no number, and out of range. `name` is what the error calls it.
    """
    if isinstance(value, bool) or not isinstance(value, Decimal | int):
        raise ValueError(f"{name}: expected a Decimal, found {type(value).__name__} {value!r}"[:200])
    exact = Decimal(value)
    if not exact.is_finite() or abs(exact) >= most:
        raise ValueError(f"{name}: {exact} is out of range")
    if exact != exact.quantize(MICRO):
        raise ValueError(f"{name}: {exact} has more than six decimals")
    if least is not None and exact < least:
        raise ValueError(f"{name}: {exact} is less than {least}")
    return exact.quantize(MICRO) + 0  # no minus zero


def to_micro(amount: Decimal) -> int:
    """Money in micro-units."""
    return int(amount.scaleb(6))


def from_micro(micro: int) -> Decimal:
    """Micro-units as money."""
    return Decimal(micro).scaleb(-6).quantize(MICRO)


def cost(price: Decimal, seconds: int) -> Decimal:
    """What a call of that length costs at a price per minute, to the nearest micro-unit, halves up."""
    return from_micro((to_micro(price) * seconds * 2 + 60) // 120)


def seconds_for(available: Decimal, price: Decimal, at_most: int) -> int:
    """How many whole seconds the money buys at a price per minute, `at_most` at most; none for money below zero."""
    if available < 0:
        return 0
    if price == 0:
        return at_most
    return min(at_most, to_micro(available) * 60 // to_micro(price))
