"""What the conductances of several writes say about gains, cells, programming errors, wires and crosstalk. Numpy only.

One cell over the writes p, with its own slope `1 + delta` (spread over devices) and a programming error drawn anew:

    w_p = gain * ((1 + delta) * m_p + error_p),   m_p = target_p * (1 - ohm . load_p) + crosstalk * neighbours_p

`error_p` has the standard deviation of the programming law, and w_p is known with the error of its reading. The gauge
is that of the fit: the gain is the mean slope of the column's own cells, and programming errors are zero on average.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labrig_calibration.assumptions import AssumedChip
from labrig_calibration.information import ColumnErrors
from labrig_calibration.line_loads import neighbours_s, wire_loads_s

FloatArray = NDArray[np.float64]

LINES = ("word_line_ohm", "bit_line_ohm", "crosstalk")
LAW = ("programming_p0", "programming_p1", "programming_p2", "mismatch")
_VAGUE = 1e3


@dataclass(frozen=True)
class Cells:
    """The cells of some typical columns over all writes.

    Attributes:
        target_s: Targets in S, `[writes, rows, columns]`.
        load_s: Relative loss per ohm of a segment of the word and of the bit line in S, `[2, writes, rows, columns]`.
        neighbour_s: What a unit of crosstalk adds in S, same shape.
        kind: Which kind of write each one is, `[writes]`.
        conductance_max_s: Highest programmable conductance in S.
        all_columns: Columns of the array; the typical ones stand for them.
    """

    target_s: FloatArray
    load_s: FloatArray
    neighbour_s: FloatArray
    kind: tuple[int, ...]
    conductance_max_s: float
    all_columns: int

    @classmethod
    def of(
        cls,
        target_s: FloatArray,
        chosen: NDArray[np.int64],
        kind: tuple[int, ...],
        conductance_max_s: float,
        chip: AssumedChip,
    ) -> Cells:
        """The cells of some columns.

        Args:
            target_s: Targets of all columns in S, `[writes, rows, columns]`.
            chosen: The typical columns.
            kind: Which kind of write each one is.
            conductance_max_s: Highest programmable conductance in S.
            chip: What the chip is taken to be.
        """
        # Beyond the first order the current that makes the drop drops itself.
        load = np.stack([np.stack(wire_loads_s(one)) for one in target_s], axis=1)
        load = load / (1.0 + chip.wire_ohm * load.sum(axis=0))
        beside = np.stack([neighbours_s(one) for one in target_s])
        return cls(
            target_s[:, :, chosen],
            load[:, :, :, chosen],
            beside[:, :, chosen],
            kind,
            conductance_max_s,
            int(target_s.shape[2]),
        )

    @property
    def relative(self) -> FloatArray:
        """Targets in parts of the highest conductance."""
        return self.target_s / self.conductance_max_s

    def programming_s(self, chip: AssumedChip) -> FloatArray:
        """Standard deviation of the programming error in S."""
        return self.conductance_max_s * chip.programming_sigma(self.relative)

    def read_error_s(self, errors: ColumnErrors, chip: AssumedChip) -> FloatArray:
        """Standard error of each conductance of each write in S, gain not included."""
        by_kind = [errors.conductance_error_s(kind) / chip.gain for kind in range(len(errors.inverse))]
        return np.stack([by_kind[kind] for kind in self.kind])


@dataclass(frozen=True)
class GainErrors:
    """Errors of the gains and of what all columns share.

    Attributes:
        gain: Relative standard errors where wires and crosstalk are known, `[columns]`.
        gain_with_lines: The same where they are fitted too, `[columns]`.
        lines: Covariance of `LINES`: resistances in ohm and a pure number, `[3, 3]`.
    """

    gain: FloatArray
    gain_with_lines: FloatArray
    lines: FloatArray


def gain_errors(cells: Cells, errors: ColumnErrors, chip: AssumedChip) -> GainErrors:
    """Errors of the columns' gains, of the wire resistance and of the crosstalk."""
    target_s = cells.target_s
    rows = target_s.shape[1]
    noise2 = cells.programming_s(chip) ** 2 + cells.read_error_s(errors, chip) ** 2
    weight = 1.0 / noise2
    pull = weight * target_s / (weight * target_s**2).sum(axis=0) / rows
    variance = (pull**2 * cells.programming_s(chip) ** 2).sum(axis=(0, 1))
    # Reading errors of one column's cells hang together, through its curve and through vectors that drive many rows.
    follow = 0.0
    for write, kind in enumerate(cells.kind):
        mine = pull[write]
        variance = variance + np.einsum("ic,cij,jc->c", mine, errors.inverse[kind], mine) / chip.gain**2
        follow = follow + np.einsum("ic,cia->ca", mine, errors.follow[kind]) / chip.gain
    variance = variance + np.einsum("ca,cab,cb->c", follow, errors.border, follow)
    # Wires and crosstalk: every column's gain is free, every cell's slope drawn from the spread of devices.
    change = np.stack([target_s, *(-target_s * cells.load_s), cells.neighbour_s])
    plain = np.einsum("apic,pic,bpic->cab", change, weight, change)
    along = np.einsum("apic,pic->aic", change, weight * target_s)
    own = (weight * target_s**2).sum(axis=0) + 1.0 / chip.mismatch**2
    left = plain - np.einsum("aic,bic,ic->cab", along, along, 1.0 / own)
    shared = left[:, 1:, 1:] - left[:, 1:, :1] * left[:, :1, 1:] / left[:, :1, :1]
    scale = line_scales(cells, chip)
    information = shared.mean(axis=0) * cells.all_columns * np.outer(scale, scale)
    values, vectors = np.linalg.eigh(information)
    inverse = (vectors / np.maximum(values, 1.0 / _VAGUE**2)) @ vectors.T
    lines = inverse * np.outer(scale, scale)
    lever = np.einsum("pic,apic->ca", pull, change[1:])
    with_lines = variance + np.einsum("ca,ab,cb->c", lever, lines, lever)
    return GainErrors(np.sqrt(variance), np.sqrt(with_lines), lines)


def line_scales(cells: Cells, chip: AssumedChip) -> FloatArray:
    """What is large for each of `LINES`: a resistance that costs a tenth of the current, and a tenth of crosstalk."""
    return np.array([*(np.maximum(0.1 / cells.load_s.mean(axis=(1, 2, 3)), chip.wire_ohm)), 0.1])


def law_information(cells: Cells, errors: ColumnErrors, chip: AssumedChip) -> FloatArray:
    """Fisher information of all cells of the array about `LAW`, `[4, 4]`.

    Of a Gaussian whose covariance depends on parameters: `tr(V^-1 V_a V^-1 V_b) / 2` for each cell.
    """
    relative = cells.relative
    sigma = chip.programming_sigma(relative)
    read = (cells.read_error_s(errors, chip) / cells.conductance_max_s) ** 2
    # Leading axes: cells; last two: writes.
    r = np.moveaxis(relative, 0, -1)
    own = np.moveaxis(sigma, 0, -1)
    diagonal = own**2 + np.moveaxis(read, 0, -1)
    writes = r.shape[-1]
    covariance = chip.mismatch**2 * r[..., :, None] * r[..., None, :]
    covariance[..., np.arange(writes), np.arange(writes)] += diagonal
    inverse = np.linalg.inv(covariance)
    steps = [inverse * (2.0 * own * r**power)[..., None, :] for power in range(3)]
    steps.append(inverse @ (2.0 * chip.mismatch * r[..., :, None] * r[..., None, :]))
    # Sum over the typical cells, scaled to all.
    scale = cells.all_columns / relative.shape[2]
    return np.array([[0.5 * scale * float(np.einsum("icpq,icqp->", one, other)) for other in steps] for one in steps])
