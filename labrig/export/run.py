"""`export_recording`: from a recording to files of another format."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from labrig.export.tables import Content, Table, about, tables_of
from labrig.extras import MissingExtraError, demand_extra
from labrig.recording.output_file import in_thread
from labrig.recording.trusted import trusted
from labrig.recording.whole_files import WholeFiles, no_file, refusals
from labrig_drivers.errors import StorageError


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        module: Where it is written.
        suffixes: By which a file name asks for it; the first is used where a name is made up.
        needs_extra: Whether the base install cannot write it.
        one_table: Whether a file holds one table only.
        has_facts: Whether a file can say what its numbers mean.
    """

    module: str
    suffixes: tuple[str, ...]
    needs_extra: bool
    one_table: bool
    has_facts: bool = True


FORMATS: Mapping[str, Format] = {
    "netcdf": Format("labrig.export.as_netcdf", (".nc", ".nc4", ".netcdf"), needs_extra=True, one_table=False),
    "csv": Format("labrig.export.as_csv", (".csv",), needs_extra=False, one_table=True, has_facts=False),
    "parquet": Format("labrig.export.as_parquet", (".parquet", ".pq"), needs_extra=True, one_table=True),
    "npz": Format("labrig.export.as_npz", (".npz",), needs_extra=False, one_table=False),
}


def export_recording(
    source: Path | str,
    output: Path | str,
    *,
    kind: str | None = None,
    array: int | None = None,
    names: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Path]:
    """Writes the committed rows of a recording into files of another format, after their checksums agreed.

    CSV and Parquet files hold one table each: `output` itself where `names` is one name, and otherwise a file for each
    stream, `run.array_0.csv` for the stream `array_0` and the output `run.csv`. What a CSV file cannot say is then in
    `run.about.json`.

    Args:
        source: The recording.
        output: The file; neither it nor those made from its name may exist.
        kind: A key of `FORMATS`; by default the suffix of `output` decides.
        array: Only the streams of this array.
        names: Only these streams, such as `array_0/writes`.
        progress: Told how many bytes are done, and how many there are.

    Returns:
        The files that were written.

    Raises:
        StorageError: The recording cannot be read, is damaged or is being written, has no such array or stream; the
            format is not known; or a file exists or cannot be written. Every fault is listed, and no file is left.
        MissingExtraError: The format needs an extra that is not installed.
    """
    source, output = Path(source), Path(output)
    faults = []
    if (absent := no_file(source)) is not None:
        faults.append(absent)
    try:
        chosen: Format | None = format_of(output, kind)
    except StorageError as error:
        chosen = None
        faults.append(str(error))
    if chosen is not None and chosen.needs_extra:
        try:
            demand_extra("export", "export")
        except MissingExtraError as error:
            if not (faults or refusals([output])):
                raise
            faults.append(str(error))
    if faults or chosen is None:
        raise StorageError("; ".join([*faults, *refusals([output])]))
    with trusted(source) as (recording, contents):
        steps = _Steps(progress)
        tables, faults = tables_of(recording, contents, array, names, steps)
        steps.total = sum(table.stored_bytes for table in tables)
        targets = _targets(output, chosen, tables, single=len(names) == 1)
        faults += refusals(targets)
        if faults:
            raise StorageError("; ".join(faults))
        facts = about(recording, contents, tables)
        write = _writer(chosen)
        with WholeFiles() as files:
            parts = {path: files.part(path) for path in targets}

            def work(check: Callable[[], None]) -> None:
                steps.check = check
                for path, share in targets.items():
                    if share:
                        write(parts[path], Content(tuple(share), facts, bare_names=array is not None))
                    else:
                        parts[path].write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

            in_thread(work)
    return list(targets)


@dataclass
class _Steps:
    """Adds up the bytes that were read, and ends it when it has to end."""

    progress: Callable[[int, int], None]
    done: int = 0
    total: int = 0
    check: Callable[[], None] = lambda: None

    def __call__(self, count: int) -> None:
        self.check()
        self.done += count
        self.progress(min(self.done, self.total), self.total)


def format_of(output: Path, kind: str | None) -> Format:
    """The format that a name or a suffix asks for.

    Raises:
        StorageError: Neither says one that is known.
    """
    known = ", ".join(f"{name} ({one.suffixes[0]})" for name, one in FORMATS.items())
    if kind is not None:
        if kind not in FORMATS:
            raise StorageError(f"there is no format {kind!r}; there are: {known}")
        return FORMATS[kind]
    for one in FORMATS.values():
        if output.suffix.lower() in one.suffixes:
            return one
    raise StorageError(f"{output}: its suffix says no format; there are: {known}; or choose one with --format")


def default_output(source: Path, kind: str | None) -> Path:
    """Where a recording goes when only a format was named: beside it, with the suffix of that format.

    Raises:
        StorageError: None was named, or one that is not known.
    """
    if kind is None:
        examples = ", ".join(f"-o {source.with_suffix(one.suffixes[0]).name}" for one in FORMATS.values())
        raise StorageError(f"{source}: say where to, and thereby in which format: {examples}; or choose a --format")
    return source.with_suffix(format_of(source, kind).suffixes[0])


def _writer(kind: Format) -> Callable[[Path, Content], None]:
    """The function that fills a file of a format, which is there and empty."""
    write: Callable[[Path, Content], None] = import_module(kind.module).write
    return write


def _targets(output: Path, kind: Format, tables: Sequence[Table], *, single: bool) -> dict[Path, list[Table]]:
    """The files to write, each with its tables; none for the one that says what all others mean."""
    if not kind.one_table or (single and len(tables) == 1):
        return {output: list(tables)}
    known = output.suffix.lower() in kind.suffixes
    suffix = output.suffix if known else kind.suffixes[0]
    stem = output.stem if known else output.name
    targets = {output.with_name(f"{stem}.{table.name.replace('/', '.')}{suffix}"): [table] for table in tables}
    return targets if kind.has_facts else {**targets, output.with_name(f"{stem}.about.json"): []}
