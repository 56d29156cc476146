"""Offline data sets: Minari on disk, flat arrays with episode offsets in memory.

Three sources, never guessed between: D4RL's own data once imported (``D4RL/hopper/medium-replay-v2``), else the
reconstruction embedded in this package (``iwsft/hopper/medium-replay-v1``), else whatever Minari id the user names.
Nothing here touches the network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium.envs.registration import EnvSpec

from iwsft_control.base import files
from iwsft_control.base.errors import UserError, is_finite, near, require
from iwsft_control.datasets import d4rl_files, minari_files, packed
from iwsft_control.datasets.types import CONTENT, Dataset, Episodes, SimulatorStates, check, content_sha256, state_rows
from iwsft_control.envs import specs
from iwsft_control.envs.actions import ActionBox, action_box
from iwsft_control.envs.batch import bounds_of
from iwsft_control.envs.tasks import Task

CACHE_FORMAT = 2  # of the cached arrays; another number leaves older caches aside
ROUNDING = 1e-5  # how far beyond [-1, 1] an action may lie by the rounding of its scale


def resolve(task: Task | None, dataset_id: str | None = None) -> str:
    """The id of the data set to use: the one asked for, else D4RL's if imported, else the reconstruction.

    Raises:
        UserError: there is none; the sentence says how to get it.
    """
    embedded, local = packed.embedded_manifest(), minari_files.local_ids()
    if dataset_id is not None:
        if dataset_id in local or dataset_id in embedded:
            return dataset_id
        place = minari_files.minari_path("")
        raise UserError(f"no data set {dataset_id!r} in {place}: {near(dataset_id, [*local, *embedded])}")
    assert task is not None
    for candidate in (task.d4rl_id, task.reconstruction_id):
        if candidate in local or candidate in embedded:
            return candidate
    collect = f" or 'python -m iwsft_control.collect --env {task.name}' (a reconstruction)"
    raise UserError(
        f"no data for {task.name} yet: run 'python -m iwsft_control.d4rl download {task.name}' (D4RL's own)"
        + (f"{collect}." if task.can_be_collected else ".")
    )


class _Source(NamedTuple):
    """Where a data set comes from: its metadata as they are now, and how its arrays are read."""

    digest: str  # of every file that they are read from
    metadata: dict[str, Any]
    episodes: Callable[[], Episodes]
    states: Callable[[], tuple[np.ndarray | None, np.ndarray | None] | None]  # as in :class:`Episodes`


def _source(name: str, flatten: bool) -> _Source:
    if name in minari_files.local_ids():  # a user's own copy goes before the embedded one
        metadata = minari_files.read_metadata(name)
        return _Source(
            minari_files.digest(name),
            metadata,
            lambda: minari_files.read(name, metadata, flatten),
            lambda: minari_files.read_states(name),
        )
    path, digest = packed.embedded_file(name)
    return _Source(
        digest, packed.read_metadata(path), lambda: packed.unpack(path)[0], lambda: packed.unpack(path)[0][-2:]
    )


def load(
    task: Task | None,
    dataset_id: str | None = None,
    reference_scores: tuple[float, float] | None = None,
    cache: Path | None = None,
    trust_environment: bool = False,
    flatten_observations: bool = False,
) -> Dataset:
    """Load a data set as flat arrays; the second time from a cache of ready arrays, keyed by its files' sha256.

    Args:
        task: decides the data set where ``dataset_id`` does not, and the environment's name.
        dataset_id: any id in the local Minari root, or an embedded one.
        reference_scores: (min, max) for a data set that declares none.
        cache: folder; by default ``~/.cache/iwsft_control/datasets`` (``XDG_CACHE_HOME`` is honoured).
        trust_environment: whether what the data set's environment names may be imported and called.
        flatten_observations: whether dict observations are laid end to end, as gymnasium.wrappers.FlattenObservation
            does; observations that are vectors stay as they are.

    Raises:
        UserError: no such data set, it is damaged, of another body than the task's, declares no environment or one that
            is not to be trusted, has no reference scores, or actions outside its bounds.
    """
    name = resolve(task, dataset_id)
    source = _source(name, flatten_observations)
    parts = minari_files.observation_parts(name, source.metadata, flatten_observations)
    scores = _reference_scores(name, source.metadata, reference_scores)
    stem = f"{source.digest}-{CACHE_FORMAT}"
    folder = cache or files.cache_home() / "datasets"
    episodes, content = _episodes(name, source, folder / f"{stem}.safetensors")
    # Last, so that nobody is asked to trust an environment for data that cannot be used.
    environment = _environment(name, source.metadata, trust_environment)
    origin = _origin(name, source.metadata)
    if task is not None:
        _check_body(task, name, specs.id_of(environment), origin)
    if parts:
        environment = specs.flattened(environment)
    box = _action_box(name, source.metadata, environment, episodes.actions)
    starts = episodes.starts  # alone: the closure must not keep the arrays in memory

    def states() -> SimulatorStates | None:
        return _states(source, state_rows(starts), folder / f"{stem}-states.safetensors")

    rows = state_rows(starts)
    return Dataset(
        id=name,
        sha256=identity(content, environment, box),
        origin=origin,
        environment=environment,
        ref_min_score=scores[0],
        ref_max_score=scores[1],
        observations=episodes.observations[rows],
        actions=_scaled(name, episodes.actions, box),
        rewards=episodes.rewards,
        next_observations=episodes.observations[rows + 1],
        terminations=episodes.terminations,
        starts=starts,
        task=task.name if task else name,
        action_box=box,
        observation_parts=parts,
        read_states=states,
    )


def _episodes(name: str, source: _Source, cached: Path) -> tuple[Episodes, str]:
    """The arrays of a data set and their :func:`content_sha256`, from the cache where it holds them undamaged."""
    with contextlib.suppress(UserError, KeyError, TypeError):  # no cache, or a damaged one: it is made again
        arrays, record = files.load_arrays(cached, sealed=True)
        return Episodes(**arrays), record["content_sha256"]  # type: ignore[arg-type]
    episodes = source.episodes()
    check(episodes, name)
    content = content_sha256(episodes)
    with contextlib.suppress(UserError):  # no room for a cache is no reason not to run
        files.save_pytree(cached, {k: getattr(episodes, k) for k in CONTENT}, {"content_sha256": content})
    return episodes, content


def _states(source: _Source, rows: np.ndarray, cached: Path) -> SimulatorStates | None:
    """The simulator's states at ``rows``, from the cache where it holds them undamaged."""
    with contextlib.suppress(UserError, KeyError):
        arrays, _ = files.load_arrays(cached, sealed=True)
        return SimulatorStates(arrays["qpos"], arrays["qvel"])
    found = source.states()
    if found is None or found[0] is None or found[1] is None:
        return None
    for name, array in (("qpos", found[0]), ("qvel", found[1])):
        require(
            array.ndim == 2 and len(array) == rows[-1] + 2,  # the last state has no row
            f"the simulator's {name} has the shape {array.shape}, which is not one for each of {rows[-1] + 2} "
            "states; fetch or collect the data set again.",
        )
    states = SimulatorStates(*(np.asarray(x, np.float32)[rows] for x in found))
    with contextlib.suppress(UserError):
        files.save_pytree(cached, states._asdict())
    return states


# --- what the metadata declare -----------------------------------------------------------------------------------


def _origin(name: str, metadata: Mapping[str, Any]) -> str:
    """What a data set is, as results call it: D4RL's own is what was imported from a file of its checksums.

    (Minari has other data under D4RL's name: its mazes were collected anew.)
    """
    if name.split("/")[0] == "D4RL":
        known = {file.sha256 for file in d4rl_files.official_files().values()}
        return "D4RL" if metadata.get("source_sha256") in known else "Minari"
    return "reconstruction" if name.split("/")[0] == "iwsft" else "Minari"


def _check_body(task: Task, name: str, env_id: str, origin: str) -> None:
    """Refuse data of another environment than the task's.

    Raises:
        UserError: they are.
    """
    ours, theirs = task.environment.env_id, env_id
    if origin == "Minari":  # another version of the same body, in its own physics, may stand for the task
        ours, theirs = (each.rpartition("/")[2].rpartition("-v")[0] for each in (ours, theirs))
    require(
        ours == theirs,
        f"--dataset {name} is of {env_id}, --env {task.name} of {task.environment.env_id}; leave one out.",
    )


def _environment(name: str, metadata: Mapping[str, Any], trust: bool) -> str | EnvSpec:
    """The environment to evaluate in: the one declared for that, else the one that the data were collected in."""
    declared = metadata.get("eval_env_spec") or metadata.get("env_spec")
    if not declared:
        raise UserError(f"{name} declares no environment to evaluate in; choose a data set with an env_spec.")
    return specs.declared(declared, name, trust)


def _reference_scores(name: str, metadata: Mapping[str, Any], given: tuple[float, float] | None) -> tuple[float, float]:
    """Returns that score 0 and 100: those given, else those declared.

    Raises:
        UserError: there are none, or they are not finite numbers, the lower one first.
    """
    require(
        given is None or (isinstance(given, tuple | list) and len(given) == 2),
        f"reference_scores must be two numbers, the lower one first: {given!r:.80}.",
    )
    low, high = given if given is not None else (metadata.get("ref_min_score"), metadata.get("ref_max_score"))
    if low is None or high is None:
        raise UserError(f"{name} declares no reference scores; give them with --ref-min-score and --ref-max-score.")
    require(
        is_finite(low) and is_finite(high) and low < high,
        f"{name}: its reference scores {low!r:.40} and {high!r:.40} are not two finite numbers, the lower one first; "
        "give others with --ref-min-score and --ref-max-score.",
    )
    return float(low), float(high)


def _action_box(
    name: str, metadata: Mapping[str, Any], environment: str | EnvSpec, actions: np.ndarray
) -> ActionBox | None:
    """The box that a data set's actions lie in, None where that is [-1, 1].

    Raises:
        UserError: it is not bounded, or of another dimension than the actions.
    """
    declared, dim = minari_files.action_bounds(metadata, name), actions.shape[1]
    if declared is None:
        box = bounds_of(environment, dim)
    else:
        require(
            len(declared[0]) == dim,
            f"{name} has actions of {dim} dimensions and declares {len(declared[0])}; correct its action_space.",
        )
        box = action_box(*declared, name)
    return None if box.is_unit else box


def _scaled(name: str, actions: np.ndarray, box: ActionBox | None) -> np.ndarray:
    """Actions (N, A) in [-1, 1].

    Raises:
        UserError: one lies outside the box that the data set declares.
    """
    found = actions if box is None else box.to_unit(actions)
    beyond = np.abs(found).max(axis=1) > 1 + ROUNDING
    if beyond.any():
        row = int(np.argmax(beyond))
        box = box or ActionBox.unit(actions.shape[1])
        raise UserError(
            f"{name}: the action of row {row} is {actions[row].tolist()}, outside the declared {box.text()}; correct "
            "the action_space in its metadata, or choose another data set."
        )
    return found if box is None else np.clip(found, -1, 1)


def identity(content: str, environment: str | EnvSpec, box: ActionBox | None) -> str:
    """Digest of what is learned from and, where that is more than a registered environment, what is evaluated in."""
    if isinstance(environment, str) and box is None:
        return content
    bounds = None if box is None else [box.low.tolist(), box.high.tolist()]
    depends = json.dumps([content, specs.describe(environment), bounds], sort_keys=True)
    return hashlib.sha256(depends.encode()).hexdigest()
