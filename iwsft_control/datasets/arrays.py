"""A data set of arrays that are at hand in Python: another reward, another choice of episodes, a simulator's log."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec

from iwsft_control.base.errors import UserError, is_finite, require
from iwsft_control.datasets.load import ROUNDING, identity
from iwsft_control.datasets.types import Dataset, Episodes, content_sha256
from iwsft_control.envs import specs
from iwsft_control.envs.batch import make_batch
from iwsft_control.envs.tasks import ENVIRONMENTS, TASK_NAMES, environment_of


def from_arrays(
    id: str,
    observations: Any,
    actions: Any,
    rewards: Any,
    next_observations: Any,
    terminations: Any,
    truncations: Any,
    *,
    environment: str | EnvSpec,
    reference_scores: tuple[float, float] | None = None,
) -> Dataset:
    """A data set of N transitions in the order of their episodes, to train on as on any other.

    The sha256 that names it is of these arrays, and the same as that of a Minari data set which holds them (where the
    environment's actions lie in [-1, 1]).

    Args:
        id: what results call it, like "mine/hopper/relabelled-v0".
        observations: (N, O) before each action; next_observations: (N, O) after it.
        actions: (N, A) in [-1, 1], as everywhere in this package: the environment's own box is scaled to it.
        rewards: (N,).
        terminations: (N,) true where the next state is terminal.
        truncations: (N,) true where the episode ends for another reason, such as the limit of its time. The last
            transition ends an episode in any case.
        environment: what policies are evaluated in: a task, a Gymnasium id, or its specification.
        reference_scores: returns that score 0 and 100; by default those of the environment in D4RL.

    Raises:
        UserError: shapes that disagree or are not the environment's, values that are not finite in float32, actions
            outside [-1, 1], an episode that goes on where its next observation does not follow, no such environment,
            or no reference scores.
    """
    require(
        isinstance(id, str) and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", id) is not None,
        f"{id!r} is no id of a data set; give one like 'mine/hopper/relabelled-v0'.",
    )
    require(id not in TASK_NAMES, f"{id} is a task, and these are other data; give an id like 'mine/{id}-v0'.")
    require(
        isinstance(environment, str | EnvSpec),
        f"{id}: environment must be a task, a Gymnasium id or its specification, not {environment!r:.80}.",
    )
    states, following = (
        _numbers(id, name, array, 2)
        for name, array in (("observations", observations), ("next_observations", next_observations))
    )
    acted, rewarded = _numbers(id, "actions", actions, 2), _numbers(id, "rewards", rewards, 1)
    terminal, cut = _flags(id, "terminations", terminations), _flags(id, "truncations", truncations)
    lengths = {"actions": acted, "rewards": rewarded, "terminations": terminal, "truncations": cut}
    for name, array in lengths.items():
        require(len(array) == len(states), f"{id}: there are {len(states):,} observations and {len(array):,} {name}.")
    require(len(states) > 0, f"{id} has no transitions.")
    require(
        states.shape == following.shape,
        f"{id}: observations are of shape {states.shape}, next_observations of {following.shape}.",
    )
    cut[-1] |= not terminal[-1]
    ends = terminal | cut
    jumps = np.flatnonzero(~ends[:-1] & (following[:-1] != states[1:]).any(axis=1))
    require(
        not len(jumps),
        f"{id}: no episode ends at row {jumps[:1].sum()}, and yet the next row begins in another observation "
        "than the one that followed; mark where episodes end in truncations.",
    )
    beyond = np.abs(acted).max(axis=1) > 1 + ROUNDING
    require(
        not beyond.any(),
        f"{id}: the action of row {int(np.argmax(beyond))} lies outside [-1, 1]; scale actions from the environment's "
        "own box to [-1, 1].",
    )
    place = environment_of(environment) if isinstance(environment, str) else environment
    batch = make_batch(place, 1)  # so that a module that it names ("mine:Env-v0") is imported
    given, wanted = (states.shape[1], acted.shape[1]), (batch.observation_dim, batch.action_dim)
    require(
        given == wanted,
        f"{id}: observations and actions have {given[0]} and {given[1]} columns, those of its environment "
        f"{specs.id_of(place)} {wanted[0]} and {wanted[1]}.",
    )
    place = place.rpartition(":")[2] if isinstance(place, str) else specs.reduced(place)
    low, high = _reference_scores(id, place, reference_scores)
    rows = np.flatnonzero(ends)
    starts = np.concatenate([[0], rows + 1])
    whole = Episodes(
        observations=np.insert(states, rows + 1, following[rows], axis=0),
        actions=acted,
        rewards=rewarded,
        terminations=terminal,
        truncations=cut,
        starts=starts,
    )
    scaled = None if batch.action_box.is_unit else batch.action_box
    return Dataset(
        id=id,
        sha256=identity(content_sha256(whole), place, scaled),
        origin="arrays",
        environment=place,
        ref_min_score=low,
        ref_max_score=high,
        observations=states,
        actions=acted,
        rewards=rewarded,
        next_observations=following,
        terminations=terminal,
        starts=starts,
        action_box=scaled,
        task=id,
    )


def _numbers(id: str, name: str, given: Any, axes: int) -> np.ndarray:
    """An array of finite numbers as float32, a copy that nobody else writes to."""
    array = _array(id, name, given)
    shape = "(N, D)" if axes == 2 else "(N,)"
    whole = array.ndim == axes and (axes == 1 or array.shape[1] > 0)
    require(whole, f"{id}: {name} are of shape {array.shape}; give {shape}.")
    require(array.dtype.kind in "biuf", f"{id}: {name} are no numbers ({array.dtype}).")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        found = array.astype(np.float32)
    bad = np.argwhere(~np.isfinite(found))
    if len(bad):
        what = "a number that float32 cannot hold" if np.isfinite(array[tuple(bad[0])]) else "a NaN or infinity"
        raise UserError(f"{id}: {name} hold {what} (row {bad[0, 0]}).")
    return found


def _array(id: str, name: str, given: Any) -> np.ndarray:
    try:
        return np.asarray(given)
    except ValueError as error:  # rows of several lengths
        raise UserError(f"{id}: {name} are no array ({error}).") from error


def _flags(id: str, name: str, given: Any) -> np.ndarray:
    flags = _array(id, name, given)
    require(flags.ndim == 1, f"{id}: {name} are of shape {flags.shape}; give (N,).")
    require(bool(((flags == 0) | (flags == 1)).all()), f"{id}: {name} are neither true nor false.")
    return flags.astype(bool)


def _reference_scores(id: str, environment: str | EnvSpec, given: tuple[float, float] | None) -> tuple[float, float]:
    known = {e.env_id: (e.ref_min_score, e.ref_max_score) for e in ENVIRONMENTS.values()}
    scores: Any = given if given is not None else known.get(specs.id_of(environment))
    if scores is None:
        raise UserError(f"{id}: no reference scores of its environment are known; give reference_scores=(low, high).")
    try:
        low, high = map(float, scores)
    except (TypeError, ValueError, OverflowError):
        low, high = np.nan, np.nan
    require(
        is_finite(low) and is_finite(high) and low < high,
        f"{id}: reference_scores must be two finite numbers, the lower one first: {scores!r:.80}.",
    )
    return low, high
