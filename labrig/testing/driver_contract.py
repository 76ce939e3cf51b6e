"""Contract checks for driver authors: does my driver keep what everything above it relies on?

Each check takes a factory, drives what it makes like a careful user and a clumsy one, and raises
`AssertionError` with one sentence about the first promise that was broken::

    async def test_my_board() -> None:
        await check_crossbar_board(lambda: MyBoard("/dev/ttyACM0"))

The checks program arrays and switch outputs on: run them on a simulator, or on hardware that may be used so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from labrig.testing.axis_contract import check_axis
from labrig.testing.board_contract import check_crossbar_board
from labrig.testing.source_meter_contract import check_source_meter
from labrig.testing.switch_matrix_contract import check_switch_matrix
from labrig_drivers.instrument import Instrument

__all__ = [
    "DriverContract",
    "check_axis",
    "check_crossbar_board",
    "check_driver",
    "check_source_meter",
    "check_switch_matrix",
]

Option = float | tuple[float, float]
"""What a check is told besides the driver: levels, limits, tolerances."""

# What only drivers of a kind have, and their check.
_CHECKS: Final[dict[str, Callable[..., Awaitable[None]]]] = {
    "mvm": check_crossbar_board,
    "set_level": check_source_meter,
    "close_points": check_switch_matrix,
    "move_to": check_axis,
}


class DriverContract(Protocol):
    """Checks any driver; `check_driver` is one, and so is the fixture `driver_contract`."""

    async def __call__(self, make_driver: Callable[[], Instrument], **options: Option) -> None:
        """Checks what `make_driver` makes; see `check_driver`."""
        ...


async def check_driver(make_driver: Callable[[], Instrument], **options: Option) -> None:
    """Checks a driver against the contract of what it is: board, source-meter, switch matrix or axis.

    Args:
        make_driver: Makes a new, closed driver of the same instrument each time.
        options: For the check of that kind, such as `voltage_v` and `limit_a` of `check_source_meter`; an axis needs
            `targets` and `tolerance`.

    Raises:
        AssertionError: A promise is broken, the first one that every driver of the kind makes; or it is of no kind.
    """
    made = type(make_driver())
    for verb, check in _CHECKS.items():
        if hasattr(made, verb):
            await check(make_driver, **options)
            return
    raise AssertionError(f"{made.__name__} is no driver: it has none of {', '.join(_CHECKS)}")
