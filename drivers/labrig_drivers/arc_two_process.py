"""The parent's side of the process that owns an ArC TWO: requests with deadlines, and an end in every case."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping

from labrig_drivers.errors import (
    InstrumentError,
    LinkDesyncedError,
    LinkLostError,
    LinkTimeoutError,
    ProtocolError,
    StateError,
)
from labrig_drivers.settling import settle

# One answer is one line; the longest carries the currents of a chunk of vectors.
_LONGEST_LINE_BYTES = 4 * 1024 * 1024
# The instrument's own steps of making itself safe take milliseconds; importing its library takes longer.
_END_TIMEOUT_S = 5.0
# A library's error has no number of its own.
_NO_CODE = 0


class ArcTwoProcess:
    """A worker process and the one exchange that may be under way with it. Not reusable: start a new one.

    Args:
        name: How messages call the board.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._process: asyncio.subprocess.Process | None = None
        self._asking: asyncio.Task[Mapping[str, object]] | None = None
        self._given_up = ""

    @property
    def given_up(self) -> str:
        """Why there will be no further answer; empty while all is well."""
        return self._given_up

    async def start(self) -> None:
        """Starts the process; nothing is asked of the instrument yet."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "labrig_drivers.arc_two_worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE_BYTES,
            # Ctrl-C in the terminal is for the parent, which then ends this process in good order.
            start_new_session=True,
        )

    async def ask(self, request: Mapping[str, object], timeout_s: float) -> Mapping[str, object]:
        """One request and its answer. A cancelled caller gets none, and the next one waits until it has come.

        Raises:
            InstrumentError: The library refused or failed.
            LinkDesyncedError: An earlier exchange did not end with its own answer.
            LinkLostError: The process is gone.
            LinkTimeoutError: No answer in time; the process was killed, the lines stay as they were.
        """
        await self._drain()
        if self._given_up:
            raise LinkDesyncedError(f"{self._name}: {self._given_up}; close the board and open it again")
        self._asking = asyncio.create_task(self._exchange(request, timeout_s))
        return await asyncio.shield(self._asking)

    async def end(self) -> bool:
        """Ends the process, which grounds all lines first, or kills it where it does not; a cancellation waits.

        Returns:
            Whether it ended by itself, the lines grounded.
        """
        ending = asyncio.ensure_future(self._end())
        cancelled = await settle(ending)
        in_order = ending.result()
        if cancelled is not None:
            raise cancelled
        return in_order

    async def _exchange(self, request: Mapping[str, object], timeout_s: float) -> Mapping[str, object]:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise StateError(f"{self._name}: its process was not started")
        verb = str(request["verb"])
        try:
            async with asyncio.timeout(timeout_s):
                process.stdin.write(json.dumps(request).encode() + b"\n")
                await process.stdin.drain()
                line = await process.stdout.readline()
        except TimeoutError:
            self._given_up = f"`{verb}` did not return within {timeout_s:g} s"
            self._kill()
            raise LinkTimeoutError(
                f"{self._name}: {self._given_up}. The process that was stuck in the library was killed, and the lines "
                "may still carry the voltages of that moment: close the board (which tries to ground them from a new "
                "process), or switch the instrument off"
            ) from None
        except (BrokenPipeError, ConnectionResetError):
            line = b""
        if not line.endswith(b"\n"):
            self._given_up = f"its process ended during `{verb}`"
            raise LinkLostError(f"{self._name}: {self._given_up}; close the board and open it again")
        try:
            answer = json.loads(line)
            if "error" in answer:
                # The worker has grounded the lines and ends: what was queued in the library is unknown.
                self._given_up = f"`{verb}` failed"
                raise InstrumentError(_NO_CODE, str(answer["error"]), verb, self._name)
            found: Mapping[str, object] = answer["ok"]
        except (ValueError, KeyError, TypeError) as error:
            self._given_up = f"`{verb}` was answered with nonsense"
            self._kill()
            raise ProtocolError(f"{self._name}: {self._given_up}: {line[:100]!r}") from error
        return found

    async def _drain(self) -> None:
        """Waits for an exchange whose caller went away; its own deadline bounds this."""
        if self._asking is not None:
            await asyncio.wait([self._asking])
            if not self._asking.cancelled():
                self._asking.exception()  # was told to its caller, or nobody waits for it
            self._asking = None

    async def _end(self) -> bool:
        await self._drain()
        process = self._process
        if process is None:
            return True
        self._process = None
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_TIMEOUT_S):
                await process.wait()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                await process.stdin.wait_closed()
        return process.returncode == 0

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
