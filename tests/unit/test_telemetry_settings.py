"""The section [telemetry]: what is refused, where secrets come from, and where they never go."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig.addresses import BrokerAddress, broker_address
from labrig.config import RigConfig, parse_rig
from labrig.telemetry.settings import telemetry_settings
from labrig_drivers.errors import ConfigError

RIG = """\
[rig]
name = "bench 1"

[board]
driver = "mock-board"

[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 10.0
max_read_voltage_v = 0.5
"""
TELEMETRY = """
[telemetry]
broker = "mqtt://broker.lab"
site = "hall-2"
username = "bench"
password_env = "LABRIG_TEST_PASSWORD"
max_rate_hz = 2.0
"""
SECRET = "only the broker may know"


def rig(text: str) -> RigConfig:
    return parse_rig(text, Path("rig.toml"), drivers={"mock-board"})


@pytest.mark.parametrize(
    ("url", "address", "text"),
    [
        ("mqtt://broker.lab", BrokerAddress("broker.lab", 1883, tls=False), "mqtt://broker.lab:1883"),
        ("mqtts://Broker:1/", BrokerAddress("broker", 1, tls=True), "mqtts://broker:1"),
        ("mqtt://[::1]:1884", BrokerAddress("::1", 1884, tls=False), "mqtt://[::1]:1884"),
    ],
)
def test_broker_address(url: str, address: BrokerAddress, text: str) -> None:
    assert broker_address(url) == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("broker.lab:1883", "expected mqtt://HOST:PORT"),
        ("http://broker", "expected mqtt://HOST:PORT"),
        ("mqtt://", "the host is missing"),
        ("mqtt://a b", "the host is missing"),
        ("mqtt://broker:0", "port 0"),
        ("mqtt://broker:99999", "not an address"),
        ("mqtt://broker/topic", "nothing may follow host and port"),
        (f"mqtt://bench:{SECRET}@broker", "user and password do not belong into the address"),
    ],
)
def test_no_broker_address(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        broker_address(url)
    assert SECRET not in str(caught.value)


@given(st.text())
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    for url in (text, f"mqtt://{text}", f"mqtts://{text}"):
        try:
            address = broker_address(url)
        except ValueError:
            continue
        assert broker_address(str(address)) == address


def test_section_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABRIG_TEST_PASSWORD", SECRET)
    config = rig(RIG + TELEMETRY)
    settings = telemetry_settings(config)
    assert settings is not None
    assert settings.broker.address == BrokerAddress("broker.lab", 1883, tls=False)
    assert (settings.broker.username, settings.broker.password) == ("bench", SECRET)
    assert settings.topic == "labrig/1/hall-2/bench-1"
    assert settings.pace.max_rate_hz == 2.0
    # A rig file is repeated by every recording, and objects end up in messages.
    assert SECRET not in config.source_text + repr(config) + repr(settings)


def test_password_file_is_read_without_its_line_end(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(SECRET + "\n")
    settings = telemetry_settings(
        rig(RIG + TELEMETRY.replace("env", "file").replace("LABRIG_TEST_PASSWORD", str(file)))
    )
    assert settings is not None
    assert settings.broker.password == SECRET


def test_url_of_the_command_line_takes_the_place_of_the_broker_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABRIG_TEST_PASSWORD", SECRET)
    settings = telemetry_settings(rig(RIG + TELEMETRY), "mqtt://desk:1")
    assert settings is not None
    assert settings.broker.address == BrokerAddress("desk", 1, tls=False)
    assert (settings.topic, settings.broker.username) == ("labrig/1/hall-2/bench-1", "bench")
    alone = telemetry_settings(rig(RIG), "mqtt://desk:1")
    assert alone is not None
    assert (alone.topic, alone.broker.username) == ("labrig/1/lab/bench-1", None)
    assert telemetry_settings(rig(RIG)) is None


def test_everything_that_cannot_be_had_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABRIG_TEST_PASSWORD", raising=False)
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    with pytest.raises(ConfigError) as caught:
        telemetry_settings(rig(RIG + TELEMETRY.replace("mqtt:", "mqtts:") + f'ca_file = "{empty}"'), "mqtts://a:b@c")
    lines = str(caught.value).splitlines()
    assert lines == [
        "--mqtt: user and password do not belong into the address, which recordings and process lists show; use "
        "username with password_file or password_env in the section [telemetry]",
        "rig.toml:18: telemetry.password_env: LABRIG_TEST_PASSWORD: the environment variable is not set, or empty",
    ]
    with pytest.raises(ConfigError) as caught:
        telemetry_settings(rig(RIG + TELEMETRY.replace("mqtt:", "mqtts:") + f'ca_file = "{empty}"'))
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[1].startswith(f"rig.toml:20: telemetry.ca_file: {empty}: ")


@pytest.mark.parametrize("content", [None, b"", b"\xff"])
def test_unusable_password_file(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"rig.toml:18: telemetry.password_file: {file}: "):
        telemetry_settings(rig(RIG + TELEMETRY.replace("env", "file").replace("LABRIG_TEST_PASSWORD", str(file))))


@pytest.mark.parametrize(
    ("old", "new", "faults"),
    [
        ("mqtt://broker.lab", "tcp://broker.lab", ["rig.toml:15: telemetry.broker: must be mqtt://HOST:PORT or"]),
        ("mqtt://broker.lab", "mqtt://a/b", ["rig.toml:15: telemetry.broker: nothing may follow host and port"]),
        (
            'password_env = "LABRIG_TEST_PASSWORD"',
            f'password = "{SECRET}"',
            [
                "rig.toml:18: telemetry.password: a rig file holds no password, since every recording repeats it",
                "rig.toml:18: telemetry.password: unknown key; did you mean password_",
            ],
        ),
        (
            'username = "bench"',
            'password_file = "secret.txt"',
            [
                "rig.toml:18: telemetry.password_env: the password comes from one place",
                "rig.toml:14: telemetry.username: is missing; password_file needs it",
            ],
        ),
        (
            "max_rate_hz = 2.0",
            'max_rate_hz = 0.0\nca_file = "ca.pem"',
            [
                "rig.toml:19: telemetry.max_rate_hz: is 0, must be above 0",
                "rig.toml:20: telemetry.ca_file: certificates are for mqtts:// brokers",
            ],
        ),
        ('broker = "mqtt://broker.lab"', "", ["rig.toml:14: telemetry.broker: is missing"]),
        ("LABRIG_TEST_PASSWORD", "my pass word", ["rig.toml:18: telemetry.password_env: must be the name of an"]),
    ],
)
def test_fault_of_the_section(old: str, new: str, faults: list[str]) -> None:
    assert old in TELEMETRY
    with pytest.raises(ConfigError) as caught:
        rig(RIG + TELEMETRY.replace(old, new))
    message = str(caught.value)
    assert SECRET not in message
    assert "my pass word" not in message
    assert len(message.splitlines()) == len(faults)
    for fault in faults:
        assert fault in message
