"""One owner at a time: whoever comes second is told who came first, and no lock outlives its process."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from labrig.config import RigConfig, parse_rig
from labrig.rig import RigError, open_rig
from labrig.rig_lock import Holder, RigLock
from labrig_drivers.errors import StateError, StorageError

HOLDER = """
import sys, time
from pathlib import Path
from labrig.rig_lock import RigLock
lock = RigLock({"supply": "tcp://127.0.0.1:5", "board": "tcp://127.0.0.1:6"}, folder=Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""

TAKER = """
import sys
from pathlib import Path
from labrig.rig_lock import RigLock
from labrig_drivers.errors import StateError
for _ in range(200):
    lock = RigLock({"b": "tcp://h:2", "a": "tcp://h:1"}, folder=Path(sys.argv[1]))
    try:
        lock.acquire()
    except StateError:
        continue
    marker = Path(sys.argv[2])
    marker.open("x").close()
    marker.unlink()
    lock.release()
"""

RIG = """\
[rig]
name = "bench"
[board]
driver = "wire-board"
link = "tcp://127.0.0.1:1"
[source_meters.{name}]
driver = "keithley2400"
link = "visa://TCPIP::127.0.0.1::2::SOCKET"
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 10.0
max_read_voltage_v = 0.25
"""


def holder(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", HOLDER, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_the_second_is_told_who_holds_what_and_the_kernel_frees_it(tmp_path: Path) -> None:
    folder = tmp_path / "locks"
    with holder(folder) as first:
        mine = RigLock({"meter": "visa://TCPIP::LOCALHOST::5::SOCKET", "free": "tcp://127.0.0.1:7"}, "rig x", folder)
        with pytest.raises(StateError) as caught:
            mine.acquire()
        head, only = str(caught.value).splitlines()
        assert head.startswith("rig x: 1 of 2 addresses are in use, nothing was opened")
        me = Holder.this_process()
        assert only.startswith(f"  meter (tcp://127.0.0.1:5): held by {me.user} on {me.host}, process {first.pid} (")
        assert "labrig.rig_lock" in only
        assert ", since 2" in only
        # All or nothing: what was free is free still.
        other = RigLock({"free": "tcp://127.0.0.1:7"}, folder=folder)
        other.acquire()
        other.release()
        first.send_signal(signal.SIGKILL)
        first.wait()
    mine.acquire()
    assert len(mine.descriptors) == 2
    mine.release()
    mine.release()


def test_two_that_come_at_the_same_time_never_both_get_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TAKER, str(tmp_path / "locks"), str(tmp_path / "marker")]
    racers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [racer.communicate(timeout=60)[1] for racer in racers]
    assert errors == ["", ""]


def test_this_program_itself_cannot_open_a_rig_twice(tmp_path: Path) -> None:
    first = RigLock({"supply": "tcp://127.0.0.1:5"}, folder=tmp_path / "locks")
    first.acquire()
    try:
        with pytest.raises(StateError, match="this program itself has opened it already"):
            RigLock({"supply": "tcp://127.0.0.1:5"}, folder=tmp_path / "locks").acquire()
        with pytest.raises(StateError, match="is open already"):
            first.acquire()
        assert len(first.descriptors) == 1
    finally:
        first.release()


def test_the_files_are_for_everybody_and_do_not_reach_children(tmp_path: Path) -> None:
    folder = tmp_path / "locks"
    lock = RigLock({"supply": "tcp://127.0.0.1:5"}, folder=folder)
    before = os.umask(0o077)
    try:
        lock.acquire()
    finally:
        os.umask(before)
    (file,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    assert stat.S_IMODE(file.stat().st_mode) == 0o666
    assert [os.get_inheritable(descriptor) for descriptor in lock.descriptors] == [False]
    lock.release()


def test_a_link_in_place_of_folder_or_file_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (tmp_path / "locks").symlink_to(victim)
    lock = RigLock({"supply": "tcp://127.0.0.1:5"}, folder=tmp_path / "locks")
    with pytest.raises(StorageError, match="no link"):
        lock.acquire()
    assert list(victim.iterdir()) == []
    folder = tmp_path / "real"
    lock = RigLock({"supply": "tcp://127.0.0.1:5"}, folder=folder)
    lock.acquire()
    lock.release()
    (file,) = folder.iterdir()
    file.unlink()
    precious = tmp_path / "precious"
    precious.write_text("keep")
    file.symlink_to(precious)
    with pytest.raises(StorageError):
        lock.acquire()
    assert precious.read_text() == "keep"


def test_an_entry_that_nobody_can_read_still_counts(tmp_path: Path) -> None:
    folder = tmp_path / "locks"
    first = RigLock({"supply": "tcp://127.0.0.1:5"}, folder=folder)
    first.acquire()
    (file,) = folder.iterdir()
    file.write_text("{")
    with pytest.raises(StateError, match="has not written yet who it is"):
        RigLock({"supply": "tcp://127.0.0.1:5"}, folder=folder).acquire()
    first.release()


def config(name: str) -> RigConfig:
    return parse_rig(RIG.format(name=name), Path(f"{name}.toml"), drivers={"wire-board", "keithley2400"})


async def test_a_rig_takes_its_locks_before_it_connects_and_frees_them_when_it_fails(tmp_path: Path) -> None:
    taken = RigLock({"other": "tcp://127.0.0.1:2"}, folder=tmp_path)
    taken.acquire()
    rig = open_rig(config("supply"), lock_folder=tmp_path)
    with pytest.raises(StateError, match=r"rig 'bench' \(supply\.toml\): 1 of 2 addresses are in use"):
        await rig.open()
    taken.release()
    # Nobody listens there, so opening fails now at the instruments, and lets go.
    for _ in range(2):
        with pytest.raises(RigError, match="2 of 2 instruments could not be opened"):
            await rig.open()
    taken.acquire()
    taken.release()
