"""Minari data sets on disk, written and read."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
from minari.dataset.minari_storage import MinariStorage
from minari.serialization import serialize_space

from iwsft_control.base import files
from iwsft_control.base.errors import UserError
from iwsft_control.datasets.types import Episodes, check


def write_minari(dataset_id: str, episodes: Episodes, environment: str, metadata: Mapping[str, Any]) -> Path:
    """Write a Minari data set (HDF5, lossless gzip, float32) into the local Minari root, atomically.

    Args:
        dataset_id: e.g. ``iwsft/hopper/medium-replay-v0``.
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
    data = folder.with_name(f".{folder.name}.{os.getpid()}") / "data"
    try:
        data.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; set MINARI_DATASETS_PATH elsewhere.") from error
    _write_hdf5(data / "main_data.hdf5", episodes)
    box = {
        name: serialize_space(gym.spaces.Box(low, high, (array.shape[1],), np.float32))
        for name, array, low, high in (
            ("observation_space", episodes.observations, -np.inf, np.inf),
            ("action_space", episodes.actions, -1.0, 1.0),
        )
    }
    facts = {
        "total_episodes": len(episodes.starts) - 1,
        "total_steps": len(episodes.rewards),
        "data_format": "hdf5",
        "jpeg_encoding": True,
        **box,
        "env_spec": environment_spec(environment),
        "dataset_id": dataset_id,
        "minari_version": importlib.metadata.version("minari"),
        "dataset_size": round((data / "main_data.hdf5").stat().st_size / 1e6, 1),
        **metadata,
    }
    (data / "metadata.json").write_text(json.dumps(facts, indent=1))
    os.replace(data.parent, folder)
    return folder


def environment_spec(env_id: str) -> str:
    """Gymnasium's JSON of a registered environment, as Minari stores it."""
    return gym.spec(env_id).to_json()


def _write_hdf5(path: Path, episodes: Episodes) -> None:
    with h5py.File(path, "w", libver="latest") as file:
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
    """Folder of a data set in the local Minari root (``MINARI_DATASETS_PATH`` or ``~/.minari/datasets``)."""
    root = os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets"
    return Path(root) / dataset_id


def local_ids() -> list[str]:
    """Ids in the local Minari root."""
    root = minari_path("")
    return sorted(str(p.parent.parent.relative_to(root)) for p in root.glob("**/data/metadata.json"))


def _read_minari(dataset_id: str) -> tuple[Episodes, dict[str, Any]]:
    data = minari_path(dataset_id) / "data"
    try:
        metadata = MinariStorage.read_raw_metadata(data)
        if metadata.get("data_format", "hdf5") == "hdf5":
            groups = _hdf5_groups(data / "main_data.hdf5", metadata["total_episodes"])
        else:
            names = ("observations", "actions", "rewards", "terminations", "truncations")
            dataset = minari.load_dataset(dataset_id)
            groups = [tuple(getattr(e, n) for n in names) for e in dataset.iterate_episodes()]
        observations, actions, rewards, terminations, truncations = zip(*groups, strict=True)
        if any(np.ndim(o) != 2 for o in observations) or any(np.ndim(a) != 2 for a in actions):
            raise UserError(f"{dataset_id} has no vector observations and actions; choose another data set.")
        episodes = Episodes(
            np.concatenate(observations).astype(np.float32),
            np.concatenate(actions).astype(np.float32),
            np.concatenate(rewards).astype(np.float32),
            np.concatenate(terminations).astype(bool),
            np.concatenate(truncations).astype(bool),
            np.cumsum([0, *(len(r) for r in rewards)]),
        )
    except (OSError, KeyError, ValueError, AttributeError, TypeError, AssertionError) as error:
        raise UserError(
            f"the Minari data set {dataset_id} in {data} is damaged ({error}); fetch or collect it again."
        ) from error
    return episodes, metadata


def _hdf5_groups(path: Path, total: int) -> list[tuple[np.ndarray, ...]]:
    names = ("observations", "actions", "rewards", "terminations", "truncations")
    with h5py.File(path, "r") as file:
        return [tuple(file[f"episode_{e}/{n}"][()] for n in names) for e in range(total)]  # type: ignore[index]


def read_states(dataset_id: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The simulator's states qpos (N + E, nq) and qvel (N + E, nv) of a data set in HDF5; None where it holds none."""
    path = minari_path(dataset_id) / "data" / "main_data.hdf5"
    if not path.is_file():
        return None
    with h5py.File(path, "r") as file:
        groups = [file[f"episode_{e}"] for e in range(len(file))]
        if not all("infos" in g and "qpos" in g["infos"] and "qvel" in g["infos"] for g in groups):
            return None
        qpos, qvel = (np.concatenate([g[f"infos/{name}"][()] for g in groups]) for name in ("qpos", "qvel"))
    return qpos, qvel


def _minari_sha256(data: Path) -> str:
    main = data / "main_data.hdf5"
    return files.sha256(main if main.is_file() else data / "metadata.json")
