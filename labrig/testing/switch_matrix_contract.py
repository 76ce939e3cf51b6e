"""Contract checks of a switch matrix; see `driver_contract`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from labrig.testing.promises import check_closed, check_identity, must_raise, require
from labrig_drivers.errors import CapabilityError, LabrigError, StateError
from labrig_drivers.switch_matrix import Point, SwitchMatrix, SwitchMatrixInfo


async def check_switch_matrix(make_matrix: Callable[[], SwitchMatrix]) -> None:
    """Checks a switch matrix driver against `SwitchMatrix`. Nothing may be wired to it.

    Args:
        make_matrix: Makes a new, closed driver of the same instrument each time; all its relays are open.

    Raises:
        AssertionError: A promise is broken; the message says which.
    """
    await _check_closed_matrix(make_matrix())
    async with make_matrix() as matrix:
        check_identity(matrix.identity)
        info = matrix.info
        _check_info(info)
        corners = _corners(info)
        await _expect(matrix, frozenset(), "open() changes no relay, and the factory's are open")
        await _check_switching(matrix, corners)
        await _check_refusals(matrix, info)
        await _check_connect(matrix, corners)
        await matrix.close_points(corners)
        await matrix.open_all()
        await _expect(matrix, frozenset(), "open_all() opens every relay")
        await matrix.close_points(corners)
    await matrix.close()
    await must_raise(StateError, matrix.closed_points, "closed_points() after close()")
    async with make_matrix() as other:
        await _expect(other, frozenset(), "close() opens every relay that its object closed")
        await _check_others_left_alone(make_matrix, other, corners)


async def _check_closed_matrix(matrix: SwitchMatrix) -> None:
    await check_closed(matrix)

    async def ask() -> object:
        return matrix.info

    closed: tuple[tuple[str, Callable[[], Awaitable[object]]], ...] = (
        ("info", ask),
        ("close_points()", lambda: matrix.close_points({(1, 1)})),
        ("open_points()", lambda: matrix.open_points({(1, 1)})),
        ("open_all()", matrix.open_all),
        ("closed_points()", matrix.closed_points),
        ("connect()", lambda: matrix.connect({(1, 1)})),
    )
    for name, call in closed:
        await must_raise(StateError, call, f"{name} before open()")


def _check_info(info: SwitchMatrixInfo) -> None:
    require(min(info.rows, info.columns) > 0, "info: a matrix has rows and columns")
    require(min(info.voltage_v, info.current_a) > 0.0, "info: ratings are positive")
    require(info.settle_s >= 0.0, "info.settle_s is not negative")


def _corners(info: SwitchMatrixInfo) -> frozenset[Point]:
    """The first and the last relay, one of the last row and one of the last column."""
    return frozenset({(1, 1), (info.rows, info.columns), (info.rows, 1), (1, info.columns)})


async def _check_switching(matrix: SwitchMatrix, corners: frozenset[Point]) -> None:
    first = frozenset({(1, 1)})
    await matrix.close_points(corners)
    await _expect(matrix, corners, "close_points() closes the points it is given")
    await matrix.close_points(first)
    await _expect(matrix, corners, "close_points() leaves the others as they are")
    await matrix.open_points(first)
    await _expect(matrix, corners - first, "open_points() opens the points it is given and no others")
    await matrix.open_points(corners)
    await _expect(matrix, frozenset(), "open_points() takes points that are open already")


async def _check_refusals(matrix: SwitchMatrix, info: SwitchMatrixInfo) -> None:
    good = (1, 1)
    verbs = (matrix.close_points, matrix.open_points, matrix.connect)
    for bad in ((0, 1), (1, 0), (info.rows + 1, 1), (1, info.columns + 1), (-1, 1)):
        for verb in verbs:
            await _refused(verb, frozenset({good, bad}), bad)
        await _expect(matrix, frozenset(), f"a refused request with the point {bad} changes nothing")


async def _refused(verb: Callable[[frozenset[Point]], Awaitable[None]], points: frozenset[Point], bad: Point) -> None:
    error: type[LabrigError] = CapabilityError
    await must_raise(error, lambda: verb(points), f"{getattr(verb, '__name__', 'a request')}() with the point {bad}")


async def _check_connect(matrix: SwitchMatrix, corners: frozenset[Point]) -> None:
    one, others = frozenset({min(corners)}), corners - {min(corners)}
    await matrix.connect(one)
    await _expect(matrix, one, "connect() closes the points it is given")
    await matrix.connect(corners)
    await _expect(matrix, corners, "connect() keeps what is closed and wanted")
    await matrix.connect(others)
    await _expect(matrix, others, "connect() opens what is not wanted")
    await matrix.connect(())
    await _expect(matrix, frozenset(), "connect() of nothing opens everything")


async def _check_others_left_alone(
    make_matrix: Callable[[], SwitchMatrix], matrix: SwitchMatrix, corners: frozenset[Point]
) -> None:
    """A second driver opens and closes without touching what the first one closed."""
    await matrix.close_points(corners)
    async with make_matrix() as visitor:
        await _expect(visitor, corners, "open() changes no relay")
    await _expect(matrix, corners, "close() leaves relays that its object did not close")
    await matrix.open_all()


async def _expect(matrix: SwitchMatrix, wanted: frozenset[Point], promise: str) -> None:
    found = await matrix.closed_points()
    require(isinstance(found, frozenset), "closed_points() is a frozenset")
    require(found == wanted, f"{promise} (wanted {sorted(wanted)}, found {sorted(found)})")
