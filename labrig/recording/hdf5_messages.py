"""What stands in the headers of HDF5's first file format, decoded from bytes.

Source: HDF5 File Format Specification Version 3.0, section IV.A.2 (object header messages), the versions of each that
HDF5 writes with the default `libver`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labrig.recording.file_bytes import StructureError, decoded

DATASPACE, DATATYPE, FILL, LAYOUT, FILTERS, ATTRIBUTE, CONTINUATION, GROUP = 1, 3, 5, 8, 11, 12, 16, 17

TREE_PLACE = 3
"""Where in a layout message the address of the index stands."""

_LAST_KIND = 24
_ALIGNMENT_BYTES = 8
_MOST_AXES = 32
_MOST_NAME_BYTES = 1024

Attribute = str | NDArray[np.generic] | tuple[str, ...] | tuple[tuple[int, ...], ...]
"""A text, numbers, several texts, or for each element the addresses of what it refers to."""

Heap = Callable[[bytes, int], bytes]
"""Gives the bytes of an element of variable length: its pointer, and the size of one part of it."""


@dataclass(frozen=True)
class StoredType:
    """A datatype.

    Attributes:
        size: Bytes of one element.
        dtype: The same in numpy; None for what has a variable length.
        text: Whether an element is a text of variable length.
        references: Whether an element is a list of references.
    """

    size: int
    dtype: np.dtype[np.generic] | None
    text: bool = False
    references: bool = False


@dataclass(frozen=True)
class StoredLayout:
    """Where the elements of a dataset lie.

    Attributes:
        tree: Address of the index of its chunks; None where it has none.
        chunk_shape: Elements of a chunk along each axis; empty where it has none.
        offset: Place of all elements, where they lie together.
        inline: The elements themselves, where they lie in the header.
    """

    tree: int | None = None
    chunk_shape: tuple[int, ...] = ()
    offset: int | None = None
    inline: bytes | None = None


def messages_in(block: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Kind, place and content of every message in a block; where the bytes are none, the next place is tried."""
    place = 0
    while place + 8 <= len(block):
        kind, size = struct.unpack_from("<HH", block, place)
        if kind > _LAST_KIND or size % _ALIGNMENT_BYTES or place + 8 + size > len(block):
            place += _ALIGNMENT_BYTES
            continue
        yield kind, place + 8, block[place + 8 : place + 8 + size]
        place += 8 + size


def attribute_of(data: bytes, heap: Heap) -> tuple[str, Attribute]:
    """Name and value of an attribute message.

    Raises:
        StructureError: It is none, or of a type that recordings do not use.
    """
    return decoded("attribute", lambda: _attribute(data, heap))


def _attribute(data: bytes, heap: Heap) -> tuple[str, Attribute]:
    version, reserved, name_bytes, type_bytes, space_bytes = struct.unpack_from("<BBHHH", data)
    if version != 1 or reserved or name_bytes > _MOST_NAME_BYTES:
        raise StructureError("is no attribute")
    name = data[8 : 8 + name_bytes].split(b"\0")[0].decode()
    place = 8 + _padded(name_bytes)
    stored_type, _ = datatype_of(data, place)
    place += _padded(type_bytes)
    shape = dataspace_of(data[place : place + space_bytes])
    place += _padded(space_bytes)
    size, count = stored_type.size, math.prod(shape)
    if size < 1 or count * size > len(data) - place:
        raise StructureError(f"attribute {name!r} has no room for its value")
    values = data[place : place + count * size]
    elements = [values[start : start + size] for start in range(0, len(values), size)]
    if stored_type.text:
        texts = tuple(heap(one, 1).decode() for one in elements)
        return name, texts if shape else texts[0]
    if stored_type.references:
        lists = [heap(one, 8) for one in elements]
        return name, tuple(struct.unpack(f"<{len(one) // 8}Q", one) for one in lists)
    if stored_type.dtype is None:
        raise StructureError(f"attribute {name!r} has a type that recordings do not use")
    if stored_type.dtype.kind == "S" and not shape:
        return name, values.split(b"\0")[0].decode()
    return name, np.frombuffer(values, stored_type.dtype).reshape(shape)


def dataspace_of(data: bytes) -> tuple[int, ...]:
    """Lengths of the axes."""
    version, rank = struct.unpack_from("<BB", data)
    if version != 1 or rank > _MOST_AXES:
        raise StructureError("is no dataspace")
    return struct.unpack_from(f"<{rank}Q", data, 8)


def datatype_of(data: bytes, place: int = 0) -> tuple[StoredType, int]:
    """A datatype, and the place after it."""
    head, bits, _, size = struct.unpack_from("<BHBI", data, place)
    version, kind = head >> 4, head & 15
    order = ">" if bits & 1 else "<"
    place += 8
    if version not in (1, 2):
        raise StructureError("is no datatype")
    if kind == 0:
        return StoredType(size, np.dtype(f"{order}{'i' if bits & 8 else 'u'}{size}")), place + 4
    if kind == 1:
        return StoredType(size, np.dtype(f"{order}f{size}")), place + 12
    if kind == 3:
        return StoredType(size, np.dtype(f"S{size}")), place
    if kind == 6:
        return _compound(data, place, size, bits, version)
    if kind == 7:
        # A reference is the address of a header.
        return StoredType(size, np.dtype(f"<u{size}")), place
    if kind == 9:
        base, place = datatype_of(data, place)
        return StoredType(size, None, text=bits & 15 == 1, references=bits & 15 == 0 and base.size == 8), place
    if kind == 10 and version == 2:
        rank = data[place]
        lengths = struct.unpack_from(f"<{rank}I", data, place + 4)
        base, place = datatype_of(data, place + 4 + 8 * rank)
        return StoredType(size, None if base.dtype is None else np.dtype((base.dtype, lengths))), place
    raise StructureError(f"datatype of class {kind} is not used in recordings")


def _compound(data: bytes, place: int, size: int, members: int, version: int) -> tuple[StoredType, int]:
    names, formats, offsets = list[str](), list[np.dtype[np.generic]](), list[int]()
    for _ in range(members):
        end = data.index(b"\0", place)
        names.append(data[place:end].decode())
        place += _padded(end + 1 - place)
        offsets += struct.unpack_from("<I", data, place)
        place += 4
        lengths: tuple[int, ...] = ()
        if version == 1:
            lengths = struct.unpack_from("<4I", data, place + 12)[: data[place]]
            place += 28
        member, place = datatype_of(data, place)
        if member.dtype is None:
            raise StructureError("compound datatype with members of variable length is not used in recordings")
        formats.append(np.dtype((member.dtype, lengths)))
    return StoredType(size, np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})), place


def layout_of(data: bytes) -> StoredLayout:
    """Where the elements of a dataset lie."""
    version, kind = struct.unpack_from("<BB", data)
    if version == 3 and kind == 0:
        (size,) = struct.unpack_from("<H", data, 2)
        return StoredLayout(inline=data[4 : 4 + size])
    if version == 3 and kind == 1:
        (offset,) = struct.unpack_from("<Q", data, 2)
        return StoredLayout(offset=offset)
    if version == 3 and kind == 2:
        rank, tree = struct.unpack_from("<BQ", data, 2)
        # The last length is the size of an element.
        return StoredLayout(tree=tree, chunk_shape=struct.unpack_from(f"<{rank}I", data, 11)[:-1])
    raise StructureError("is no data layout")


def filters_of(data: bytes) -> tuple[int, ...]:
    """Numbers of the filters, in the order in which chunks went through them."""
    version, count = struct.unpack_from("<BB", data)
    if version != 1:
        raise StructureError("is no list of filters")
    numbers, place = list[int](), 8
    for _ in range(count):
        number, name_bytes, _, values = struct.unpack_from("<HHHH", data, place)
        numbers.append(number)
        place += 8 + name_bytes + 4 * (values + values % 2)
    return tuple(numbers)


def fill_of(data: bytes) -> bytes | None:
    """Bytes of an element that was never written; None where that is not said."""
    version, defined = data[0], data[3]
    if version not in (1, 2) or not defined:
        return None
    (size,) = struct.unpack_from("<I", data, 4)
    return data[8 : 8 + size] if size <= len(data) - 8 else None


def _padded(count: int) -> int:
    return -(-count // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
