"""The watch of `tests/conftest.py` really fails tests that leave something running, and only those."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

LEAKING_AND_CLEAN = """
import asyncio
import subprocess
import sys
import threading

import pytest

FOREVER = "import time; time.sleep(600)"
never_set = threading.Event()


def test_leaks_thread():
    threading.Thread(target=never_set.wait, name="left-over", daemon=True).start()


def test_leaks_child():
    keep.append(subprocess.Popen([sys.executable, "-c", FOREVER]))


def test_leaks_zombie():
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    child.stdout.read()
    child.stdout.close()
    keep.append(child)


keep = []


async def test_leaks_task():
    keep.append(asyncio.create_task(asyncio.sleep(600)))


@pytest.fixture
async def leaking_fixture():
    task = asyncio.create_task(asyncio.sleep(600))
    yield
    keep.append(task)


async def test_leaks_task_of_fixture(leaking_fixture):
    pass


@pytest.mark.asyncio(loop_scope="module")
async def test_shares_loop():
    pass


@pytest.fixture
async def clean_fixture():
    task = asyncio.create_task(asyncio.sleep(600))
    yield
    task.cancel()


async def test_clean_async(clean_fixture):
    await asyncio.to_thread(len, "abc")
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await child.wait()
    keep.append(asyncio.create_task(asyncio.sleep(0)))


def test_clean_sync():
    thread = threading.Thread(target=len, args=("abc",))
    thread.start()
    thread.join()
    subprocess.run([sys.executable, "-c", ""], check=True)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Runs the sample tests under a copy of the real conftest; maps each test to what was wrong with it."""
    folder = tmp_path_factory.mktemp("hygiene")
    shutil.copy(Path(__file__).parents[1] / "conftest.py", folder / "conftest.py")
    (folder / "test_sample.py").write_text(LEAKING_AND_CLEAN)
    (folder / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junit-xml=report.xml"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert run.returncode == 1, run.stdout + run.stderr
    found: dict[str, str] = {}
    for case in ET.parse(folder / "report.xml").iter("testcase"):
        faults = [fault.text or "" for kind in ("failure", "error") for fault in case.iter(kind)]
        # A test whose teardown fails has two entries: the passed call and the teardown's error.
        found[case.attrib["name"]] = found.get(case.attrib["name"], "") + "".join(faults)
    return found


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("test_leaks_thread", "thread 'left-over'"),
        ("test_leaks_child", "time.sleep(600)"),
        ("test_leaks_zombie", "ended, but nobody waited for it"),
        ("test_leaks_task", "task <coroutine object sleep"),
        ("test_leaks_task_of_fixture", "task <coroutine object sleep"),
        ("test_shares_loop", "event loop of its own"),
    ],
)
def test_leak_fails_its_test(outcomes: dict[str, str], test: str, message: str) -> None:
    assert message in outcomes[test]


@pytest.mark.parametrize("test", ["test_clean_async", "test_clean_sync"])
def test_clean_test_passes_beside_leaking_ones(outcomes: dict[str, str], test: str) -> None:
    assert outcomes[test] == ""
