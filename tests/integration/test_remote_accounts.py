"""Accounts, encryption and topics of a served rig; what is not safe is refused before anything listens."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from served_rig import MOCK, ServedRig, remote_rig, serving

from labrig.addresses import BrokerAddress
from labrig.boards.remote import RemoteBoard
from labrig.boards.remote_settings import remote_session
from labrig.config import parse_rig
from labrig.remote.direct import DirectSettings
from labrig.remote.direct_line import DirectLine
from labrig.remote.embedded import EmbeddedSettings, embedded_broker
from labrig.rig import open_rig
from labrig.telemetry.broker import Broker, connected
from labrig.testing.mosquitto import find_mosquitto, mosquitto
from labrig_drivers.errors import ConfigError, LinkLostError

TOPIC = "labrig/1/lab/bench"
RIG_CLIENT = "the-rig-itself"
PASSWORD = "not-in-any-file"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path_factory.mktemp("certificate")
    made, key = folder / "broker.pem", folder / "broker.key"
    subject = ["-subj", "/CN=broker", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", str(key), "-out", str(made)]
    subprocess.run([openssl, *new, *subject, *files], check=True, capture_output=True)
    return made, key


def using(address: object, account: str) -> str:
    """The rig file of a user with settings."""
    return remote_rig(address, "").replace("[safety]", f"[board.settings]\n{account}\n[safety]", 1)  # type: ignore[arg-type]


async def measures(rig_file: str) -> bool:
    async with open_rig(parse_rig(rig_file, Path("far.toml"))) as rig:
        await rig.board.program(0, np.full((12, 9), 2e-5))
        return len((await rig.board.mvm(0, np.full((4, 12), 0.1))).code) == 4


@pytest.fixture
def passwords(broker_folder: Path) -> Path:
    """The accounts of a bench and of a user."""
    program = find_mosquitto("mosquitto_passwd")
    assert program is not None
    made = broker_folder / "passwords"
    for name in ("rig", "user"):
        new = [] if made.exists() else ["-c"]
        subprocess.run([program, "-b", *new, str(made), name, PASSWORD], check=True, capture_output=True)
    return made


async def test_accounts_and_rules_of_mosquitto_as_the_guide_has_them(
    broker_folder: Path, passwords: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = broker_folder / "rules"
    guide = (Path(__file__).parents[2] / "docs" / "how-to" / "broker.md").read_text()
    rules.write_text(guide.split("```text title=rules\n")[1].split("```")[0])
    for file in (passwords, rules):
        file.chmod(0o600)
    monkeypatch.setenv("LABRIG_TEST_PW", PASSWORD)
    lines = ("allow_anonymous false", f"password_file {passwords}", f"acl_file {rules}")
    with mosquitto(broker_folder, *lines) as running:
        address = BrokerAddress("127.0.0.1", running.port, tls=False)
        async with serving(MOCK, Broker(address, "rig", PASSWORD)) as served:
            assert await measures(using(served.address, 'username = "user"\npassword_env = "LABRIG_TEST_PW"'))
            with pytest.raises(Exception, match="refuses: Not authorized; check account"):
                await measures(using(served.address, ""))
            # A user speaks for nobody but itself, and reads nobody's answers.
            async with connected(Broker(address, "user", PASSWORD), "eve", None, 5.0, 5) as client:
                await client.subscribe(f"{TOPIC}/reply/#", qos=1)
                await client.subscribe(f"{TOPIC}/state", qos=1)
                await client.publish(f"{TOPIC}/state", "lost", qos=1, retain=True)
                assert await measures(using(served.address, 'username = "user"\npassword_env = "LABRIG_TEST_PW"'))
                topics = {str((await anext(aiter(client.messages))).topic) for _ in range(len(client.messages))}
            assert topics == {f"{TOPIC}/state"}


async def test_account_rules_and_encryption_of_the_embedded_broker(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, key = certificate
    monkeypatch.setenv("LABRIG_TEST_PW", PASSWORD)
    settings = EmbeddedSettings(port=0, username="lab", password=PASSWORD, cert_file=made, key_file=key, ca_file=made)
    async with (
        embedded_broker(settings, TOPIC, RIG_CLIENT) as broker,
        serving(MOCK, broker, client_id=RIG_CLIENT) as served,
    ):
        assert str(served.address).startswith("mqtts://127.0.0.1:")
        account = f'username = "lab"\npassword_env = "LABRIG_TEST_PW"\nca_file = "{made}"'
        assert await measures(using(served.address, account))
        with pytest.raises(Exception, match="no encrypted connection"):
            await measures(using(served.address, 'username = "lab"\npassword_env = "LABRIG_TEST_PW"'))
        monkeypatch.setenv("LABRIG_TEST_PW", "wrong")
        with pytest.raises(Exception, match=r"refuses: (Not authorized|Bad user name or password)"):
            await measures(using(served.address, account))
        async with connected(broker, "eve", None, 5.0, 5) as client:
            await client.subscribe("labrig/#", qos=1)
            await client.publish(f"{TOPIC}/state", "lost", qos=1, retain=True)
            monkeypatch.setenv("LABRIG_TEST_PW", PASSWORD)
            assert await measures(using(served.address, account))
            heard = [await anext(aiter(client.messages)) for _ in range(len(client.messages))]
        kinds = {str(one.topic).removeprefix(f"{TOPIC}/").partition("/")[0] for one in heard}
        assert {"state", "info", "lease", "event"} <= kinds <= {"state", "info", "lease", "event", "telemetry"}
        assert all(one.payload != b"lost" for one in heard)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (EmbeddedSettings(host="0.0.0.0"), "let everybody in"),
        (EmbeddedSettings(host="0.0.0.0", username="a", password="b"), "in the clear"),
        (EmbeddedSettings(username="a"), "has no password"),
        (EmbeddedSettings(host="bench.lab"), "is no IP address"),
        (EmbeddedSettings(cert_file=Path("no.pem")), "a certificate needs its key"),
        (EmbeddedSettings(cert_file=Path("no.pem"), key_file=Path("no.key")), "cannot be used as a certificate"),
    ],
)
async def test_what_is_not_safe_never_listens(settings: EmbeddedSettings, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        async with embedded_broker(settings, TOPIC, RIG_CLIENT):
            pass


async def test_whoever_says_so_may_let_everybody_in() -> None:
    settings = EmbeddedSettings(host="0.0.0.0", port=0, let_everybody_in=True)
    async with embedded_broker(settings, TOPIC, RIG_CLIENT) as broker:
        assert broker.address.host == "127.0.0.1"
    async with embedded_broker(EmbeddedSettings(port=0), TOPIC, RIG_CLIENT) as broker:
        taken = EmbeddedSettings(port=broker.address.port)
        with pytest.raises(LinkLostError, match=r"cannot listen on 127\.0\.0\.1:.*in use"):
            async with embedded_broker(taken, TOPIC, RIG_CLIENT):
                pass


def serve(folder: Path, *options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "labrig", "serve", "rig.toml", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


def test_the_command_refuses_an_open_broker_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "rig.toml").write_text(MOCK)
    code, errors = serve(tmp_path, "--broker", "mqtt://192.0.2.1")
    assert (code, "no account is named" in errors, "--open-broker" in errors) == (2, True, True)
    code, errors = serve(tmp_path, "--broker", "embedded", "--listen", "0.0.0.0:0")
    assert (code, "let everybody in" in errors) == (2, True)


@pytest.mark.parametrize(
    ("address", "settings", "reasons"),
    [
        ("mqtt://h:1/lab", {}, ["expected mqtt://HOST:PORT/SITE/RIG"]),
        ("mqtt://u:secret@h:1/lab/bench", {}, ["user and password do not belong into the address"]),
        ("http://h/lab/bench", {}, ["is no address of a served rig"]),
        ("mqtt://h/lab/+", {}, ["expected mqtt://HOST:PORT/SITE/RIG"]),
        (
            "mqtt://h/lab/bench",
            {"pasword": "x", "password_env": "NO_SUCH_VARIABLE", "answer_s": -1, "ca_file": "no.pem"},
            ["pasword: unknown key", "NO_SUCH_VARIABLE", "answer_s: -1", "no.pem: there is no such file"],
        ),
    ],
)
def test_every_fault_of_a_rig_file_is_named_and_no_secret(
    address: str, settings: dict[str, object], reasons: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        remote_session(address, settings, "board")
    for reason in reasons:
        assert reason in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("answer", ["hangs up", "says nothing"])
async def test_a_broker_that_does_not_even_refuse_another_version(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from labrig.remote import connection, embedded_door

    monkeypatch.setattr(embedded_door, "_WRONG_VERSION", b"")
    monkeypatch.setattr(connection, "_FIRST_ANSWER_S", 0.5)
    if answer == "says nothing":
        first_bytes = embedded_door.first_bytes

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes | None:
            found = await first_bytes(reader, writer)
            if found is None:
                await reader.read()
            return found

        monkeypatch.setattr(embedded_door, "first_bytes", slow)
    async with (
        embedded_broker(EmbeddedSettings(port=0), TOPIC, RIG_CLIENT) as broker,
        serving(MOCK, broker, client_id=RIG_CLIENT) as served,
        served.board() as board,
    ):
        assert served.side.protocol == "3.1.1"
        assert board.info.rows == 12


async def test_a_silent_connection_does_not_hold_the_embedded_broker_up() -> None:
    async with embedded_broker(EmbeddedSettings(port=0), TOPIC, RIG_CLIENT) as broker:
        silent = [await asyncio.open_connection("127.0.0.1", broker.address.port) for _ in range(3)]
        reader, writer = silent[0]
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await reader.read() == b""
        async with serving(MOCK, broker, client_id=RIG_CLIENT) as served, served.board() as board:
            assert board.info.rows == 12
        for _, one in silent:
            one.close()
            await one.wait_closed()


async def test_encrypted_mosquitto_and_an_encrypted_direct_link(
    broker_folder: Path, certificate: tuple[Path, Path]
) -> None:
    made, key = certificate
    with mosquitto(broker_folder, "allow_anonymous true", f"certfile {made}", f"keyfile {key}") as running:
        broker = Broker(BrokerAddress("127.0.0.1", running.port, tls=True), ca_file=str(made))
        direct = DirectSettings(cert_file=made, key_file=key)
        async with serving(MOCK, broker, direct=direct) as served:
            assert await measures(using(served.address, f'ca_file = "{made}"'))
            session = served.session()
            async with RemoteBoard(session) as board:
                assert session.goes_direct
                await board.program(0, np.full((12, 9), 2e-5))
            # A certificate that is not trusted is no way in; the broker is.
            with pytest.raises(LinkLostError, match="no direct link"):
                await DirectLine(direct_url(served), "token", None, print, print).open()


def direct_url(served: ServedRig) -> str:
    return str(served.service._direct.offer()["direct"])  # type: ignore[union-attr]


def test_the_rig_file_of_the_page_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "remote.md").read_text(encoding="utf-8")
    monkeypatch.setenv("LABRIG_PASSWORD", PASSWORD)
    rig = open_rig(parse_rig(page.split("```toml\n")[1].split("```")[0], Path("rig.toml")))
    assert list(rig.source_meters) == ["supply"]
    board, supply = (rig._bare[name] for name in ("board", "supply"))
    # One connection and one lease for both.
    assert board._remote.session is supply._remote.session  # type: ignore[attr-defined]
    assert board._remote.session.address.rig == "bench"  # type: ignore[attr-defined]


def test_a_bench_that_serves_nothing_needs_neither_amqtt_nor_aiohttp() -> None:
    program = (
        "import sys; sys.modules['amqtt'] = sys.modules['aiohttp'] = None\n"
        "import labrig.boards.remote, labrig.boards.remote_source_meter, labrig.commands.serve, labrig.remote.serving\n"
        "import asyncio; from labrig.remote.embedded import EmbeddedSettings, embedded_broker\n"
        "async def main():\n"
        "    async with embedded_broker(EmbeddedSettings(), 'a', 'b'): pass\n"
        "asyncio.run(main())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "ConfigError: the embedded broker needs amqtt" in done.stderr
    assert "pip install 'labrig[remote]'" in done.stderr
