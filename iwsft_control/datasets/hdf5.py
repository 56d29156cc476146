"""HDF5 files: written as a whole; read, whoever wrote them, with nothing outside the file or larger than the bound.

HDF5 can point from a file into others (external links, external storage, virtual data sets), can declare more than it
holds (10^12 rows in a few kB) and reads as zeros what was never written. None of that is data.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from iwsft_control.base.errors import UserError, require

MAX_BYTES = 16 << 30  # that the arrays read from one file may take; IWSFT_MAX_BYTES raises it
NUMERIC = "biuf"  # NumPy's kinds: booleans, integers, floats


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file to write into, in memory until the block ends (HDF5 prints stack traces where a disk is full).

    Raises:
        OSError: it cannot be written.
    """
    # (An image of HDF5's own memory driver would not do: before HDF5 2.0 its superblock has a wrong checksum.)
    memory = io.BytesIO()
    with h5py.File(memory, "w", libver="latest") as file:
        yield file
    path.write_bytes(memory.getbuffer())


def max_bytes() -> int:
    """How many bytes may be read from one file.

    Raises:
        UserError: IWSFT_MAX_BYTES is no number of bytes.
    """
    text = os.environ.get("IWSFT_MAX_BYTES", str(MAX_BYTES))
    require(text.isdecimal(), f"IWSFT_MAX_BYTES must be a number of bytes, not {text!r}.")
    return int(text)


def open_file(path: Path) -> h5py.File:
    """An HDF5 file to read from.

    Raises:
        UserError: there is no such file.
        OSError: it is not HDF5.
    """
    require(path.is_file(), f"{path} does not exist or is no file; check the path.")
    return h5py.File(path, "r")


def has(group: h5py.Group, path: str) -> bool:
    """Whether a group holds an object of its own at ``a/b``; links that lead elsewhere are not followed."""
    for part in path.split("/"):
        if not isinstance(group, h5py.Group) or _link(group, part) != h5py.h5l.TYPE_HARD:
            return False
        group = group[part]  # type: ignore[assignment]
    return True


def find(group: h5py.Group, path: str, what: str) -> Any:
    """The object at ``a/b`` in a group.

    Args:
        what: names the group, for the sentence.

    Raises:
        UserError: there is none, or a link leads out of the file.
    """
    found: Any = group
    for part in path.split("/"):
        link = _link(found, part) if isinstance(found, h5py.Group) else None
        if link is None:
            raise UserError(f"{what} holds no {path}; it is damaged: fetch or collect it again.")
        if link != h5py.h5l.TYPE_HARD:
            raise UserError(f"{what}: {path} is a link to elsewhere, which is not followed; copy its values there.")
        found = found[part]
    return found


def _link(group: h5py.Group, name: str) -> int | None:
    """The type of a link in a group, None where there is none (h5py's own ``getlink`` is slower)."""
    key = name.encode()
    return group.id.links.get_info(key).type if group.id.links.exists(key) else None


def arrays(group: h5py.Group, paths: Sequence[str], what: str, room: int | None = None) -> dict[str, np.ndarray]:
    """Arrays of numbers in a group, by path; every size is checked before anything is read.

    Args:
        room: bytes that they may take; by default :func:`max_bytes`.

    Raises:
        UserError: one is not there, is no array of numbers, leads out of the file, is not all written, or they are
            larger than ``room``.
    """
    found = {path: find(group, path, what) for path in paths}
    declared = sum(_declared_bytes(dataset, f"{what}: {path}") for path, dataset in found.items())
    require_room(declared, what, room)
    return {path: dataset[()] for path, dataset in found.items()}


def require_room(declared: int, what: str, room: int | None = None) -> None:
    """Refuse what declares more bytes than may be read.

    Raises:
        UserError: it does.
    """
    room = max_bytes() if room is None else room
    if declared > room:
        raise UserError(
            f"{what} declares {declared:,} bytes, more than the {room:,} that may be read; it is damaged, or set "
            "IWSFT_MAX_BYTES higher."
        )


def _declared_bytes(dataset: Any, what: str) -> int:
    """Bytes that reading a data set takes, as it declares: all of it, and at least one chunk.

    Raises:
        UserError: it is no array of numbers, or its values are not all in the file.
    """
    shape = dataset.shape if isinstance(dataset, h5py.Dataset) else None
    if shape is None or dataset.dtype.kind not in NUMERIC:
        kind = str(dataset.dtype) if isinstance(dataset, h5py.Dataset) else "a group"
        raise UserError(f"{what} is no array of numbers ({kind}); fetch or collect the data set again.")
    if dataset.is_virtual or dataset.external:
        raise UserError(f"{what} keeps its values in another file, which is not read; copy them into the file.")
    itemsize, chunks = dataset.dtype.itemsize, dataset.chunks
    if chunks is not None:  # HDF5 reads what was never written as zeros
        is_written = dataset.id.get_num_chunks() == math.prod(-(-n // c) for n, c in zip(shape, chunks, strict=True))
    else:
        is_written = math.prod(shape) == 0 or dataset.id.get_storage_size() > 0
    if not is_written and math.prod(shape) * itemsize <= max_bytes():  # else that is what to say
        raise UserError(f"{what} was never written as a whole; it is damaged: fetch or collect the data set again.")
    return max(math.prod(shape), math.prod(chunks or ())) * itemsize
