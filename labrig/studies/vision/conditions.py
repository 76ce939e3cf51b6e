"""What studies on many chips say of themselves: their conditions, and the controls that show that they measure."""

from __future__ import annotations

from typing import Final

from labrig.studies.intervals import exactly, of_mean
from labrig.studies.result import Control
from labrig.studies.vision.arrays import AFFINE_BITS, PIXEL_BITS
from labrig.studies.vision.grid import Grid, Scores
from labrig.studies.vision.noise import CONVERTER_BITS, NoiseKind
from labrig.studies.vision.parts import Place
from labrig.studies.vision.products import product_type

# How far from chance a network may be that was judged by permuted labels: a part of it, or points in %.
_OF_CHANCE: Final = 0.3
_LEAST_POINTS: Final = 0.5


def chip_controls(grid: Grid, scores: Scores, control: Scores, classes: int) -> list[Control]:
    """Noise off, and labels shuffled.

    Args:
        grid: What was run.
        scores: Its accuracies.
        control: Accuracies with permuted labels.
        classes: How many the images have.
    """
    made = []
    quiet = [scores.as_trained[key] for key in scores.as_trained if key[1].quiet]
    if quiet and grid.size.folds == 1:
        apart = max(max(max(of_seed) - min(of_seed) for of_seed in cell.values) for cell in quiet)
        figure = exactly(apart, "points", "chips without noise")
        made.append(Control("noise off", "all chips are as good as one another", figure, apart == 0.0))
    for cell in control.re_estimated.values():
        figure = of_mean(cell.of_seeds, "%", "seeds")
        chance = 100.0 / classes
        passed = all(abs(one - chance) < max(_OF_CHANCE * chance, _LEAST_POINTS) for one in cell.of_seeds)
        expected = f"one in {classes} is right by chance"
        made.append(Control("labels of the test images shuffled", expected, figure, passed))
    return made


def chip_conditions(grid: Grid, scores: Scores, place: Place, trained_at: float) -> dict[str, str]:
    """Everything that accuracies on chips depend on.

    Args:
        grid: What was run.
        scores: Its accuracies, and the cells that are empty.
        place: Where the images are, and what computes.
        trained_at: N that methods with noise were trained for.
    """
    size = grid.size
    empty = (
        {"cells not run": ", ".join(f"{name} at {noise}" for name, noise in scores.missing)} if scores.missing else {}
    )
    return {
        "data": f"{place.data_name}; choices on training images held out, each number looks at the test images once",
        "images": f"each chip sees one of {size.folds} parts of the test images, all parts equally often",
        "network": f"{size.network}; {size.digital_epochs} epochs digital, then {size.epochs} of each method",
        "precision": _precision(grid),
        "products": f"in {str(product_type(place.device)).removeprefix('torch.')}, of this run",
        "noise": "; ".join(_meaning(kind) for kind in dict.fromkeys(one.kind for one in grid.noises if not one.quiet)),
        "trained for": f"N = {trained_at:.0%} where a method trains with noise",
        "chips": f"{size.chips} for each seed, the same for all methods",
        **empty,
    }


_OF_WEIGHTS: Final = {
    "wmax": "N max|W| on each weight",
    "wrange": "N (max W - min W) on each weight",
    "wmult": "N |w| on each weight w",
    "wrms": "N times the standard deviation of W on each weight",
    "abs": "N on each weight, as they are",
}
_OF_OUTPUTS: Final = {
    "ostd": "N times the standard deviation of an array's outputs",
    "poisson": "the power of ostd, its variance in proportion to the size of the output",
    "ofs": f"N times the full scale of a converter of {CONVERTER_BITS} bits at an array's outputs",
    "aihwkit": "N times the largest input times the largest weight",
}
_DRAWN: Final = {"program": "drawn once for a chip", "read": "fresh at every batch"}


def _meaning(kind: NoiseKind) -> str:
    arrays = "each one array" if kind.tile_rows is None else f"on arrays of {kind.tile_rows} rows"
    return (
        f"{kind.weights}/{kind.timing}: {_OF_WEIGHTS[kind.weights]}, {_DRAWN[kind.timing]}; {kind.outputs}/read: "
        f"{_OF_OUTPUTS[kind.outputs]}, fresh at every MVM, before batch norm; all layers, {arrays}"
    )


def _precision(grid: Grid) -> str:
    found = dict.fromkeys((one.weight_bits, one.activation_bits) for one, _ in grid.methods)
    told = [f"weights {_bits(weights)}, inputs of every layer {_bits(inputs)}" for weights, inputs in found]
    return f"{' or '.join(told)}; pixels {PIXEL_BITS} bits where inputs have levels; no other converters"


def _bits(bits: int | None) -> str:
    if bits is None:
        return "as they are"
    return f"{bits} bits, nearest" + (", affine" if bits == AFFINE_BITS else "")
