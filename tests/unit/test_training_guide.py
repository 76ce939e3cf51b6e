"""The pages about training with noise and about energy: their examples run, their numbers are the code's."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

from labrig_surrogates.energy import DIGITAL_MAC, MACROS, ComponentConstants, Constant
from labrig_surrogates.energy_constants import ADC_CONVERSION

DOCS = Path(__file__).resolve().parents[2] / "docs"
NOISE = (DOCS / "guide" / "training-with-noise.md").read_text()
ENERGY = (DOCS / "reference" / "energy.md").read_text()


def run(block: str) -> list[str]:
    """What a code block prints, line by line; the generator of torch is put back."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), torch.random.fork_rng():
        exec(block, {"__name__": "example"})
    return printed.getvalue().splitlines()


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def test_the_definitions_print_what_the_page_shows() -> None:
    block = blocks(NOISE)[0]
    assert run(block) == re.findall(r"^print\(.*  # (.*)$", block, re.MULTILINE)


def test_the_training_of_the_page_learns() -> None:
    accuracy, terms = run(blocks(NOISE)[1])
    assert float(accuracy.split()[0]) > 85.0
    assert re.match(r"task 0\.\d+, KL \S+, statistics \S+; hardware statistics of 1 layer .* 60 s old", terms)


def test_the_energy_example_prints_what_the_page_shows() -> None:
    (block,) = blocks(ENERGY)
    shown = ENERGY.split("```\n", 2)[1].split("| macro |")[0]
    lines = [line.removeprefix("    ") for line in shown.splitlines() if line.startswith("    ")]
    assert run(block) == lines


@pytest.mark.parametrize(
    ("name", "constant"),
    [
        *ComponentConstants().items().items(),
        *((f"adc_conversion({bits})", constant) for bits, constant in ADC_CONVERSION.items()),
        *DIGITAL_MAC.items(),
    ],
)
def test_every_constant_is_in_the_page_with_its_source(name: str, constant: Constant) -> None:
    numbers = [f"{value:.3g}" for value in (constant.low, constant.typical, constant.high)]
    row = " | ".join([f"`{name}`", *numbers, constant.unit, constant.evidence, constant.source])
    assert f"| {row} |" in ENERGY


def test_every_macro_is_in_the_page() -> None:
    for macro in MACROS.values():
        assert f"| {macro.name} | {macro.input_bits} / {macro.output_bits} | {macro.tops_per_watt:g} |" in ENERGY
        assert f"| {1e9 * macro.mvm_j:.1f} nJ |" in ENERGY
