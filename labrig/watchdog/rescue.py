"""Makes instruments safe whose program was killed: ramp, off, read back, through their ordinary drivers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self, cast, runtime_checkable

from labrig.addresses import same_instrument
from labrig.instruments import InstrumentSpec, build_instruments
from labrig.rig_lock import make_lock_folder
from labrig_drivers.instrument import Instrument
from labrig_drivers.source_meter import SourceMeter

# Instruments that serve one client need a moment to notice that theirs is gone.
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0

# The section of the board; grounding its lines is what its `close()` does.
BOARD: Final = "board"
# How the sections of axes begin.
AXIS: Final = "axes."

Say = Callable[[str], None]


class Report:
    """Tells what is done on standard error, and in a file of its own beside the locks.

    Args:
        folder: Where the file is made.
        parent: The process that was killed.
    """

    def __init__(self, folder: Path, parent: int) -> None:
        self._descriptor: int | None = None
        stamp = datetime.now(UTC).astimezone()
        self._path = folder / f"watchdog-{stamp:%Y%m%d-%H%M%S}-{parent}.log"
        with contextlib.suppress(OSError):
            make_lock_folder(folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o644)
        where = f" (also in {self._path})" if self._descriptor is not None else ""
        self.say(f"process {parent} ended without switching off; making its instruments safe{where}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc is not None:
            self.say(f"it failed ({exc!r}); press OUTPUT OFF on every instrument now")
        if self._descriptor is not None:
            os.close(self._descriptor)

    def say(self, text: str) -> None:
        """Writes one line; where nobody can be told, the work goes on all the same."""
        line = f"labrig watchdog: {text}\n"
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(line)
            sys.stderr.flush()
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                stamp = datetime.now(UTC).astimezone().isoformat(timespec="milliseconds")
                os.write(self._descriptor, f"{stamp} {line}".encode())


async def rescue(specs: Sequence[InstrumentSpec], say: Say, patience_s: float, died_s: float) -> bool:
    """Makes instruments safe: the source-meters first, then what they feed, and the axes.

    Args:
        specs: The instruments.
        say: Told what was done, and what a person has to do.
        patience_s: How long each instrument is tried.
        died_s: When the program ended, by the monotonic clock in s.

    Returns:
        Whether everything is safe.
    """
    others = [spec for spec in specs if spec.section == BOARD or spec.section.startswith(AXIS)]
    meters = [spec for spec in specs if spec not in others]
    results: list[bool] = []
    for group in (meters, others):
        tried = (_Address(one, say, patience_s, died_s).make_safe() for one in _by_address(group))
        results += await asyncio.gather(*tried)
    return all(results)


def _by_address(specs: Iterable[InstrumentSpec]) -> list[list[InstrumentSpec]]:
    groups: dict[str, list[InstrumentSpec]] = {}
    for spec in specs:
        groups.setdefault(same_instrument(spec.link or spec.section), []).append(spec)
    return list(groups.values())


class _Address:
    """The instruments behind one address: one, or the channels of one."""

    def __init__(self, specs: list[InstrumentSpec], say: Say, patience_s: float, died_s: float) -> None:
        self._specs = specs
        self._say = say
        self._patience_s = patience_s
        self._died_s = died_s
        addresses = dict.fromkeys(address for spec in specs for address in spec.addresses.values())
        self._what = f"{', '.join(spec.name for spec in specs)} ({specs[0].driver}, {', '.join(addresses)})"

    async def make_safe(self) -> bool:
        """Tries until it worked or the patience is over; says how it ended."""
        deadline_s = time.monotonic() + self._patience_s
        pause_s = _FIRST_PAUSE_S
        told = False
        while True:
            try:
                await self._attempt()
            except Exception as error:  # whatever a driver raises, the next attempt may work
                remaining_s = deadline_s - time.monotonic()
                if remaining_s <= 0.0:
                    self._say(
                        f"{self._what}: could not be made safe in {self._patience_s:g} s ({error}); "
                        "its output may be on: press OUTPUT OFF on it now, or switch it off at the mains"
                    )
                    return False
                if not told:
                    self._say(f"{self._what}: not yet ({error}); trying for {remaining_s:.0f} s more")
                    told = True
                await asyncio.sleep(min(pause_s, remaining_s))
                pause_s = min(2.0 * pause_s, _LONGEST_PAUSE_S)
            else:
                took_s = time.monotonic() - self._died_s
                self._say(f"{self._what}: safe {took_s:.2f} s after the program ended")
                return True

    async def _attempt(self) -> None:
        built = build_instruments(self._specs)
        failures: list[Exception] = []
        async with AsyncExitStack() as stack:
            for spec in self._specs:
                try:
                    await stack.enter_async_context(cast(Instrument, built[spec.section]))
                    await _switch_off(built[spec.section], spec)
                except Exception as error:  # the other channels are switched off all the same
                    failures.append(error)
        if failures:
            raise failures[0]


@runtime_checkable
class _MakesSafe(Protocol):
    """An axis, or a board that has outputs which outlive its host."""

    async def make_safe(self) -> None:
        """Ends also what somebody else left on."""
        ...


async def _switch_off(instrument: object, spec: InstrumentSpec) -> None:
    """What closing alone does not do, since a driver leaves alone what it has not touched."""
    if isinstance(instrument, _MakesSafe):
        await instrument.make_safe()
    elif spec.section != BOARD:
        await cast(SourceMeter, instrument).output_off()
