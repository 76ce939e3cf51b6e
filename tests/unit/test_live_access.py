"""Who may see the live page, and who may let a run go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig.events import Alarm, Event, EventBus, Message
from labrig.live.access import Access, Attempts, Role, access_for, host_is_ours, is_loopback
from labrig.live.page import Address
from labrig.live.steering import ThisProgram
from labrig.run_control import RunControl
from labrig_drivers.errors import ConfigError

VIEWER, OWNER = "v" * 20, "o" * 20
KEYS = Access(OWNER, VIEWER)


def keys_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "keys.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_keys_and_the_cookies_made_of_them() -> None:
    assert KEYS.role_of_key(OWNER) is Role.OWNER
    assert KEYS.role_of_key(VIEWER) is Role.VIEWER
    for wrong in ("", "v", VIEWER + "v", OWNER[:-1], "ö" * 20, "\udc80"):
        assert KEYS.role_of_key(wrong) is Role.NOBODY
    for role in (Role.OWNER, Role.VIEWER):
        cookie = KEYS.cookie_of(role)
        assert KEYS.role_of_cookie(cookie) is role
        # The same keys after a restart make the same cookie; other keys do not.
        assert Access(OWNER, VIEWER).role_of_cookie(cookie) is role
        assert Access("p" * 20, "w" * 20).role_of_cookie(cookie) is Role.NOBODY
        assert VIEWER not in cookie
        assert OWNER not in cookie
    assert KEYS.role_of_cookie(None) is Role.NOBODY
    assert KEYS.role_of_cookie(VIEWER) is Role.NOBODY


def test_without_a_viewers_key_everybody_may_watch_and_only_the_owner_more() -> None:
    access = Access(OWNER)
    assert access.role_of_cookie(None) is Role.VIEWER
    assert access.role_of_cookie("nonsense") is Role.VIEWER
    assert access.role_of_cookie(access.cookie_of(Role.OWNER)) is Role.OWNER
    assert access.role_of_key("") is Role.NOBODY


@given(st.text(max_size=60))
def test_no_other_text_opens_anything(text: str) -> None:
    if text not in (VIEWER, OWNER):
        assert KEYS.role_of_key(text) is Role.NOBODY
    assert KEYS.role_of_cookie(text) is Role.NOBODY


def test_other_addresses_than_loopback_need_keys_or_the_word(tmp_path: Path) -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.3.2.1"):
        assert access_for(host, None).viewer is None
    for host in ("0.0.0.0", "::", "192.168.1.2", "bench.lab"):
        with pytest.raises(ConfigError, match="could stop the run: give a file with keys"):
            access_for(host, None)
        assert access_for(host, "open").viewer is None
        path = keys_file(tmp_path, f'viewer = "{VIEWER}"\nowner = "{OWNER}"\n')
        assert access_for(host, str(path)) == KEYS
    assert access_for("127.0.0.1", None).owner != access_for("127.0.0.1", None).owner


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", ["viewer is missing", "owner is missing"]),
        (f'viewer = "short"\nowner = "{OWNER}"\n', ["viewer has to be a text of 16 to 200 characters"]),
        (f'viewer = 5\nowner = "{OWNER}"\ncolour = 1\n', ["viewer has to be a text", "colour is not known"]),
        (f'viewer = "{OWNER}"\nowner = "{OWNER}"\n', ["have to be different"]),
        ("viewer = ", ["cannot be read"]),
    ],
)
def test_a_file_of_keys_that_cannot_be_used_is_refused_with_every_fault(
    tmp_path: Path, text: str, faults: list[str]
) -> None:
    path = keys_file(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        access_for("127.0.0.1", str(path))
    assert all(fault in str(error.value) for fault in [*faults, "keys.toml"])
    assert OWNER not in str(error.value)


def test_a_file_of_keys_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = keys_file(tmp_path, f'viewer = "{VIEWER}"\nowner = "{OWNER}"\n', mode=0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        access_for("127.0.0.1", str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        access_for("127.0.0.1", str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("header", "ours"),
    [
        ("127.0.0.1:8600", True),
        ("localhost:8600", True),
        ("[::1]:8600", True),
        ("[::1]", True),
        ("192.168.1.7", True),
        ("bench.lab:8600", True),
        ("evil.example:8600", False),
        ("127.0.0.1.evil.example:8600", False),
        ("", False),
    ],
)
def test_only_addresses_and_names_of_this_machine_are_served(header: str, *, ours: bool) -> None:
    assert host_is_ours(header, "bench.lab") is ours


@given(st.text(max_size=40))
def test_any_host_header_gets_an_answer(header: str) -> None:
    assert host_is_ours(header, "127.0.0.1") in (True, False)


def test_loopback() -> None:
    assert is_loopback("127.0.0.1")
    assert not is_loopback("10.0.0.1")
    assert not is_loopback("nonsense")


def test_many_wrong_keys_are_too_many() -> None:
    now_s = 0.0
    attempts = Attempts(most=3, clock=lambda: now_s)
    for _ in range(3):
        assert attempts.allowed()
        attempts.failed()
    assert not attempts.allowed()
    now_s = 61.0
    assert attempts.allowed()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8600", Address("127.0.0.1", 8600)),
        ("bench.lab", Address("bench.lab", None)),
        (":0", Address("127.0.0.1", 0)),
        ("[::1]:80", Address("::1", 80)),
        ("[::1]", Address("::1", None)),
        ("0.0.0.0:", Address("0.0.0.0", None)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert Address.parse(text) == address


@pytest.mark.parametrize("text", ["http://127.0.0.1:8600/", "127.0.0.1:99999", "127.0.0.1:x", "a b:1", "h:-1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no address to serve a page at"):
        Address.parse(text)


def test_everything_asked_of_a_run_is_said_with_who_asked() -> None:
    bus, heard, ended, control = EventBus(), list[Event](), list[int](), RunControl()
    bus.subscribe(heard.append)
    steering = ThisProgram(bus, "labrig sweep", control, lambda: ended.append(1))
    assert steering.can_pause
    steering.pause("Anna (viewer at 10.0.0.7)")
    assert control.paused
    steering.resume("Ben (owner at 10.0.0.8)")
    assert not control.paused
    steering.stop("Anna (viewer at 10.0.0.7)")
    assert ended == [1]
    assert isinstance(heard[0], Message)
    assert "Anna (viewer at 10.0.0.7)" in heard[0].text
    assert isinstance(heard[1], Message)
    assert "Ben (owner at 10.0.0.8)" in heard[1].text
    assert heard[2] == Alarm("STOP by Anna (viewer at 10.0.0.7): outputs are switched off, the run ends")
    assert "labrig sweep, process" in steering.lease().holder
    assert not ThisProgram(bus, "labrig train", None, lambda: None).can_pause
