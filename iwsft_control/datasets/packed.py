"""The reconstructions that ship with the package, packed.

A Minari HDF5 file has seven small arrays for each of 2,000 episodes, which costs more in overhead than compression
saves, and stores each state twice. What ships is the same content in flat columns, each value once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from iwsft_control.base import files
from iwsft_control.base.errors import UserError, require
from iwsft_control.datasets import hdf5
from iwsft_control.datasets.types import CONTENT, VELOCITY_LIMIT, Episodes

EMBEDDED = Path(__file__).parent / "embedded"
MANIFEST = "manifest.json"
ENTRY = {"file": "str", "sha256": "str", "bytes": "int"}  # of a manifest
COLUMNS = (*CONTENT, "root_x", "velocity_beyond_limit")  # of a packed file


def pack(path: Path, episodes: Episodes, metadata: Mapping[str, Any]) -> None:
    """Write one file that holds a data set with simulator states losslessly, at about 50 to 80 bytes a transition.

    Raises:
        ValueError: observations are not the states' positions (without the first ones) and clipped velocities.
    """
    assert episodes.qpos is not None and episodes.qvel is not None
    positions = episodes.observations.shape[1] - episodes.qvel.shape[1]
    hidden = episodes.qpos.shape[1] - positions  # root coordinates that observations leave out
    velocities = episodes.observations[:, positions:]
    beyond = np.where(np.abs(episodes.qvel) > VELOCITY_LIMIT, episodes.qvel, 0.0).astype(np.float32)
    if (velocities == episodes.qvel).all():
        beyond = np.zeros_like(beyond)
    columns = {
        "observations": episodes.observations,
        "root_x": episodes.qpos[:, :hidden],
        "velocity_beyond_limit": beyond,
        "actions": episodes.actions,
        "rewards": episodes.rewards,
        "terminations": episodes.terminations,
        "truncations": episodes.truncations,
    }
    if not all(np.array_equal(a, b) for a, b in zip(_states(columns), (episodes.qpos, episodes.qvel), strict=True)):
        raise ValueError("observations do not determine the simulator's states")
    with files.atomic_path(path) as temporary, hdf5.new_file(temporary) as file:
        file.attrs["metadata"] = json.dumps(dict(metadata))
        file.create_dataset("starts", data=episodes.starts)
        for name, column in columns.items():
            chunk = (min(len(column), 1 << 16), *(1,) * (column.ndim - 1))  # by column: exponents compress together
            file.create_dataset(name, data=column, chunks=chunk, compression="gzip", compression_opts=9, shuffle=True)


def _states(columns: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(qpos, qvel) from a packed file's columns."""
    beyond = columns["velocity_beyond_limit"]
    positions = columns["observations"].shape[1] - beyond.shape[1]
    qpos = np.concatenate([columns["root_x"], columns["observations"][:, :positions]], axis=1)
    return qpos, np.where(beyond != 0, beyond, columns["observations"][:, positions:])


def unpack(path: Path) -> tuple[Episodes, dict[str, Any]]:
    """Read a file that :func:`pack` wrote.

    Raises:
        UserError: it is damaged.
    """
    try:
        with hdf5.open_file(path) as file:
            columns = hdf5.arrays(file, COLUMNS, str(path))
        qpos, qvel = _states(columns)
        fields = {f: columns[f] for f in CONTENT}
        return Episodes(**fields, qpos=qpos, qvel=qvel), read_metadata(path)
    except UserError:
        raise
    except Exception as error:  # whatever HDF5 and NumPy raise at bytes that are not theirs
        raise UserError(f"{path} is damaged ({error}); install iwsft_control again.") from error


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a file that :func:`pack` wrote.

    Raises:
        UserError: it is damaged.
    """
    try:
        with hdf5.open_file(path) as file:
            return dict(files.parse_json(str(file.attrs["metadata"])))
    except UserError:
        raise
    except Exception as error:  # as above
        raise UserError(f"{path} is damaged ({error}); install iwsft_control again.") from error


def embedded_manifest() -> dict[str, dict[str, Any]]:
    """Data set id -> {"file", "sha256", "bytes"} of what ships with the package."""
    return read_manifest(EMBEDDED / MANIFEST)


def read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """A manifest of packed data sets; empty where there is none yet.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_file():
        return {}
    what = "a manifest of packed data sets"
    remedy = "install iwsft_control again" if path.parent == EMBEDDED else "delete it and pack its data sets again"
    found = files.read_json(path, what, remedy)
    entries = found.values() if isinstance(found, dict) else [None]
    problem = next((p for p in (files.problem_of(entry, ENTRY) for entry in entries) if p is not None), None)
    require(problem is None, f"{path} is not {what} ({problem}); {remedy}.")
    return found


def embedded_file(dataset_id: str) -> tuple[Path, str]:
    """The file of an embedded reconstruction and its sha256, verified.

    Raises:
        UserError: the file is missing or is not the one in the manifest.
    """
    entry = embedded_manifest()[dataset_id]
    path = EMBEDDED / entry["file"]
    if not path.is_file() or files.sha256(path) != entry["sha256"]:
        raise UserError(
            f"{path} is missing or damaged (its sha256 is not the manifest's); install iwsft_control again."
        )
    return path, entry["sha256"]


def read_embedded(dataset_id: str) -> tuple[Episodes, dict[str, Any]]:
    """Episodes and metadata of an embedded reconstruction, its sha256 verified.

    Raises:
        UserError: the file is missing or is not the one in the manifest.
    """
    return unpack(embedded_file(dataset_id)[0])
