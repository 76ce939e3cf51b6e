"""What an inference asks of the chip, and what it costs: values, and their tables in plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labrig_surrogates.energy_constants import Constant, Level
from labrig_surrogates.faults import refuse


@dataclass(frozen=True)
class LayerLoad:
    """What one layer asks of the chip in one inference.

    Attributes:
        name: Name of the layer.
        tiles: Arrays that hold it; every input vector visits all of them.
        rows: Word lines that are driven in each array: all of them, unless idle ones are gated.
        columns: Signed outputs that are converted in each array, idle ones included likewise.
        mvms: Input vectors of one inference: one for a linear layer, one a position for a convolution.
        outputs: Outputs of the layer for each vector.
        macs: Useful multiply-accumulates of one inference.
        input_bits: Precision of the DACs.
        output_bits: Precision of the ADCs.
        devices_per_weight: Devices of a weight; two for a differential pair.
    """

    name: str
    tiles: int
    rows: int
    columns: int
    mvms: int
    outputs: int
    macs: int
    input_bits: int = 8
    output_bits: int = 8
    devices_per_weight: int = 2

    def __post_init__(self) -> None:
        counts = (
            "tiles",
            "rows",
            "columns",
            "mvms",
            "outputs",
            "macs",
            "input_bits",
            "output_bits",
            "devices_per_weight",
        )
        bad = [name for name in counts if getattr(self, name) < 1]
        faults = [f"{name} is {getattr(self, name)}: one or more" for name in bad]
        if not bad and self.macs > self.tile_mvms * self.rows * self.columns:
            faults.append(
                f"{self.macs} macs are more than {self.tile_mvms} products of {self.rows} x {self.columns} can hold"
            )
        refuse(f"load of layer {self.name!r}", faults)

    @classmethod
    def of_matrix(
        cls,
        name: str,
        inputs: int,
        outputs: int,
        mvms: int = 1,
        *,
        rows: int = 256,
        columns: int = 256,
        input_bits: int = 8,
        output_bits: int = 8,
        devices_per_weight: int = 2,
    ) -> LayerLoad:
        """The load of an `[outputs, inputs]` matrix cut into arrays of `rows` inputs and `columns` signed outputs.

        A convolution has `inputs = channels * height * width` of its kernel and one vector a position of its output.
        """
        tiles = -(-inputs // rows) * -(-outputs // columns)
        macs = inputs * outputs * mvms
        return cls(name, tiles, rows, columns, mvms, outputs, macs, input_bits, output_bits, devices_per_weight)

    @property
    def tile_mvms(self) -> int:
        """Products of single arrays in one inference."""
        return self.tiles * self.mvms

    @property
    def utilisation(self) -> float:
        """Share of the carried out multiply-accumulates that are useful."""
        return self.macs / (self.tile_mvms * self.rows * self.columns)


@dataclass(frozen=True)
class LayerEnergy:
    """Energy and time of one layer in one inference.

    Attributes:
        load: The layer.
        parts_j: Energy in J by part.
        latency_s: Time of its vectors, one after the other, in s; `None` where no time is published.
    """

    load: LayerLoad
    parts_j: Mapping[str, float]
    latency_s: float | None

    @property
    def total_j(self) -> float:
        """Energy of all parts in J."""
        return sum(self.parts_j.values())


@dataclass(frozen=True)
class EnergyReport:
    """Energy and time of an inference.

    Attributes:
        name: What was modelled, for tables.
        level: Whether low, typical or high constants were used.
        layers: Layer by layer.
        shared_j: What belongs to no layer, by part: static power.
        arrays: Arrays that the model has, or `None` for as many as needed.
    """

    name: str
    level: Level
    layers: tuple[LayerEnergy, ...]
    shared_j: Mapping[str, float]
    arrays: int | None = None

    @property
    def parts_j(self) -> dict[str, float]:
        """Energy in J of all layers together by part, the shared ones at the end."""
        totals: dict[str, float] = {}
        for layer in self.layers:
            for part, energy in layer.parts_j.items():
                totals[part] = totals.get(part, 0.0) + energy
        return {**totals, **self.shared_j}

    @property
    def total_j(self) -> float:
        """Energy of one inference in J."""
        return sum(self.parts_j.values())

    @property
    def latency_s(self) -> float | None:
        """Time of one inference in s, the layers one after the other; `None` where no time is published."""
        times = [layer.latency_s for layer in self.layers]
        return None if None in times else sum(time for time in times if time is not None)

    @property
    def interval_s(self) -> float | None:
        """Time in s between two inferences when the layers work as a pipeline: that of the slowest one."""
        times = [layer.latency_s for layer in self.layers if layer.latency_s is not None]
        return max(times) if len(times) == len(self.layers) else None

    @property
    def tiles(self) -> int:
        """Arrays that all layers take."""
        return sum(layer.load.tiles for layer in self.layers)

    @property
    def tile_mvms(self) -> int:
        """Products of single arrays in one inference."""
        return sum(layer.load.tile_mvms for layer in self.layers)

    @property
    def macs(self) -> int:
        """Useful multiply-accumulates of one inference."""
        return sum(layer.load.macs for layer in self.layers)

    @property
    def tops_per_watt(self) -> float:
        """Useful operations per joule in 1e12; a multiply-accumulate is two."""
        return 2.0 * self.macs / self.total_j / 1e12

    def ratio_to(self, digital_mac: Constant) -> float:
        """How many times more a digital machine takes for the useful multiply-accumulates."""
        return self.macs * digital_mac.at(self.level) / self.total_j

    def table(self) -> str:
        """The layers and their parts as plain text, energies in uJ, with the totals and what follows from them."""
        parts = list(self.parts_j)
        header = ["layer", "arrays", "MVMs", "use %", *[f"{part} uJ" for part in parts], "total uJ", "%"]
        rows = [
            [
                layer.load.name,
                str(layer.load.tiles),
                str(layer.load.tile_mvms),
                f"{100 * layer.load.utilisation:.0f}",
                *[f"{1e6 * layer.parts_j.get(part, 0.0):.4g}" for part in parts],
                f"{1e6 * layer.total_j:.4g}",
                f"{100 * layer.total_j / self.total_j:.1f}",
            ]
            for layer in self.layers
        ]
        slots = sum(layer.load.tile_mvms * layer.load.rows * layer.load.columns for layer in self.layers)
        totals = [f"{1e6 * energy:.4g}" for energy in self.parts_j.values()]
        counts = ["all", str(self.tiles), str(self.tile_mvms), f"{100 * self.macs / slots:.0f}"]
        rows.append([*counts, *totals, f"{1e6 * self.total_j:.4g}", "100.0"])
        return "\n".join([f"{self.name}, {self.level} constants", *_aligned([header, *rows]), *self._remarks()])

    def _remarks(self) -> list[str]:
        efficiency = f"{self.tops_per_watt:.3g} TOPS/W of useful operations"
        latency, interval = self.latency_s, self.interval_s
        if latency is None or interval is None:
            times = "no time is published for this macro"
        else:
            times = f"{1e6 * latency:.4g} us from input to output, {1e6 * interval:.4g} us apart as a pipeline"
        remarks = [f"{efficiency}; {times}"]
        if self.arrays is not None and self.tiles > self.arrays:
            chips = -(-self.tiles // self.arrays)
            sizes = f"{self.tiles} arrays are {chips} chips of {self.arrays}"
            remarks.append(f"does not fit: {sizes}; links between chips are not counted")
        return remarks


@dataclass(frozen=True)
class Sensitivity:
    """What one constant alone does to the energy of an inference.

    Attributes:
        constant: Its name.
        low_j: Energy in J with its low value, all others typical.
        high_j: Energy in J with its high value, all others typical.
    """

    constant: str
    low_j: float
    high_j: float

    @property
    def span_j(self) -> float:
        """How far its range moves the energy, in J."""
        return self.high_j - self.low_j


def sensitivity_table(entries: Sequence[Sensitivity]) -> str:
    """Sensitivities as plain text, energies in uJ, in the order given."""
    header = ["constant", "low uJ", "high uJ", "span uJ"]
    rows = [[e.constant, *[f"{1e6 * value:.4g}" for value in (e.low_j, e.high_j, e.span_j)]] for e in entries]
    return "\n".join(_aligned([header, *rows]))


def constants_table(constants: Mapping[str, Constant]) -> str:
    """Constants with range, unit, evidence and source as plain text."""
    header = ["constant", "low", "typical", "high", "unit", "evidence", "source"]
    rows = [
        [name, *[f"{c.at(level):.4g}" for level in ("low", "typical", "high")], c.unit, c.evidence, c.source]
        for name, c in constants.items()
    ]
    return "\n".join(_aligned([header, *rows], left={0, 4, 5, 6}))


def _aligned(rows: Sequence[Sequence[str]], left: set[int] | None = None) -> list[str]:
    """Columns of equal width, the first (or those named) to the left, the others to the right."""
    to_left = {0} if left is None else left
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(w) if n in to_left else cell.rjust(w)
            for n, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
