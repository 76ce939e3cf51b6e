"""Instruments whose every answer shows to which question it belongs: what fault campaigns and first tests talk to."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

import numpy as np

from labrig_drivers.capabilities import READ_CONDUCTANCE
from labrig_drivers.crossbar import (
    BoardInfo,
    FloatArray,
    MvmResult,
    ProgramReport,
    check_mvm_request,
    check_program_request,
)
from labrig_drivers.instrument import Identity

ECHO_IDENTITY = "labrig,ECHO,1,1.0"
# Codes are int16; marks beyond that would saturate.
_CODE_SPAN = 30_000


def echo_answer(line: str) -> str | None:
    """What the echo instrument says to one line: `SAY text` is answered with the text, a setting not at all."""
    if line.startswith("SAY "):
        return line.removeprefix("SAY ")
    return {"*IDN?": ECHO_IDENTITY, "*OPC?": "1", ":SYST:ERR?": '0,"No error"'}.get(line)


class EchoInstrument:
    """A text instrument on a TCP port that does nothing but answer `SAY text`; use it with `async with`."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._server is not None  # entered
        self._server.close()
        clients = list(self._clients)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # a coroutine runs in a task
        self._clients.add(task)
        try:
            while (line := await reader.readline()).endswith(b"\n"):
                # What is not ASCII was damaged on the way: an instrument does not understand it, and says nothing.
                answer = echo_answer(line.decode().rstrip("\r\n")) if line.isascii() else None
                if answer is not None:
                    writer.write(answer.encode() + b"\n")
        except (OSError, ValueError, asyncio.CancelledError):
            # The client is gone, sent a line without end, or the server stops.
            return
        finally:
            self._clients.discard(task)
            writer.transport.abort()


def marked_voltages(marks: list[int], rows: int) -> FloatArray:
    """Input vectors for `EchoBoard`, one for each mark from -30000 to 30000, in V: `[len(marks), rows]`."""
    voltage_v = np.zeros((len(marks), rows))
    voltage_v[:, 0] = np.array(marks) / 1000.0
    return voltage_v


def marked_codes(marks: list[int], columns: int) -> list[list[int]]:
    """What `EchoBoard` answers to `marked_voltages(marks, rows)`."""
    return [[mark + column for column in range(columns)] for mark in marks]


class EchoBoard:
    """A board without a chip whose codes tell which vector they belong to; keeps `CrossbarBoard`.

    The code of a column is 1000 times the first row's voltage, plus the number of the column. Cells read back exactly
    as they were programmed.

    Args:
        serial: Its serial number.
        rows: Rows of its one array.
        columns: Columns of it.
        think_s: It thinks so long in s before it answers to an MVM, so that what comes too early can be told.
    """

    def __init__(self, serial: str = "ECHO-1", rows: int = 3, columns: int = 4, *, think_s: float = 0.0) -> None:
        self.identity = Identity("labrig", "ECHO", serial, "1.0")
        self.info = BoardInfo(
            chip_id=serial,
            arrays=1,
            rows=rows,
            columns=columns,
            conductance_min_s=0.0,
            conductance_max_s=1.0,
            voltage_min_v=-_CODE_SPAN / 1000.0,
            voltage_max_v=_CODE_SPAN / 1000.0,
            dac_bits=16,
            adc_bits=16,
            adc_full_scale_a=(1.0,) * columns,
            mvm_latency_s=0.0,
            program_latency_s=0.0,
            capabilities=frozenset({READ_CONDUCTANCE}),
        )
        self.writes = 0
        self._think_s = think_s
        self._target_s = np.zeros((rows, columns))

    async def open(self) -> None:
        """Has nothing to open."""

    async def close(self) -> None:
        """Has nothing to close."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        """Keeps the conductances."""
        check_program_request(self.info, array, conductance_s)
        self._target_s = conductance_s
        self.writes += 1
        return ProgramReport(write_index=self.writes - 1, time_s=0.0, pulses=0, rms_error_s=0.0)

    async def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Answers the marks of the vectors."""
        check_mvm_request(self.info, array, voltage_v)
        await asyncio.sleep(self._think_s)
        code = (np.round(1000.0 * voltage_v[:, :1]) + np.arange(self.info.columns)).astype(np.int16)
        return MvmResult(
            code=code,
            current_a=code * self.info.adc_lsb_a,
            saturated=np.zeros(code.shape, np.bool_),
            time_s=np.zeros(len(code)),
            write_index=max(self.writes - 1, 0),
        )

    async def read_conductance(self, array: int) -> FloatArray:
        """Answers what was programmed last."""
        check_program_request(self.info, array, self._target_s)
        return self._target_s
