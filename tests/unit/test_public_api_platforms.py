"""What is left where Python lacks what only Linux, or only POSIX systems have; in processes from which it was taken."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import serial
from small_rig import RIG

from labrig.recording.disk import allocate
from labrig_drivers.errors import LinkLostError
from labrig_drivers.links import SerialLink
from labrig_drivers.links.stream import ReadablePoll

# Not there on macOS.
LINUX_ONLY = """
import os, sys
for name in ("posix_fallocate", "pidfd_open"):
    delattr(os, name)
"""
# Not there on Windows either. sys.modules says None where an import shall fail.
POSIX_ONLY = (
    LINUX_ONLY
    + """
import asyncio, select, signal, subprocess
for name in ("fcntl", "termios", "tty", "pty", "resource", "pwd", "grp"):
    sys.modules[name] = None
for name in (
    "O_CLOEXEC", "O_NOFOLLOW", "O_DIRECTORY", "pread", "preadv", "pwrite", "getuid", "openpty", "set_blocking",
):
    delattr(os, name)
for name in ("SIGALRM", "SIGHUP", "SIGTSTP", "pthread_sigmask"):
    delattr(signal, name)
del select.poll
"""
)


def run(folder: Path, program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rig.toml").write_text(RIG)
    return tmp_path


def test_a_sweep_runs_without_what_only_linux_has(folder: Path) -> None:
    program = f"""{LINUX_ONLY}
from labrig.cli import main
def labrig(*arguments):
    sys.argv = ["labrig", *arguments]
    try: main()
    except SystemExit as end: assert not end.code, (arguments, end.code)
labrig("check", "rig.toml")
labrig("sweep", "rig.toml", "--plan", "mvm", "--writes", "1", "-o", "run.h5")
labrig("verify", "run.h5")
"""
    run(folder, program)
    assert (folder / "run.h5").is_file()


def test_importing_and_the_mock_need_nothing_that_only_posix_has(folder: Path) -> None:
    (folder / "run.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    program = f"""{POSIX_ONLY}
import importlib
import numpy as np
import labrig, labrig_drivers, labrig_calibration, labrig_surrogates
for module in ("acquisition", "config", "plans", "recording", "rig", "export", "recording.recovery", "simulated"):
    importlib.import_module("labrig." + module)
for name in labrig_drivers.__all__:
    getattr(labrig_drivers, name)
for name in ("MvmDataset", "design_mvm_calibration"):
    getattr(labrig_calibration, name)

async def measure():
    async with labrig_drivers.MockBoard(labrig_drivers.ChipSettings(rows=4, columns=2)) as board:
        await board.program(0, np.full((4, 2), 2e-5))
        return (await board.mvm(0, np.full((3, 4), 0.1))).current_a
print(asyncio.run(measure()).shape)
config = labrig.load_rig("rig.toml")

def refused(what):
    try: what()
    except labrig.LabrigError as error: print(error)
    else: raise SystemExit("nothing was refused")
refused(lambda: labrig.Recording.open("run.h5"))
refused(lambda: labrig.verify_recording("run.h5").faults and labrig.recover_recording("run.h5"))
plan = labrig.MvmCalibrationPlan(writes=1)
refused(lambda: asyncio.run(labrig.run_sweep(config, plan, "new.h5", labrig.EventBus())))
from labrig_drivers.mock.ports import PtyPort
refused(PtyPort)
"""
    shape, *refusals = run(folder, program).splitlines()
    assert shape == "(3, 2)"
    assert len(refusals) == 4
    assert all("Linux or macOS" in text and "WSL 2" in text for text in refusals), refusals
    assert not (folder / "new.h5").exists()


def test_a_full_disk_shows_without_fallocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    descriptor = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    try:
        allocate(descriptor, 0, 1000)
        with pytest.raises(OSError, match="No space") as caught:
            allocate(descriptor, 0, 2**62)
    finally:
        os.close(descriptor)
    assert caught.value.errno == errno.ENOSPC


def test_a_socket_is_watched_without_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "poll")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        watched = ReadablePoll(ours.fileno())
        assert not watched.readable()
        theirs.send(b"x")
        assert watched.readable()


async def test_a_serial_port_without_a_descriptor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serial, "Serial", type("Serial", (), {}))
    with pytest.raises(LinkLostError, match="visa://ASRL3"):
        await SerialLink("COM3").open()
