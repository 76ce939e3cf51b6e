"""The verbs of every day on a rig that `labrig serve --broker embedded` offers: check, sweep, calibrate, train."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from labrig import Recording, shipped_rig
from labrig.cli import main

TRAINING = """
[run]
folder = "{folder}"
seed = 3

[chip]
rig = "{rig}.toml"
calibration = "chip.safetensors"

[training]
method = "in-loop"
hidden = 10
digital_steps = 100
surrogate_steps = 50
in_loop_cycles = 2
surrogate_steps_per_cycle = 2

[evaluation]
writes = 1
"""

Cli = Callable[..., str]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs `labrig ...` in this process, which has to end well; returns what it prints."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["labrig", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        assert not caught.value.code, captured.err
        return captured.out

    return run


@contextmanager
def served(rig_file: Path) -> Iterator[str]:
    """Serves a rig in a program of its own; gives the line for rig files of users."""
    command = [sys.executable, "-m", "labrig", "serve", str(rig_file), "--broker", "embedded"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, "--listen", "127.0.0.1:0"], stdout=pipe, stderr=pipe, text=True) as program:
        assert program.stdout is not None
        try:
            lines = iter(program.stdout.readline, "")
            link = next(line.strip() for line in lines if "link = " in line)
            assert any("is connected" in line for line in lines)
            yield link
        finally:
            program.send_signal(signal.SIGINT)
            _, errors = program.communicate(timeout=30)
        assert (program.returncode, errors) == (130, "labrig: stopped; outputs are off and files are closed\n")


def test_every_verb_works_from_afar_and_training_gives_the_same_network(cli: Cli, tmp_path: Path) -> None:
    here = tmp_path / "here.toml"
    here.write_text(shipped_rig("mock").read_text().replace("seed = 1\n", "seed = 1\ncolumns = 20\n"))
    far = tmp_path / "far.toml"

    def user(link: str) -> None:
        shipped = shipped_rig("remote").read_text().splitlines()
        lines = [link if line.startswith("link = ") else line for line in shipped]
        far.write_text("\n".join(lines) + "\n")

    with served(here) as link:
        user(link)
        told = cli("check", far)
        assert "SIM-0001" in told
        assert "board: itself, after 10 s without the host (the rig makes its instruments safe" in told
        cli("sweep", far, "--plan", "mvm", "-o", tmp_path / "far.h5", "--writes", "2")
    cli("calibrate", tmp_path / "far.h5", "-o", tmp_path / "chip.safetensors")
    with Recording.open(tmp_path / "far.h5") as recording:
        assert recording.status == "finished"
    # A chip that nobody has used, as the one in this process is.
    with served(here) as link:
        user(link)
        for rig in ("far", "here"):
            (tmp_path / f"train-{rig}.toml").write_text(TRAINING.format(folder=f"run-{rig}", rig=rig))
            cli("train", tmp_path / f"train-{rig}.toml")
    networks = [load_file(tmp_path / f"run-{rig}" / "network.safetensors") for rig in ("far", "here")]
    for name, value in networks[0].items():
        np.testing.assert_array_equal(value, networks[1][name])
    assert json.loads((tmp_path / "run-far" / "run.json").read_text())["ledger"]["passes"] == 2
