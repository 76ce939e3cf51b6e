"""Rig files: what is accepted, and how everything that is wrong is told at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labrig.config import installed_drivers, load_rig, parse_rig, rig_schema, shipped_rig
from labrig.rig import open_rig
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
    with pytest.raises(ConfigError, match="mock, simulated_bench"):
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
        ("[source_meters.supply]", '[source_meters."a/b"]', "source_meters.a/b: string should match pattern"),
        ("settings = { seed = 3 }", 'link = "tcp://h:1"\nsettings = { seed = 3 }', "remove link or settings"),
        ('link = "visa:', 'link = "', "source_meters.supply.link: string should match pattern"),
        ("[safety]", "[danger]", "rig.toml:1: safety: is missing"),
        ("limit_current_a = 0.1", "limit_current_a = -0.1", "limit_current_a: input should be greater than 0"),
        ("max_voltage_v = 2", "max_voltage_v = inf", "safety.max_voltage_v: input should be a finite number"),
    ],
)
def test_fault(old: str, new: str, fault: str) -> None:
    assert old in GOOD
    assert any(fault in line for line in faults_of(GOOD.replace(old, new)))


def test_second_array_supply_is_refused() -> None:
    second = GOOD.split("\n\n")[2].replace("supply]", "spare]")
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
