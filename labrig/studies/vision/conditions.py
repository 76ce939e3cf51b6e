"""What studies on many chips say of themselves: their conditions, and the controls that show that they measure."""

from __future__ import annotations

from labrig.studies.intervals import exactly, of_mean
from labrig.studies.result import Control
from labrig.studies.vision.arrays import PIXEL_BITS, Noise
from labrig.studies.vision.grid import Grid, Scores


def chip_controls(grid: Grid, scores: Scores, control: Scores) -> list[Control]:
    """Noise off, and labels shuffled.

    Args:
        grid: What was run.
        scores: Its accuracies.
        control: Accuracies with permuted labels.
    """
    made = []
    quiet = [scores.as_trained[key] for key in scores.as_trained if key[1] == Noise(0.0)]
    if quiet and grid.size.folds == 1:
        apart = max(max(max(of_seed) - min(of_seed) for of_seed in cell.values) for cell in quiet)
        figure = exactly(apart, "points", "chips without noise")
        made.append(Control("noise off", "all chips are as good as one another", figure, apart == 0.0))
    for cell in control.re_estimated.values():
        figure = of_mean(cell.of_seeds, "%", "seeds")
        passed = all(abs(one - 10.0) < 3.0 for one in cell.of_seeds)
        made.append(Control("labels of the test images shuffled", "one in ten is right by chance", figure, passed))
    return made


def chip_conditions(grid: Grid, scores: Scores, data: str, trained_at: float) -> dict[str, str]:
    """Everything that accuracies on chips depend on.

    Args:
        grid: What was run.
        scores: Its accuracies, and the cells that are empty.
        data: Name of the image set.
        trained_at: N that methods with noise were trained for.
    """
    size = grid.size
    empty = (
        {"cells not run": ", ".join(f"{name} at {noise}" for name, noise in scores.missing)} if scores.missing else {}
    )
    return {
        "data": f"{data}; choices on training images held out, each number looks at the test images once",
        "images": f"each chip sees one of {size.folds} parts of the test images, all parts equally often",
        "network": f"{size.network}; {size.digital_epochs} epochs digital, then {size.epochs} of each method",
        "precision": f"weights 4 bits, nearest; inputs of every layer 4 bits, pixels {PIXEL_BITS}; no other converters",
        "noise": "wmax/program: N max|W| on each weight, drawn once for a chip; ostd/read: N times the standard "
        "deviation of a layer's outputs, fresh at every MVM, before batch norm; all layers, each one array",
        "trained for": f"N = {trained_at:.0%} where a method trains with noise",
        "chips": f"{size.chips} for each seed, the same for all methods",
        **empty,
    }
