"""Files of device measurements: every form that is read, and what is said of one that is none."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from labrig.measured_files import read_curves, read_programmed, read_pulses, read_relaxed, read_traces
from labrig_drivers.errors import StorageError


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def table(header: str, rows: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> str:
    return "\n".join([header, *(",".join(f"{x:.9g}" for x in row) for row in rows)]) + "\n"


def test_curves_with_named_columns(tmp_path: Path) -> None:
    rows = np.array([[k // 3, v, 1e-5 * v, k == 5] for k, v in enumerate([0, 0.1, 0.2, 0, -0.1, -0.2])])
    for name in ("iv.csv", "iv.csv.gz"):
        one, two = read_curves(written(tmp_path, name, table("curve,voltage_v,current_a,in_compliance", rows)))
        assert one.name == "curve 0"
        assert two.voltage_v.tolist() == [0.0, -0.1, -0.2]
        assert two.in_compliance.tolist() == [False, False, True]
    (alone,) = read_curves(written(tmp_path, "one.csv", "voltage_v,current_a\n0,0\n1,2e-5\n"))
    assert alone.current_a.tolist() == [0.0, 2e-5]


def test_pairs_of_sweeps_with_limits(tmp_path: Path) -> None:
    text = "V_set_50uA,I_set_50uA,V_reset_50uA,I_reset_50uA\n0,0,0,0\n0.5,20,-0.5,30\n1.0,50,,\n"
    up, down = read_curves(written(tmp_path, "sweeps.csv", text))
    assert up.name == "set 50 uA"
    assert up.in_compliance.tolist() == [False, False, True]
    assert down.voltage_v.tolist() == [0.0, -0.5]
    assert down.current_a == pytest.approx([0.0, -30e-6])


def test_programmed_cells(tmp_path: Path) -> None:
    rows = np.array([[1e-5, 1.1e-5, k // 4] for k in range(12)])
    cells = read_programmed(written(tmp_path, "p.csv", table("target_s,conductance_s,device", rows)))
    assert cells.device.tolist() == [k // 4 for k in range(12)]
    wide = read_programmed(written(tmp_path, "w.csv", table("Target_100uS,Target_150uS", np.full((6, 2), 120.0))))
    assert wide.target_s[:2] == pytest.approx([100e-6, 150e-6])
    assert wide.device.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert wide.conductance_s == pytest.approx(12 * [120e-6])


def test_relaxed_cells(tmp_path: Path) -> None:
    rows = np.array([[7, 1e-5, 0.9e-5, 10.0, 3], [8, 1e-5, 0.8e-5, 10.0, 40]])
    path = written(tmp_path, "r.csv", table("cell,programmed_s,conductance_s,age_s,level", rows))
    assert read_relaxed(path).cell.tolist() == [7, 8]
    assert read_relaxed(path, most_levels=32).level.tolist() == [3]
    old = written(tmp_path, "relax.tsv.gz", "7\t0.011\t1e4\t1e-4\t1.1e-4\t3\t0.01\n")
    assert read_relaxed(old).programmed_s.tolist() == [1.1e-4]


def test_traces_and_their_rates(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = 1e-5 + 1e-7 * rng.standard_normal(600)
    rows = np.stack([np.repeat([0.0, 1.0], 300), np.tile(np.arange(300) * 0.02, 2), values], axis=1)
    timed = read_traces(written(tmp_path, "t.csv", table("trace,time_s,conductance_s", rows)))
    assert timed.rate_hz == pytest.approx(50.0)
    assert timed.values.shape == (2, 300)
    bare = written(tmp_path, "b.csv", table("current_a", values[:300, None]))
    assert read_traces(bare, 10.0).unit == "A"
    with pytest.raises(StorageError, match="nothing says how many readings"):
        read_traces(bare)
    reads = np.stack([np.tile(np.arange(300.0), 2), np.repeat([100.0, 150.0], 300), 1e6 * values], axis=1)
    path = written(tmp_path, "c.csv", table("Read_Cycle,Target_Value_uS,Measured_Conductance_uS", reads))
    assert read_traces(path).rate_hz == 1.0
    assert read_traces(path).values[0, 0] == pytest.approx(values[0], rel=1e-6)
    rows_of_traces = "\n".join("\t".join(["0", "0", *(f"{x:.9g}" for x in values[:300])]) for _ in range(2))
    series = written(tmp_path, "techA_tsdata.tsv.gz", rows_of_traces)
    with pytest.raises(StorageError, match="nothing says"):
        read_traces(series)
    (tmp_path / "techA_settings.json").write_text('{"fs": 400}')
    assert read_traces(series).rate_hz == 400.0
    (tmp_path / "techA_settings.json").write_text("{}")
    with pytest.raises(StorageError, match="says no rate"):
        read_traces(series)
    uneven = rows.copy()
    uneven[7, 1] += 0.5
    with pytest.raises(StorageError, match="even steps"):
        read_traces(written(tmp_path, "u.csv", table("trace,time_s,conductance_s", uneven)))


def test_trains_of_pulses(tmp_path: Path) -> None:
    steps = np.linspace(0.0, 1.0, 30)
    two = np.stack([steps, -steps], axis=1)
    bare = read_pulses(written(tmp_path, "g.csv", "\n".join(f"{a},{b}" for a, b in two)))
    assert bare.up.shape == (1, 30)
    many = np.stack([np.repeat([0.0, 1.0], 30), *np.tile(two, (2, 1)).T], axis=1)
    assert read_pulses(written(tmp_path, "d.csv", table("device,up,down", many))).down.shape == (2, 30)
    with pytest.raises(StorageError, match="different numbers of pulses: 29, 30"):
        read_pulses(written(tmp_path, "e.csv", table("device,up,down", many[:-1])))


def test_faults_say_what_and_where(tmp_path: Path) -> None:
    with pytest.raises(
        StorageError, match=r"x\.csv: is no table of numbers: line 4 has 1 field, not 2; line 2: 'one' is no"
    ):
        read_curves(written(tmp_path, "x.csv", "voltage_v,current_a\none,2\n\n3\n"))
    with pytest.raises(StorageError, match=r"kind iv: there is no column voltage_v, current_a; it has a, b"):
        read_curves(written(tmp_path, "y.csv", "a,b\n1,2\n"))
    with pytest.raises(StorageError, match="it has no header"):
        read_programmed(written(tmp_path, "z.csv", "1,2,3\n"))
    with pytest.raises(StorageError, match="is empty"):
        read_pulses(written(tmp_path, "empty.csv", ""))
    with pytest.raises(StorageError, match="there are no rows"):
        read_pulses(written(tmp_path, "head.csv", "up,down\n"))
    with pytest.raises(StorageError, match="cannot be read"):
        read_traces(tmp_path / "absent.csv")
    broken = tmp_path / "broken.csv.gz"
    for content in (b"\x1f\x8b nothing", b"\x1f\x8b\x08\x00garbagegarbage"):
        broken.write_bytes(content)
        with pytest.raises(StorageError, match="cannot be unpacked"):
            read_curves(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(StorageError, match="is not UTF-8 text"):
        read_traces(broken)


def test_the_public_files_are_read(data_dir: Path) -> None:
    folder = data_dir / "measured"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    curves = read_curves(folder / "readc_memristor" / "iv_sweeps.csv")
    assert len(curves) == 16
    assert curves[0].in_compliance.any()
    assert (curves[1].current_a <= 1e-12).mean() > 0.99
    assert len(read_programmed(folder / "readc_memristor" / "programmed_conductance_uS.csv").target_s) == 64 * 7
    assert read_pulses(folder / "aihwkit_gong" / "gong_et_al.csv").up.shape == (1, 1000)
