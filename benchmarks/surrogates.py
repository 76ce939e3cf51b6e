"""Analog layers beside the plain layer, a naive straight-through one and aihwkit-lightning: training step, inference.

All do the same: static 8-bit DAC and ADC (254 steps, the ADC's bound at ten products), 4-bit weights, fresh weight
noise of 5 % of the largest weight, output noise of 6 % of a product; float32, two threads, with the inputs' gradient.
Before anything is timed, how far each layer's outputs lie from the plain layer's is printed, so that equal work shows;
in evaluation lightning draws no noise at all, and quantises alone. aihwkit-lightning is optional
(`pip install --no-deps aihwkit-lightning tqdm`). `--only "linear 512"` measures one layer. Peak memory is that of
`benchmarks.surrogate_memory`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch
from torch import nn

from benchmarks import surrogate_memory
from benchmarks.harness import Measurement
from benchmarks.report import Script, Suite, main
from benchmarks.surrogate_layers import Problem, cases_of, layers_of, problems_of


@torch.no_grad()
def print_outputs(problem: Problem, layers: dict[str, nn.Module]) -> None:
    """How far the outputs of each layer lie from the plain one's, in training and in evaluation."""
    plain = problem.layer(problem.x)
    scale = float(plain.std())
    print(f"{problem.name}: rms distance from the plain layer in its standard deviations: training, evaluation")
    for name, layer in layers.items():
        distances = [
            float((layer.train(mode)(problem.x) - plain).square().mean().sqrt()) / scale for mode in (True, False)
        ]
        print(f"  {name:32s} {distances[0]:.4f}  {distances[1]:.4f}")


def multiples(result: Measurement) -> str:
    """Times as multiples of the plain layer's, a row for each layer and pass, ready for docs/guide/layers.md."""
    table: dict[str, dict[str, str]] = {}
    for case in result.cases:
        what, name = case.name.split(": ")
        if case.ratio is not None:
            table.setdefault(what, {})[name] = f"{1.0 / case.ratio.median:.2f}"
    names = list(dict.fromkeys(name for row in table.values() for name in row))
    rows = [["times the plain layer", *names], ["---"] * (1 + len(names))]
    rows += [[what, *(row.get(name, "") for name in names)] for what, row in table.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@asynccontextmanager
async def prepare(quick: bool) -> AsyncIterator[Suite]:
    """Compares the outputs, measures the memory and sets the cases up."""
    if importlib.util.find_spec("aihwkit_lightning") is None:
        print("aihwkit-lightning is absent, and so not compared (see the docstring of this module)")
    print(surrogate_memory.table(surrogate_memory.in_child(quick=quick)))
    cases = []
    for problem in problems_of(quick=quick):
        layers = layers_of(problem, compiled=not quick)
        print_outputs(problem, layers)
        cases += cases_of(problem, layers)
    yield Suite(
        "Analog layers beside the plain one; a ratio of 0.5 is twice the time", "call", cases, summary=multiples
    )


if __name__ == "__main__":
    main(Script("benchmarks.surrogates", prepare, ("aihwkit-lightning", "torch"), threads=2, repeat_s=90.0))
