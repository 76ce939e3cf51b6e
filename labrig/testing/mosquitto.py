"""A real MQTT broker for tests: mosquitto as a child process on a free port, to be killed, frozen and restarted."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_STARTING_S = 10.0
_FOLDERS = ("/usr/sbin", "/usr/local/sbin")


def find_mosquitto(program: str = "mosquitto") -> str | None:
    """The path of mosquitto, or of a program that comes with it; None where it is not installed."""
    # The system's folders are not on the PATH of every user.
    return shutil.which(program) or shutil.which(program, path=os.pathsep.join(_FOLDERS))


@dataclass
class Mosquitto:
    """One broker, on the same port each time that it starts.

    Attributes:
        folder: Its configuration and log.
        port: Its port on 127.0.0.1.
        lines: Lines of its configuration besides the listener.
    """

    folder: Path
    port: int
    lines: tuple[str, ...] = ("allow_anonymous true",)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._running().pid

    def start(self) -> None:
        """Starts it, and returns when it listens.

        Raises:
            RuntimeError: mosquitto is not installed, or ended at once.
        """
        program = find_mosquitto()
        if program is None:
            raise RuntimeError("mosquitto is not installed; apt-get install mosquitto")
        # Started by root it would become another user, who may not read the folder.
        user = ["user root"] if os.geteuid() == 0 else []
        settings = [f"listener {self.port} 127.0.0.1", "set_tcp_nodelay true", "persistence false", *user, *self.lines]
        configuration = self.folder / "mosquitto.conf"
        configuration.write_text("\n".join(settings) + "\n")
        with (self.folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen([program, "-c", str(configuration)], stdout=log, stderr=log)
        deadline_s = time.monotonic() + _STARTING_S
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.kill()
                raise RuntimeError(f"mosquitto did not start: {(self.folder / 'mosquitto.log').read_text()[-500:]}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Ends it as its system would."""
        self._running().terminate()
        self._running().wait(_STARTING_S)
        self._process = None

    def kill(self) -> None:
        """Ends it at once, also a frozen one; harmless when it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_STARTING_S)
            self._process = None

    def freeze(self) -> None:
        """Stops its process: connections stay, and connections are still made, but nothing is answered."""
        self._running().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets it go on."""
        self._running().send_signal(signal.SIGCONT)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
        except OSError:
            return False
        return True

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the broker does not run")
        return self._process


@dataclass(frozen=True)
class Heard:
    """A message as mosquitto's own client got it.

    Attributes:
        topic: Its topic.
        qos: How it was delivered.
        retained: Whether the broker had kept it from before.
        payload: Its content.
    """

    topic: str
    qos: int
    retained: bool
    payload: str


@dataclass(frozen=True)
class Subscriber:
    """A `mosquitto_sub` that listens.

    Attributes:
        output: What it printed.
    """

    output: Path

    def heard(self) -> list[Heard]:
        """Everything so far."""
        whole, newline, _ = self.output.read_text(encoding="utf-8").rpartition("\n")
        lines = [line.split("\t", 3) for line in whole.split("\n")] if newline else []
        return [Heard(topic, int(qos), kept == "1", text) for topic, qos, kept, text in lines if topic[0] != "$"]

    def wait_for(self, found: Callable[[list[Heard]], bool], seconds: float = 20.0) -> list[Heard]:
        """Everything so far, as soon as `found` is true of it.

        Raises:
            TimeoutError: It did not become true; the message shows what was heard.
        """
        deadline_s = time.monotonic() + seconds
        while not found(heard := self.heard()):
            if time.monotonic() > deadline_s:
                raise TimeoutError("heard only: " + "; ".join(f"{one.topic} {one.payload[:80]}" for one in heard[-20:]))
            time.sleep(0.01)
        return heard


@contextmanager
def subscribed(broker: Mosquitto, *options: str) -> Iterator[Subscriber]:
    """Listens to everything under `labrig/`; entered when the broker has agreed.

    Args:
        broker: The broker.
        options: Options of mosquitto_sub, such as an account.

    Raises:
        RuntimeError: mosquitto_sub is not installed, or cannot connect.
    """
    program = find_mosquitto("mosquitto_sub")
    if program is None:
        raise RuntimeError("mosquitto_sub is not installed; apt-get install mosquitto-clients")
    output = Path(tempfile.mkstemp(prefix="heard-", suffix=".txt", dir=broker.folder)[1])
    # The broker's own retained topic shows that the subscription holds.
    topics = ("-t", "$SYS/broker/version", "-t", "labrig/#")
    address = ("-h", "127.0.0.1", "-p", str(broker.port))
    with output.open("wb") as lines:
        command = [program, *address, *topics, "-q", "1", "-F", "%t\t%q\t%r\t%p", *options]
        process = subprocess.Popen(command, stdout=lines, stderr=lines)
    try:
        deadline_s = time.monotonic() + _STARTING_S
        while "$SYS/broker/version" not in output.read_text():
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"mosquitto_sub did not connect: {output.read_text()}")
            time.sleep(0.01)
        yield Subscriber(output)
    finally:
        process.kill()
        process.wait(_STARTING_S)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def mosquitto(folder: Path, *lines: str) -> Iterator[Mosquitto]:
    """A broker that ends with the block.

    Args:
        folder: An empty folder for its files.
        lines: Lines of its configuration, such as a password file; without any, everybody may connect.

    Raises:
        RuntimeError: mosquitto is not installed, or did not start.
    """
    broker = Mosquitto(folder, free_port(), lines or ("allow_anonymous true",))
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()
