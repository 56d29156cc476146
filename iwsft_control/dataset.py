"""Offline data sets: Minari on disk, flat arrays with episode offsets in memory.

Three sources, never guessed between: D4RL's own data once imported (``D4RL/hopper/medium-replay-v2``), else the
reconstruction embedded in this package (``iwsft/hopper/medium-replay-v0``), else whatever Minari id the user names.
Nothing here touches the network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import h5py
import minari
import numpy as np
from gymnasium.envs.registration import EnvSpec
from minari.dataset.minari_storage import MinariStorage
from minari.serialization import serialize_space

from iwsft_control import files
from iwsft_control.files import UserError
from iwsft_control.tasks import Task, near

EMBEDDED = Path(__file__).parent / "data"
CACHE_FORMAT = 1  # of the cached arrays; another number leaves older caches aside
VELOCITY_LIMIT = 10.0  # Hopper's and Walker2d's observations clip velocities to +-10


class Episodes(NamedTuple):
    """Whole episodes laid end to end: N transitions in E episodes of T_e actions and T_e + 1 states each.

    ``starts`` (E + 1,) are offsets into the per-transition arrays; episode e's states begin at ``starts[e] + e``.
    ``qpos`` and ``qvel`` (N + E, nq), (N + E, nv) are the simulator's states, in the order of ``observations``.
    """

    observations: np.ndarray  # (N + E, O) float32
    actions: np.ndarray  # (N, A) float32
    rewards: np.ndarray  # (N,) float32
    terminations: np.ndarray  # (N,) bool
    truncations: np.ndarray  # (N,) bool
    starts: np.ndarray  # (E + 1,) int64
    qpos: np.ndarray | None = None
    qvel: np.ndarray | None = None


CONTENT = ("observations", "actions", "rewards", "terminations", "truncations", "starts")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Flat transitions of one data set, and where they come from.

    ``terminations`` marks true terminal states; an episode also ends where it was truncated, which ``starts`` tells.
    """

    id: str
    sha256: str  # of the content (:func:`content_sha256`), whichever file it was read from
    origin: str  # "D4RL", "reconstruction" or "Minari"
    environment: str | EnvSpec  # Gymnasium id or spec of the environment to evaluate in
    ref_min_score: float
    ref_max_score: float
    observations: np.ndarray  # (N, O) float32
    actions: np.ndarray  # (N, A) float32
    rewards: np.ndarray  # (N,) float32
    next_observations: np.ndarray  # (N, O) float32
    terminations: np.ndarray  # (N,) bool
    starts: np.ndarray  # (E + 1,) int64; episode e is rows starts[e]:starts[e + 1]

    @property
    def env_id(self) -> str:
        return self.environment if isinstance(self.environment, str) else self.environment.id

    @property
    def lengths(self) -> np.ndarray:
        """Transitions of every episode, (E,)."""
        return np.diff(self.starts)

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted return of every episode, (E,) float64."""
        return np.add.reduceat(self.rewards.astype(np.float64), self.starts[:-1])

    @property
    def episode_of(self) -> np.ndarray:
        """Episode index of every transition, (N,)."""
        return np.repeat(np.arange(len(self.starts) - 1), self.lengths)


def describe_origin(origin: str) -> str:
    """A data set's ``origin`` in words."""
    kinds = {"reconstruction": "a reconstruction, not D4RL's own data", "D4RL": "D4RL's own data"}
    return kinds.get(origin, "a Minari data set")


def state_rows(starts: np.ndarray) -> np.ndarray:
    """Rows of the states s_t (not the final ones) in the (N + E) arrays of :class:`Episodes`."""
    return np.arange(starts[-1]) + np.repeat(np.arange(len(starts) - 1), np.diff(starts))


def check(episodes: Episodes, name: str) -> None:
    """Refuse what no learner can use.

    Raises:
        UserError: no transitions, lengths that disagree, or values that are not finite.
    """
    n, e = len(episodes.rewards), len(episodes.starts) - 1
    if not n:
        raise UserError(f"{name} holds no transitions; it is damaged or empty: fetch or collect it again.")
    if (
        episodes.starts[0] != 0
        or episodes.starts[-1] != n
        or (np.diff(episodes.starts) < 1).any()
        or len(episodes.actions) != n
        or len(episodes.terminations) != n
        or len(episodes.observations) != n + e
    ):
        raise UserError(f"{name}: lengths of its arrays disagree; it is damaged: fetch or collect it again.")
    for field in ("observations", "actions", "rewards"):
        values = getattr(episodes, field)
        if not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0, 0])
            raise UserError(f"{name}: {field} hold a NaN or infinity (row {row}); fetch or collect it again.")


# --- Minari on disk --------------------------------------------------------------------------------------------


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


def _minari_sha256(data: Path) -> str:
    main = data / "main_data.hdf5"
    return files.sha256(main if main.is_file() else data / "metadata.json")


# --- the embedded reconstructions ------------------------------------------------------------------------------
# A Minari HDF5 file has seven small arrays for each of 2,000 episodes, which costs more in overhead than compression
# saves, and stores each state twice. What ships is the same content in flat columns, each value once.


def pack(path: Path, episodes: Episodes, metadata: Mapping[str, Any]) -> None:
    """Write one file that holds a data set with simulator states losslessly, at about 50 to 80 bytes a transition.

    Raises:
        ValueError: observations are not the states' positions (without root x) and clipped velocities.
    """
    assert episodes.qpos is not None and episodes.qvel is not None
    positions = episodes.qpos.shape[1] - 1
    velocities = episodes.observations[:, positions:]
    beyond = np.where(np.abs(episodes.qvel) > VELOCITY_LIMIT, episodes.qvel, 0.0).astype(np.float32)
    if (velocities == episodes.qvel).all():
        beyond = np.zeros_like(beyond)
    columns = {
        "observations": episodes.observations,
        "root_x": episodes.qpos[:, :1],
        "velocity_beyond_limit": beyond,
        "actions": episodes.actions,
        "rewards": episodes.rewards,
        "terminations": episodes.terminations,
        "truncations": episodes.truncations,
    }
    if not all(np.array_equal(a, b) for a, b in zip(_states(columns), (episodes.qpos, episodes.qvel), strict=True)):
        raise ValueError("observations do not determine the simulator's states")
    with files.atomic_path(path) as temporary, h5py.File(temporary, "w", libver="latest") as file:
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
        with h5py.File(path, "r") as file:
            columns = {name: file[name][()] for name in file}  # type: ignore[index]
            metadata = json.loads(str(file.attrs["metadata"]))
        fields = ("observations", "actions", "rewards", "terminations", "truncations", "starts")
        qpos, qvel = _states(columns)
        return Episodes(**{f: columns[f] for f in fields}, qpos=qpos, qvel=qvel), metadata
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); install iwsft_control again.") from error


def embedded_manifest() -> dict[str, dict[str, Any]]:
    """Data set id -> {"file", "sha256", "bytes"} of what ships with the package."""
    return read_manifest(EMBEDDED / "manifest.json")


def read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """A manifest of packed data sets; empty where there is none yet."""
    return json.loads(path.read_text()) if path.is_file() else {}


def read_embedded(dataset_id: str) -> tuple[Episodes, dict[str, Any]]:
    """Episodes and metadata of an embedded reconstruction, its sha256 verified.

    Raises:
        UserError: the file is missing or is not the one in the manifest.
    """
    entry = embedded_manifest()[dataset_id]
    path = EMBEDDED / entry["file"]
    if not path.is_file() or files.sha256(path) != entry["sha256"]:
        raise UserError(
            f"{path} is missing or damaged (its sha256 is not the manifest's); install iwsft_control again."
        )
    return unpack(path)


# --- which data, and loading it ----------------------------------------------------------------------------------


def resolve(task: Task | None, dataset_id: str | None = None) -> str:
    """The id of the data set to use: the one asked for, else D4RL's if imported, else the reconstruction.

    Raises:
        UserError: there is none; the sentence says how to get it.
    """
    embedded, local = embedded_manifest(), local_ids()
    if dataset_id is not None:
        if dataset_id in local or dataset_id in embedded:
            return dataset_id
        raise UserError(f"no data set {dataset_id!r} in {minari_path('')}: {near(dataset_id, [*local, *embedded])}")
    assert task is not None
    for candidate in (task.d4rl_id, task.reconstruction_id):
        if candidate in local or candidate in embedded:
            return candidate
    raise UserError(
        f"no data for {task.name} yet: run 'python -m iwsft_control.d4rl download {task.name}' (D4RL's own) or "
        f"'python -m iwsft_control.collect --env {task.name}' (a reconstruction)."
    )


def load(
    task: Task | None,
    dataset_id: str | None = None,
    reference_scores: tuple[float, float] | None = None,
    cache: Path | None = None,
) -> Dataset:
    """Load a data set as flat arrays; the second time from a cache of ready arrays, keyed by the file's sha256.

    Args:
        task: decides the data set where ``dataset_id`` does not, and the environment's name.
        dataset_id: any id in the local Minari root, or an embedded one.
        reference_scores: (min, max) for a data set that declares none.
        cache: folder; by default ``~/.cache/iwsft_control/datasets`` (``XDG_CACHE_HOME`` is honoured).

    Raises:
        UserError: no such data set, it is damaged, declares no environment, or has no reference scores.
    """
    name = resolve(task, dataset_id)
    folder = cache or cache_home() / "datasets"
    in_minari = name in local_ids()  # a user's own copy goes before the embedded one
    if in_minari:
        digest = _minari_sha256(minari_path(name) / "data")
    else:
        digest = embedded_manifest()[name]["sha256"]
    cached = folder / f"{digest}-{CACHE_FORMAT}.safetensors"
    if cached.is_file():
        arrays, metadata = files.load_arrays(cached)
        episodes = Episodes(**arrays)  # type: ignore[arg-type]
    else:
        episodes, metadata = _read_minari(name) if in_minari else read_embedded(name)
        check(episodes, name)
        metadata["content_sha256"] = content_sha256(episodes)
        with contextlib.suppress(UserError):  # no room for a cache is no reason not to run
            files.save_pytree(cached, {k: getattr(episodes, k) for k in CONTENT}, metadata)
    return _flatten(name, episodes, metadata, reference_scores)


def content_sha256(episodes: Episodes) -> str:
    """SHA-256 of what is learned from, the same for a Minari data set and its packed form."""
    digest = hashlib.sha256()
    for name in CONTENT:
        digest.update(np.ascontiguousarray(getattr(episodes, name)).data)
    return digest.hexdigest()


def _flatten(name: str, episodes: Episodes, metadata: dict[str, Any], scores: tuple[float, float] | None) -> Dataset:
    if scores is None:
        declared = metadata.get("ref_min_score"), metadata.get("ref_max_score")
        if declared[0] is None or declared[1] is None:
            raise UserError(f"{name} declares no reference scores; give them with --ref-min-score and --ref-max-score.")
        scores = float(declared[0]), float(declared[1])
    if not metadata.get("env_spec"):
        raise UserError(f"{name} declares no environment to evaluate in; choose a data set with an env_spec.")
    spec = EnvSpec.from_json(metadata["env_spec"])
    rows = state_rows(episodes.starts)
    return Dataset(
        id=name,
        sha256=metadata["content_sha256"],
        origin={"D4RL": "D4RL", "iwsft": "reconstruction"}.get(name.split("/")[0], "Minari"),
        environment=spec.id if spec.id in gym.registry and not spec.kwargs else spec,
        ref_min_score=scores[0],
        ref_max_score=scores[1],
        observations=episodes.observations[rows],
        actions=episodes.actions,
        rewards=episodes.rewards,
        next_observations=episodes.observations[rows + 1],
        terminations=episodes.terminations,
        starts=episodes.starts,
    )


def cache_home() -> Path:
    """This project's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iwsft_control"
