"""What has to be known about an ArC TWO and the chip in its socket: nothing of it can be asked of the instrument."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from labrig_drivers.settings_table import SettingsTable

# The two groups of 32 channels that pyarc2 documents: `read_slice` of a channel of one group reads the other group.
WORD_CHANNELS: Final = (*range(16, 32), *range(48, 64))
BIT_CHANNELS: Final = (*range(16), *range(32, 48))

# Lines in the order of a 32x32 array in the PLCC socket, as ArC Instruments' own software maps them.
_PLCC_WORDS: Final = tuple(channel for pair in zip(range(16, 32), range(63, 47, -1), strict=True) for channel in pair)
_PLCC_BITS: Final = tuple(channel for pair in zip(range(15, -1, -1), range(32, 48), strict=True) for channel in pair)
_ORDERS: Final = {"ascending": (WORD_CHANNELS, BIT_CHANNELS), "plcc32": (_PLCC_WORDS, _PLCC_BITS)}

# Standard output range of the channels; the extended one of 20 V is never switched on.
_HIGHEST_V: Final = 10.0
# pyarc2 pulses with its fast drivers below half a second; what is longer is no programming pulse.
_LONGEST_PULSE_S: Final = 0.5
_MOST_LINES: Final = 32


@dataclass(frozen=True)
class PulseRecipe:
    """How cells are programmed: pulses one by one, a read after each.

    Attributes:
        set_v: Voltage in V of the first pulse that raises a conductance.
        reset_v: Voltage in V of the first pulse that lowers it.
        step_v: By how much in V each further pulse of the same kind is larger.
        max_v: Magnitude in V that no pulse exceeds.
        pulse_s: Length of a pulse in s.
        max_pulses: Most pulses for one cell in one programming.
        tolerance_s: A cell is done when its conductance is this close to the target, in S.
        verify_v: Voltage in V of the reads between the pulses.
    """

    set_v: float
    reset_v: float
    step_v: float
    max_v: float
    pulse_s: float
    max_pulses: int
    tolerance_s: float
    verify_v: float


@dataclass(frozen=True)
class ArcTwoSettings:
    """One ArC TWO and the chip in it.

    Attributes:
        chip_id: Which chip is in the socket; a calibration belongs to one chip.
        firmware: Path of the firmware that is loaded into the board.
        recipe: How its cells are programmed.
        conductance_min_s: Lowest conductance in S that may be programmed.
        conductance_max_s: Highest conductance in S that may be programmed.
        port: Which of several boards on this computer, as `pyarc2.find_ids()` counts.
        serial: What is written on the board; the library cannot ask for it.
        row_channels: Channel of each word line.
        column_channels: Channel of each bit line.
        voltage_max_v: Read voltages reach from minus to plus this, in V.
        dac_bits: Levels of the read voltages, `2**bits - 1`; the driver rounds to them.
        adc_bits: Bits of the codes that the driver makes of measured currents.
        adc_full_scale_a: Current in A at the upper end of the codes.
        current_sign: 1, or -1 where the library counts a current into a driven line as negative.
        settle_s: Extra wait in s between driving the lines and reading.
        timeout_s: Longest wait in s for an answer, on top of what the request itself takes.
    """

    chip_id: str
    firmware: str
    recipe: PulseRecipe
    conductance_min_s: float
    conductance_max_s: float
    port: int = 0
    serial: str = "unknown"
    row_channels: tuple[int, ...] = WORD_CHANNELS
    column_channels: tuple[int, ...] = BIT_CHANNELS
    voltage_max_v: float = 0.2
    dac_bits: int = 10
    adc_bits: int = 16
    adc_full_scale_a: float = 1e-3
    current_sign: int = 1
    settle_s: float = 0.0
    timeout_s: float = 5.0

    @classmethod
    def from_table(cls, settings: Mapping[str, object]) -> ArcTwoSettings:
        """Reads the `[board.settings]` table of a rig file.

        Raises:
            ConfigError: Keys are unknown or missing, or values are wrong; all faults at once.
        """
        table = SettingsTable(settings, "board.settings")
        order = table.choice("line_order", "ascending", _ORDERS)
        words, bits = _ORDERS[order]
        rows = table.whole("rows", _MOST_LINES, low=1)
        columns = table.whole("columns", _MOST_LINES, low=1)
        rows_are_words = table.choice("word_lines", "words", ("words", "bits")) == "words"
        row_side, column_side = (words, bits) if rows_are_words else (bits, words)
        recipe = _recipe(table.table("pulses", None))
        found = cls(
            chip_id=table.text("chip_id"),
            firmware=table.text("firmware"),
            recipe=recipe,
            conductance_min_s=table.positive("conductance_min_s"),
            conductance_max_s=table.positive("conductance_max_s"),
            port=table.whole("port", 0, low=0),
            serial=table.text("serial", "unknown"),
            row_channels=row_side[:rows],
            column_channels=column_side[:columns],
            voltage_max_v=table.positive("voltage_max_v", 0.2),
            dac_bits=table.whole("dac_bits", 10, low=2),
            adc_bits=table.whole("adc_bits", 16, low=2),
            adc_full_scale_a=table.positive("adc_full_scale_a", 1e-3),
            current_sign=-1 if table.choice("current_sign", "positive", ("positive", "negative")) == "negative" else 1,
            settle_s=table.not_negative("settle_s", 0.0),
            timeout_s=table.positive("timeout_s", 5.0),
        )
        table.faults += found.faults(rows, columns)
        table.finish()
        return found

    def faults(self, rows: int, columns: int) -> list[str]:
        """What is wrong between the values, a line each as `key: reason`.

        Args:
            rows: Word lines that were asked for.
            columns: Bit lines that were asked for.
        """
        recipe = self.recipe
        pulses = "board.settings.pulses"
        checks = (
            (rows <= _MOST_LINES, "board.settings.rows", f"{rows} is more than the {_MOST_LINES} channels of one side"),
            (
                columns <= _MOST_LINES,
                "board.settings.columns",
                f"{columns} is more than the {_MOST_LINES} channels of one side",
            ),
            (
                self.conductance_min_s < self.conductance_max_s,
                "board.settings.conductance_min_s",
                f"{self.conductance_min_s:g} S must be below conductance_max_s = {self.conductance_max_s:g} S",
            ),
            (
                self.voltage_max_v <= _HIGHEST_V,
                "board.settings.voltage_max_v",
                f"{self.voltage_max_v:g} V exceeds the channels' {_HIGHEST_V:g} V",
            ),
            (self.adc_bits <= 16, "board.settings.adc_bits", f"{self.adc_bits}: codes have 16 bits at most"),
            (
                self.dac_bits <= 16,
                "board.settings.dac_bits",
                f"{self.dac_bits}: the channels' converters have 16 bits",
            ),
            (
                recipe.max_v <= _HIGHEST_V,
                f"{pulses}.max_v",
                f"{recipe.max_v:g} V exceeds the channels' {_HIGHEST_V:g} V",
            ),
            (
                max(abs(recipe.set_v), abs(recipe.reset_v)) <= recipe.max_v,
                f"{pulses}.max_v",
                f"{recipe.max_v:g} V is below set_v = {abs(recipe.set_v):g} V or reset_v = {abs(recipe.reset_v):g} V",
            ),
            (
                recipe.verify_v <= self.voltage_max_v,
                f"{pulses}.verify_v",
                f"{recipe.verify_v:g} V exceeds the read voltage voltage_max_v = {self.voltage_max_v:g} V",
            ),
            (
                1e-9 <= recipe.pulse_s < _LONGEST_PULSE_S,
                f"{pulses}.pulse_s",
                f"{recipe.pulse_s:g} s does not lie between 1e-09 s and {_LONGEST_PULSE_S:g} s",
            ),
            (recipe.set_v * recipe.reset_v != 0.0, f"{pulses}.set_v", "set_v and reset_v must not be zero"),
        )
        return [f"{key}: {reason}" for right, key, reason in checks if not right]


def _recipe(table: SettingsTable) -> PulseRecipe:
    """The pulses: magnitudes in the file, so that a forgotten minus sign is no accident."""
    set_v, reset_v = table.positive("set_v"), table.positive("reset_v")
    sign = 1.0 if table.choice("set_polarity", "positive", ("positive", "negative")) == "positive" else -1.0
    recipe = PulseRecipe(
        set_v=sign * set_v,
        reset_v=-sign * reset_v,
        step_v=table.not_negative("step_v", 0.0),
        max_v=table.positive("max_v"),
        pulse_s=table.positive("pulse_s"),
        max_pulses=table.whole("max_pulses", 50, low=1),
        tolerance_s=table.positive("tolerance_s"),
        verify_v=table.positive("verify_v", 0.2),
    )
    table.finish()
    return recipe
