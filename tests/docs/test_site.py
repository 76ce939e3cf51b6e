"""The site builds without a warning, and its reference has every promised name and nothing private."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from page_examples import ROOT
from sphinx.util.inventory import InventoryFile

from api_text import PACKAGES, api_text
from command_text import command_text
from docstring_markup import as_restructured_text
from generated_pages import fill_in
from labrig.cli import VERBS
from linked_contents import contents_of
from schema_text import SCHEMAS, schema_text


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Builds a site with labrig's configuration; notebooks are shown as they are, their own test runs them."""
    options = ["-W", "--keep-going", "-q", "-b", "html", "-c", str(ROOT / "docs"), "-D", "nb_execution_mode=off"]
    command = [sys.executable, "-m", "sphinx", *options, str(source), str(target)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)


@pytest.mark.timeout(960)
def test_the_site_has_every_public_name_and_no_private_one_and_every_page(tmp_path: Path) -> None:
    # One test, since the site takes half a minute to build.
    done = build(ROOT / "docs", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    inventory = InventoryFile.loads((tmp_path / "objects.inv").read_bytes(), uri="")
    names = {name for kind, found in inventory.data.items() if kind.startswith("py:") for name in found}
    assert "labrig.Rig.powered" in names
    assert missing_from(names) == []
    assert missing_from(names - {"labrig.Rig"}) == ["labrig.Rig"]
    assert [name for name in sorted(names) if any(part.startswith("_") for part in name.split("."))] == []
    start = (tmp_path / "index.html").read_text()
    for caption, pages in contents_of((ROOT / "docs" / "index.md").read_text()):
        assert caption in start
        assert [page for page in pages if f'href="{page}.html"' not in start] == []


def missing_from(names: set[str]) -> list[str]:
    """The public names that are not among the names of a site."""
    promised = {f"{package}.{name}" for package in PACKAGES for name in importlib.import_module(package).__all__}
    assert len(promised) > 100
    return sorted(promised - names)


@pytest.mark.parametrize(
    ("page", "warning"),
    [
        ("[gone](gone.md)", "cross-reference target not found: 'gone.md'"),
        ("[gone](index.md#gone)", "local id not found"),
        ("<!-- generated: gone -->", "generated_pages"),
        ("```{eval-rst}\n.. autofunction:: labrig.gone\n```", "gone"),
    ],
)
def test_a_page_that_is_wrong_fails_the_build(page: str, warning: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "index.md").write_text(f"# A page\n\n{page}\n")
    done = build(tmp_path / "source", tmp_path / "site")
    assert done.returncode != 0
    assert warning in done.stderr


def test_a_page_that_no_index_names_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "index.md").write_text("# A page\n\n## Part\n\n- [Named](named.md)\n")
    for name in ("named", "unnamed"):
        (tmp_path / "source" / f"{name}.md").write_text("# Another\n")
    done = build(tmp_path / "source", tmp_path / "site")
    assert done.returncode != 0
    assert "unnamed.md: WARNING: document isn't included in any toctree" in done.stderr
    assert "/named.md" not in done.stderr


def test_commands_are_all_there() -> None:
    text = command_text()
    for verb in VERBS:
        assert f"## labrig {verb}\n" in text
    assert "| `--durability process\\|power` |" in text
    assert "| `RIG` | Rig file (TOML). | required |" in text
    assert "$ labrig sweep rig_configs/mock.toml --plan mvm --writes 8 -o run.h5" in text
    assert "Example:" not in text


def test_every_key_of_a_rig_file_is_there() -> None:
    schema = json.loads((SCHEMAS / "labrig.schema.json").read_text())
    text = schema_text("labrig.schema.json")
    keys = {key for part in schema["$defs"].values() for key in part["properties"]}
    tables = {"safety", "arrays"}
    assert [key for key in sorted(keys - tables) if f"| `{key}` |" not in text] == []
    for section in ("rig", "board.arrays.NUMBER.safety", "source_meters.NAME.safety", "conditions.NAME", "telemetry"):
        assert f"## `[{section}]`\n" in text
    assert "| `nplc` | number at least 0.01, at most 25 | `1.0` |" in text


def test_a_name_from_below_is_documented_below() -> None:
    assert "{public-alias} labrig.LabrigError labrig_drivers.LabrigError exception" in api_text("labrig")
    assert ".. autoexception:: labrig_drivers.LabrigError" in api_text("labrig_drivers")


def test_a_marker_is_filled_in_and_nothing_else() -> None:
    assert fill_in("# Title\n\n<!-- a comment -->\n") == "# Title\n\n<!-- a comment -->\n"
    assert "`[rig]`" in fill_in("text\n\n<!-- generated: schema labrig.schema.json -->\n")


@pytest.mark.parametrize(
    ("docstring", "shown"),
    [
        ("A `name` of |x|.", r"A ``name`` of \|x\|."),
        ("Has ``code`` and `a|b`.", "Has ``code`` and ``a|b``."),
        ("See :py:obj:`labrig.Rig`.", "See :py:obj:`labrig.Rig`."),
    ],
)
def test_docstrings_become_restructured_text(docstring: str, shown: str) -> None:
    assert as_restructured_text(docstring) == shown


def test_contents_are_what_an_index_links_to() -> None:
    text = (
        "# Site\n\n[a](a.md)\n\n## Part\n\n- [b](b/c.md#x), [d](d.ipynb), [again](b/c.md)\n- [no](https://e.org/f.md)\n"
    )
    assert contents_of(text) == [("", ["a"]), ("Part", ["b/c", "d"])]
