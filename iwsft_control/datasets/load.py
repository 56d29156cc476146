"""Offline data sets: Minari on disk, flat arrays with episode offsets in memory.

Three sources, never guessed between: D4RL's own data once imported (``D4RL/hopper/medium-replay-v2``), else the
reconstruction embedded in this package (``iwsft/hopper/medium-replay-v0``), else whatever Minari id the user names.
Nothing here touches the network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from iwsft_control.base import files
from iwsft_control.base.errors import UserError, near
from iwsft_control.base.files import cache_home
from iwsft_control.datasets.minari_files import _minari_sha256, _read_minari, local_ids, minari_path, read_states
from iwsft_control.datasets.packed import embedded_manifest, read_embedded
from iwsft_control.datasets.types import CONTENT, Dataset, Episodes, SimulatorStates, check, content_sha256, state_rows
from iwsft_control.envs.tasks import Task

CACHE_FORMAT = 1  # of the cached arrays; another number leaves older caches aside


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

    starts = episodes.starts  # alone: the closure must not keep the arrays in memory
    states_cache = folder / f"{digest}-{CACHE_FORMAT}-states.safetensors"

    def states() -> SimulatorStates | None:
        return _states(name, in_minari, state_rows(starts), states_cache)

    return _flatten(task.name if task else name, name, episodes, metadata, reference_scores, states)


def _states(name: str, in_minari: bool, rows: np.ndarray, cached: Path) -> SimulatorStates | None:
    """The simulator's states at ``rows``, from the cache where they are there."""
    if cached.is_file():
        arrays, _ = files.load_arrays(cached)
        return SimulatorStates(arrays["qpos"], arrays["qvel"])
    episodes = read_states(name) if in_minari else read_embedded(name)[0][-2:]
    if episodes is None or episodes[0] is None or episodes[1] is None:
        return None
    found = SimulatorStates(*(np.asarray(x, np.float32)[rows] for x in episodes))
    with contextlib.suppress(UserError):
        files.save_pytree(cached, found._asdict())
    return found


def _flatten(
    task: str,
    name: str,
    episodes: Episodes,
    metadata: dict[str, Any],
    scores: tuple[float, float] | None,
    states: Callable[[], SimulatorStates | None],
) -> Dataset:
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
        task=task,
        read_states=states,
    )
