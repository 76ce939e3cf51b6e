"""What a release says of itself, in several places."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UPLOT = ROOT / "labrig" / "live" / "static" / "uplot"


def test_project_citation_and_changes_name_the_same_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f'\nversion: "{version}"\n' in (ROOT / "CITATION.cff").read_text()
    released = re.findall(r"^## \[(\d\S*)\] - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0][0] == version
    assert f"\ndate-released: {released[0][1]}\n" in (ROOT / "CITATION.cff").read_text()


def test_what_others_wrote_is_what_the_page_of_builds_says() -> None:
    page = (ROOT / "docs" / "explanation" / "builds.md").read_text()
    table = dict(re.findall(r"^\| `([\w.]+)` \| `([0-9a-f]{64})` \|$", page, re.MULTILINE))
    assert table == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in UPLOT.iterdir()}
