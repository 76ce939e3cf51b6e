"""A whole calibration: the ladder, its diagnostics and the report of a full tile, and the cost of a tile among many.

A tile of 128 x 128 with 50,000 MVMs goes through the ladder with its standard choices (wires to first order) and
ends as a report on disk. Beside it: one small tile against many, fitted one after the other as `labrig calibrate`
does; the cost of one must not grow with their number.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from benchmarks.calibration import converters_of, measured
from benchmarks.harness import Case, sync
from benchmarks.report import Script, Suite, main
from labrig.reports.calibration import write_report
from labrig_calibration.dataset import MvmDataset
from labrig_calibration.fit import chip_parameters, fit
from labrig_calibration.stimulus import StimulusCounts, design_mvm_calibration
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings

WRITES = 4


async def recorded(size: int, mvms: int) -> MvmDataset:
    """A calibration of about `mvms` MVMs of a square tile; what is beyond the usual counts are random vectors."""
    usual = StimulusCounts(sparse=128, random=0, activation=128)
    counts = StimulusCounts(sparse=128, random=max(mvms // WRITES - usual.total(size), 64), activation=128)
    settings = ChipSettings(
        rows=size, columns=size, arrays=1, adc_full_scale_a=2.5e-6 * size, compression_a=2.2e-6 * size
    )
    async with MockBoard(settings) as board:
        design = design_mvm_calibration(size, size, converters_of(board.info), writes=WRITES, counts=counts)
        return await measured(design, board)


def fitted(dataset: MvmDataset, tiles: int) -> None:
    """Fits as many tiles, one after the other."""
    for tile in range(tiles):
        fit(dataset, rng=np.random.default_rng(tile))


def fitted_and_reported(dataset: MvmDataset, folder: Path) -> None:
    """Fits a tile and writes its report."""
    rng = np.random.default_rng(0)
    result = fit(dataset, rng=rng)
    chip = chip_parameters([result], result.provenance())
    write_report(folder / "report.html", [result], {"recordings": "simulated"}, rng, chip=chip)


@asynccontextmanager
async def prepare(quick: bool) -> AsyncIterator[Suite]:
    """Records a full tile and a small one."""
    size, mvms, many = (12, 1_500, 3) if quick else (128, 50_000, 64)
    whole, small = await recorded(size, mvms), await recorded(8, 1_500)
    alone = "a tile of 8 x 8 alone: ladder"
    with tempfile.TemporaryDirectory() as folder:
        yield Suite(
            f"Calibration of a tile of {size} x {size} with {len(whole)} MVMs; tiles of 8 x 8 with {len(small)}",
            "tile",
            [
                Case(f"a tile of {size} x {size}: ladder", sync(lambda: fitted(whole, 1))),
                Case(
                    f"a tile of {size} x {size}: ladder and report",
                    sync(lambda: fitted_and_reported(whole, Path(folder))),
                ),
                Case(alone, sync(lambda: fitted(small, 1))),
                Case(f"one of {many} tiles of 8 x 8: ladder", sync(lambda: fitted(small, many)), many, alone),
            ],
        )


if __name__ == "__main__":
    main(
        Script(
            "benchmarks.calibration_tile",
            prepare,
            ("numpy", "scipy", "torch", "plotly"),
            threads=2,
            repeat_s=1.0,
            rounds=3,
        )
    )
