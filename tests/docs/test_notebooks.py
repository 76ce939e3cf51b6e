"""The notebooks run from their first cell to their last, and are kept without what they printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from page_examples import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def execute(notebook: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a notebook in a kernel of its own and stores it, with what it printed, in a folder."""
    program = (
        "import sys, nbformat; from nbclient import NotebookClient;"
        "book = nbformat.read(sys.argv[1], 4);"
        "NotebookClient(book, timeout=800, kernel_name='python3').execute();"
        "nbformat.write(book, sys.argv[2])"
    )
    command = [sys.executable, "-c", program, str(notebook), str(folder / notebook.name)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=900)


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.timeout(960)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    done = execute(notebook, tmp_path)
    assert done.returncode == 0, done.stderr
    code = code_cells(tmp_path / notebook.name)
    assert all(cell["outputs"] for cell in code if "print(" in "".join(cell["source"]))
    assert [out for cell in code for out in cell["outputs"] if out.get("name") == "stderr"] == []
    assert [path.name for path in tmp_path.iterdir()] == [notebook.name]


def test_the_main_jobs_have_one_each() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["1-measure-and-record", "2-calibrate", "3-train-and-evaluate"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_what_it_printed_is_not_kept(notebook: Path) -> None:
    code = code_cells(notebook)
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_a_notebook_that_is_wrong_fails(tmp_path: Path) -> None:
    book = json.loads(NOTEBOOKS[0].read_text())
    cell = next(cell for cell in book["cells"] if cell["cell_type"] == "code")
    (tmp_path / "wrong.ipynb").write_text(json.dumps({**book, "cells": [{**cell, "source": ["1 / 0"]}]}))
    (tmp_path / "run").mkdir()
    done = execute(tmp_path / "wrong.ipynb", tmp_path / "run")
    assert done.returncode != 0
    assert "ZeroDivisionError" in done.stderr
