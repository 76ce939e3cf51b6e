"""The recordings of one run, in order: a run that lost its rig, or was resumed, goes on in another file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from labrig.training.run_folder import write_json
from labrig_drivers.errors import StorageError
from labrig_drivers.wording import objection

SEGMENTS = "recordings.json"


@dataclass(frozen=True)
class Segment:
    """One recording of a run.

    Attributes:
        file: Its name in the run folder.
        step: Steps that were taken before it.
        fresh: Whether every array was programmed anew at its start; else it starts with what was on them.
        restored: Writes at its start, by array, that were on the board before.
        rows: MVMs that count, by array; what came after belongs to a step that failed or was taken again. None while
            it is being written.
        writes: Programmings that count, by array.
    """

    file: str
    step: int
    fresh: bool
    restored: Mapping[int, int] = field(default_factory=dict)
    rows: Mapping[int, int] | None = None
    writes: Mapping[int, int] | None = None


@dataclass
class Segments:
    """All recordings of a run; the file beside them is brought up to date with every change.

    Attributes:
        folder: The run folder.
        stem: First part of the names of the recordings.
        every: The recordings, in order.
    """

    folder: Path
    stem: str = "training"
    every: list[Segment] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> Segments:
        """Those of a run folder; none where there was no rig.

        Raises:
            StorageError: The file is damaged.
        """
        path = folder / SEGMENTS
        if not path.exists():
            return cls(folder)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))["recordings"]
            return cls(folder, every=[_segment(one) for one in content])
        except OSError as error:
            raise StorageError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StorageError(f"{path}: is no list of the recordings of a training ({objection(error)})") from error

    def begin(self, path: Path, step: int, *, fresh: bool, restored: Mapping[int, int]) -> None:
        """Notes a new recording; its attributes are those of `Segment`."""
        self.every.append(Segment(path.name, step, fresh, dict(restored)))
        self._write()

    def next_path(self) -> Path:
        """Where the next recording goes: a name that no file has."""
        number = len(self.every) + 1
        while True:
            path = self.folder / (f"{self.stem}.h5" if number == 1 else f"{self.stem}-{number}.h5")
            if not path.exists():
                return path
            number += 1

    def counted(self, rows: Mapping[int, int], writes: Mapping[int, int]) -> None:
        """Notes what counts of the latest recording."""
        self.every[-1] = replace(self.every[-1], rows=dict(rows), writes=dict(writes))
        self._write()

    def back_to(self, file: str | None, rows: Mapping[int, int], writes: Mapping[int, int]) -> None:
        """Goes back to a checkpoint: recordings after its own do not count any more."""
        names = [one.file for one in self.every]
        keep = names.index(file) + 1 if file in names else 0
        self.every = self.every[:keep]
        if self.every:
            self.counted(rows, writes)

    def _write(self) -> None:
        write_json(self.folder / SEGMENTS, {"recordings": [asdict(one) for one in self.every]})


def _segment(content: Mapping[str, object]) -> Segment:
    def counts(name: str) -> dict[int, int] | None:
        value = content[name]
        if value is None:
            return None
        if not isinstance(value, dict):
            raise TypeError(f"{name} is no object")
        return {int(array): int(count) for array, count in value.items()}

    return Segment(
        file=str(content["file"]),
        step=int(str(content["step"])),
        fresh=bool(content["fresh"]),
        restored=counts("restored") or {},
        rows=counts("rows"),
        writes=counts("writes"),
    )
