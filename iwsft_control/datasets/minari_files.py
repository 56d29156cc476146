"""Minari data sets on disk, written and read."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
from minari.serialization import serialize_space

from iwsft_control.base import files
from iwsft_control.base.errors import UserError, is_whole, require
from iwsft_control.base.versions import version
from iwsft_control.datasets import episodes as whole
from iwsft_control.datasets import hdf5
from iwsft_control.datasets.types import Episodes, check

MAX_METADATA = 64 << 20  # bytes of a metadata.json
MAX_DEPTH = 20  # of dicts in dict observations
PER_STEP = ("actions", "rewards", "terminations", "truncations")


def write_minari(dataset_id: str, episodes: Episodes, environment: str, metadata: Mapping[str, Any]) -> Path:
    """Write a Minari data set (HDF5, lossless gzip, float32) into the local Minari root, atomically.

    Args:
        dataset_id: e.g. ``iwsft/hopper/medium-replay-v1``.
        environment: Gymnasium id stored as the environment spec.
        metadata: further JSON-able metadata: ref_min_score, ref_max_score, author, ...

    Returns:
        The folder of the data set.

    Raises:
        UserError: the data set exists already, or the Minari root cannot be written.
    """
    check(episodes, dataset_id)
    folder = minari_path(dataset_id)
    if folder.exists():
        raise UserError(f"{dataset_id} is already in {folder}; delete that folder to write it again.")
    # Not by the process's number: in a container it is often that of the one before, which may have been killed.
    data = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}") / "data"
    try:
        data.mkdir(parents=True)
        _write_hdf5(data / "main_data.hdf5", episodes)
        facts = _facts(dataset_id, episodes, environment, data / "main_data.hdf5") | dict(metadata)
        (data / "metadata.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        os.replace(data.parent, folder)
    except OSError as error:
        raise UserError(
            f"cannot write {folder} ({error}); free some space, or set MINARI_DATASETS_PATH elsewhere."
        ) from error
    finally:
        shutil.rmtree(data.parent, ignore_errors=True)
    return folder


def _facts(dataset_id: str, episodes: Episodes, environment: str, main: Path) -> dict[str, Any]:
    """What Minari's metadata.json says of every data set."""
    box = {
        name: serialize_space(gym.spaces.Box(low, high, (array.shape[1],), np.float32))
        for name, array, low, high in (
            ("observation_space", episodes.observations, -np.inf, np.inf),
            ("action_space", episodes.actions, -1.0, 1.0),
        )
    }
    return {
        "total_episodes": len(episodes.starts) - 1,
        "total_steps": len(episodes.rewards),
        "data_format": "hdf5",
        "jpeg_encoding": True,
        **box,
        "env_spec": environment_spec(environment),
        "dataset_id": dataset_id,
        "minari_version": version("minari"),
        "dataset_size": round(main.stat().st_size / 1e6, 1),
    }


def environment_spec(env_id: str) -> str:
    """Gymnasium's JSON of a registered environment, as Minari stores it."""
    return gym.spec(env_id).to_json()


def _write_hdf5(path: Path, episodes: Episodes) -> None:
    with hdf5.new_file(path) as file:
        for e, (start, stop) in enumerate(zip(episodes.starts[:-1], episodes.starts[1:], strict=True)):
            steps, states = slice(start, stop), slice(start + e, stop + e + 1)
            group = file.create_group(f"episode_{e}")
            group.attrs["id"] = e
            group.attrs["total_steps"] = stop - start
            arrays = {
                "observations": episodes.observations[states],
                "actions": episodes.actions[steps],
                "rewards": episodes.rewards[steps],
                "terminations": episodes.terminations[steps],
                "truncations": episodes.truncations[steps],
            }
            if episodes.qpos is not None and episodes.qvel is not None:
                arrays |= {"infos/qpos": episodes.qpos[states], "infos/qvel": episodes.qvel[states]}
            for name, array in arrays.items():
                group.create_dataset(name, data=array, chunks=array.shape, compression="gzip", shuffle=True)


def minari_path(dataset_id: str) -> Path:
    """Folder of a data set in the local Minari root (``MINARI_DATASETS_PATH`` or ``~/.minari/datasets``).

    Raises:
        UserError: the id leads out of the root.
    """
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")
    parts = Path(dataset_id).parts
    require(
        not Path(dataset_id).is_absolute() and ".." not in parts,
        f"{dataset_id!r} is no id of a data set; give one like mujoco/hopper/medium-v0.",
    )
    return root / dataset_id


def local_ids() -> list[str]:
    """Ids in the local Minari root."""
    root = minari_path("")
    return sorted(str(p.parent.parent.relative_to(root)) for p in root.glob("**/data/metadata.json"))


# --- reading -------------------------------------------------------------------------------------------------------
# By this module and not by Minari: a data set is a stranger's, and Minari makes the environment that it names, follows
# links out of an HDF5 file and reads whatever size is declared.


def read_metadata(dataset_id: str) -> dict[str, Any]:
    """The metadata of a data set, as they are on disk now.

    Raises:
        UserError: they cannot be read.
    """
    path = minari_path(dataset_id) / "data" / "metadata.json"
    try:
        require(path.is_file(), f"{path} does not exist or is no file; fetch {dataset_id} again.")
        declared = path.stat().st_size
        require(declared <= MAX_METADATA, f"{path} has {declared:,} bytes; it is damaged: fetch {dataset_id} again.")
        found = files.parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); fetch {dataset_id} again.") from error
    require(isinstance(found, dict), f"{path} holds no metadata; fetch {dataset_id} again.")
    return found


def digest(dataset_id: str) -> str:
    """SHA-256 over every file of a data set, its metadata among them.

    Raises:
        UserError: one cannot be read, or is not a file.
    """
    data = minari_path(dataset_id) / "data"
    found = hashlib.sha256()
    try:
        for path in sorted(_every_file(data)):
            found.update(f"{path.relative_to(data)} {files.sha256(path)}\n".encode(errors="surrogateescape"))
    except OSError as error:
        raise UserError(f"{data} cannot be read ({error}); check its permissions.") from error
    return found.hexdigest()


def _every_file(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        for path in (Path(place) / name for name in (*folders, *names)):
            require(
                not (path.is_dir() and path.is_symlink()) and (path.is_dir() or path.is_file()),
                f"{path} is neither a file nor a folder; copy what it stands for there.",
            )
            if path.is_file():
                yield path


def read(dataset_id: str, metadata: Mapping[str, Any], flatten: bool = False) -> Episodes:
    """The episodes of a data set.

    Args:
        metadata: what :func:`read_metadata` gave.
        flatten: whether dict observations are flattened; others stay as they are.

    Raises:
        UserError: it is damaged, or of a kind that is not supported.
    """
    data = minari_path(dataset_id) / "data"
    parts = observation_parts(dataset_id, metadata, flatten)
    kind, total = metadata.get("data_format", "hdf5"), metadata.get("total_episodes")
    if not is_whole(total) or total < 1:
        raise UserError(f"{dataset_id} declares {total!s:.40} episodes; correct total_episodes in its metadata.")
    try:
        if kind == "hdf5":
            return whole.join(_hdf5_episodes(data / "main_data.hdf5", total, parts, dataset_id), dataset_id)
        if kind in ("arrow", "parquet"):
            return whole.join(_arrow_episodes(data, kind, total, parts, dataset_id), dataset_id)
    except UserError:
        raise
    except Exception as error:  # whatever HDF5, Arrow and NumPy raise at bytes that are not theirs
        raise UserError(
            f"the Minari data set {dataset_id} in {data} is damaged ({error}); fetch or collect it again."
        ) from error
    raise UserError(f"{dataset_id} is in the format {kind!s:.40}, which is not supported; choose another data set.")


def declared_space(metadata: Mapping[str, Any], which: str, name: str) -> dict[str, Any] | None:
    """Minari's JSON of the observation or action space as a dictionary, None where there is none.

    Args:
        which: "observation_space" or "action_space".

    Raises:
        UserError: it is no space.
    """
    text = metadata.get(which)
    if text is None:
        return None
    try:
        space = files.parse_json(text)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: its {which} is not JSON ({error}); correct its metadata.") from error
    require(
        isinstance(space, dict) and isinstance(space.get("type"), str),
        f"{name}: its {which} is no space of Minari's; correct its metadata.",
    )
    return space


def action_bounds(metadata: Mapping[str, Any], name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The declared bounds of actions (A,), None where none are declared.

    Raises:
        UserError: they are no numbers.
    """
    space = declared_space(metadata, "action_space", name)
    if space is None:
        return None
    try:
        low, high = (np.array(space[end], np.float64) for end in ("low", "high"))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{name}: the bounds of its action_space are no numbers; correct its metadata.") from error
    require(
        low.ndim == high.ndim == 1 and low.shape == high.shape,
        f"{name}: the bounds of its action_space are no vectors of one length; correct its metadata.",
    )
    return low, high


def observation_parts(dataset_id: str, metadata: Mapping[str, Any], flatten: bool) -> dict[str, int]:
    """Names ("achieved_goal") and widths of what a dict observation consists of, {} where observations are vectors.

    The order is the declared one, in which Gymnasium's FlattenObservation lays them end to end too.

    Args:
        flatten: whether dict observations are asked for as vectors.

    Raises:
        UserError: observations or actions are of a kind that is not supported; the sentence says which, and how dict
            observations are flattened.
    """
    for which, what in (("observation_space", "observations"), ("action_space", "actions")):
        space = declared_space(metadata, which, dataset_id)
        if space is None:
            continue
        parts = dict(_boxes(space)) if what == "observations" and space["type"] == "Dict" else {}
        if parts and None not in parts.values():
            require(
                flatten,
                f"{dataset_id} has dict observations ({', '.join(parts):.200}); give --flatten-observations to lay "
                "them end to end, in the data and in its environment.",
            )
            return {name: width for name, width in parts.items() if width is not None}
        kind, shape = space["type"], space.get("shape")
        unfit = ", ".join(name for name, width in parts.items() if width is None)
        article = f"of shape {shape!r:.40}" if kind == "Box" else f"of kind {kind:.40}"
        require(
            kind == "Box" and isinstance(shape, list) and len(shape) == 1,
            f"{dataset_id} has {what} {article}{f' ({unfit:.80} is no box)' if unfit else ''}, which are not "
            f"supported; choose a data set whose {what} are vectors.",
        )
    return {}


def _boxes(space: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, int | None]]:
    """The parts of a space in order and their widths, None for one that is no box of numbers."""
    subspaces = space.get("subspaces") if isinstance(space, dict) else None
    if isinstance(space, dict) and space.get("type") == "Dict" and isinstance(subspaces, dict) and depth < MAX_DEPTH:
        for key, each in subspaces.items():
            yield from _boxes(each, f"{name}/{key}" if name else key, depth + 1)
        return
    shape = space.get("shape") if isinstance(space, dict) and space.get("type") == "Box" else None
    is_box = isinstance(shape, list) and all(is_whole(n) and n > 0 for n in shape)
    yield name, math.prod(shape) if is_box and shape is not None else None


def _flat(found: Mapping[str, np.ndarray], parts: Mapping[str, int], name: str) -> dict[str, np.ndarray]:
    """What is read of an episode with the parts of its observations end to end: (T + 1, sum of widths)."""
    if not parts:
        return dict(found)
    columns = []
    for part, width in parts.items():
        array = found[f"observations/{part}"]
        rows = len(found[f"observations/{next(iter(parts))}"]) if array.ndim else 0
        require(
            array.ndim > 0 and len(array) == rows and array.size == rows * width,
            f"{name}: its observations/{part} have the shape {array.shape}, and {width} values for each of {rows} "
            "states are declared; it is damaged: fetch or collect it again.",
        )
        columns.append(array.reshape(rows, width))
    return {"observations": np.concatenate(columns, axis=1), **{key: found[key] for key in PER_STEP}}


def _stored(parts: Mapping[str, int]) -> tuple[str, ...]:
    """The paths of what is read of an episode."""
    return (*(f"observations/{part}" for part in parts), *PER_STEP) if parts else ("observations", *PER_STEP)


def _hdf5_episodes(path: Path, total: int, parts: Mapping[str, int], name: str) -> Iterator[dict[str, np.ndarray]]:
    with hdf5.open_file(path) as file:
        there = _count(file)
        require(
            there == total,
            f"{name} declares {total:,} episodes, and its file holds {there:,}; it is damaged: fetch it again.",
        )
        room = hdf5.max_bytes()
        for e in range(total):
            group = hdf5.find(file, f"episode_{e}", name)
            found = hdf5.arrays(group, _stored(parts), f"{name}, episode_{e}", room)
            room -= sum(x.nbytes for x in found.values())
            yield _flat(found, parts, f"{name}, episode_{e}")


def _count(file: h5py.File) -> int:
    """Episodes of a Minari file, which may hold other things beside them."""
    return sum(bool(re.fullmatch(r"episode_\d+", key)) for key in file)


def _arrow_episodes(
    data: Path, kind: str, total: int, parts: Mapping[str, int], name: str
) -> Iterator[dict[str, np.ndarray]]:
    try:
        import pyarrow.dataset
    except ImportError as error:
        raise UserError(f"{name} is stored as {kind}, which needs pyarrow; pip install 'minari[arrow]'.") from error
    there = sum(path.is_dir() and path.name.isdecimal() for path in data.iterdir())
    require(
        there == total,
        f"{name} declares {total:,} episodes, and its folder holds {there:,}; it is damaged: fetch it again.",
    )
    room = hdf5.max_bytes()
    for e in range(total):
        episode = pyarrow.dataset.dataset(
            str(data / str(e)), format=kind, ignore_prefixes=["_", ".", "metadata.json"]
        )  # as Minari does
        declared = episode.count_rows() * 8 * sum(_width(episode.schema, path) for path in _stored(parts))
        hdf5.require_room(declared, f"{name}, episode {e}", room)
        room -= declared
        table = episode.to_table(columns=["observations", *PER_STEP])
        table.validate(full=True)  # Arrow ends the whole process at lengths that cannot be
        found = _flat({path: _vectors(_column(table, path)) for path in _stored(parts)}, parts, f"{name}, episode {e}")
        # Minari pads what a step has to the length of the observations, one more.
        yield {n: x if n == "observations" else x[:-1] for n, x in found.items()}


def _width(schema: Any, path: str) -> int:
    """Values in a row of a column of Arrow's, or of a field a/b of a struct."""
    first, *rest = path.split("/")
    kind = schema.field(first).type
    for key in rest:
        kind = kind.field(key).type
    return getattr(kind, "list_size", 1)


def _column(table: Any, path: str) -> np.ndarray:
    """A column of Arrow's, or a field a/b of a struct."""
    first, *rest = path.split("/")
    column = table[first]
    if rest:
        column = column.combine_chunks()
        for key in rest:
            column = column.field(key)
        return column.to_numpy(zero_copy_only=False)
    return column.to_numpy()


def _vectors(column: np.ndarray) -> np.ndarray:
    """A column of Arrow's, (T,) or (T, D): it comes as an array of arrays where its cells are lists."""
    return np.stack(list(column)) if column.dtype == object else column


def read_states(dataset_id: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The simulator's states qpos (N + E, nq) and qvel (N + E, nv) of a data set in HDF5; None where it holds none.

    Raises:
        UserError: the file is damaged.
    """
    path = minari_path(dataset_id) / "data" / "main_data.hdf5"
    if not path.is_file():
        return None
    names, room = ("infos/qpos", "infos/qvel"), hdf5.max_bytes()
    found: list[dict[str, np.ndarray]] = []
    try:
        with hdf5.open_file(path) as file:
            groups = [hdf5.find(file, f"episode_{e}", dataset_id) for e in range(_count(file))]
            if not all(hdf5.has(group, name) for group in groups for name in names):
                return None
            for e, group in enumerate(groups):
                found.append(hdf5.arrays(group, names, f"{dataset_id}, episode_{e}", room))
                room -= sum(x.nbytes for x in found[-1].values())
        qpos, qvel = (np.concatenate([each[name] for each in found]) for name in names)
    except UserError:
        raise
    except Exception as error:  # whatever HDF5 and NumPy raise at bytes that are not theirs
        raise UserError(f"{path} is damaged ({error}); fetch or collect {dataset_id} again.") from error
    return qpos, qvel
