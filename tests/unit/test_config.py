"""Rig files: what is accepted, and how everything that is wrong is told at once."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from labrig.config import installed_drivers, load_rig, parse_rig, rig_schema, shipped_rig
from labrig.rig import identify, open_rig
from labrig.safety import board_envelope, source_envelope
from labrig.toml_lines import key_lines, line_of
from labrig_drivers.errors import ConfigError

DRIVERS = {"wire-board", "mock-board", "keithley2400"}

GOOD = """\
[rig]
name = "bench"

[board]
driver = "mock-board"
settings = { seed = 3 }

[source_meters.supply]
driver = "keithley2400"
link = "visa://TCPIP::127.0.0.1::15025::SOCKET"
role = "array-supply"
level_voltage_v = 1.2
limit_current_a = 0.1

[safety]
max_voltage_v = 2
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 10.0
max_read_voltage_v = 0.5
"""


def faults_of(text: str) -> list[str]:
    """The lines of the one error that a text gives."""
    with pytest.raises(ConfigError) as caught:
        parse_rig(text, Path("rig.toml"), drivers=DRIVERS)
    return str(caught.value).splitlines()


def test_good_file_is_read_with_its_text() -> None:
    config = parse_rig(GOOD, Path("rig.toml"), drivers=DRIVERS)
    assert config.rig.name == "bench"
    assert config.board.settings == {"seed": 3}
    assert config.board.link is None
    assert config.source_meters["supply"].level_voltage_v == 1.2
    assert config.source_meters["supply"].nplc == 1.0
    assert config.safety.max_voltage_v == 2.0
    assert config.source_text == GOOD
    assert config.locate("source_meters.supply.role") == "rig.toml:11"
    assert config.locate("board.settings.seed") == "rig.toml:6"


@pytest.mark.parametrize("name", ["mock", "simulated_bench"])
def test_shipped_files_are_valid(name: str) -> None:
    assert load_rig(shipped_rig(name)).path.name == f"{name}.toml"


def test_unknown_shipped_file_lists_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="mock, remote, simulated_bench"):
        shipped_rig("moon")


def test_every_fault_comes_in_one_error_with_its_line() -> None:
    text = (
        GOOD.replace('"mock-board"', '"toaster"')
        .replace("level_voltage_v = 1.2", "level_voltage_mv = 1200")
        .replace("limit_current_a = 0.1", "limit_current_a = 0.3\nnplc = true")
        .replace("max_power_w = 0.4\n", "")
        .replace("max_voltage_v = 2\n", 'max_voltage_v = "2"\n')
    )
    faults = faults_of(text)
    assert [fault.split(": ")[0:2] for fault in faults] == [
        ["rig.toml:5", "board.driver"],
        ["rig.toml:8", "source_meters.supply.level_voltage_v"],
        ["rig.toml:12", "source_meters.supply.level_voltage_mv"],
        ["rig.toml:13", "source_meters.supply.limit_current_a"],
        ["rig.toml:14", "source_meters.supply.nplc"],
        ["rig.toml:16", "safety.max_power_w"],
        ["rig.toml:17", "safety.max_voltage_v"],
    ]
    assert "installed are: keithley2400, mock-board, wire-board" in faults[0]
    assert "the role array-supply needs it" in faults[1]
    assert faults[2].endswith("unknown key; did you mean level_voltage_v? (SI units)")
    assert "exceeds safety.max_current_a = 0.2 A" in faults[3]


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (
            "level_voltage_v = 1.2",
            "level_voltage_v = -2.5",
            "rig.toml:12: source_meters.supply.level_voltage_v: -2.5 V",
        ),
        ("max_power_w = 0.4", "max_power_w = 0.1", "level times limit is 0.12 W, exceeds safety.max_power_w = 0.1 W"),
        ("max_ramp_v_per_s", "max_ramp_mv_per_ms", "did you mean max_ramp_v_per_s? (SI units)"),
        ('name = "bench"', 'nam = "bench"', "rig.nam: unknown key; did you mean name?"),
        ("[source_meters.supply]", "[source_meters.board]", "this name is taken by the crossbar board"),
        ("[source_meters.supply]", '[source_meters."a/b"]', "source_meters.a/b: must begin with a letter"),
        ('link = "visa:', 'link = "', 'source_meters.supply.link: is "//TCPIP::127.0.0.1::15025::SOCKET", must be'),
        ("[safety]", "[danger]", "rig.toml:1: safety: is missing"),
        ("limit_current_a = 0.1", "limit_current_a = -0.1", "limit_current_a: is -0.1, must be above 0"),
        ('role = "array-supply"', 'role = "supply"', "role: is \"supply\", must be 'array-supply'"),
        ('name = "bench"', 'name = ""', "rig.toml:2: rig.name: must not be empty"),
        ("[safety]", "[safety.inner]", "rig.toml:15: safety.inner: unknown key; known are max_voltage_v"),
        ('driver = "mock-board"', 'driver = "mock-board"\narrays = [1]', "board.arrays: is [1], must be a table"),
        ("max_voltage_v = 2", "max_voltage_v = inf", "safety.max_voltage_v: is inf, must be finite"),
    ],
)
def test_fault(old: str, new: str, fault: str) -> None:
    assert old in GOOD
    assert any(fault in line for line in faults_of(GOOD.replace(old, new)))


TIGHT = """
[board.safety]
max_read_voltage_v = 0.4
max_conductance_s = 4e-5

[board.arrays.1.safety]
max_read_voltage_v = 0.3
min_conductance_s = 5e-6

[source_meters.supply.safety]
max_voltage_v = 1.5
max_ramp_v_per_s = 5.0

[interlocks.door]
instrument = "supply"
poll_s = 0.2
"""


def test_what_drivers_refuse_comes_with_the_other_faults() -> None:
    text = GOOD.replace("seed = 3", "seed = -3, rowz = 2").replace("max_current_a = 0.2\n", "")
    text = text.replace('role = "array-supply"', 'role = "array-supply"\nsettings = { channels = 2 }')
    told = [line.split(": ")[1] for line in faults_of(text)]
    assert told == [
        "board.settings.rowz",
        "board.settings.seed",
        "source_meters.supply.settings.channels",
        "safety.max_current_a",
    ]
    # A file that is right but for its drivers' settings is read, and refused when the rig is made.
    assert parse_rig(GOOD.replace("seed = 3", "seed = -3"), Path("rig.toml"), drivers=DRIVERS).rig.name == "bench"


def test_tighter_limits_and_interlocks_are_read() -> None:
    config = parse_rig(GOOD + TIGHT, Path("rig.toml"), drivers=DRIVERS)
    assert config.max_read_voltage_v == 0.3
    assert source_envelope(config, "supply").ramp_v_per_s == 5.0
    assert [one.where for one in source_envelope(config, "supply").limits] == ["safety", "source_meters.supply.safety"]
    envelope = board_envelope(config)
    assert [one.where for one in envelope.of_array(1)] == ["safety", "board.safety", "board.arrays.1.safety"]
    assert [one.where for one in envelope.of_array(0)] == ["safety", "board.safety"]
    assert config.interlocks["door"].poll_s == 0.2
    assert parse_rig(GOOD, Path("rig.toml"), drivers=DRIVERS).max_read_voltage_v == 0.5


def test_tables_of_the_safety_guide_are_valid() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "guide" / "safety.md").read_text()
    tables = re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    config = parse_rig(GOOD.partition("[safety]")[0] + "\n".join(tables), Path("rig.toml"), drivers=DRIVERS)
    assert source_envelope(config, "supply").ramp_a_per_s == 0.5
    assert (config.max_read_voltage_v, config.interlocks["door"].instrument) == (0.3, "supply")


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (
            "max_voltage_v = 1.5",
            "max_voltage_v = 2.5",
            "rig.toml:31: source_meters.supply.safety.max_voltage_v: 2.5 V is looser than safety.max_voltage_v = 2 V",
        ),
        ("max_ramp_v_per_s = 5.0", "max_ramp_v_per_s = 11.0", "11 V/s is looser than safety.max_ramp_v_per_s"),
        (
            "max_voltage_v = 1.5",
            "max_voltage_v = 1.1",
            "rig.toml:12: source_meters.supply.level_voltage_v: 1.2 V exceeds "
            "source_meters.supply.safety.max_voltage_v = 1.1 V",
        ),
        (
            "max_read_voltage_v = 0.3",
            "max_read_voltage_v = 0.45",
            "board.arrays.1.safety.max_read_voltage_v: 0.45 V is looser than board.safety.max_read_voltage_v = 0.4 V",
        ),
        ("max_read_voltage_v = 0.4", "max_read_voltage_v = 0.6", "0.6 V is looser than safety.max_read_voltage_v"),
        ("min_conductance_s = 5e-6", "min_conductance_s = 5e-5", "no conductance lies between 5e-05 S and 4e-05 S"),
        ("[board.arrays.1.safety]", "[board.arrays.one.safety]", "board.arrays.one: must be the number of an array"),
        ("max_ramp_v_per_s = 5.0", "max_ramp_ma_per_s = 5.0", "did you mean max_ramp_a_per_s? (SI units)"),
        ('instrument = "supply"', 'instrument = "door"', "the rig has no instrument 'door'; there are: board, supply"),
    ],
)
def test_fault_of_a_limit(old: str, new: str, fault: str) -> None:
    assert old in TIGHT
    assert any(fault in line for line in faults_of(GOOD + TIGHT.replace(old, new)))


MADE = """
[board.settings]
gate_v = 2.5
pulse = { max_v = 3.0, limit_a = 0.5 }
read = { max_v = 0.2 }

[board.settings.word_source]
link = "tcp://h:1"
ramp_v_per_s = 100.0

[[board.settings.bit_meters]]
link = "tcp://h:2"
ramp_v_per_s = 50.0

[board.settings.matrix]
settings = { voltage_v = 100.0 }
"""


def test_a_board_that_is_made_of_source_meters_keeps_the_limits_of_the_rig() -> None:
    text = GOOD.replace("settings = { seed = 3 }\n", "") + MADE
    faults = [line.split(": ", 2) for line in faults_of(text)]
    # The driver that stands in for such a board knows none of its settings, and says so beside them.
    assert [(key, reason) for _, key, reason in faults if "exceeds" in reason] == [
        ("board.settings.gate_v", "2.5 V exceeds safety.max_voltage_v = 2 V"),
        ("board.settings.pulse.limit_a", "0.5 A exceeds safety.max_current_a = 0.2 A"),
        ("board.settings.pulse.max_v", "3 V exceeds safety.max_voltage_v = 2 V"),
        ("board.settings.word_source.ramp_v_per_s", "100 V/s exceeds safety.max_ramp_v_per_s = 10 V/s"),
        ("board.settings.bit_meters.0.ramp_v_per_s", "50 V/s exceeds safety.max_ramp_v_per_s = 10 V/s"),
    ]
    assert parse_rig(
        text.replace("word_source", "word").replace("bit_meters", "bits"), Path("rig.toml"), drivers=DRIVERS
    )


def test_an_array_that_the_board_has_not_cannot_be_limited(tmp_path: Path) -> None:
    path = tmp_path / "rig.toml"
    path.write_text(shipped_rig("mock").read_text() + "\n[board.arrays.7.safety]\nmax_read_voltage_v = 0.1\n")
    line = path.read_text().splitlines().index("[board.arrays.7.safety]") + 1
    with pytest.raises(ConfigError, match=rf"rig\.toml:{line}: board\.arrays\.7: the board has arrays 0 to 1 only"):
        asyncio.run(identify(load_rig(path)))


def test_an_instrument_that_reads_no_interlock_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rig.toml"
    path.write_text(shipped_rig("mock").read_text() + '\n[interlocks.lid]\ninstrument = "board"\n')
    with pytest.raises(
        ConfigError, match=r"rig\.toml:\d+: interlocks\.lid\.instrument: the driver of 'board' reads no"
    ):
        open_rig(path)


def test_second_array_supply_is_refused() -> None:
    second = GOOD.split("\n\n")[2].replace("supply]", "spare]").replace("15025", "15026")
    (fault,) = faults_of(GOOD + "\n" + second)
    assert "source_meters.spare.role: only one array-supply is possible, supply is one already" in fault


def test_text_that_is_no_toml_names_its_line() -> None:
    (fault,) = faults_of(GOOD.replace("max_power_w = 0.4", "max_power_w = 0,4"))
    assert fault.startswith("rig.toml:18: TOML: ")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "rig.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"rig\.toml: "):
        load_rig(path)


def test_committed_schema_is_the_current_one() -> None:
    committed = shipped_rig("mock").with_name("labrig.schema.json").read_text()
    assert json.loads(committed) == rig_schema(), "run: labrig config schema -o rig_configs/labrig.schema.json"


def test_drivers_of_labrig_are_installed() -> None:
    assert installed_drivers().keys() >= DRIVERS


def test_settings_that_a_driver_refuses_are_told_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "rig.toml"
    path.write_text(shipped_rig("mock").read_text().replace("seed = 1", "seed = 1\ncolour = 2"))
    line = path.read_text().splitlines().index("colour = 2") + 1
    with pytest.raises(ConfigError, match=rf"rig\.toml:{line}: board\.settings\.colour: unknown key"):
        open_rig(path)


def test_link_that_a_driver_needs_or_cannot_use(tmp_path: Path) -> None:
    path = tmp_path / "rig.toml"
    mock = shipped_rig("mock").read_text().replace("[board.settings]\nseed = 1\n", "")
    path.write_text(mock.replace('"mock-board"', '"mock-board"\nlink = "tcp://127.0.0.1:1"'))
    with pytest.raises(ConfigError, match=r"board\.link: the driver 'mock-board' runs in this process"):
        open_rig(path)
    path.write_text(mock.replace('"mock-board"', '"wire-board"'))
    with pytest.raises(ConfigError, match=r"board\.link: is missing; the driver 'wire-board' needs it"):
        open_rig(path)
    path.write_text(mock.replace('"mock-board"', '"wire-board"\nlink = "pigeon://loft"'))
    with pytest.raises(ConfigError, match=r"rig\.toml:\d+: board\.link: bad address 'pigeon://loft'"):
        open_rig(path)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (
            'driver = "mock-board"',
            'driver = "mock-axis"',
            "board.driver: 'mock-axis' drives an axis; this section is for a crossbar board",
        ),
        (
            "[safety]",
            '[axes.lamp]\ndriver = "mock-board"\n[safety]',
            "axes.lamp.driver: 'mock-board' drives a crossbar board; this section is for an axis",
        ),
        (
            "[safety]",
            '[source_meters.supply]\ndriver = "scpi-axis"\nlink = "tcp://127.0.0.1:1"\n[safety]',
            "source_meters.supply.driver: 'scpi-axis' drives an axis; this section is for a source-meter",
        ),
    ],
)
def test_a_driver_of_another_kind_of_instrument_is_refused(tmp_path: Path, old: str, new: str, fault: str) -> None:
    path = tmp_path / "rig.toml"
    path.write_text(shipped_rig("mock").read_text().replace(old, new))
    with pytest.raises(ConfigError, match=rf"rig\.toml:\d+: {fault}"):
        open_rig(path)


def test_two_meters_at_one_address_or_with_settings_that_nobody_reads(tmp_path: Path) -> None:
    path = tmp_path / "rig.toml"
    bench = shipped_rig("simulated_bench").read_text()
    second = '\n[source_meters.second]\ndriver = "keithley2400"\nlink = "tcp://LOCALHOST:15025"\n'
    path.write_text(bench + second)
    with pytest.raises(
        ConfigError, match=r"source_meters\.second\.link: tcp://LOCALHOST:15025 is the address of"
    ) as one:
        open_rig(path)
    assert "source_meters.supply too; the driver 'keithley2400' cannot share" in str(one.value)
    path.write_text(bench.replace("nplc = 1.0", 'nplc = 1.0\nsettings = { channel = "b" }'))
    with pytest.raises(ConfigError, match=r"rig\.toml:\d+: source_meters\.supply\.settings\.channel: "):
        open_rig(path)
    path.write_text(bench.replace('expect_model = "LR-SIM1"', "settings = { colour = 2 }"))
    with pytest.raises(ConfigError, match=r"rig\.toml:\d+: board\.settings: the driver 'wire-board' has no settings"):
        open_rig(path)


def test_lines_of_keys_in_every_form_of_toml() -> None:
    text = "\n".join(
        [
            "# comment with [brackets]",
            "top = 1",
            "[a.b] # table",
            'text = """',
            "[not.a.table]",
            'key = 1"""',
            "numbers = [",
            "  1,",
            "]",
            "dotted.key = 2",
            'inline = { x = 1, "quoted key" = 2 }',
        ]
    )
    lines = key_lines(text)
    assert lines["top",] == 2
    assert lines["a",] == lines["a", "b"] == 3
    assert lines["a", "b", "text"] == 4
    assert lines["a", "b", "numbers"] == 7
    assert lines["a", "b", "dotted", "key"] == 10
    assert lines["a", "b", "inline", "quoted key"] == 11
    assert ("not", "a", "table") not in lines
    assert line_of(lines, ("a", "b", "absent", "deeper")) == 3
    assert line_of(lines, ("absent",)) == 1
