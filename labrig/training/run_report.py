"""The report of a run folder, written when the training ends and again when it was judged."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

from labrig.training.run_folder import REPORT, load_metrics, load_origin, load_summary


def write_run_report(folder: Path) -> Path | None:
    """Writes `report.html` from the files of a run folder.

    Returns:
        The page; None where the extra `report` is not installed.

    Raises:
        StorageError: Not a finished run, or the folder cannot be written.
    """
    if find_spec("jinja2") is None or find_spec("plotly") is None:
        return None
    from labrig.reports.training import TrainingStory, write_training_report

    summary, config = load_summary(folder), load_origin(folder)
    spent, board = dict(_numbers(summary["ledger"])), summary.get("board")
    most = summary.get("most_writes_of_a_cell")
    spent["writes of the cell written most"] = most if isinstance(most, int) else None
    best_s = None
    if isinstance(board, dict):
        best_s = (
            float(spent.get("writes") or 0) * float(board["program_latency_s"]),
            float(spent.get("mvms") or 0) * float(board["mvm_latency_s"]),
        )
    evaluation: dict[str, object] = {}
    if (folder / "evaluation.json").exists():
        evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    mean, confusion = evaluation.get("mean"), evaluation.get("confusion")
    training = config.file.training
    story = TrainingStory(
        name=folder.name,
        conditions={
            "method": training.method,
            "policy": config.file.policy.name,
            "model": training.model,
            "data": str(summary["data"]),
            "chip": str(summary["chip_id"] or "none"),
            "seed": str(summary["seed"]),
            "labrig": str(summary.get("labrig", "unknown")),
        },
        phase=training.method,
        lines=load_metrics(folder),
        spent=spent,
        digital_accuracy=float(str(summary["digital_accuracy"])),
        accuracy=mean if isinstance(mean, float) else None,
        confusion=confusion if isinstance(confusion, list) else [],
        where=str(evaluation.get("where", "")),
        best_s=best_s,
    )
    path = folder / REPORT
    write_training_report(path, story)
    return path


def _numbers(content: object) -> dict[str, float | int | None]:
    assert isinstance(content, dict)
    return content
