"""Whether HDF5 itself opens a file, asked of another process: on some damaged files it crashes, on some it hangs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py

from labrig.recording.reader import Recording
from labrig_drivers.errors import LabrigError

_PATIENCE_S = 120.0


def refusal_of(path: Path) -> str:
    """Why HDF5, or labrig through it, does not open a file or comes not through all of it; empty where it does.

    Rows are not judged: the first and the last of each dataset are read.
    """
    command = [sys.executable, "-m", "labrig.recording.refusal", str(path)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        return f"HDF5 comes to no end with it in {_PATIENCE_S:.0f} s"
    if child.returncode < 0:
        return f"HDF5 crashes on it (signal {-child.returncode})"
    if child.returncode:
        return child.stdout.strip() or child.stderr.strip()[-300:] or f"ended with {child.returncode}"
    return ""


def refusal_here(path: Path) -> str:
    """The same in this process, for files that are known to be whole."""
    try:
        with Recording.open(path) as recording:
            recording.summary()
        with h5py.File(path, "r") as file:
            file.visititems(_touch)
    except (LabrigError, OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        return str(error)
    return ""


def _read(*_: object) -> None:
    """Values that only had to be readable."""


def _touch(_: str, node: h5py.Group | h5py.Dataset) -> None:
    for attribute in node.attrs:
        _read(node.attrs[attribute])
    if isinstance(node, h5py.Dataset):
        for axis in node.dims:
            list(axis.keys())
        if node.shape and node.shape[0]:
            _read(node[0], node[-1])
        elif not node.shape:
            _read(node[()])


if __name__ == "__main__":
    reason = refusal_here(Path(sys.argv[1]))
    print(reason)
    sys.exit(bool(reason))
