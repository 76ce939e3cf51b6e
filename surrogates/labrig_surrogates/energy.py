"""Joules and seconds of an inference on analog tiles: from counts and published constants, nothing hidden.

    E = sum over layers of n_mvm [rows E_dac + E_array + columns E_adc] + E_digital + E_movement
        + (E_programming + E_calibration) / inferences between two programmings + P_static t

Counted are the products that the arrays carry out, used or not: a layer of 27 inputs on 256 rows drives 256 rows. The
model takes plain descriptions (`LayerLoad`); `energy_loads.layer_loads` makes those of an analog model. Built from
parts, the largest share is the array's, which rests on an assumed voltage and conductance: start from
`EnergyModel.of_macro` where a published one is like yours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from labrig_surrogates.energy_constants import (
    DIGITAL_MAC,
    MACROS,
    ComponentConstants,
    Constant,
    Evidence,
    Level,
    Macro,
    adc_conversion,
)
from labrig_surrogates.energy_report import (
    EnergyReport,
    LayerEnergy,
    LayerLoad,
    Sensitivity,
    constants_table,
    sensitivity_table,
)
from labrig_surrogates.faults import refuse

__all__ = [
    "DIGITAL_MAC",
    "MACROS",
    "ComponentConstants",
    "Constant",
    "EnergyModel",
    "EnergyReport",
    "Evidence",
    "LayerEnergy",
    "LayerLoad",
    "Level",
    "Macro",
    "Sensitivity",
    "adc_conversion",
    "constants_table",
    "sensitivity_table",
]

NO_STATIC_POWER = Constant.exactly(0.0, "W", "none: the published macros do not state it apart", "expected")

_Value = Callable[[str], float]


@dataclass(frozen=True)
class EnergyModel:
    """Energy and time of an inference, from parts or from a published macro.

    With a macro, one product of the full array costs what was published for it, converters, control and local digital
    units included; movement between arrays, programming and calibration are added from the constants.

    Attributes:
        name: What it models, for tables.
        constants: Constants of the parts.
        adc_j: Energy of a conversion, or `None` to take the survey's for the bits of each layer.
        macro: A published macro in place of DAC, array, ADC and digital parts.
        static_power_w: Power that flows whether or not anything is computed.
        arrays: Arrays of one chip, or `None` for as many as needed.
        inferences_per_programming: Inferences that share the cost of a programming; `None` does not charge it.
        calibration_mvms: Products of each array that a calibration after each programming takes.
    """

    name: str
    constants: ComponentConstants = field(default_factory=ComponentConstants)
    adc_j: Constant | None = None
    macro: Macro | None = None
    static_power_w: Constant = NO_STATIC_POWER
    arrays: int | None = None
    inferences_per_programming: float | None = None
    calibration_mvms: int = 0

    def __post_init__(self) -> None:
        faults = []
        if self.macro is not None and self.adc_j is not None:
            faults.append("a macro has its ADCs in it: leave adc_j out")
        if self.macro is not None and self.macro.mvm_s is None and self.static_power_w.high > 0:
            faults.append(f"no time is published for {self.macro.name}: its static power cannot be charged")
        if self.inferences_per_programming is not None and not self.inferences_per_programming > 0:
            faults.append(f"inferences_per_programming is {self.inferences_per_programming}: more than zero, or None")
        if self.calibration_mvms < 0:
            faults.append(f"calibration_mvms is {self.calibration_mvms}: zero or more")
        if self.calibration_mvms > 0 and self.inferences_per_programming is None:
            faults.append("a calibration is shared by inferences_per_programming: say how many")
        if self.arrays is not None and self.arrays < 1:
            faults.append(f"arrays is {self.arrays}: one or more, or None")
        refuse(f"energy model {self.name!r}", faults)

    @classmethod
    def of_macro(cls, name: str) -> EnergyModel:
        """The model of one of the published `MACROS`, on chips of as many arrays as published.

        Raises:
            SurrogateError: There is no macro of that name.
        """
        macro = MACROS.get(name)
        refuse("energy model", [] if macro is not None else [f"{name!r} is no macro; there are {', '.join(MACROS)}"])
        assert macro is not None
        return cls(name, macro=macro, arrays=macro.cores)

    def evaluate(self, loads: Sequence[LayerLoad], level: Level = "typical") -> EnergyReport:
        """Energy and time of one inference.

        All low and all high constants together give bounds, not a likely range.

        Args:
            loads: The layers.
            level: Which values of the constants.

        Raises:
            SurrogateError: There are no layers, or a layer does not fit the macro; every fault is named.
        """
        return self._evaluate(loads, {}, level)

    def sensitivity(self, loads: Sequence[LayerLoad]) -> list[Sensitivity]:
        """What the range of each constant alone does to the energy, the largest first, those without effect left out.

        Raises:
            SurrogateError: As `evaluate`.
        """
        names = [*self.constants.items(), "adc_j", "static_power_w"]
        entries = []
        for name in names:
            low, high = (self._evaluate(loads, {name: level}, "typical").total_j for level in _ENDS)
            entries.append(Sensitivity(name, low, high))
        return sorted((entry for entry in entries if entry.span_j > 0), key=lambda entry: -entry.span_j)

    def _evaluate(self, loads: Sequence[LayerLoad], levels: Mapping[str, Level], level: Level) -> EnergyReport:
        refuse(f"energy model {self.name!r}", self._load_faults(loads))
        constants = {**self.constants.items(), "static_power_w": self.static_power_w}

        def value(name: str) -> float:
            return constants[name].at(levels.get(name, level))

        layers = tuple(self._layer(load, value, levels.get("adc_j", level)) for load in loads)
        report = EnergyReport(self.name, level, layers, {}, self.arrays)
        static_w = value("static_power_w")
        if static_w == 0:
            return report
        assert report.latency_s is not None
        return EnergyReport(self.name, level, layers, {"static": static_w * report.latency_s}, self.arrays)

    def _layer(self, load: LayerLoad, value: _Value, adc_level: Level) -> LayerEnergy:
        analog = self._product(load, value, adc_level)
        parts = {part: load.tile_mvms * energy for part, energy in analog.items()}
        results = load.outputs * load.mvms
        if self.macro is None:
            sums = load.tile_mvms * load.columns * value("accumulate_j")
            parts["digital"] = sums + results * value("affine_j")
        bits = load.tile_mvms * load.rows * load.input_bits + results * load.output_bits
        parts["movement"] = bits * value("move_bit_j")
        if self.inferences_per_programming is not None:
            devices = load.tiles * load.rows * load.columns * load.devices_per_weight
            writing = devices * value("pulses_per_device") * value("program_pulse_j")
            parts["programming"] = writing / self.inferences_per_programming
            calibration = self.calibration_mvms * load.tiles * sum(analog.values())
            parts["calibration"] = calibration / self.inferences_per_programming
        mvm_s = value("mvm_s") if self.macro is None else self.macro.mvm_s
        return LayerEnergy(load, parts, None if mvm_s is None else load.mvms * mvm_s)

    def _product(self, load: LayerLoad, value: _Value, adc_level: Level) -> dict[str, float]:
        """Energy in J of one product of one array, by part."""
        if self.macro is not None:
            return {"macro": self.macro.mvm_j}
        cells = load.rows * load.columns * load.devices_per_weight
        adc = self.adc_j or adc_conversion(load.output_bits)
        return {
            "DAC": load.rows * load.input_bits * value("dac_bit_j"),
            "ADC": load.columns * adc.at(adc_level),
            "array": cells * value("conductance_s") * value("read_voltage_v") ** 2 * value("mvm_s"),
        }

    def _load_faults(self, loads: Sequence[LayerLoad]) -> list[str]:
        faults = [] if loads else ["no layers"]
        macro = self.macro
        if macro is None:
            return faults
        for load in loads:
            if (load.rows, load.columns) != (macro.rows, macro.columns):
                size = f"{macro.rows} x {macro.columns}"
                faults.append(f"layer {load.name!r} is cut for {load.rows} x {load.columns}, the macro has {size}")
            if load.input_bits > macro.input_bits or load.output_bits > macro.output_bits:
                bits = f"{load.input_bits}-bit inputs and {load.output_bits}-bit outputs"
                faults.append(f"layer {load.name!r} has {bits}, the macro {macro.input_bits} and {macro.output_bits}")
        return faults


_ENDS: tuple[Level, Level] = ("low", "high")
