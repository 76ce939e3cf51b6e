"""What every test gets: nothing may be left running after it, and a folder with real data where there is one.

A test that leaves a thread, an asyncio task or a child process behind fails, whatever else it asserted: on a
bench such a leftover is an output that nobody switches off. It is ended here: only its own test fails.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

import hypothesis
import numpy as np
import pytest

from labrig.testing.mosquitto import Mosquitto, find_mosquitto, mosquitto

Leftover = TypeVar("Leftover")

# Before anything imports torch or numpy's linear algebra: the tests' matrices are small, and threads that wait for a
# core which another process holds make them ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# A shell that starts the tests in the background may leave Ctrl-C ignored, here and in every program they start; what
# they ask about Ctrl-C has to be heard.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What a test asserts is no time: one that takes long on a busy machine is not wrong.
hypothesis.settings.register_profile("labrig", deadline=None)
hypothesis.settings.load_profile("labrig")

GRACE_S = 1.0
"""How long something that is already ending may take; a real leftover stays for ever."""


def pytest_collection_finish() -> None:
    """Puts aside what the tests' modules imported: each garbage collection would look through it."""
    gc.collect()
    gc.freeze()


def _child_pids() -> set[int]:
    """Process ids of this process's children, ended but unreaped ones included."""
    # Reaps the multiprocessing children that have ended and were joined by nobody.
    multiprocessing.active_children()
    pids: set[int] = set()
    for listing in Path("/proc/self/task").glob("*/children"):
        try:
            pids.update(int(pid) for pid in listing.read_text().split())
        except FileNotFoundError:  # the thread ended between the listing and the read
            continue
    return {pid for pid in pids if "resource_tracker" not in _command_line(pid)}


def _command_line(pid: int) -> str:
    """Command line of a process, empty for one that has ended (as for every zombie)."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _python_threads() -> set[threading.Thread]:
    """Living threads that Python started; "Dummy" ones are native threads that once called into Python."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("Dummy-")}


def _after_grace(find: Callable[[], set[Leftover]]) -> set[Leftover]:
    """What `find` still finds once the grace time is over, or an empty set as soon as it finds nothing."""
    deadline = time.monotonic() + GRACE_S
    while (leftover := find()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return leftover


def _end_child(pid: int) -> str:
    """Ends and reaps one child of this process; returns what it was."""
    what = f"{pid} ({_command_line(pid) or 'ended, but nobody waited for it'})"
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
    return what


@pytest.fixture(autouse=True)
def no_leaked_threads_or_processes() -> Iterator[None]:
    """Fails a test that leaves a thread or a child process behind."""
    threads_before = _python_threads()
    children_before = _child_pids()
    yield
    threads = _after_grace(lambda: _python_threads() - threads_before)
    children = _after_grace(lambda: _child_pids() - children_before)
    faults = [f"thread {thread.name!r}" for thread in threads]
    faults += [f"child process {_end_child(pid)}" for pid in sorted(children)]
    if faults:
        pytest.fail("the test left behind: " + ", ".join(faults))


@pytest.fixture(autouse=True)
def no_leaked_tasks(request: pytest.FixtureRequest, no_leaked_threads_or_processes: None) -> None:
    """Fails an async test that leaves a task behind.

    The watch has to live inside the test's event loop: closing the loop would cancel a leftover and hide it.
    It asks for the thread watch first, so that threads are counted after the loop has ended its executor.
    """
    marker = request.node.get_closest_marker("asyncio")
    if marker is None:
        return
    if marker.kwargs.get("loop_scope", "function") != "function":
        pytest.fail("each test has an event loop of its own: a shared one would hide leaked tasks")
    request.getfixturevalue("_watch_tasks")


@pytest.fixture
async def _watch_tasks() -> AsyncIterator[None]:
    """Set up before and torn down after every other async fixture of the test."""
    before = asyncio.all_tasks()
    yield
    # Set-up and teardown of an async fixture run in different tasks.
    expected = before | {asyncio.current_task()}
    if ending := asyncio.all_tasks() - expected:
        await asyncio.wait(ending, timeout=GRACE_S)
    leaked = asyncio.all_tasks() - expected
    for task in leaked:
        task.cancel()
    await asyncio.gather(*leaked, return_exceptions=True)
    if leaked:
        pytest.fail("the test left behind: " + ", ".join(f"task {task.get_coro()!r}" for task in leaked))


def unavailable(what: str, reason: str) -> NoReturn:
    """Skips a test that needs `what`, or fails it where `LABRIG_REQUIRE` (names with commas between) asks for it."""
    if what in os.environ.get("LABRIG_REQUIRE", "").split(","):
        pytest.fail(f"{reason}, and LABRIG_REQUIRE asks for {what}")
    pytest.skip(f"needs {what}: {reason}")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Debian's browser; skips where it or the package that drives it is not installed."""
    found = shutil.which("chromium")
    if found is None or importlib.util.find_spec("playwright") is None:
        unavailable("browser", "chromium (apt-get install chromium) or playwright (pip) is not installed")
    return found


@pytest.fixture
def broker_folder(tmp_path: Path) -> Path:
    """A folder for a broker's files; skips where mosquitto and its clients are not installed."""
    missing = [name for name in ("mosquitto", "mosquitto_sub", "mosquitto_passwd") if find_mosquitto(name) is None]
    if missing:
        unavailable("broker", f"{', '.join(missing)} not installed (apt-get install mosquitto mosquitto-clients)")
    folder = tmp_path / "broker"
    folder.mkdir()
    return folder


@pytest.fixture
def broker(broker_folder: Path) -> Iterator[Mosquitto]:
    """A real MQTT broker of the test's own, open to everybody."""
    with mosquitto(broker_folder) as running:
        yield running


@pytest.fixture(scope="session")
def record() -> Callable[..., Path]:
    """Makes a recording of random numbers: `record(path, seed, blocks={0: [[8, 3], [5]]}, supply=4)`.

    `blocks` gives for each array the writes, and for each write the MVMs of its blocks. With `finish=False` it ends as
    if the writer had died: nothing is trimmed.
    """
    from labrig.plans import StreamCapacity
    from labrig.recording import RecordingHeader, RecordingWriter
    from labrig_drivers.crossbar import BoardInfo, MvmResult, ProgramReport
    from labrig_drivers.instrument import Identity
    from labrig_drivers.source_meter import Reading

    def make(
        path: Path,
        seed: int = 0,
        *,
        blocks: dict[int, list[list[int]]] | None = None,
        supply: int = 0,
        rows: int = 5,
        columns: int = 3,
        finish: bool = True,
    ) -> Path:
        blocks = {0: [[8, 3], [5]]} if blocks is None else blocks
        rng = np.random.default_rng(seed)
        full_scale_a = tuple(rng.uniform(1e-5, 1e-4, columns).tolist())
        info = BoardInfo("SIM-7", 2, rows, columns, 4e-6, 5e-5, -0.3, 0.3, 8, 10, full_scale_a, 1e-5, 5e-3)
        header = RecordingHeader(
            rig_name="bench",
            rig_toml='[rig]\nname = "bench" # µ\n',
            plan={"name": "mvm", "seed": seed},
            identities={"board": Identity("labrig", "LR-SIM1", "SIM-7", "1.0")},
            settings={"board": {"driver": "mock-board"}},
            started_utc="2026-01-01T00:00:00.000000+00:00",
            versions={"labrig": "0"},
        )
        capacity = {array: StreamCapacity(rows=500, writes=4, blocks=20) for array in blocks}

        async def write() -> None:
            writer = await RecordingWriter.create(path, header, info, capacity, supply_capacity=10)
            try:
                clock_s = 1.0
                for array, writes in blocks.items():
                    for number, batches in enumerate(writes):
                        target_s = rng.uniform(4e-6, 5e-5, (rows, columns))
                        await writer.append_write(array, target_s, ProgramReport(number, clock_s, 7, 1e-7))
                        for batch in batches:
                            code = rng.integers(-512, 512, (batch, columns)).astype(np.int16)
                            time_s = clock_s + rng.uniform(1e-6, 1e-3, batch).cumsum()
                            clock_s = float(time_s[-1])
                            result = MvmResult(code, code * info.adc_lsb_a, code == 511, time_s, number)
                            voltage_v = rng.uniform(-0.3, 0.3, (batch, rows))
                            kind = int(rng.integers(0, 8))
                            await writer.append_mvms(array, kind, voltage_v, result, rng.bytes(16).hex())
                for second in range(supply):
                    await writer.append_supply(
                        Reading(2.0, rng.uniform(0.0, 0.1), in_compliance=second == 2, time_s=1e9 + second / 3)
                    )
            finally:
                if not finish:
                    shutil.copy(path, path.with_suffix(".running"))
                await writer.close()

        asyncio.run(write())
        if not finish:
            path.with_suffix(".running").replace(path)
        return path

    return make


@pytest.fixture
def data_dir() -> Path:
    """Folder of the real data sets: `LABRIG_DATA`, or `../shared/data` beside the checkout; else skips."""
    named = os.environ.get("LABRIG_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data sets in {folder}; set LABRIG_DATA to their folder")
    return folder
