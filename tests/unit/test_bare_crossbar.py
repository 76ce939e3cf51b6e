"""The simulated circuit against closed forms: grounded and floating lines, limits, gates, and cells that switch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labrig_drivers.bench_settings import BenchGeometry
from labrig_drivers.mock.bare_crossbar import BareCrossbar, CellSettings, FloatArray
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.mock.switch_matrix import SwitchEvent
from labrig_drivers.mock.wired_crossbar import WiredCrossbar, hot_switches

WORD, BIT, GROUND, GATE = 1, 2, 3, 4


class Bench:
    """A crossbar whose word source and bit meter are set by hand."""

    def __init__(self, conductance_s: FloatArray, cells: CellSettings | None = None, *, gates: bool = False) -> None:
        rows, columns = conductance_s.shape
        lines = rows + columns
        self.geometry = BenchGeometry(
            tuple(range(1, rows + 1)),
            tuple(range(rows + 1, lines + 1)),
            WORD,
            (BIT,),
            GROUND,
            GATE if gates else None,
            tuple(range(lines + 1, lines + rows + 1)) if gates else (),
        )
        self.crossbar = BareCrossbar(conductance_s, cells or CellSettings(), np.random.default_rng(4))
        rows_of = {"word": WORD, "bit": BIT} | ({"gate": GATE} if gates else {})
        self.wired = WiredCrossbar(self.crossbar, self.geometry, rows_of)

    def relay(self, row: int, column: int, *, closed: bool = True) -> None:
        self.wired.relay_moved(SwitchEvent(0.0, "M", row, column, closed, 1))

    def output(self, serial: str, voltage_v: float, *, on: bool = True, limit_a: float = 1.0) -> None:
        self.wired.output_changed(OutputEvent(0.0, serial, on, voltage_v, limit_a))

    def select(self, word: int, bit: int, *, grounded: bool = True) -> None:
        """Connects one cell; the other lines are grounded or float."""
        for index, column in enumerate(self.geometry.word_columns):
            if index == word or grounded:
                self.relay(WORD if index == word else GROUND, column)
        for index, column in enumerate(self.geometry.bit_columns):
            if index == bit or grounded:
                self.relay(BIT if index == bit else GROUND, column)

    def bit_current_a(self) -> float:
        """Current into the bit meter, which holds 0 V."""
        return -self.wired.terminal_current_a("bit", 0.0)


def test_with_the_other_lines_grounded_a_cell_is_alone() -> None:
    conductance_s = np.random.default_rng(1).uniform(1e-6, 1e-4, (5, 4))
    for word, bit in np.ndindex(5, 4):
        bench = Bench(conductance_s)
        bench.select(word, bit)
        bench.output("word", 0.2)
        bench.output("bit", 0.0)
        assert bench.bit_current_a() == pytest.approx(0.2 * conductance_s[word, bit], rel=1e-9)
        # The source feeds the whole word line.
        whole_a = bench.wired.terminal_current_a("word", 0.2)
        assert whole_a == pytest.approx(0.2 * conductance_s[word].sum(), rel=1e-9)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_with_the_other_lines_floating_three_cells_in_series_sneak_past(seed: int) -> None:
    """2 by 2: the path around the selected cell goes through the three others one after another."""
    g = np.random.default_rng(seed).uniform(1e-6, 1e-4, (2, 2))
    bench = Bench(g)
    bench.select(0, 0, grounded=False)
    bench.output("word", 0.2)
    bench.output("bit", 0.0)
    sneak_s = 1.0 / (1.0 / g[0, 1] + 1.0 / g[1, 1] + 1.0 / g[1, 0])
    assert bench.bit_current_a() == pytest.approx(0.2 * (g[0, 0] + sneak_s), rel=1e-6)


def test_the_floating_crossbar_is_kirchhoffs() -> None:
    """Every node equation written out: no current into a line that nothing holds."""
    g = np.random.default_rng(3).uniform(1e-6, 1e-4, (4, 3))
    bench = Bench(g)
    bench.select(2, 1, grounded=False)
    bench.output("word", 0.3)
    bench.output("bit", 0.0)
    line_v = bench.wired.line_voltages_v()
    word_v, bit_v = line_v[:4], line_v[4:]
    assert (word_v[2], bit_v[1]) == (0.3, 0.0)
    into_words_a = (g * (word_v[:, None] - bit_v)).sum(axis=1)
    into_bits_a = (g * (word_v[:, None] - bit_v)).sum(axis=0)
    np.testing.assert_allclose(np.delete(into_words_a, 2), 0.0, atol=1e-13)
    np.testing.assert_allclose(np.delete(into_bits_a, 1), 0.0, atol=1e-13)
    assert bench.bit_current_a() == pytest.approx(into_bits_a[1], rel=1e-9)


def test_an_output_that_is_off_floats_and_an_open_relay_isolates() -> None:
    bench = Bench(np.full((2, 2), 1e-5))
    bench.select(0, 0)
    bench.output("word", 0.2, on=False)
    bench.output("bit", 0.0)
    assert bench.bit_current_a() == pytest.approx(0.0, abs=1e-15)
    bench.output("word", 0.2)
    assert bench.bit_current_a() == pytest.approx(2e-6, rel=1e-9)
    bench.relay(WORD, 1, closed=False)
    assert abs(bench.bit_current_a()) < 1e-14


def test_a_limited_source_pulls_its_line_no_further() -> None:
    bench = Bench(np.full((1, 2), 1e-3))
    bench.select(0, 0)
    bench.output("word", 1.0, limit_a=1e-4)
    bench.output("bit", 0.0)
    # 0.1 mA into two cells of 1 mS side by side.
    assert bench.wired.line_voltages_v()[0] == pytest.approx(0.05, rel=1e-9)
    assert bench.bit_current_a() == pytest.approx(5e-5, rel=1e-9)


def test_two_outputs_on_one_line_are_a_short() -> None:
    bench = Bench(np.full((1, 1), 1e-5))
    bench.relay(WORD, 1)
    bench.relay(BIT, 1)
    bench.output("bit", 0.0)
    assert bench.wired.terminal_current_a("word", 0.1) == pytest.approx(1.0)


def test_select_gates_switch_rows_off() -> None:
    g = np.random.default_rng(5).uniform(1e-6, 1e-4, (2, 2))
    bench = Bench(g, CellSettings(gate_threshold_v=0.7), gates=True)
    bench.select(0, 0, grounded=False)
    bench.relay(GATE, 5)
    bench.relay(GROUND, 6)
    bench.output("word", 0.2)
    bench.output("bit", 0.0)
    assert abs(bench.bit_current_a()) < 1e-13
    bench.output("gate", 1.5)
    # The second row is off, so nothing sneaks although its line floats.
    assert bench.bit_current_a() == pytest.approx(0.2 * g[0, 0], rel=1e-6)


def test_a_pulse_is_one_excursion_however_many_steps_its_ramp_has() -> None:
    cells = CellSettings(set_threshold_v=0.8, reset_threshold_v=0.9, spread=0.0)
    results = []
    for steps in ([1.2, 0.0], [0.3, 0.6, 0.9, 1.2, 0.9, 0.6, 0.0]):
        bench = Bench(np.full((1, 1), 1e-5), cells)
        bench.select(0, 0)
        bench.output("bit", 0.0)
        for level_v in steps:
            bench.output("word", level_v)
        assert bench.crossbar.pulses == 1
        results.append(bench.crossbar.conductance_s[0, 0])
    assert results[0] == results[1]
    # 0.4 V above the threshold moves 0.2 of the room up to 100 uS.
    assert results[0] == pytest.approx(1e-5 + 0.5 * 0.4 * 9e-5)


@pytest.mark.parametrize(("pulse_v", "sign"), [(0.79, 0), (-0.89, 0), (0.81, 1), (-0.91, -1)])
def test_thresholds_and_polarity(pulse_v: float, sign: int) -> None:
    bench = Bench(np.full((2, 2), 5e-5))
    bench.select(0, 0)
    bench.output("bit", 0.0)
    bench.output("word", pulse_v)
    bench.output("word", 0.0)
    change_s = bench.crossbar.conductance_s - 5e-5
    assert np.sign(change_s[0, 0]) == sign
    # The word line was driven whole, so its other cell saw the same; the other word line saw nothing.
    assert np.sign(change_s[0, 1]) == sign
    np.testing.assert_array_equal(change_s[1], 0.0)


def test_a_pulse_that_turns_its_sign_is_two() -> None:
    bench = Bench(np.full((1, 1), 5e-5))
    bench.select(0, 0)
    bench.output("bit", 0.0)
    for level_v in (1.2, -1.2, 0.0):
        bench.output("word", level_v)
    assert bench.crossbar.pulses == 2


def test_conductances_stay_in_their_range() -> None:
    bench = Bench(np.full((1, 1), 5e-5))
    bench.select(0, 0)
    bench.output("bit", 0.0)
    for level_v in (5.0, 0.0) * 50:
        bench.output("word", level_v)
    assert bench.crossbar.conductance_s[0, 0] == pytest.approx(1e-4)
    for level_v in (-5.0, 0.0) * 50:
        bench.output("word", level_v)
    assert bench.crossbar.conductance_s[0, 0] == pytest.approx(1e-6)


def test_the_judge_of_hot_switching_tells_hot_from_cold() -> None:
    def output(voltage_v: float, *, on: bool) -> OutputEvent:
        return OutputEvent(0.0, "S", on, voltage_v, 1.0)

    relay = SwitchEvent(0.0, "M", 1, 1, closed=True, cycles=1)
    assert hot_switches([output(0.0, on=True), relay, output(0.5, on=False), relay, output(0.0, on=False), relay]) == []
    assert hot_switches([output(0.5, on=True), relay, output(0.0, on=True), relay]) == [relay]
