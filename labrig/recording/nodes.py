"""What is found in an HDF5 file, as what it should be: a path can lead to a group, a dataset or a type.

Whether something is there is asked first, and never learnt from an error of HDF5. h5py words an error from texts that
HDF5 keeps until its next call; where Python's garbage collector runs in between and lets go of some HDF5 object, that
is such a call, and what h5py then reads is freed memory: a `UnicodeDecodeError` in place of a `KeyError`.
"""

from __future__ import annotations

import os

import h5py

HDF5_REFUSES = (OSError, RuntimeError, UnicodeDecodeError)
"""What h5py raises where HDF5 cannot read or write; the last where the text of the error was lost."""

# HDF5 takes 64 kB for an attribute with its name and type.
_LONGEST_ATTRIBUTE_BYTES = 60_000


def in_words(error: Exception) -> str:
    """What HDF5, the system or `nodes` objected to, as a message says it."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    if isinstance(error, OSError) and error.errno and error.strerror:
        # HDF5 gives its whole stack of reasons; the number says it in a few words.
        return os.strerror(error.errno) if "errno =" in error.strerror else error.strerror
    return str(error)


def dataset_at(parent: h5py.Group, path: str) -> h5py.Dataset:
    """The dataset at `path`; `KeyError` where there is none or something else."""
    found = _found(parent, path)
    if not isinstance(found, h5py.Dataset):
        raise KeyError(f"{path} is not a dataset")
    return found


def group_at(parent: h5py.Group, path: str) -> h5py.Group:
    """The group at `path`; `KeyError` where there is none or something else."""
    found = _found(parent, path)
    if not isinstance(found, h5py.Group):
        raise KeyError(f"{path} is not a group")
    return found


def set_front_text(node: h5py.Group, name: str, text: str) -> None:
    """Writes a text attribute that lies with the metadata at the front of the file.

    Texts of variable length lie among the rows instead, and would be lost with them; only texts that are too long for
    an attribute are written so.
    """
    encoded = text.encode()
    if not 0 < len(encoded) <= _LONGEST_ATTRIBUTE_BYTES:
        node.attrs[name] = text
        return
    node.attrs.create(name, encoded, dtype=h5py.string_dtype("utf-8", len(encoded)))


def text_attribute(node: h5py.Group, name: str) -> str:
    """A text attribute; `KeyError` or `TypeError` where there is none."""
    if name not in node.attrs:
        raise KeyError(f"there is no attribute {name}")
    value = node.attrs[name]
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, str):
        raise TypeError(f"attribute {name} is not a text")
    return value


def _found(parent: h5py.Group, path: str) -> object:
    if path not in parent:
        raise KeyError(f"there is no {path}")
    return parent[path]
