"""The energy model against hand calculations and against what is published of whole chips."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig_surrogates.energy import (
    DIGITAL_MAC,
    MACROS,
    ComponentConstants,
    Constant,
    EnergyModel,
    LayerLoad,
    Level,
    adc_conversion,
    constants_table,
    sensitivity_table,
)
from labrig_surrogates.errors import SurrogateError


def convolution(name: str, channels: int, filters: int, kernel: int, positions: int) -> LayerLoad:
    return LayerLoad.of_matrix(name, channels * kernel**2, filters, positions)


def resnet18() -> list[LayerLoad]:
    """The convolutions of ResNet-18 in its CIFAR form, without the last linear layer."""
    layers = [convolution("conv1", 3, 64, 3, 1024)]
    layers += [convolution(f"1.{k}", 64, 64, 3, 1024) for k in range(4)]
    for stage, (channels, positions) in enumerate(((128, 256), (256, 64), (512, 16)), start=2):
        layers.append(convolution(f"{stage}.0", channels // 2, channels, 3, positions))
        layers += [convolution(f"{stage}.{k}", channels, channels, 3, positions) for k in range(1, 4)]
        layers.append(convolution(f"{stage}.shortcut", channels // 2, channels, 1, positions))
    return layers


def airbench94() -> list[LayerLoad]:
    """The trained layers of airbench94; its whitening layer is frozen and digital."""
    sizes = [(24, 64, 961), (64, 64, 225), (64, 256, 225), (256, 256, 49), (256, 256, 49), (256, 256, 9)]
    layers = [convolution(f"conv{k}", *size[:2], 3, size[2]) for k, size in enumerate(sizes)]
    return [*layers, LayerLoad.of_matrix("head", 256, 10)]


@pytest.mark.parametrize(
    ("macro", "nanojoules", "nanoseconds", "picojoules_per_mac"),
    [
        ("HERMES four-phase", 52.9, 521, 0.81),
        ("HERMES one-phase", 13.4, 133, 0.205),
        ("NeuRRAM 4b/6b", 8.2, None, 0.125),
    ],
)
def test_macros_are_what_is_published_of_them(
    macro: str, nanojoules: float, nanoseconds: float | None, picojoules_per_mac: float
) -> None:
    found = MACROS[macro]
    assert found.mvm_j == pytest.approx(nanojoules * 1e-9, rel=5e-3)
    assert found.mac_j == pytest.approx(picojoules_per_mac * 1e-12, rel=1e-2)
    if found.mvm_s is None or found.tops is None:
        assert nanoseconds is None
    else:
        assert nanoseconds is not None
        assert found.mvm_s == pytest.approx(nanoseconds * 1e-9, rel=5e-3)
        # The power of all cores at work, from energy and time and from the published figures.
        assert found.cores * found.mvm_j / found.mvm_s == pytest.approx(found.tops / found.tops_per_watt)


@pytest.mark.parametrize(
    ("layers", "tiles", "mvms", "macs", "use", "one_phase_j", "four_phase_j"),
    [
        (resnet18(), 193, 22_336, 555e6, 0.38, 0.30e-3, 1.18e-3),
        (airbench94(), 35, 3_275, 118e6, 0.55, 44e-6, 173e-6),
    ],
    ids=["ResNet-18", "airbench94"],
)
def test_networks_take_what_the_reference_works_out(
    layers: list[LayerLoad], tiles: int, mvms: int, macs: float, use: float, one_phase_j: float, four_phase_j: float
) -> None:
    report = EnergyModel.of_macro("HERMES one-phase").evaluate(layers)
    assert (report.tiles, report.tile_mvms) == (tiles, mvms)
    assert report.macs == pytest.approx(macs, rel=2e-3)
    assert report.macs / (mvms * 256 * 256) == pytest.approx(use, abs=5e-3)
    assert report.parts_j["macro"] == pytest.approx(one_phase_j, rel=1e-2)
    four = EnergyModel.of_macro("HERMES four-phase").evaluate(layers)
    assert four.parts_j["macro"] == pytest.approx(four_phase_j, rel=1e-2)
    assert ("does not fit: 193 arrays are 4 chips of 64" in report.table()) is (tiles > 64)


def test_ratios_to_digital_machines_are_those_of_the_reference() -> None:
    macs = sum(load.macs for load in resnet18())
    analog = {mode: MACROS[f"HERMES {mode}-phase"].mvm_j * 22_336 for mode in ("one", "four")}
    expected = {
        "A100 training ResNet-18": (19, 4.9),
        "H100 bf16, peak": (2.6, 0.67),
        "H100 fp8, peak": (1.3, 0.33),
    }
    for machine, (one, four) in expected.items():
        joules = macs * DIGITAL_MAC[machine].typical
        assert joules / analog["one"] == pytest.approx(one, rel=2e-2)
        assert joules / analog["four"] == pytest.approx(four, rel=2e-2)
    report = EnergyModel.of_macro("HERMES one-phase").evaluate(resnet18())
    assert report.ratio_to(DIGITAL_MAC["A100 training ResNet-18"]) == pytest.approx(macs * 10.4e-12 / report.total_j)


def test_a_small_layer_by_hand() -> None:
    # 300 x 20 on arrays of 256 x 16: two by two of them, 9 vectors, so 36 products.
    load = LayerLoad.of_matrix("layer", 300, 20, 9, rows=256, columns=16, input_bits=4, output_bits=6)
    assert (load.tiles, load.tile_mvms, load.macs) == (4, 36, 54_000)
    assert load.utilisation == pytest.approx(54_000 / (36 * 4096))
    report = EnergyModel("by hand", inferences_per_programming=1000, calibration_mvms=50).evaluate([load])
    picojoules = {part: energy * 1e12 for part, energy in report.parts_j.items()}
    dac = 36 * 256 * 4 * 0.32552083
    adc = 36 * 16 * 2.1
    array = 36 * 256 * 16 * 2 * 5e-6 * 0.2**2 * 521e-9 * 1e12
    assert picojoules["DAC"] == pytest.approx(dac)
    assert picojoules["ADC"] == pytest.approx(adc)
    assert picojoules["array"] == pytest.approx(array)
    assert picojoules["digital"] == pytest.approx(36 * 16 * 0.1 + 20 * 9 * 1.5)
    bit = 20 / 64 + 20.74 / 256 + 0.054
    assert picojoules["movement"] == pytest.approx((36 * 256 * 4 + 20 * 9 * 6) * bit)
    pulse = 3 * (0.365 * 4.06) ** 0.5
    assert picojoules["programming"] == pytest.approx(4 * 256 * 16 * 2 * 10 * pulse / 1000)
    assert picojoules["calibration"] == pytest.approx(50 * 4 * (dac + adc + array) / 36 / 1000)
    assert report.total_j == pytest.approx(sum(picojoules.values()) * 1e-12)
    assert report.latency_s == report.interval_s == pytest.approx(9 * 521e-9)
    assert report.tops_per_watt == pytest.approx(2 * 54_000 / report.total_j / 1e12)


def test_static_power_is_charged_for_the_time_and_layers_make_a_pipeline() -> None:
    power = Constant.exactly(2.0, "W", "a test", "expected")
    loads = [LayerLoad.of_matrix("a", 10, 10, 5), LayerLoad.of_matrix("b", 10, 10, 3)]
    report = EnergyModel("static", static_power_w=power).evaluate(loads)
    assert report.latency_s == pytest.approx(8 * 521e-9)
    assert report.interval_s == pytest.approx(5 * 521e-9)
    assert report.parts_j["static"] == pytest.approx(2.0 * 8 * 521e-9)
    assert report.total_j == pytest.approx(sum(layer.total_j for layer in report.layers) + 2.0 * 8 * 521e-9)


def test_one_product_from_parts_lies_where_the_macros_are() -> None:
    load = [LayerLoad.of_matrix("product", 256, 256)]
    levels: tuple[Level, ...] = ("low", "typical", "high")
    low, typical, high = (EnergyModel("parts").evaluate(load, level).total_j for level in levels)
    assert low < MACROS["HERMES one-phase"].mvm_j < typical < MACROS["HERMES four-phase"].mvm_j < high


@given(st.integers(1, 16))
def test_converters_cost_more_with_more_bits_and_the_survey_is_kept(bits: int) -> None:
    found = adc_conversion(bits)
    assert 0 < found.low <= found.typical <= found.high
    assert "Murmann" in found.source
    if bits > 1:
        assert found.typical > adc_conversion(bits - 1).typical
    assert adc_conversion(8).typical == 5.4e-12
    assert adc_conversion(4).typical == pytest.approx(2.1e-12 / 4)
    assert adc_conversion(10).typical == pytest.approx(5.4e-12 * 16)


def test_sensitivities_are_what_changing_one_constant_gives() -> None:
    loads = airbench94()
    model = EnergyModel("parts")
    entries = model.sensitivity(loads)
    assert [entry.span_j for entry in entries] == sorted((entry.span_j for entry in entries), reverse=True)
    assert entries[0].constant == "read_voltage_v"
    by_name = {entry.constant: entry for entry in entries}
    assert "program_pulse_j" not in by_name
    array = model.evaluate(loads).parts_j["array"]
    typical = model.evaluate(loads).total_j
    assert by_name["read_voltage_v"].high_j == pytest.approx(typical + array * ((0.4 / 0.2) ** 2 - 1))
    assert by_name["conductance_s"].low_j == pytest.approx(typical + array * (2 / 5 - 1))
    adc = model.evaluate(loads).parts_j["ADC"]
    assert by_name["adc_j"].low_j == pytest.approx(typical + adc * (4.6 / 5.4 - 1))
    text = sensitivity_table(entries)
    assert text.splitlines()[1].split()[0] == "read_voltage_v"


def test_tables_hold_the_numbers_and_every_constant_has_a_source() -> None:
    report = EnergyModel("parts").evaluate(airbench94())
    lines = report.table().splitlines()
    assert lines[0] == "parts, typical constants"
    assert lines[1].split()[:4] == ["layer", "arrays", "MVMs", "use"]
    assert lines[-2].split()[:3] == ["all", "35", "3275"]
    assert float(lines[-2].split()[-2]) == pytest.approx(report.total_j * 1e6, rel=1e-3)
    total = sum(float(line.split()[-1]) for line in lines[2:-2])
    assert total == pytest.approx(100.0, abs=0.5)
    assert len({len(line) for line in lines[2:-1]}) == 1
    assert (
        "no time is published"
        in EnergyModel.of_macro("NeuRRAM 4b/6b")
        .evaluate([LayerLoad.of_matrix("a", 9, 9, input_bits=4, output_bits=6)])
        .table()
    )
    constants = ComponentConstants().items()
    text = constants_table(constants)
    assert all(name in text and constant.source in text for name, constant in constants.items())
    assert all(constant.source and constant.unit for constant in {**constants, **DIGITAL_MAC}.values())


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 300))
def test_counts_are_those_of_a_cut_matrix(inputs: int, outputs: int, vectors: int) -> None:
    load = LayerLoad.of_matrix("any", inputs, outputs, vectors, rows=128, columns=64)
    cut = [(row, column) for row in range(0, inputs, 128) for column in range(0, outputs, 64)]
    assert load.tiles == len(cut)
    assert 0 < load.utilisation <= 1


def test_misuse_is_refused_with_every_fault() -> None:
    with pytest.raises(SurrogateError, match=r"tiles is 0.*mvms is -1"):
        LayerLoad("x", 0, 1, 1, -1, 1, 1)
    with pytest.raises(SurrogateError, match="500 macs are more than 2 products of 10 x 10 can hold"):
        LayerLoad("x", 1, 10, 10, 2, 10, 500)
    with pytest.raises(SurrogateError, match="no layers"):
        EnergyModel("x").evaluate([])
    with pytest.raises(SurrogateError, match="no macro; there are HERMES four-phase"):
        EnergyModel.of_macro("TPU")
    wrong = [LayerLoad.of_matrix("small", 9, 9, rows=128), LayerLoad.of_matrix("eight", 9, 9)]
    with pytest.raises(
        SurrogateError, match=r"'small' is cut for 128 x 256.*'eight' has 8-bit inputs and 8-bit outputs"
    ):
        EnergyModel.of_macro("NeuRRAM 4b/6b").evaluate(wrong)
    watt = Constant.exactly(1.0, "W", "a test", "expected")
    with pytest.raises(SurrogateError, match=r"leave adc_j out.*no time is published.*arrays is 0"):
        EnergyModel("x", adc_j=watt, macro=MACROS["NeuRRAM 4b/6b"], static_power_w=watt, arrays=0)
    with pytest.raises(SurrogateError, match=r"calibration_mvms is -1"):
        EnergyModel("x", calibration_mvms=-1)
    with pytest.raises(SurrogateError, match="say how many"):
        EnergyModel("x", calibration_mvms=5)
    with pytest.raises(SurrogateError, match="more than zero, or None"):
        EnergyModel("x", inferences_per_programming=0)
    with pytest.raises(SurrogateError, match="not low <= typical <= high"):
        Constant(2.0, 1.0, 3.0, "J", "a test", "expected")
    with pytest.raises(SurrogateError, match="name a source"):
        Constant.exactly(2.0, "J", " ", "expected")
    with pytest.raises(SurrogateError, match="17 bits"):
        adc_conversion(17)
