"""What is left of the structure of a recording, named where its names are left, and found by its traces where not."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property

import numpy as np

from labrig.recording import hdf5_messages as messages
from labrig.recording.file_bytes import FileBytes, StructureError
from labrig.recording.hdf5_nodes import (
    HEADER_BYTES,
    SUPERBLOCK_BYTES,
    StoredDataset,
    StoredGroup,
    children_of,
    heap_object,
    node_at,
    superblock_of,
)

# All that HDF5 keeps about the largest recordings lies at the front, in less than this.
_FRONT_BYTES = 64 << 20
_ALIGNMENT_BYTES = 8
_DEEPEST = 5
_ENTRY_TRACES = {"journal", "status", "end_time", "title", "definition", "start_time", "supply"}


class DamagedFile:
    """The nodes of an HDF5 file that may be damaged.

    Args:
        source: The file.

    Attributes:
        attributes: Of the root.
        groups: Groups by their path, such as `entry/journal`.
        datasets: Datasets by their path.
        faults: What is not as it should be, one text each.
    """

    def __init__(self, source: FileBytes) -> None:
        self._source = source
        self.groups: dict[str, StoredGroup] = {}
        self.datasets: dict[str, StoredDataset] = {}
        self.addresses: dict[str, int] = {}
        self.faults: list[str] = []
        self.attributes: dict[str, messages.Attribute] = {}
        root = self._root()
        try:
            found = node_at(source, root)
            if isinstance(found, StoredGroup):
                self.attributes |= found.attributes
                self._walk("", root, _DEEPEST)
            else:
                self.faults.append("root: is no group")
        except StructureError as error:
            self.faults.append(f"root: {error}")
        if not {"status", "journal"} & {path.removeprefix("entry/") for path in self.addresses}:
            self._find_entry()

    def find_attributes(self, names: Collection[str]) -> None:
        """Looks through the front of the file for texts of the root that the walk did not come to."""
        for name in names:
            if name in self.attributes:
                continue
            value = self._attribute_anywhere(name)
            if value is not None:
                self.attributes[name] = value
                self.faults.append(f"root: attribute {name} was found apart from the others")

    @cached_property
    def front(self) -> bytes:
        """The beginning of the file, where its structure is."""
        return self._source.read(0, min(self._source.size, _FRONT_BYTES))

    @cached_property
    def unnamed_groups(self) -> list[StoredGroup]:
        """Every group that left a trace and that no path leads to, in the order of their names' places."""
        known = [dict(one.children) for one in self.groups.values()]
        return [one for one in self._groups_anywhere() if dict(one.children) not in known]

    @cached_property
    def all_datasets(self) -> dict[int, StoredDataset]:
        """Every dataset whose header is whole, named or not, by address."""
        found = dict[int, StoredDataset]()
        for address in self._headers_anywhere():
            try:
                node = node_at(self._source, address)
            except StructureError:
                continue
            if isinstance(node, StoredDataset):
                found[address] = node
        return found

    def adopt(self, path: str, group: StoredGroup) -> None:
        """Gives an unnamed group a path, and names all below it."""
        self.groups[path] = group
        for name, address in group.children.items():
            self._walk(f"{path}/{name}", address, _DEEPEST)

    def _root(self) -> int:
        try:
            root, end = superblock_of(self._source)
        except StructureError as error:
            self.faults.append(f"superblock: {error}")
            # Where HDF5 puts it in a new file.
            return SUPERBLOCK_BYTES
        if end > self._source.size:
            self.faults.append(f"the file was cut short: it has {self._source.size} of {end} bytes")
        return root

    def _walk(self, path: str, address: int, levels: int) -> None:
        if path:
            self.addresses[path] = address
        try:
            node = node_at(self._source, address)
        except StructureError as error:
            self.faults.append(f"{path}: {error}")
            return
        self.faults += [f"{path or 'root'}: {one}" for one in node.faults]
        if isinstance(node, StoredDataset):
            self.datasets[path] = node
            return
        self.groups[path] = node
        if levels:
            for name, child in node.children.items():
                self._walk(f"{path}/{name}" if path else name, child, levels - 1)

    def _find_entry(self) -> None:
        for group in self._groups_anywhere():
            if len(_ENTRY_TRACES & group.children.keys()) >= 2:
                self.faults.append("entry: was found without the path to it")
                self.adopt("entry", group)
                return

    def _groups_anywhere(self) -> Iterator[StoredGroup]:
        """Every group of which the message that leads to its children is left."""
        head = struct.pack("<HH", messages.GROUP, 16)
        place = self.front.find(head)
        while place >= 0:
            if place % _ALIGNMENT_BYTES == 0 and place + 24 <= len(self.front):
                tree, heap = struct.unpack_from("<QQ", self.front, place + 8)
                if self.front[tree : tree + 4] == b"TREE" and self.front[heap : heap + 4] == b"HEAP":
                    children, faults = children_of(self._source, tree, heap)
                    yield StoredGroup(children, {}, tuple(faults))
            place = self.front.find(head, place + 1)

    def _attribute_anywhere(self, name: str) -> str | None:
        encoded = name.encode() + b"\0"
        place = self.front.find(encoded)
        while place >= 0:
            # Eight bytes of the attribute lie before its name, and eight of the message before those.
            start = place - 16
            if start >= 0 and start % _ALIGNMENT_BYTES == 0:
                kind, size = struct.unpack_from("<HH", self.front, start)
                data = self.front[start + 8 : start + 8 + size]
                try:
                    found, value = messages.attribute_of(
                        data, lambda pointer, part: heap_object(self._source, pointer, part)
                    )
                except StructureError:
                    found, value = "", None
                # Groups have attributes of their own that may be called the same; the root's are texts.
                if kind == messages.ATTRIBUTE and found == name and isinstance(value, str):
                    return value
            place = self.front.find(encoded, place + 1)
        return None

    def _headers_anywhere(self) -> list[int]:
        """Places at the front that look like the beginning of an object header."""
        usable = len(self.front) // _ALIGNMENT_BYTES * _ALIGNMENT_BYTES
        words = np.frombuffer(self.front[:usable], "<u4").reshape(-1, 2)
        if len(words) < 2:
            return []
        version, references = words[:-1, 0] & 0xFFFF, words[:-1, 1]
        size, padding = words[1:, 0], words[1:, 1]
        like = (version == 1) & (references == 1) & (size >= HEADER_BYTES) & (size < 1 << 16) & (padding == 0)
        return [int(row) * _ALIGNMENT_BYTES for row in np.flatnonzero(like)]


def text_of(attributes: Mapping[str, messages.Attribute], name: str) -> str | None:
    """A text attribute; None where there is none."""
    value = attributes.get(name)
    return value if isinstance(value, str) else None
