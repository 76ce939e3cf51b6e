"""One contract, every axis; and the checks find drivers that break it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from labrig.guarded_axis import GuardedAxis
from labrig.safety import AxisEnvelope
from labrig.testing.driver_contract import check_axis
from labrig_drivers.axis import Axis, AxisReading
from labrig_drivers.axis_motion import AxisSettings
from labrig_drivers.errors import SafetyError
from labrig_drivers.links import MemoryLink, TcpLink
from labrig_drivers.mock.axis import LagSettings, MockAxis
from labrig_drivers.mock.axis_controller import AxisControllerServer, SimulatedAxisController
from labrig_drivers.mock.instrument_server import run_at_once
from labrig_drivers.scpi_axis import ScpiAxis

SETTINGS = AxisSettings(
    "temperature", "K", 280.0, 400.0, tolerance=0.5, hold_s=0.01, timeout_s=20.0, poll_s=0.002, safe_value=295.0
)
TARGETS = (350.0, 310.0)
SET, READ = "SOUR:TEMP {value}", "MEAS:TEMP?"


def mock() -> MockAxis:
    return MockAxis(replace(SETTINGS, hold_s=5.0, poll_s=0.5, timeout_s=300.0), LagSettings(300.0, noise=0.02))


def controller(lag_s: float = 0.01) -> SimulatedAxisController:
    rng = np.random.default_rng(1)
    return SimulatedAxisController(300.0, low=270.0, high=420.0, lag_s=lag_s, noise=0.02, rng=rng)


def in_memory() -> Callable[[], ScpiAxis]:
    """Drivers of one controller without a socket."""
    instrument = controller()

    def handle(request: bytes) -> bytes:
        answers = [run_at_once(instrument, line) for line in request.decode("ascii").splitlines()]
        return b"".join(str(answer).encode() + b"\n" for answer in answers if answer is not None)

    return lambda: ScpiAxis(MemoryLink(handle), SETTINGS, set_command=SET, read_query=READ)


@pytest.mark.parametrize("make", [mock, in_memory()], ids=["mock", "scpi"])
async def test_every_axis_keeps_the_contract_guarded_and_not(make: Callable[[], Axis]) -> None:
    await check_axis(make, TARGETS, tolerance=0.6)
    await check_axis(lambda: GuardedAxis(make(), AxisEnvelope("chuck", 290.0, 360.0)), TARGETS, tolerance=0.6)


@pytest.mark.parametrize("max_rate", [None, 2000.0])
async def test_an_axis_on_a_socket_keeps_the_contract(max_rate: float | None) -> None:
    settings = replace(SETTINGS, max_rate=max_rate)
    async with AxisControllerServer(controller()) as server:
        port = server.port
        await check_axis(
            lambda: ScpiAxis(TcpLink("127.0.0.1", port), settings, set_command=SET, read_query=READ), TARGETS, 0.6
        )
        assert server.instrument.physics.target == SETTINGS.safe_value


class Hasty(MockAxis):
    """Returns before it is there."""

    async def move_to(self, value: float) -> AxisReading:
        self._require_open()
        if reasons := self._settings.reasons(value, "hasty"):
            raise SafetyError(reasons)
        await self._send(value)
        return await self.read()


class Boundless(MockAxis):
    """Goes wherever it is told."""

    async def move_to(self, value: float) -> AxisReading:
        self._require_open()
        await self._send(value)
        return await self.read()


class Hidden(MockAxis):
    """Cannot be looked at while closed."""

    @property
    def unit(self) -> str:
        return ""


class OpenDoor(MockAxis):
    """Answers although it is closed."""

    def _require_open(self) -> None:
        pass


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (Hasty, r"move_to\(350\) returns when it is there"),
        (Boundless, r"move_to\(160\): SafetyError"),
        (Hidden, "quantity and unit are known before"),
        (OpenDoor, r"identity before open\(\): StateError"),
    ],
)
async def test_the_checks_find_a_broken_axis(broken: type[MockAxis], promise: str) -> None:
    with pytest.raises(AssertionError, match=f"broken promise: .*{promise}"):
        await check_axis(lambda: broken(SETTINGS, LagSettings(300.0)), TARGETS, 0.6)
