"""A rig served at a broker inside a test, and rig files for both ends of it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from labrig.addresses import BrokerAddress
from labrig.boards.remote import RemoteBoard
from labrig.boards.remote_source_meter import RemoteSourceMeter
from labrig.config import parse_rig
from labrig.events import EventBus
from labrig.remote.addresses import RigAddress
from labrig.remote.broker_side import BrokerSide
from labrig.remote.direct import DirectSettings
from labrig.remote.manners import Manners
from labrig.remote.service import RigService
from labrig.remote.serving import served
from labrig.remote.session import RemoteSession, Wishes
from labrig.rig import Rig, open_rig
from labrig.telemetry.broker import Broker
from labrig_drivers.keithley2400 import Keithley2400
from labrig_drivers.links.tcp import TcpLink
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings
from labrig_drivers.mock.keithley2400 import SimulatedKeithley2400
from labrig_drivers.mock.loads import ResistorLoad
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.mock.servers import InstrumentServer

SAFETY = """\
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 1000.0
max_read_voltage_v = 0.3
"""
MOCK = f"""\
[rig]
name = "bench"
[board]
driver = "mock-board"
settings = {{ seed = 1, arrays = 2, rows = 12, columns = 9 }}
{SAFETY}"""


def remote_rig(address: RigAddress, meters: str = "") -> str:
    """The rig file of somebody who uses the rig at `address`."""
    return f"""\
[rig]
name = "bench-from-afar"
[board]
driver = "remote-board"
link = "{address}"
{meters}
{SAFETY}"""


@dataclass
class ServedRig:
    """A rig that is served now."""

    rig: Rig
    address: RigAddress
    broker: Broker
    service: RigService
    side: BrokerSide
    said: list[str] = field(default_factory=list)

    def session(self, broker: Broker | None = None, **wishes: object) -> RemoteSession:
        """A session of its own, as another program would have it."""
        usual: dict[str, object] = {"who": f"test-{secrets.token_hex(2)}", "answer_s": 5.0, "queue_s": 5.0}
        return RemoteSession(self.address, broker or self.broker, Wishes(**(usual | wishes)))  # type: ignore[arg-type]

    def board(self, session: RemoteSession | None = None) -> RemoteBoard:
        """The board, in a session of its own unless one is given."""
        return RemoteBoard(session or self.session())

    def meter(self, session: RemoteSession | None = None, name: str = "supply") -> RemoteSourceMeter:
        """A source-meter, in a session of its own unless one is given."""
        return RemoteSourceMeter(session or self.session(), name)


@asynccontextmanager
async def serving(
    rig_file: str | Path | Rig,
    broker: Broker,
    manners: Manners | None = None,
    client_id: str | None = None,
    direct: DirectSettings | None = None,
    bus: EventBus | None = None,
) -> AsyncIterator[ServedRig]:
    """Serves a rig as long as the block lasts; the text of a rig file, its path, or a rig."""
    said: list[str] = []
    if isinstance(rig_file, str):
        rig = open_rig(parse_rig(rig_file, Path("rig.toml")))
    else:
        rig = rig_file if isinstance(rig_file, Rig) else open_rig(rig_file)
    name = rig.config.rig.name.replace(" ", "-")
    address = RigAddress(broker.address, "lab", name)
    offered = served(rig, broker, address.topic, said.append, manners, client_id, direct, bus)
    async with rig, offered as (service, side):
        await side.connected.wait()
        yield ServedRig(rig, address, broker, service, side, said)


def broker_at(port: int) -> Broker:
    """An open broker on this machine."""
    return Broker(BrokerAddress("127.0.0.1", port, tls=False))


@asynccontextmanager
async def source_meter_rig() -> AsyncIterator[tuple[Rig, list[OutputEvent]]]:
    """A rig with a simulated Keithley 2400 over TCP, and every event of its output."""
    events: list[OutputEvent] = []
    instrument = SimulatedKeithley2400(ResistorLoad(1000.0), log=events.append)
    async with InstrumentServer(instrument, time_scale=0.01) as server:
        text = MOCK + (
            f'[source_meters.supply]\ndriver = "keithley2400"\nlink = "tcp://127.0.0.1:{server.port}"\n'
            'role = "array-supply"\nlevel_voltage_v = 0.5\nlimit_current_a = 0.01\nnplc = 0.1\n'
        )
        config = parse_rig(text, Path("rig.toml"))
        board = MockBoard(ChipSettings(seed=1, arrays=2, rows=12, columns=9))
        # Only this process reaches it: no lock and no watchdog process.
        meter = Keithley2400(TcpLink("127.0.0.1", server.port), ramp_v_per_s=1000.0)
        yield Rig(config, board, {"supply": meter}), events
