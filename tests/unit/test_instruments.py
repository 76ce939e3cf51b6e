"""Drivers by name, and addresses that mean one instrument."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import pytest

from labrig import instruments
from labrig.addresses import same_instrument
from labrig.instruments import InstrumentSpec, build_instruments
from labrig_drivers.errors import ConfigError
from labrig_drivers.instrument import ExpectedIdentity
from labrig_drivers.links import Link
from labrig_drivers.links.shared import SharedLink

TWO_CHANNELS = f"{__name__}:TwoChannels"


class TwoChannels:
    """One channel of an instrument with two, on a link that both use."""

    shares_link: ClassVar = True

    def __init__(self, link: Link, channel: object, ramp_v_per_s: float | None) -> None:
        self.link, self.channel, self.ramp_v_per_s = link, channel, ramp_v_per_s

    @classmethod
    def from_settings(
        cls,
        link: Link,
        expected: ExpectedIdentity,
        name: str,
        *,
        settings: Mapping[str, object] | None = None,
        ramp_v_per_s: float | None = None,
    ) -> TwoChannels:
        return cls(link, (settings or {}).get("channel"), ramp_v_per_s)


class OldStyle:
    def __init__(self, link: Link, name: str) -> None:
        self.link, self.name = link, name

    @classmethod
    def from_settings(cls, link: Link, expected: ExpectedIdentity, name: str) -> OldStyle:
        return cls(link, name)


@pytest.fixture(autouse=True)
def drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    points = {
        "two-channels": EntryPoint("two-channels", TWO_CHANNELS, "labrig.drivers"),
        "old-style": EntryPoint("old-style", f"{__name__}:OldStyle", "labrig.drivers"),
        "broken": EntryPoint("broken", "labrig_drivers.nowhere:Thing", "labrig.drivers"),
    }
    monkeypatch.setattr(instruments, "installed_drivers", lambda: points)


def spec(name: str, driver: str, link: str | None = "tcp://127.0.0.1:5", **fields: object) -> InstrumentSpec:
    return InstrumentSpec(f"source_meters.{name}", driver, link, **fields)  # type: ignore[arg-type]


def test_two_channels_of_one_instrument_get_one_link() -> None:
    built = build_instruments(
        [
            spec("a", "two-channels", settings={"channel": "a"}, ramp_v_per_s=3.0),
            spec("b", "two-channels", "visa://TCPIP0::localhost::5::SOCKET", settings={"channel": "b"}),
            spec("c", "two-channels", "tcp://127.0.0.1:6", settings={"channel": "a"}),
        ]
    )
    a, b, c = (built[f"source_meters.{name}"] for name in "abc")
    assert isinstance(a, TwoChannels)
    assert isinstance(b, TwoChannels)
    assert isinstance(c, TwoChannels)
    assert a.link is b.link is not c.link
    assert isinstance(a.link, SharedLink)
    assert not isinstance(c.link, SharedLink)
    assert (a.channel, b.channel, a.ramp_v_per_s, b.ramp_v_per_s) == ("a", "b", 3.0, None)


def test_the_same_channel_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"source_meters\.b\.settings: the same as .*say which channel"):
        build_instruments([spec("a", "two-channels"), spec("b", "two-channels")])


def test_addresses_are_found_in_the_settings_of_a_board_that_is_made_of_instruments() -> None:
    settings = {"word_source": {"link": "tcp://a:1"}, "bit_meters": [{"link": "tcp://b:1"}, {"link": "tcp://b:2"}]}
    board = InstrumentSpec("board", "bench-crossbar", settings={**settings, "read": {"max_v": 0.2}})
    assert board.addresses == {
        "board.word_source": "tcp://a:1",
        "board.bit_meters.0": "tcp://b:1",
        "board.bit_meters.1": "tcp://b:2",
    }
    assert spec("a", "old-style").addresses == {"a": "tcp://127.0.0.1:5"}
    assert InstrumentSpec("board", "mock-board", settings={"seed": 1}).addresses == {}


def test_a_driver_without_the_new_keywords_is_made_as_before() -> None:
    one = build_instruments([spec("old", "old-style", ramp_v_per_s=3.0)])["source_meters.old"]
    assert isinstance(one, OldStyle)
    assert one.name == "old"


def test_every_fault_comes_at_once_and_names_its_key() -> None:
    with pytest.raises(ConfigError) as caught:
        build_instruments(
            [
                spec("a", "moon"),
                spec("b", "broken"),
                spec("c", "old-style", None),
                spec("d", "old-style", "tcp://h"),
                spec("e", "old-style", settings={"channel": "a"}),
                spec("f", "old-style"),
                spec("g", "two-channels"),
                spec("h", "old-style"),
            ]
        )
    faults = dict(line.split(": ", 1) for line in str(caught.value).splitlines())
    assert list(faults) == [
        "source_meters.a.driver",
        "source_meters.b.driver",
        "source_meters.c.link",
        "source_meters.d.link",
        "source_meters.e.settings",
        "source_meters.g.link",
        "source_meters.h.link",
    ]
    assert "cannot be loaded" in faults["source_meters.b.driver"]
    assert "is the address of source_meters.f too" in faults["source_meters.h.link"]


@pytest.mark.parametrize(
    "spellings",
    [
        ["tcp://LOCALHOST:5025", "tcp://127.0.0.1:5025", "visa://TCPIP::localhost::5025::SOCKET", "tcp://[::1]:5025"],
        ["visa://GPIB::24", "visa://gpib0::24::INSTR"],
        ["visa://TCPIP::smu.lab", "visa://TCPIP0::SMU.lab::inst0::INSTR"],
        ["visa://USB::0x05E6::0x2450::0434::INSTR", "visa://USB0::0x05e6::0x2450::0434::0"],
        ["serial:///dev/null?baudrate=9600", "serial:///dev/../dev/null", "visa://ASRL/dev/null::INSTR"],
    ],
)
def test_spellings_of_one_address(spellings: list[str]) -> None:
    assert len({same_instrument(one) for one in spellings}) == 1


def test_different_addresses_stay_different() -> None:
    addresses = ["tcp://a:1", "tcp://a:2", "tcp://b:1", "visa://GPIB0::1", "visa://GPIB1::1", "visa://TCPIP::a::inst1"]
    addresses += ["visa://TCPIP::a", "serial:///dev/null", "serial:///dev/zero", "moon://a", "tcp://a:port"]
    assert len({same_instrument(one) for one in addresses}) == len(addresses)


def test_symbolic_names_of_a_port_are_one_port(tmp_path: Path) -> None:
    alias = tmp_path / "by-id"
    alias.symlink_to("/dev/null")
    assert same_instrument(f"serial://{alias}") == same_instrument("serial:///dev/null")
