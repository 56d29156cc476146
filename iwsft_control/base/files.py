"""What reaches the disk: atomic writes, checksums, and pytrees as safetensors (never pickle)."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from iwsft_control.base.errors import UserError, is_finite

# Where the record stands in a file's metadata. A name of its own tells files with a checksum from those of earlier
# versions, so that damage to the checksum's name does not make one of the latter of it.
SEALED, UNSEALED = "sealed", "json"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without an error.

    Raises:
        UserError: the folder cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; choose a folder that you may write, with space left."
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # now: some writers put a file of their own in its place
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another folder."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def parse_json(text: str) -> Any:
    """JSON as Python's objects.

    Raises:
        ValueError: it is not JSON, or nested deeper than can be read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def through_json(value: Any) -> Any:
    """What a value is once it has been written and read: tuples as lists, names as strings."""
    return json.loads(json.dumps(value))


def read_json(path: Path, what: str, remedy: str) -> Any:
    """A JSON file as Python's objects.

    Args:
        what: what the file should be, for the sentence: "a result file".
        remedy: what to do where it is none: "run it again".

    Raises:
        UserError: it cannot be read, or is not JSON.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path.") from error
    except ValueError as error:
        raise UserError(f"{path} is not {what} ({error}); {remedy}.") from error


def problem_of(values: Any, types: Mapping[str, str]) -> str | None:
    """What keeps a JSON object from having these fields and no others; None if nothing does.

    Args:
        types: of the fields, as :func:`is_of` takes them.
    """
    if not isinstance(values, dict):
        return "it is no object"
    different = sorted(set(values) ^ set(types))
    if different:
        return f"missing or unknown fields ({', '.join(different):.200})"
    return next((f"{name} should be {kind}" for name, kind in types.items() if not is_of(values[name], kind)), None)


def fields_of(kind: type) -> dict[str, str]:
    """The fields of a dataclass and their types, as its source writes them."""
    return {field.name: str(field.type) for field in dataclasses.fields(kind)}


def is_of(value: Any, kind: str) -> bool:
    """Whether a JSON value is of a type as annotations write it; numbers are finite, truth values are none.

    Args:
        kind: "float", "str | None", "list[...]" and the like (elements are not looked at); another class is an object.
    """
    if value is None:
        return kind.endswith("| None")
    name = kind.removesuffix(" | None").split("[")[0]
    if name in ("float", "int"):
        return is_number(value) and (name == "float" or isinstance(value, int))
    return isinstance(value, {"str": str, "bool": bool, "list": list, "tuple": list}.get(name, dict))


def is_number(value: Any) -> bool:
    """Whether a number is finite, and no integer that NumPy has no type for."""
    return is_finite(value) and (isinstance(value, float) or abs(value) < 2**63)


def write_text(path: Path, text: str) -> None:
    """Write text atomically, as UTF-8.

    Raises:
        UserError: the folder cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys in their order, readable by people.

    Raises:
        UserError: the folder cannot be written, or a number is not finite (JSON has none that is not).
    """
    try:
        text = json.dumps(value, indent=1, allow_nan=False)
    except ValueError as error:
        raise UserError(f"{path} would hold a number that is not finite ({error}); nothing was written.") from error
    write_text(path, text + "\n")


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """A pytree as ``{"path/to/leaf": array}``."""
    import jax  # here and below: reading and writing other files needs none of it

    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def nest(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """``{"path/to/leaf": array}`` as nested dictionaries: what :func:`flatten` makes of these."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    return tree


def save_pytree(path: Path, tree: Any, metadata: dict[str, Any] | None = None) -> None:
    """Write a pytree of arrays atomically as safetensors; ``metadata`` is kept beside it as JSON.

    A checksum over both is kept with them, which :func:`load_arrays` verifies.

    Raises:
        UserError: the folder cannot be written.
    """
    arrays = {name: np.array(leaf, order="C") for name, leaf in flatten(tree).items()}  # scalars stay scalars
    record = metadata or {}
    # Under one key, since safetensors writes several in any order: the same content is the same file.
    text = json.dumps({**record, "sha256": _seal(arrays, record)})
    with atomic_path(path) as temporary:
        try:
            save_file(arrays, temporary, metadata={SEALED: text})
        except SafetensorError as error:  # what it makes of a full disk
            raise UserError(f"cannot write {path} ({error}); free some space or choose another folder.") from error


def _seal(arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> str:
    """SHA-256 of arrays, their names and types, and of the record beside them."""
    digest = hashlib.sha256(json.dumps(record).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _described(metadata: Mapping[str, str] | None) -> tuple[dict[str, Any], str | None]:
    """The record and the checksum in a file's metadata; None for the checksum where an earlier version wrote it.

    Raises:
        ValueError: neither this version nor an earlier one wrote them.
    """
    found = metadata or {}
    if set(found) not in ({SEALED}, {UNSEALED}):
        raise ValueError("its metadata are not as this package writes them")
    record = dict(parse_json(found.get(SEALED) or found[UNSEALED]))
    kept = record.pop("sha256", None)
    if SEALED in found and kept is None:
        raise ValueError("it has no checksum")
    return record, kept


def load_arrays(path: Path, sealed: bool = False) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and metadata of a file that :func:`save_pytree` wrote, held against its checksum.

    Args:
        sealed: whether a file without a checksum, as earlier versions wrote them, is refused.

    Raises:
        UserError: no such file, or it is damaged.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; check the path.")
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
            record, kept = _described(file.metadata())
        if sealed and kept is None:
            raise ValueError("it has no checksum")
        if kept is not None and kept != _seal(arrays, record):
            raise ValueError("its checksum is another")
        return arrays, record
    except Exception as error:  # whatever safetensors and NumPy raise at bytes that are not theirs
        raise UserError(f"{path} is damaged ({error}); delete it and make it again.") from error


def is_whole(path: Path) -> bool:
    """Whether a file is there and :func:`load_arrays` reads it."""
    try:
        load_arrays(path)
    except UserError:
        return False
    return True


def read_metadata(path: Path) -> dict[str, Any]:
    """Only the metadata of a file that :func:`save_pytree` wrote, not verified; empty if it is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            return _described(file.metadata())[0]
    except Exception:  # as above
        return {}


def load_pytree(path: Path, like: Any) -> tuple[Any, dict[str, Any]]:
    """Read a pytree of the structure and shapes of ``like``, with its metadata.

    Raises:
        UserError: no such file, it is damaged, or it holds other arrays than ``like``.
    """
    import jax

    arrays, metadata = load_arrays(path)
    expected = flatten(like)
    if {k: v.shape for k, v in arrays.items()} != {k: v.shape for k, v in expected.items()}:
        raise UserError(f"{path} holds other arrays than this version expects; delete it and make it again.")
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in expected]), metadata


def cache_home() -> Path:
    """This project's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iwsft_control"
