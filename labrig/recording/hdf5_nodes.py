"""Groups, datasets and their indexes in HDF5's first file format: what a damaged file still says, without HDF5.

HDF5 itself is no tool for a damaged file: of files with some bytes of their structure overwritten it crashes on some
and hangs on others, and where it raises, one broken node hides what lies below it. Recordings use the oldest form of
every structure (the default `libver`), which is small. Nothing here reads more than the file has, or twice.

Source: HDF5 File Format Specification Version 3.0, sections II.A (superblock), III (B-trees, symbol tables, heaps)
and IV.A.1 (object headers).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from labrig.recording import hdf5_messages as messages
from labrig.recording.file_bytes import FileBytes, StructureError, decoded, demand

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SUPERBLOCK_BYTES = 96
# A header, before its first message.
HEADER_BYTES = 16

# Far more than any recording has, and little enough that garbage is read quickly.
_MOST_BLOCKS = 64
_MOST_HEADER_BYTES = 1 << 20
_MOST_LEVELS = 16
_MOST_HEAP_BYTES = 1 << 26

_GROUP_TREE, _CHUNK_TREE = 0, 1
_NO_ADDRESS = 2**64 - 1
_TREE_HEAD_BYTES = 24
_ENTRY_BYTES = 40


@dataclass(frozen=True)
class Chunk:
    """Rows that are stored together.

    Attributes:
        first: Number of the first row.
        offset: Place in the file.
        size: Stored bytes.
        mask: Filters that were left out, one bit each.
    """

    first: int
    offset: int
    size: int
    mask: int


@dataclass(frozen=True)
class StoredGroup:
    """A group.

    Attributes:
        children: Addresses of what it holds, by name.
        attributes: What could be decoded of them.
        faults: What could not be read.
    """

    children: Mapping[str, int]
    attributes: Mapping[str, messages.Attribute]
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoredDataset:
    """A dataset.

    Attributes:
        shape: Lengths of its axes.
        stored_type: Type of its elements.
        layout: Where they are.
        filters: Numbers of the filters that chunks went through, in order.
        fill: Bytes of an element that was never written; None where that is not said.
        attributes: What could be decoded of them.
        faults: What could not be read.
    """

    shape: tuple[int, ...]
    stored_type: messages.StoredType
    layout: messages.StoredLayout
    filters: tuple[int, ...]
    fill: bytes | None
    attributes: Mapping[str, messages.Attribute]
    faults: tuple[str, ...] = ()


Node = StoredGroup | StoredDataset


def superblock_of(source: FileBytes) -> tuple[int, int]:
    """Address of the root group, and how long the file should be.

    Raises:
        StructureError: There is no superblock of a file as recordings are.
    """
    block = source.read(0, SUPERBLOCK_BYTES)
    if not block.startswith(SIGNATURE):
        raise StructureError("the file does not begin as an HDF5 file")
    if block[8] or block[13:15] != b"\x08\x08":
        raise StructureError(f"is an HDF5 file of another form (superblock {block[8]}) than labrig writes")
    end, root = struct.unpack_from("<40xQ16xQ", block)
    return root, end


def node_at(source: FileBytes, address: int) -> Node:
    """The group or dataset whose header lies at `address`.

    Raises:
        StructureError: There is none.
    """
    return decoded(f"object header at {address}", lambda: _node(source, address))


def _node(source: FileBytes, address: int) -> Node:
    found = dict[int, bytes]()
    attributes = dict[str, messages.Attribute]()
    faults = list[str]()
    for kind, data in _messages(source, address):
        if kind != messages.ATTRIBUTE:
            found.setdefault(kind, data)
            continue
        try:
            name, value = messages.attribute_of(data, lambda pointer, size: heap_object(source, pointer, size))
            attributes[name] = value
        except StructureError as error:
            faults.append(str(error))
    if messages.GROUP in found:
        tree, heap = struct.unpack_from("<QQ", found[messages.GROUP])
        children, lost = children_of(source, tree, heap)
        return StoredGroup(children, attributes, (*faults, *lost))
    if not {messages.DATASPACE, messages.DATATYPE, messages.LAYOUT} <= found.keys():
        raise StructureError(f"what lies at {address} is neither a group nor a dataset")
    return StoredDataset(
        messages.dataspace_of(found[messages.DATASPACE]),
        messages.datatype_of(found[messages.DATATYPE])[0],
        messages.layout_of(found[messages.LAYOUT]),
        messages.filters_of(found[messages.FILTERS]) if messages.FILTERS in found else (),
        messages.fill_of(found[messages.FILL]) if messages.FILL in found else None,
        attributes,
        tuple(faults),
    )


def _messages(source: FileBytes, address: int) -> Iterator[tuple[int, bytes]]:
    """Kind and content of every message of an object header."""
    version, reserved, _, references, size = struct.unpack("<BBHII", source.read(address, 12))
    if version != 1 or reserved or not 0 < references < 1 << 16 or not 0 < size <= _MOST_HEADER_BYTES:
        raise StructureError(f"no object header at {address}")
    blocks = [(address + HEADER_BYTES, size)]
    # The list grows while it is read.
    for number, (offset, length) in enumerate(blocks):
        try:
            block = source.read(offset, length)
        except StructureError:
            if number == 0:
                raise
            continue
        for kind, _, data in messages.messages_in(block):
            if kind == messages.CONTINUATION and len(data) >= 16 and len(blocks) < _MOST_BLOCKS:
                further, further_length = struct.unpack_from("<QQ", data)
                if further_length <= _MOST_HEADER_BYTES:
                    blocks.append((further, further_length))
            elif kind:
                yield kind, data


def children_of(source: FileBytes, tree: int, heap: int) -> tuple[dict[str, int], list[str]]:
    """Addresses of what a group holds, by name, and what of it could not be read.

    Args:
        source: The file.
        tree: Address of the group's B-tree.
        heap: Address of its names.
    """
    found, faults = dict[str, int](), list[str]()
    try:
        names = _names(source, heap)
    except (StructureError, struct.error) as error:
        return found, [str(error)]
    for _, table in _leaves(source, tree, _GROUP_TREE, 8, faults):
        try:
            signature, count = struct.unpack("<4s2xH", source.read(table, 8))
            demand(signature == b"SNOD", f"no symbol table at {table}")
            entries = source.read(table + 8, count * _ENTRY_BYTES)
        except (StructureError, struct.error) as error:
            faults.append(str(error))
            continue
        for place, header in struct.iter_unpack("<QQ24x", entries):
            try:
                name = names[place : names.index(b"\0", place)].decode()
            except ValueError:
                name = ""
            if name:
                found[name] = header
            else:
                faults.append(f"the name of what lies at {header} is lost")
    return found, faults


def chunks_of(source: FileBytes, tree: int, rank: int) -> tuple[list[Chunk], list[str]]:
    """All chunks that an index of chunks leads to, and what of it could not be read.

    Args:
        source: The file.
        tree: Address of the index.
        rank: How many axes the dataset has.
    """
    faults, chunks = list[str](), list[Chunk]()
    if tree == _NO_ADDRESS:
        # A dataset that never had a chunk has no index.
        return chunks, faults
    for key, offset in _leaves(source, tree, _CHUNK_TREE, 8 + 8 * (rank + 1), faults):
        size, mask, first = struct.unpack_from("<IIQ", key)
        chunks.append(Chunk(first, offset, size, mask))
    return chunks, faults


def heap_object(source: FileBytes, pointer: bytes, element_bytes: int) -> bytes:
    """The bytes of an element of variable length, which lies in a global heap.

    Args:
        source: The file.
        pointer: What stands in place of the element.
        element_bytes: Size of one of its parts.

    Raises:
        StructureError: It is not there.
    """
    length, address, wanted = struct.unpack("<IQI", pointer)
    if not length:
        return b""
    signature, size = struct.unpack("<4s4xQ", source.read(address, 16))
    demand(signature == b"GCOL" and size <= _MOST_HEAP_BYTES, f"no global heap at {address}")
    heap, place = source.read(address, size), 16
    while place + 16 <= size:
        index, object_bytes = struct.unpack_from("<H6xQ", heap, place)
        if index == wanted and length * element_bytes <= min(object_bytes, size - place - 16):
            return heap[place + 16 : place + 16 + length * element_bytes]
        if not index:
            break
        place += 16 + -(-object_bytes // 8) * 8
    raise StructureError(f"object {wanted} is not in the global heap at {address}")


def _names(source: FileBytes, address: int) -> bytes:
    signature, size, _, place = struct.unpack("<4s4xQQQ", source.read(address, 32))
    if signature != b"HEAP" or size > _MOST_HEADER_BYTES:
        raise StructureError(f"no names of a group at {address}")
    return source.read(place, size)


def _leaves(source: FileBytes, tree: int, kind: int, key_bytes: int, faults: list[str]) -> Iterator[tuple[bytes, int]]:
    """Key and address of everything that a B-tree leads to; no node is visited twice."""
    waiting, seen = [(tree, _MOST_LEVELS)], set[int]()
    while waiting:
        address, below = waiting.pop()
        if address in seen:
            continue
        seen.add(address)
        try:
            signature, found, level, count = struct.unpack("<4sBBH", source.read(address, 8))
            demand(signature == b"TREE" and found == kind and level < below, f"no index node at {address}")
            step = key_bytes + 8
            body = source.read(address + _TREE_HEAD_BYTES, count * step)
        except StructureError as error:
            faults.append(str(error))
            continue
        for place in range(0, count * step, step):
            (child,) = struct.unpack_from("<Q", body, place + key_bytes)
            if level:
                waiting.append((child, level))
            else:
                yield body[place : place + key_bytes], child
