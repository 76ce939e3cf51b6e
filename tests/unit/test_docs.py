"""What the pages promise exists: links, commands, and the files that they show."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from labrig.cli import VERBS
from labrig.config import parse_rig
from labrig_drivers.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
PAGES = [path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")) if path.is_file()]
DRIVERS = ("keithley2400", "mock-board", "wire-board")

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
COMMAND = re.compile(r"(?:^ {4}|^\$ |`|/bin/)labrig ([a-z-]+)", re.MULTILINE)


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a guide page."""
    text = (ROOT / "docs" / "guide" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    targets = [target for target in LINK.findall(page.read_text()) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_command_in_the_pages_exists() -> None:
    named = {verb for page in PAGES for verb in COMMAND.findall(page.read_text())}
    assert {"check", "sweep", "calibrate", "train"} <= named
    assert named - {*VERBS, "config", "import"} == set()


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "index.md").read_text()
    pages = sorted(folder.glob("0*.md"))
    assert len(pages) >= 14
    for number, page in enumerate(pages, start=1):
        title = page.read_text().splitlines()[0]
        assert page.name.startswith(f"{number:04d}-")
        assert f"| {number} | [{title.removeprefix(f'# {number}. ')}]({page.name}) |" in index
        for part in ("**Context.**", "**Decision.**", "**Consequences.**"):
            assert part in page.read_text()


def test_rig_file_of_the_guide_is_valid() -> None:
    (text,) = [block for block in blocks("rig-files.md", "toml") if "[rig]" in block]
    rig = parse_rig(text, Path("bench.toml"), drivers=DRIVERS)
    assert rig.source_meters["supply"].role == "array-supply"


def test_mistakes_are_reported_as_the_guide_shows() -> None:
    (text,) = [block for block in blocks("rig-files.md", "toml") if "[rig]" in block]
    wrong = text.replace('expect_model = "LR', 'expect_modell = "LR').replace("level_voltage_v", "level_voltage_mv")
    with pytest.raises(ConfigError) as caught:
        parse_rig(wrong, Path("bench.toml"), drivers=DRIVERS)
    page = (ROOT / "docs" / "guide" / "rig-files.md").read_text()
    shown = [line.strip() for line in page.splitlines() if line.startswith("    bench.toml:")]
    assert len(shown) >= 2
    assert str(caught.value).splitlines() == shown


def test_training_file_of_the_guide_is_valid() -> None:
    from labrig.training.config import parse_training

    (text,) = [block for block in blocks("first-day.md", "toml") if "[training]" in block]
    training = parse_training(text, Path("train.toml"))
    assert training.folder == Path("runs/digits")


async def test_golden_transcript_of_the_guide_holds() -> None:
    (text,) = [block for block in blocks("testing-your-driver.md", "python") if "Transcript(" in block]
    names: dict[str, Callable[[], Awaitable[None]]] = {}
    exec(text, names)
    await names["test_opening_only_asks"]()
