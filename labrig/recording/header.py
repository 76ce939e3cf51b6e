"""What a recording says about its run before the first row: who, when, with what, and from which plan."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from labrig.events import new_run_id
from labrig.rig import BOARD_NAME, Rig
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.instrument import Identity


@dataclass(frozen=True)
class RecordingHeader:
    """Everything about a run that is known before it.

    Attributes:
        rig_name: Name of the rig.
        rig_toml: The rig file, verbatim.
        plan: Description of the plan, seeds included, as JSON can hold it.
        identities: Who each instrument said it is.
        settings: The settings of each instrument, as JSON can hold them.
        started_utc: Start of the run, ISO 8601.
        versions: Versions of labrig and of what wrote the file.
        git_commit: Commit of the checkout that ran; empty where it is not known.
        run_id: Identity of the run, a UUID, as its messages over MQTT have it; empty in files of format 1.1 and before.
    """

    rig_name: str
    rig_toml: str
    plan: Mapping[str, object]
    identities: Mapping[str, Identity]
    settings: Mapping[str, Mapping[str, object]]
    started_utc: str
    versions: Mapping[str, str]
    git_commit: str = ""
    run_id: str = ""

    @classmethod
    def for_rig(cls, rig: Rig, plan: Mapping[str, object]) -> RecordingHeader:
        """The header of a run that starts now on an open rig.

        Args:
            rig: The rig, open.
            plan: What `Plan.describe()` says, or another description of what will be measured.
        """
        config = rig.config
        settings: dict[str, Mapping[str, object]] = {BOARD_NAME: config.board.model_dump(mode="json")}
        settings |= {name: meter.model_dump(mode="json") for name, meter in config.source_meters.items()}
        settings |= {name: axis.model_dump(mode="json") for name, axis in config.axes.items()}
        return cls(
            rig_name=config.rig.name,
            rig_toml=config.source_text,
            plan=dict(plan),
            identities=rig.identities(),
            settings=settings,
            started_utc=utc_now(),
            versions=versions_now(),
            git_commit=checkout_commit(),
            run_id=new_run_id(),
        )


def utc_now() -> str:
    """The time in UTC, ISO 8601 with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def versions_now() -> dict[str, str]:
    """Versions of labrig, Python and the packages that write a recording."""
    versions = {"python": platform.python_version()}
    for package in ("labrig", "numpy", "h5py"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return versions


def board_info_from_json(text: str) -> BoardInfo:
    """Reads what `info_to_json` of the board protocol wrote; `TypeError` or `ValueError` where the text is not that."""
    fields = json.loads(text)
    fields["adc_full_scale_a"] = tuple(fields["adc_full_scale_a"])
    fields["capabilities"] = frozenset(fields["capabilities"])
    return BoardInfo(**fields)


def checkout_commit() -> str:
    """The commit of the checkout that labrig runs from, read without git; empty in an installed labrig."""
    folder = Path(__file__).resolve().parents[2] / ".git"
    try:
        head = (folder / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        reference = head.removeprefix("ref: ")
        loose = folder / reference
        if loose.is_file():
            return loose.read_text().strip()
        for line in (folder / "packed-refs").read_text().splitlines():
            if line.endswith(" " + reference):
                return line.split(" ", 1)[0]
    except OSError:
        pass
    return ""
