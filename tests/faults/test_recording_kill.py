"""A process that records is killed at random moments: nothing that it acknowledged is lost."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from labrig.recording import Recording
from labrig_drivers.crossbar import FloatArray, MvmResult

WRITER = """
import asyncio, sys
from pathlib import Path
import numpy as np
from labrig.plans import StreamCapacity
from labrig.recording import RecordingHeader, RecordingWriter
from labrig_drivers.crossbar import BoardInfo, MvmResult, ProgramReport

ROWS, COLUMNS, BLOCKS_PER_WRITE = 16, 8, 5
info = BoardInfo("SIM-1", 1, ROWS, COLUMNS, 4e-6, 5e-5, -0.3, 0.3, 8, 10, (1e-4,) * COLUMNS, 1e-5, 5e-3)
header = RecordingHeader("bench", "", {"name": "kill"}, {}, {}, "", {})


def block(index):
    rng = np.random.default_rng(index)
    batch = int(rng.integers(1, 40))
    voltage_v = rng.uniform(-0.3, 0.3, (batch, ROWS)).astype(np.float32).astype(np.float64)
    code = rng.integers(-512, 512, (batch, COLUMNS)).astype(np.int16)
    return voltage_v, MvmResult(code, code * info.adc_lsb_a, code == 511, index + np.arange(batch) / 100, 0)


async def main(path, durability, rows):
    capacity = {0: StreamCapacity(rows=rows, writes=50, blocks=100)}
    writer = await RecordingWriter.create(path, header, info, capacity, durability=durability)
    for index in range(1_000_000):
        if index % BLOCKS_PER_WRITE == 0:
            write = index // BLOCKS_PER_WRITE
            report = ProgramReport(write, float(index), 1, 1e-7)
            await writer.append_write(0, np.full((ROWS, COLUMNS), 4e-6 + 1e-9 * write), report)
        total = await writer.append_mvms(0, 5, *block(index), f"{index:032x}")
        print(index, total, flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
"""


def blocks_of(script: Path, count: int) -> list[tuple[FloatArray, MvmResult]]:
    """The first blocks that the script writes, made again here."""
    spec = importlib.util.spec_from_file_location("writer_script", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [module.block(index) for index in range(count)]


@pytest.mark.parametrize(
    ("trial", "durability", "rows"),
    # The last ones outgrow their room, so that they are also killed while streams are extended.
    [*((trial, "process", 5000) for trial in range(5)), (5, "power", 5000), (6, "process", 50), (7, "process", 200)],
)
def test_acknowledged_rows_survive_sigkill(tmp_path: Path, trial: int, durability: str, rows: int) -> None:
    script, path = tmp_path / "writer.py", tmp_path / "run.h5"
    script.write_text(WRITER)
    rng = np.random.default_rng(trial)
    blocks = int(rng.integers(1, 60))
    child = subprocess.Popen([sys.executable, script, path, durability, str(rows)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child:
        acknowledged = [line for line, _ in zip(child.stdout, range(blocks), strict=False)]
        # Somewhere inside the next appends, not at their end.
        time.sleep(rng.uniform(0.0, 0.003))
        child.kill()
        # What was acknowledged before the kill came; a last line that was cut off was not.
        acknowledged += [line for line in child.stdout if line.endswith("\n")]
    last_index, total = map(int, acknowledged[-1].split())

    with h5py.File(path, "r+") as file:
        assert file["entry/status"][()] == b"running"
    with Recording.open(path) as recording:
        assert recording.status == "interrupted"
        assert recording.committed(0) >= total
        hashes = recording.point_hashes(0)
        data = recording.dataset(0)
    assert len(hashes) >= last_index + 1
    assert hashes == [f"{index:032x}" for index in range(len(hashes))]
    expected = blocks_of(script, len(hashes))
    assert np.array_equal(data.voltage_v, np.concatenate([voltage_v for voltage_v, _ in expected]))
    assert np.array_equal(data.current_a, np.concatenate([result.current_a for _, result in expected]))
    assert np.array_equal(data.time_s, np.concatenate([result.time_s for _, result in expected]))
    writes = np.concatenate([np.full(len(voltage_v), index // 5) for index, (voltage_v, _) in enumerate(expected)])
    assert np.array_equal(data.pattern, writes)
    assert np.allclose(data.target_conductance_s[:, 0, 0], 4e-6 + 1e-9 * np.arange(data.writes))
