"""Energies and times of analog inference, each with a low, a typical and a high value and where it comes from.

The evidence word says how far a number can be trusted: `published` is printed in the source, `derived` is arithmetic
on published numbers, `expected` is an estimate of this project that nobody has measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from labrig_surrogates.faults import refuse

Level = Literal["low", "typical", "high"]
Evidence = Literal["published", "derived", "expected"]


@dataclass(frozen=True)
class Constant:
    """One physical constant of the model, with its range and its source.

    Attributes:
        low: Optimistic value.
        typical: Value to plan with.
        high: Pessimistic value.
        unit: SI unit.
        source: Citation, and the arithmetic where it is derived.
        evidence: How the numbers are known.
    """

    low: float
    typical: float
    high: float
    unit: str
    source: str
    evidence: Evidence

    def __post_init__(self) -> None:
        ordered = 0 <= self.low <= self.typical <= self.high < math.inf
        numbers = f"{self.low:g}, {self.typical:g}, {self.high:g} {self.unit}"
        refuse("constant", [] if ordered else [f"{numbers} are not low <= typical <= high, from zero on"])
        refuse("constant", [] if self.source.strip() else [f"{numbers} come from nowhere: name a source"])

    def at(self, level: Level) -> float:
        """The value at a level."""
        value: float = getattr(self, level)
        return value

    @classmethod
    def exactly(cls, value: float, unit: str, source: str, evidence: Evidence) -> Constant:
        """A constant of which one value is known."""
        return cls(value, value, value, unit, source, evidence)


_SURVEY = (
    "B. Murmann, ADC Performance Survey (725 entries to 2025), since 2012 and at 30 MS/s or more: best, quartile and "
    "median of P/fsnyq. Few entries have 7 bits, and the medians do not rise in order"
)
_ISAAC = "ISAAC (32 nm), Shafiee et al., ISCA 2016, doi 10.1109/ISCA.2016.12, as read by hwcomponents-library 1.0.58"
_TIMELY = "TIMELY (65 nm), Li et al., ISCA 2020, doi 10.1109/ISCA45697.2020.00073, Table II"
_HOROWITZ = "M. Horowitz, Computing's energy problem, ISSCC 2014 (45 nm)"
_RRAM_CELL = "M. Zangeneh and A. Joshi, IEEE TVLSI 22, 1815 (2014), modelled RRAM of 3 bits a cell"
_HERMES = "HERMES (14 nm, PCM), Le Gallo et al., Nat. Electron. 2023, doi 10.1038/s41928-023-01010-1"
_NEURRAM = "NeuRRAM (130 nm, RRAM), Wan et al., Nature 608, 504 (2022), as reproduced by CiMLoop, ISPASS 2024"

ADC_CONVERSION = {
    6: Constant(0.30e-12, 2.1e-12, 5.0e-12, "J", _SURVEY, "derived"),
    7: Constant(1.1e-12, 2.4e-12, 2.8e-12, "J", _SURVEY, "derived"),
    8: Constant(4.6e-12, 5.4e-12, 9.1e-12, "J", _SURVEY, "derived"),
}
"""Energy of one conversion by effective number of bits."""


def adc_conversion(bits: int) -> Constant:
    """Energy of one ADC conversion.

    From the survey for 6, 7 and 8 effective bits. Below, half for each bit less (constant energy for each conversion
    step, Walden's figure of merit); above, four times for each bit more (thermal noise, Schreier's).

    Raises:
        SurrogateError: Fewer than one or more than sixteen bits.
    """
    refuse("ADC", [] if 1 <= bits <= 16 else [f"{bits} bits: one to sixteen"])
    known = ADC_CONVERSION.get(bits)
    if known is not None:
        return known
    nearest, factor = (6, 2.0 ** (bits - 6)) if bits < 6 else (8, 4.0 ** (bits - 8))
    base = ADC_CONVERSION[nearest]
    source = f"{base.source}; {nearest} bits times {factor:g}"
    return Constant(base.low * factor, base.typical * factor, base.high * factor, "J", source, "derived")


@dataclass(frozen=True)
class ComponentConstants:
    """What the parts of an analog chip take, for those who build one from parts.

    Attributes:
        dac_bit_j: One input line, for each bit that is driven in.
        read_voltage_v: Root mean square of the read voltages.
        conductance_s: Mean conductance of a device.
        mvm_s: Time of one matrix-vector product of an array.
        accumulate_j: Adding one converted output to the sum of its column.
        affine_j: Scale, bias and activation of one output of a layer.
        move_bit_j: One bit written to a buffer, read from it and carried to the next array.
        program_pulse_j: One programming pulse on one device.
        pulses_per_device: Pulses until a device is at its target.
    """

    dac_bit_j: Constant = Constant(
        0.0375e-12 / 8,
        4e-3 / (8 * 128 * 1.2e7),
        0.41667e-12,
        "J",
        f"low: {_TIMELY}, 8 bits to a time in 0.0375 pJ; typical and high: {_ISAAC}, 4 mW for 8 x 128 one-bit drivers "
        "at 12 MHz, all in use or 100 of 128",
        "derived",
    )
    read_voltage_v: Constant = Constant(
        0.1,
        0.2,
        0.4,
        "V",
        "low: CrossSim's default; high: aihwkit's IR-drop model (0.4005 V); typical: their geometric mean",
        "expected",
    )
    conductance_s: Constant = Constant(
        2e-6,
        5e-6,
        20e-6,
        "S",
        f"a tenth, a quarter and all of the full scale of two devices, 20.7 uS, rounded; {_HERMES}",
        "expected",
    )
    mvm_s: Constant = Constant(
        133e-9,
        521e-9,
        521e-9,
        "s",
        f"64 cores of 256 x 256 at 63.1 and 16.1 TOPS (one and four phases); {_HERMES}",
        "derived",
    )
    accumulate_j: Constant = Constant(
        0.021e-12,
        0.1e-12,
        0.21e-12,
        "J",
        f"low: {_ISAAC}, shift and add; typical: {_HOROWITZ}, 32-bit integer addition; high: Aladdin (40 nm), 32-bit "
        "addition, as read by hwcomponents-library 1.0.58",
        "published",
    )
    affine_j: Constant = Constant(
        0.26e-12,
        1.5e-12,
        4.6e-12,
        "J",
        f"{_HOROWITZ}: multiplication and addition in int8 (0.2 + 2 x 0.03), fp16 (1.1 + 0.4), fp32 (3.7 + 0.9)",
        "derived",
    )
    move_bit_j: Constant = Constant(
        (2 * 20.45e-12 + 20.74e-12) / 256 + 0.054e-12,
        2 * 10e-12 / 64 + 20.74e-12 / 256 + 0.054e-12,
        2 * 100e-12 / 64 + 20.74e-12 / 256 + 0.054e-12,
        "J",
        f"write, read, router, bus; {_ISAAC}: eDRAM 20.45 pJ and router 20.74 pJ for 256 bits, bus 0.054 pJ for one; "
        f"typical and high with {_HOROWITZ}: 64 bits of an 8 KB cache 10 pJ, of 1 MB 100 pJ",
        "derived",
    )
    program_pulse_j: Constant = Constant(
        3 * 0.365e-12,
        3 * (0.365 * 4.06) ** 0.5 * 1e-12,
        3 * 4.06e-12,
        "J",
        f"{_RRAM_CELL}: HfOx 365 fJ a bit (low), TiO2 4.06 pJ a bit (high); typical: their geometric mean",
        "derived",
    )
    pulses_per_device: Constant = Constant(
        1.0, 10.0, 30.0, "1", "one without verification, some ten with it: count your own chip's", "expected"
    )

    def items(self) -> dict[str, Constant]:
        """All constants by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class Macro:
    """A published macro, taken whole: what one product of its full array costs, converters and control included.

    Attributes:
        name: What it is called in tables.
        rows: Inputs of its array.
        columns: Signed outputs of its array.
        tops_per_watt: Operations per joule in 1e12; a multiply-accumulate is two.
        tops: Operations per second of the whole chip in 1e12, or `None` where it is not published.
        cores: Arrays that work at the same time.
        input_bits: Precision of its inputs.
        output_bits: Precision of its outputs.
        source: Citation.
    """

    name: str
    rows: int
    columns: int
    tops_per_watt: float
    tops: float | None
    cores: int
    input_bits: int
    output_bits: int
    source: str

    @property
    def mvm_j(self) -> float:
        """Energy in J of one product of the full array: `2 rows columns / (TOPS/W)`."""
        return 2.0 * self.rows * self.columns / (self.tops_per_watt * 1e12)

    @property
    def mac_j(self) -> float:
        """Energy in J of one multiply-accumulate of a full array."""
        return self.mvm_j / (self.rows * self.columns)

    @property
    def mvm_s(self) -> float | None:
        """Time in s of one product, with all cores at work: `2 rows columns cores / TOPS`."""
        if self.tops is None:
            return None
        return 2.0 * self.rows * self.columns * self.cores / (self.tops * 1e12)


MACROS = {
    macro.name: macro
    for macro in (
        Macro("HERMES four-phase", 256, 256, 2.48, 16.1, 64, 8, 8, _HERMES),
        Macro("HERMES one-phase", 256, 256, 9.76, 63.1, 64, 8, 8, _HERMES),
        Macro("NeuRRAM 2b/4b", 256, 256, 40.0, None, 48, 2, 4, _NEURRAM),
        Macro("NeuRRAM 4b/6b", 256, 256, 15.95, None, 48, 4, 6, _NEURRAM),
        Macro("NeuRRAM 6b/8b", 256, 256, 8.3, None, 48, 6, 8, _NEURRAM),
    )
}
"""Published macros by name. One phase is the noisier mode of HERMES: meet the accuracy in the mode that you quote."""


DIGITAL_MAC = {
    "H100 fp8, peak": Constant.exactly(
        0.71e-12, "J", "700 W and 1,979 dense TOPS, data sheet, not checked here; a peak is never reached", "derived"
    ),
    "H100 bf16, peak": Constant.exactly(
        1.42e-12, "J", "700 W and 989 dense TOPS, data sheet, not checked here; a peak is never reached", "derived"
    ),
    "A100 training ResNet-18": Constant.exactly(
        10.4e-12, "J", "32.3 PFLOP in 7 min (published) at the rated 400 W, not metered: 5.2 pJ/FLOP", "derived"
    ),
}
"""Energy of a multiply-accumulate on digital machines, to compare with: no substitute for a metered inference."""
