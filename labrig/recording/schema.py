"""Whether the structure of a recording is that which the layout says, node by node."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from labrig.recording import layout
from labrig.recording.damaged_file import DamagedFile
from labrig.recording.file_bytes import FileBytes, StructureError
from labrig.recording.hdf5_messages import Attribute
from labrig.recording.hdf5_nodes import StoredDataset
from labrig.recording.inspection import Inspection, texts_of
from labrig.recording.journal import JOURNAL_DTYPE, journal_path
from labrig.recording.judging import JudgedStream

_JOURNAL_FIELDS = frozenset({"point", "start", "rows", "crc32", "kind"})
_IDENTITY = ("manufacturer", "model", "serial", "firmware")
_TEXT = object()


class SchemaCheck:
    """Compares one recording with the layout.

    Args:
        source: The file.
        damaged: Its structure.
        inspection: What it says.

    Attributes:
        faults: What is missing or other than it should be, one text each.
        notes: What is there beside the layout.
    """

    def __init__(self, source: FileBytes, damaged: DamagedFile, inspection: Inspection) -> None:
        self.faults: list[str] = []
        self.notes: list[str] = []
        self._source = source
        self._damaged = damaged
        self._inspection = inspection
        self._known = {"entry"}

    def run(self) -> None:
        """Looks at every node."""
        minor = self._inspection.shape.minor
        root = dict.fromkeys(texts_of(minor), _TEXT) | {"NX_class": "NXroot", "default": "entry"}
        self._attributes("", root)
        arrays = self._inspection.arrays
        without = "curves" if self._inspection.shape.curves else "supply"
        default = f"array_{min(arrays)}" if arrays else without
        self._group("entry", {"NX_class": "NXentry", "default": default})
        identified = minor > 1 or f"entry/{layout.RUN_UUID}" in self._damaged.addresses
        for name in ("title", "definition", "start_time", *((layout.RUN_UUID,) if identified else ())):
            self._text(f"entry/{name}")
        for name in ("end_time", "status"):
            self._dataset(f"entry/{name}", np.dtype(f"S{layout.TEXT_BYTES}"), ())
        self._group("entry/instruments", {"NX_class": "NXcollection"})
        for name in self._inspection.header.identities:
            path = f"entry/instruments/{name}"
            self._group(path, {"NX_class": "NXinstrument"})
            for part in ("name", "settings", *_IDENTITY):
                self._text(f"{path}/{part}")
            if minor > 0:
                kind = np.dtype(f"S{layout.SETTINGS_TEXT_BYTES}")
                self._dataset(f"{path}/{layout.REPORTED_SETTINGS}", kind, ())
        self._group("entry/journal", {"NX_class": "NXcollection"})
        for stream in self._inspection.streams.values():
            self._stream(stream)
        extra = [path for path in self._damaged.addresses if path not in self._known]
        # What a user adds below a node of its own is one addition.
        self.notes += [f"{path}: is none of labrig's" for path in extra if path.rpartition("/")[0] not in extra]

    def _stream(self, judged: JudgedStream) -> None:
        stream = judged.found.stream
        axes = np.array(stream.axes)
        self._group(stream.path, {"NX_class": "NXdata", "signal": stream.signal, "axes": tuple(axes.tolist())})
        self._dataset(f"{stream.path}/{layout.COMMITTED}", np.dtype("<i8"), (), {"units": ""})
        axis = self._axis(stream.path, stream.axis, None)
        lengths = {stream.axis: axis, "row": self._inspection.info.rows, "column": self._inspection.info.columns}
        for name in ("row", "column"):
            if any(name in column.dims for column in stream.columns):
                self._axis(stream.path, name, lengths[name])
        for column in stream.columns:
            path = f"{stream.path}/{column.name}"
            expected = {"units": column.units, "long_name": column.meaning}
            dataset = self._dataset(path, np.dtype(column.dtype), (axis, *column.shape), expected)
            if dataset is None:
                continue
            fill = np.array(column.fill, column.dtype).tobytes()
            # NaN has many forms in bytes.
            right = (
                dataset.fill is not None
                and len(dataset.fill) == len(fill)
                and (
                    dataset.fill == fill
                    or (math.isnan(column.fill) and np.isnan(np.frombuffer(dataset.fill, column.dtype))[0])
                )
            )
            if not right:
                self.faults.append(f"{path}: is not filled with {column.fill} where nothing was written")
            self._scales(path, dataset, stream.path, (stream.axis, *column.dims))
        if stream.signal == "current_code":
            self._adc_step(stream)
        if judged.blocks is not None:
            self._journal(journal_path(stream.path))

    def _adc_step(self, stream: layout.Stream) -> None:
        path = f"{stream.path}/adc_lsb_a"
        expected = self._inspection.info.adc_lsb_a
        dataset = self._dataset(
            path, expected.dtype, expected.shape, {"units": "A", "long_name": "current of one ADC step"}
        )
        if dataset is not None:
            if self._values(dataset) != expected.tobytes():
                self.faults.append(f"{path}: is not the step of the board's converter")
            self._scales(path, dataset, stream.path, ("column",))

    def _journal(self, path: str) -> None:
        dataset = self._dataset(path, None, None)
        if dataset is None:
            return
        fields = dict(dataset.stored_type.dtype.fields or {}) if dataset.stored_type.dtype is not None else {}
        if not fields.keys() >= _JOURNAL_FIELDS or len(dataset.shape) != 1:
            self.faults.append(f"{path}: is no journal, it has {', '.join(sorted(fields)) or 'no fields'}")
            return
        for name, (wanted, *_) in (JOURNAL_DTYPE.fields or {}).items():
            if name in fields and fields[name][0] != wanted:
                self.faults.append(f"{path}: its {name} is of type {fields[name][0]}, expected {wanted}")

    def _axis(self, group: str, name: str, length: int | None) -> int:
        """Checks an axis, which counts from 0; returns its length."""
        path = f"{group}/{name}"
        expected = {"units": "", "long_name": f"index of the {name}", "CLASS": "DIMENSION_SCALE", "NAME": name}
        dataset = self._dataset(path, np.dtype("<i4"), None if length is None else (length,), expected)
        if dataset is None or len(dataset.shape) != 1:
            return -1
        return dataset.shape[0]

    def _scales(self, path: str, dataset: StoredDataset, group: str, names: Sequence[str]) -> None:
        wanted = tuple((self._damaged.addresses.get(f"{group}/{name}", -1),) for name in names)
        if dataset.attributes.get("DIMENSION_LIST") != wanted and not dataset.faults:
            self.faults.append(f"{path}: its axes are not {', '.join(names)}")

    def _group(self, path: str, attributes: Mapping[str, object]) -> None:
        self._known.add(path)
        if path not in self._damaged.groups:
            self.faults.append(f"{path}: there is no such group")
        else:
            self._attributes(path, attributes)

    def _text(self, path: str) -> None:
        dataset = self._dataset(path, None, ())
        if dataset is not None and not dataset.stored_type.text:
            self.faults.append(f"{path}: is no text")

    def _dataset(
        self,
        path: str,
        dtype: np.dtype[np.generic] | None,
        shape: tuple[int, ...] | None,
        attributes: Mapping[str, object] | None = None,
    ) -> StoredDataset | None:
        self._known.add(path)
        dataset = self._damaged.datasets.get(path)
        if dataset is None:
            self.faults.append(f"{path}: there is no such dataset")
            return None
        if dtype is not None and dataset.stored_type.dtype != dtype:
            self.faults.append(f"{path}: is of type {dataset.stored_type.dtype}, expected {dtype}")
        if shape is not None and dataset.shape != shape:
            self.faults.append(f"{path}: is {list(dataset.shape)}, expected {list(shape)}")
        self._attributes(path, attributes or {})
        return dataset

    def _attributes(self, path: str, expected: Mapping[str, object]) -> None:
        found, unreadable = self._found(path)
        where = path or "root"
        for name, wanted in expected.items():
            if name not in found:
                # Which attribute it was that cannot be read, nothing says.
                if not unreadable:
                    self.faults.append(f"{where}: has no attribute {name}")
            elif wanted is _TEXT and not isinstance(found[name], str):
                self.faults.append(f"{where}: its attribute {name} is no text")
            elif wanted is not _TEXT and (isinstance(found[name], np.ndarray) or found[name] != wanted):
                self.faults.append(f"{where}: its attribute {name} is {found[name]!r}, expected {wanted!r}")

    def _found(self, path: str) -> tuple[dict[str, Attribute], bool]:
        """The attributes of a node, and whether some cannot be read."""
        node = self._damaged.groups.get(path) or self._damaged.datasets.get(path)
        if path or node is None:
            return ({}, True) if node is None else (dict(node.attributes), bool(node.faults))
        return dict(self._damaged.attributes), bool(node.faults)

    def _values(self, dataset: StoredDataset) -> bytes | None:
        if dataset.layout.inline is not None:
            return dataset.layout.inline
        try:
            return self._source.read(dataset.layout.offset or 0, dataset.stored_type.size * math.prod(dataset.shape))
        except StructureError:
            return None
