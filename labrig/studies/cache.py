"""Parts of a study that are done already, each in a file named by everything that its numbers depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from labrig.recording.header import checkout_commit
from labrig.recording.whole_files import write_whole

Numbers = dict[str, float]


@dataclass
class Cache:
    """Computes a part once. A study that was interrupted goes on with the parts that are missing.

    A part's file is named by the hash of its configuration, of the versions of labrig and torch, and of the commit, so
    that nothing is taken over from other code.

    Attributes:
        folder: Where the files are; None keeps nothing.
        by_code: Whether the versions and the commit name the files, too; False for parts whose configuration says what
            they depend on, such as a trained network.
        taken: Parts that were there already.
    """

    folder: Path | None
    by_code: bool = True
    taken: int = field(default=0, init=False)
    _code: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        # Once: the checkout may move on while a long study runs with the code that it loaded.
        code = {"labrig": version("labrig"), "torch": version("torch"), "commit": checkout_commit()}
        self._code = code if self.by_code else {}

    def get(self, configuration: Mapping[str, object], compute: Callable[[], Mapping[str, float]]) -> Numbers:
        """The numbers of a part: those that are kept, or computed ones, which are kept from then on.

        Args:
            configuration: Everything that they depend on beside the code, as JSON can hold it.
            compute: Computes them.

        Raises:
            StorageError: The folder cannot be written.
        """
        found = self.kept(configuration)
        return self.keep(configuration, compute()) if found is None else found

    def has(self, configuration: Mapping[str, object]) -> bool:
        """Whether the numbers of a part are kept; asking does not count as taking them."""
        path = self._path(configuration)
        return path is not None and _read(path) is not None

    def kept(self, configuration: Mapping[str, object]) -> Numbers | None:
        """The numbers of a part that was computed before; None where it was not, or its file is damaged."""
        path = self._path(configuration)
        found = None if path is None else _read(path)
        self.taken += found is not None
        return found

    def keep(self, configuration: Mapping[str, object], numbers: Mapping[str, float]) -> Numbers:
        """Keeps the numbers of a part, and returns them.

        Raises:
            StorageError: The folder cannot be written.
        """
        path = self._path(configuration)
        if path is None:
            return dict(numbers)
        content = {"configuration": dict(configuration), "numbers": dict(numbers)}
        write_whole(path, (json.dumps(content) + "\n").encode())
        return dict(numbers)

    def forget(self, configuration: Mapping[str, object]) -> None:
        """Drops the numbers of a part, where they are kept."""
        path = self._path(configuration)
        if path is not None:
            path.unlink(missing_ok=True)

    def _path(self, configuration: Mapping[str, object]) -> Path | None:
        if self.folder is None:
            return None
        text = json.dumps({"code": self._code, **configuration}, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


def _read(path: Path) -> Numbers | None:
    """What a file holds; None where there is none, or a damaged one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): float(value) for name, value in content["numbers"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
