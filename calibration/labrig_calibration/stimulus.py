"""Which conductance patterns and input vectors tell the parameters of a crossbar array apart. Numpy only.

Every kind of vector answers one question: zero vectors the offsets, one-hot vectors single cells, Hadamard
vectors all cells at once with the least variance (Hotelling's weighing design), sparse and dense vectors the load
that a network makes, the amplitude ladder the transfer curve, and repeats the read noise. Each is measured on
several writes, because one write cannot tell a cell's programming error from a column's gain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from labrig_calibration.dataset import Converters

FloatArray = NDArray[np.float64]

# Fractions of what the converters can take at which the dense kinds are measured.
LOAD_FRACTIONS = (1.0, 0.5, 0.25)
LADDER_LEVELS = 16
_SPARSE_DENSITY = 0.25


class StimulusError(ValueError):
    """A calibration cannot be designed for these converters or counts; the message lists every fault."""


class StimulusKind(IntEnum):
    """What an input vector is for. The numbers are written into recordings; never reuse one."""

    ZERO = 0
    ONE_HOT = 1
    HADAMARD = 2
    SPARSE = 3
    LADDER = 4
    RANDOM = 5
    REPEAT = 6
    ACTIVATION = 7


@dataclass(frozen=True)
class StimulusCounts:
    """How many vectors of each kind one write gets; none of a kind where it is 0.

    Attributes:
        zero: Vectors at 0 V.
        one_hot_repeats: Times that each row is driven alone, with each sign.
        sparse: Vectors of one sign with a quarter of the rows driven.
        ladder_patterns: Fixed patterns, each at 16 levels and both signs.
        random: Uniform vectors of both signs.
        activation: Uniform vectors of one sign, as a rectified layer makes them.
        repeat_vectors: Fixed vectors that are measured again and again.
        repeats: Times that each of those is measured.
        hadamard_repeats: Times that the Hadamard vectors are measured, with each sign and at three amplitudes.
    """

    zero: int = 32
    one_hot_repeats: int = 4
    sparse: int = 256
    ladder_patterns: int = 8
    random: int = 384
    activation: int = 512
    repeat_vectors: int = 8
    repeats: int = 32
    hadamard_repeats: int = 1

    @classmethod
    def of(cls, values: Mapping[str, object]) -> StimulusCounts:
        """Counts by name, as a plan file has them; those that are not named are as usual.

        Raises:
            StimulusError: A name is unknown or a count is no whole number from 0 up; every fault is listed.
        """
        known = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping):
            raise StimulusError(f"wrong counts: {values!r} is no table of names and counts")
        faults = [f"{name} is no count; the counts are: {', '.join(known)}" for name in values if name not in known]
        good: dict[str, int] = {}
        for name, value in values.items():
            if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                good[name] = value
            else:
                faults.append(f"{name} is {value!r}, must be a whole number from 0 up")
        if faults:
            raise StimulusError("wrong counts: " + "; ".join(faults))
        return cls(**good)

    def as_options(self) -> dict[str, int]:
        """All counts by name, as a plan file and a recording hold them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def by_kind(self, rows: int) -> dict[StimulusKind, int]:
        """Vectors of each kind of one write on an array with `rows` rows."""
        return {
            StimulusKind.ZERO: self.zero,
            StimulusKind.ONE_HOT: 2 * rows * self.one_hot_repeats,
            StimulusKind.HADAMARD: 2 * rows * len(LOAD_FRACTIONS) * self.hadamard_repeats,
            StimulusKind.SPARSE: self.sparse,
            StimulusKind.LADDER: 2 * LADDER_LEVELS * self.ladder_patterns,
            StimulusKind.RANDOM: self.random,
            StimulusKind.REPEAT: self.repeat_vectors * self.repeats,
            StimulusKind.ACTIVATION: self.activation,
        }

    def total(self, rows: int) -> int:
        """Vectors of one write on an array with `rows` rows."""
        return sum(self.by_kind(rows).values())


@dataclass(frozen=True)
class StimulusBlock:
    """One batch of input vectors of one kind.

    Attributes:
        kind: What the vectors are for: a `StimulusKind`, or a number from 64 to 127 of one's own.
        voltage_v: Inputs in V, `[batch, rows]`.
    """

    kind: int
    voltage_v: FloatArray


@dataclass(frozen=True)
class WriteDesign:
    """One programming of the array and everything that is measured on it.

    Attributes:
        target_conductance_s: Target in S, `[rows, columns]`.
        blocks: Batches of vectors, in the order of measurement.
    """

    target_conductance_s: FloatArray
    blocks: tuple[StimulusBlock, ...]


@dataclass(frozen=True)
class MvmDesign:
    """A whole calibration of one array.

    Attributes:
        writes: One entry for each programming.
        seed: The seed that made it; the same seed makes the same design.
    """

    writes: tuple[WriteDesign, ...]
    seed: int

    @property
    def mvms(self) -> int:
        """Vectors over all writes."""
        return sum(block.voltage_v.shape[0] for write in self.writes for block in write.blocks)


def design_mvm_calibration(
    rows: int,
    columns: int,
    converters: Converters,
    *,
    writes: int = 4,
    seed: int = 0,
    stream: int = 0,
    batch: int = 128,
    max_voltage_v: float | None = None,
    counts: StimulusCounts | None = None,
) -> MvmDesign:
    """Designs the calibration of one array.

    Targets are uniform over the whole conductance range; every second write is the complement
    `g_max + g_min - g` of the one before, so that each cell is seen low and high. The blocks of one write come
    in random order, so that neither the kind nor the row is confounded with time. Vectors of the dense kinds are
    scaled down where the ideal current of their most loaded column would leave the ADC. All numbers are exact in
    float32, so that a recording holds what was sent.

    Args:
        rows: Word lines.
        columns: Bit lines.
        converters: Ranges of the DAC, the ADC and the cells.
        writes: Programmings.
        seed: Determines every random choice.
        stream: Which of several independent designs of this seed, such as the array's index.
        batch: Most vectors in a block.
        max_voltage_v: Amplitude in V that no vector exceeds, where it is lower than the DAC's.
        counts: Vectors of each kind.

    Raises:
        StimulusError: The arguments allow no design.
    """
    counts = counts or StimulusCounts()
    amplitude_v = _amplitude_v(converters, max_voltage_v)
    counted = {"rows": rows, "columns": columns, "writes": writes, "batch": batch}
    _demand_valid(counted, counts, amplitude_v, converters)
    generator = np.random.default_rng([seed, stream])
    shapes = _Shapes(rows, amplitude_v, counts, generator)
    designs: list[WriteDesign] = []
    target_s = np.empty((rows, columns))
    for write in range(writes):
        if write % 2:
            target_s = converters.conductance_min_s + converters.conductance_max_s - target_s
        else:
            target_s = generator.uniform(converters.conductance_min_s, converters.conductance_max_s, (rows, columns))
        target_s = exact_in_float32(target_s)
        blocks = _blocks(shapes.draw(target_s, converters.adc_full_scale_a), batch, generator)
        designs.append(WriteDesign(target_s, tuple(blocks)))
    return MvmDesign(tuple(designs), seed)


def hadamard_signs(rows: int) -> FloatArray:
    """The signs `[rows, rows]` of a Sylvester Hadamard matrix, cut to size where `rows` is no power of two.

    The cut matrix has full rank still, but its rows are no longer orthogonal.
    """
    order = 1 << (rows - 1).bit_length()
    signs = np.ones((1, 1))
    while signs.shape[0] < order:
        signs = np.block([[signs, signs], [signs, -signs]])
    return signs[:rows, :rows]


def exact_in_float32(values: FloatArray) -> FloatArray:
    """The nearest numbers that float32 holds, so that a recording holds what was sent."""
    return values.astype(np.float32).astype(np.float64)


def fitted_to_adc(voltage_v: FloatArray, target_s: FloatArray, full_scale_a: FloatArray) -> FloatArray:
    """Scales down each vector whose ideal current would leave the ADC in any column.

    Args:
        voltage_v: Vectors in V, `[count, rows]`.
        target_s: Conductances in S, `[rows, columns]`.
        full_scale_a: End of each column's ADC in A, `[columns]`.
    """
    load: FloatArray = np.max(np.abs(voltage_v @ target_s) / full_scale_a, axis=1, initial=0.0)
    scaled: FloatArray = voltage_v / np.maximum(load, 1.0)[:, None]
    return scaled


class _Shapes:
    """Draws the vectors of one write; what is fixed over all writes is drawn once."""

    def __init__(self, rows: int, amplitude_v: float, counts: StimulusCounts, generator: np.random.Generator) -> None:
        self._rows = rows
        self._amplitude_v = amplitude_v
        self._counts = counts
        self._generator = generator
        # The first pattern drives all rows, the others fewer and fewer, each row at full amplitude.
        density = np.geomspace(1.0, _SPARSE_DENSITY, counts.ladder_patterns)[:, None]
        self._ladder = amplitude_v * self._binary(counts.ladder_patterns, density)
        # One sign each, so that the repeats spread over the whole range of currents.
        signs = np.where(np.arange(counts.repeat_vectors) % 2, -1.0, 1.0)[:, None]
        self._fixed = signs * generator.uniform(0.0, amplitude_v, (counts.repeat_vectors, rows))

    def draw(self, target_s: FloatArray, full_scale_a: FloatArray) -> dict[StimulusKind, FloatArray]:
        """The vectors of each kind, `[count, rows]` in V, scaled to the load of this target."""
        counts, rows, high_v = self._counts, self._rows, self._amplitude_v

        def fitted(vectors: FloatArray) -> FloatArray:
            return fitted_to_adc(vectors, target_s, full_scale_a)

        def graded(vectors: FloatArray) -> FloatArray:
            fractions = np.resize(LOAD_FRACTIONS, vectors.shape[0])
            scaled: FloatArray = fitted(vectors) * fractions[:, None]
            return scaled

        one_hot = np.tile(np.eye(rows) * high_v, (counts.one_hot_repeats, 1))
        hadamard = fitted(hadamard_signs(rows) * high_v)
        both_signs = np.concatenate([hadamard, -hadamard])
        levels = np.arange(1, LADDER_LEVELS + 1) / LADDER_LEVELS
        ladder = (levels[:, None, None] * fitted(self._ladder)[None]).reshape(-1, rows)
        sparse = np.where(np.arange(counts.sparse) % 2, -1.0, 1.0)[:, None] * self._binary(
            counts.sparse, np.full((counts.sparse, 1), _SPARSE_DENSITY)
        )
        spread = np.linspace(1.0 / max(counts.repeat_vectors, 1), 1.0, counts.repeat_vectors)
        repeat = fitted(self._fixed) * spread[:, None]
        return {
            StimulusKind.ZERO: np.zeros((counts.zero, rows)),
            StimulusKind.ONE_HOT: np.concatenate([one_hot, -one_hot]),
            StimulusKind.HADAMARD: np.tile(
                np.concatenate([fraction * both_signs for fraction in LOAD_FRACTIONS]), (counts.hadamard_repeats, 1)
            ),
            StimulusKind.SPARSE: graded(high_v * sparse),
            StimulusKind.LADDER: np.concatenate([ladder, -ladder]),
            StimulusKind.RANDOM: graded(self._generator.uniform(-high_v, high_v, (counts.random, rows))),
            StimulusKind.REPEAT: np.tile(repeat, (counts.repeats, 1)),
            StimulusKind.ACTIVATION: graded(self._generator.uniform(0.0, high_v, (counts.activation, rows))),
        }

    def _binary(self, count: int, density: FloatArray) -> FloatArray:
        return (self._generator.random((count, self._rows)) < density).astype(np.float64)


def _blocks(vectors: dict[StimulusKind, FloatArray], batch: int, generator: np.random.Generator) -> list[StimulusBlock]:
    blocks: list[StimulusBlock] = []
    for kind, kind_vectors in vectors.items():
        count = kind_vectors.shape[0]
        shuffled = exact_in_float32(kind_vectors[generator.permutation(count)])
        # At least four blocks a kind, so that each kind is seen early and late.
        size = max(1, min(batch, -(-count // 4)))
        blocks += [StimulusBlock(kind, shuffled[start : start + size]) for start in range(0, count, size)]
    return [blocks[index] for index in generator.permutation(len(blocks))]


def _amplitude_v(converters: Converters, max_voltage_v: float | None) -> float:
    amplitude_v = min(-converters.voltage_min_v, converters.voltage_max_v)
    return amplitude_v if max_voltage_v is None else min(amplitude_v, max_voltage_v)


def _demand_valid(
    counted: Mapping[str, int], counts: StimulusCounts, amplitude_v: float, converters: Converters
) -> None:
    faults = [f"{name} is {value}, must be at least 1" for name, value in counted.items() if value < 1]
    faults += [f"{name} is {value}, must not be negative" for name, value in counts.as_options().items() if value < 0]
    if not faults and counts.total(counted["rows"]) == 0:
        faults.append("there is no vector of any kind")
    if not amplitude_v > 0:
        faults.append(
            f"the input voltage is {amplitude_v:g} V at most, with converters from {converters.voltage_min_v:g} to "
            f"{converters.voltage_max_v:g} V: it must reach both signs, and its limit must be above zero"
        )
    shape = converters.adc_full_scale_a.shape
    if shape != (counted["columns"],):
        faults.append(f"adc_full_scale_a has shape {list(shape)}, expected [{counted['columns']}]")
    if faults:
        raise StimulusError("no calibration can be designed: " + "; ".join(faults))
