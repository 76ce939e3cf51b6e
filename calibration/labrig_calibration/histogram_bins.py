"""Bins for histograms of outputs: ADC codes where there are codes, else equal-mass bins that stay as they are.

Bins are made once, from a reference, and kept: divergences of different days are comparable only in the same bins. Zero
has a bin of its own: rectified outputs pile up there, and a share of zeros says more than any bin around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labrig_calibration.residuals import refuse

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class HistogramBins:
    """Bins of each column.

    Attributes:
        edges: Inner edges, ascending, `[edges, columns]`; infinite where a column needs fewer. A value on an edge
            belongs above it.
        zero_apart: Values that are exactly zero have the first bin for themselves.
    """

    edges: FloatArray
    zero_apart: bool

    @property
    def count(self) -> int:
        """Bins of a column, the one for zero included."""
        return int(self.edges.shape[0]) + 1 + int(self.zero_apart)

    @classmethod
    def equal_mass(cls, reference: FloatArray, bins: int = 64) -> HistogramBins:
        """Bins that hold equal shares of a reference `[N, columns]`, zeros left out where they are an atom.

        Raises:
            JudgementError: No values, or fewer than two bins.
        """
        _refuse(reference, bins)
        # Codes hit zero now and then; more than one bin's share of exact zeros is an atom.
        atom = float((reference == 0.0).mean()) > 1.0 / bins
        edges = np.full((bins - 1, reference.shape[1]), np.inf)
        shares = np.linspace(0.0, 1.0, bins + 1)[1:-1]
        for column in range(reference.shape[1]):
            values = reference[:, column]
            values = values[np.isfinite(values) & ((values != 0.0) | (not atom))]
            if values.size:
                unique = np.unique(np.quantile(values, shares))
                edges[: unique.size, column] = unique
        return cls(edges, atom)

    @classmethod
    def codes(cls, lsb_a: FloatArray, low_a: FloatArray, high_a: FloatArray, *, largest: int = 256) -> HistogramBins:
        """One bin for each ADC code between two currents, or for 2, 4, 8 ... codes where there are too many.

        Args:
            lsb_a: ADC step in A, `[columns]`.
            low_a: Lowest current in A of interest, `[columns]`.
            high_a: Highest, `[columns]`.
            largest: Most bins of a column: each takes samples, and bias grows with their number.
        """
        first, last = np.round(low_a / lsb_a), np.round(high_a / lsb_a)
        span = float((last - first).max()) + 1.0
        width = 2.0 ** max(0, int(np.ceil(np.log2(span / largest))))
        number = np.arange(1, int(np.ceil(span / width)))[:, None]
        # Code zero stays inside one bin: bins start at multiples of their width.
        start = np.floor(first / width) * width
        edges = (start + number * width - 0.5) * lsb_a
        return cls(np.where(edges <= (last + 0.5) * lsb_a, edges, np.inf), False)

    def index(self, values: FloatArray) -> NDArray[np.int64]:
        """The bin of each value, `[N, columns]`."""
        found = np.stack(
            [np.searchsorted(self.edges[:, c], values[:, c], side="right") for c in range(values.shape[1])], axis=1
        )
        return np.asarray(np.where(values == 0.0, 0, found + 1) if self.zero_apart else found)


def _refuse(reference: FloatArray, bins: int) -> None:
    faults = []
    if reference.ndim != 2 or reference.size == 0 or not np.isfinite(reference).any():
        faults.append(f"a reference is [N, columns] with values, not {list(reference.shape)}")
    if bins < 2:
        faults.append(f"{bins} bins compare nothing, at least 2")
    refuse("no bins", faults)
