"""Every example of the documentation is run, in the order of its page; what is not run is listed, with its reason."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import labrig
from page_examples import ROOT, Example, PageMarkError, commands_of, examples_of, pages, read_examples, shows
from page_runner import ExampleError, PageRun

RIG = """\
[rig]
name = "small"
[board]
driver = "mock-board"
[board.settings]
seed = 1
arrays = 1
rows = 16
columns = 4
[axes.temperature]
driver = "mock-axis"
settings = { quantity = "temperature", unit = "K", low = 280.0, high = 400.0, tolerance = 0.5 }
[axes.chuck]
driver = "mock-axis"
settings = { quantity = "temperature", unit = "K", low = 280.0, high = 400.0, tolerance = 0.5 }
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 10.0
max_read_voltage_v = 0.3
"""

ELSEWHERE = {"docs/guide/testing-your-driver.md": "tests/unit/test_docs.py and test_fault_proxy.py"}
"""Pages whose examples are run by tests of their own only."""

WITH_EXAMPLES = [page for page in pages() if str(page.relative_to(ROOT)) not in ELSEWHERE and examples_of(page)]

NOT_RUN: dict[str, list[str]] = {
    "docs/explanation/builds.md": [
        "builds twice; CI does the same",
    ],
    "docs/guide/first-day.md": [
        "runs until Ctrl-C; a small chip inside the test stands for the bench",
        "takes half a minute; tests/integration/test_train_verbs.py does the same",
        "takes half a minute; tests/integration/test_train_verbs.py does the same",
        "takes a minute; tests/integration/test_demo.py runs it",
    ],
    "docs/how-to/calibrate.md": [
        "takes a minute; tests/integration/test_plan_design_cli.py does the same",
        "needs that design",
        "needs jq",
    ],
    "docs/how-to/first-rig-file.md": [
        "needs the instruments of a bench",
    ],
    "docs/how-to/fit-devices.md": [
        "takes minutes; tests/integration/test_fit_devices_cli.py runs each kind",
    ],
    "docs/how-to/nights-sweep.md": [
        "takes ten seconds; tests/integration/test_plan_design_cli.py does the same",
    ],
    "docs/how-to/plan-a-calibration.md": [
        "takes half a minute; tests/integration/test_plan_design_cli.py does the same",
        "takes ten seconds; tests/integration/test_plan_design_cli.py does the same",
    ],
    "docs/how-to/recordings-only.md": [
        "takes half a minute; tests/integration/test_train_verbs.py does the same",
    ],
    "docs/how-to/remote.md": [
        "needs a rig that is served",
    ],
    "docs/how-to/robustness.md": [
        "needs CIFAR-10, and hours",
        "needs CIFAR-10, and an hour",
        "takes long; tests/integration/test_image_studies.py runs it",
    ],
    "docs/how-to/train.md": [
        "needs an interrupted run; tests/faults/test_training_kill.py has one",
        "needs a finished run; tests/faults/test_training_kill.py has one",
        "tests/unit/test_train_page.py runs it, on a chip that it makes",
    ],
    "docs/how-to/watch-live.md": [
        "serves a page at a fixed port until it is stopped",
        "serves a page to the whole network",
        "serves a page until it is stopped",
        "serves a page until it is stopped",
    ],
    "docs/how-to/watch-over-mqtt.md": [
        "needs the broker of a laboratory",
    ],
    "docs/how-to/your-own-driver.md": [
        "needs a simulator of the instrument; tests/unit/test_how_to_driver.py has one",
    ],
    "docs/tutorial/the-loop.md": [
        "takes a minute; tests/integration/test_demo.py runs it",
        "needs the files of the demo; tests/integration/test_train_verbs.py trains in this way",
    ],
    "docs/tutorial/two-minutes.md": [
        "installs labrig; CI does the same on a fresh clone",
        "takes a minute; tests/integration/test_demo.py runs it",
    ],
}
"""Every mark `not run` of every page. Who adds one to a page adds it here, where it is seen."""


@pytest.fixture(scope="session")
def give(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], None]:
    """Puts what a page is given into its folder; each thing is made once."""
    store = tmp_path_factory.mktemp("given")
    for name in ("rig.toml", "rig_configs/simulated_bench.toml"):
        (store / name).parent.mkdir(exist_ok=True)
        (store / name).write_text(RIG)

    def make(name: str) -> Path:
        path = store / name
        if not path.exists():
            if path.suffix == ".h5":
                done = labrig(store, "sweep", "rig.toml", "--plan", "mvm", "-o", name)
                assert done.returncode == 0, done.stderr
            elif path.suffix == ".safetensors":
                done = labrig(store, "calibrate", str(make(f"for_{path.stem}.h5")), "-o", name)
                assert done.returncode == 0, done.stderr
            else:
                raise KeyError(name)
        return path

    def put(name: str, folder: Path) -> None:
        shutil.copy(make(name), folder / name)

    return put


@pytest.fixture
def page_run(give: Callable[[str, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PageRun]:
    folder = tmp_path / "page"
    shutil.copytree(ROOT / "rig_configs", folder / "rig_configs")
    monkeypatch.chdir(folder)
    run = PageRun(folder, give)
    yield run
    run.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_run(page: Path, page_run: PageRun) -> None:
    for example in examples_of(page):
        page_run.run(example)


def test_what_is_not_run_is_known() -> None:
    marks: dict[str, list[str]] = {}
    for page in WITH_EXAMPLES:
        for example in examples_of(page):
            if example.not_run:
                marks.setdefault(example.page, []).append(example.not_run)
    assert marks == NOT_RUN
    named = {name for reasons in marks.values() for reason in reasons for name in re.findall(r"tests/\S+\.py", reason)}
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


PAGE = """\
<!-- example: file rig.toml -->

```toml
[rig]
```

<!-- example: python
seen = []
-->

```python
seen.append(1)
await asleep()
```

<!-- example: not run: needs a bench -->

```console
$ labrig check nothing.toml
```

```python
def test_it():
    pass
```
"""


def test_a_page_is_read_in_its_order() -> None:
    found = list(read_examples(PAGE, "page.md"))
    assert [one.kind for one in found] == ["file", "python", "python", "console", "test"]
    assert (found[0].file, found[0].text) == ("rig.toml", "[rig]\n")
    assert found[3] == Example("page.md", 18, "console", "$ labrig check nothing.toml\n", not_run="needs a bench")


@pytest.mark.parametrize(
    "wrong",
    [
        "<!-- example: not run: -->\n\n```python\n```\n",
        "<!-- example: skip -->\n\n```python\n```\n",
        "<!-- example: not run: no block follows -->\n",
        "<!-- example: not run: one -->\n\n<!-- example: not run: two -->\n\n```python\n```\n",
        "<!-- example: file -->\n\n```toml\n```\n",
        "  <!-- example: not run: not at the start of its line -->\n",
    ],
)
def test_a_mark_that_says_nothing_is_no_mark(wrong: str) -> None:
    with pytest.raises(PageMarkError):
        list(read_examples(wrong, "page.md"))


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("python", "1 / 0", "ZeroDivisionError"),
        ("console", "$ labrig check rig_configs/gone.toml", "ended with 2"),
        ("console", "$ labrig check rig_configs/mock.toml  # exit code 2", "ended with 0"),
        ("console", "$ labrig check rig_configs/mock.toml\nno instrument", "does not print"),
        ("console", "$ rm -r rig_configs", "only labrig and python"),
        ("test", "def test_wrong():\n    assert False", "assert False"),
    ],
)
def test_an_example_that_is_wrong_fails(page_run: PageRun, kind: str, text: str, message: str) -> None:
    with pytest.raises(ExampleError, match=rf"(?s)page\.md:7.*{message}"):
        page_run.run(Example("page.md", 7, kind, text))


def test_python_waits_where_a_page_does(page_run: PageRun) -> None:
    page_run.run(Example("page.md", 1, "python", "import asyncio\nawait asyncio.sleep(0)\nthere = True"))
    assert page_run.names["there"] is True


def test_output_may_be_shown_in_part() -> None:
    (command,) = commands_of("$ labrig show \\\nrun.h5  # exit code 3\nfirst\n...\nlast ... line\n")
    assert (command.line, command.exit_code) == ("labrig show  run.h5", 3)
    assert shows(command.output, "first\nmuch\nmore\nlast 12 line\n")
    assert not shows(command.output, "first\nlast 12 line, and more\n")
