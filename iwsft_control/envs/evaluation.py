"""Evaluation: many episodes of a policy at once, on all cores, exactly as Gymnasium would play them.

Episodes are dealt to fixed lanes, each with its own policy calls, played by a pool of threads: MuJoCo and BLAS
release the GIL. The lanes do not depend on the number of cores, so neither does any return.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
import threadpoolctl
from gymnasium.envs.registration import EnvSpec

from iwsft_control.base.errors import RunError
from iwsft_control.envs.batch import Batch, D4RLBatch, make_batch
from iwsft_control.networks.policies import Policy, as_policy

EPISODES = 100
FIRST_RESET_SEED = 1_000_000  # evaluation episode i is reset with FIRST_RESET_SEED + i, for every method and seed
LANE = 25  # episodes that share a policy call: large enough for BLAS, small enough to spread over cores


class PolicyError(RunError):
    """A policy answered with something that is not an action."""


class Recording(NamedTuple):
    """One recorded episode of T steps."""

    reset_seed: int
    observations: np.ndarray  # (T, O) float64: what the policy saw
    actions: np.ndarray  # (T, A)
    rewards: np.ndarray  # (T,)
    qpos: np.ndarray | None  # (T, nq) positions of the simulator before each step; None where it does not tell
    qvel: np.ndarray | None  # (T, nv)
    terminated: bool


class Recorder:
    """Keeps states and actions of chosen episodes while :func:`evaluate` plays them, for a video or an analysis.

    Args:
        episodes: indices of the episodes to keep.
    """

    def __init__(self, episodes: Sequence[int]):
        self._rows: dict[int, list[tuple]] = {i: [] for i in episodes}
        self._terminated: dict[int, bool] = {}
        self._first_seed = 0

    def recordings(self) -> dict[int, Recording]:
        """The episodes that were played, by index."""
        found = {}
        for i, rows in self._rows.items():
            if rows:
                observations, actions, rewards, qpos, qvel = zip(*rows, strict=True)
                found[i] = Recording(
                    self._first_seed + i,
                    np.array(observations),
                    np.array(actions),
                    np.array(rewards),
                    None if qpos[0] is None else np.array(qpos),
                    None if qvel[0] is None else np.array(qvel),
                    self._terminated[i],
                )
        return found

    def _keep(self, batch: Batch, active: np.ndarray, observations: np.ndarray, actions: np.ndarray) -> list[tuple]:
        """Of each chosen episode among ``active``: its index, its row in the batch, and what it was before the step."""
        kept = []
        for row, i in enumerate(active.tolist()):
            if i in self._rows:
                states = batch.state(active[row : row + 1]) if isinstance(batch, D4RLBatch) else None
                qpos, qvel = (x[0] for x in states) if states else (None, None)
                kept.append((i, row, observations[row].copy(), actions[row].copy(), qpos, qvel))
        return kept

    def _add(self, kept: list[tuple], rewards: np.ndarray, terminated: np.ndarray) -> None:
        for i, row, observation, action, qpos, qvel in kept:
            self._rows[i].append((observation, action, float(rewards[row]), qpos, qvel))
            self._terminated[i] = bool(terminated[row])


def evaluate(
    policy: Policy | Callable[[np.ndarray], np.ndarray],
    environment: str | EnvSpec,
    episodes: int = EPISODES,
    *,
    name: str = "policy",
    first_seed: int = FIRST_RESET_SEED,
    threads: int | None = None,
    on_lane: Callable[[int], None] = lambda episodes: None,
    recorder: Recorder | None = None,
) -> np.ndarray:
    """Undiscounted return of every episode, (episodes,) float64.

    Args:
        policy: a :class:`Policy`, or a function from observations (K, O) float32 to actions (K, A) in [-1, 1],
            which are scaled to the environment's own box; thread-safe. Its random numbers, if it draws any, depend on
            ``first_seed`` and the lane alone.
        environment: Gymnasium id or spec.
        name: names the policy in an error.
        first_seed: episode i is reset with ``first_seed + i``.
        threads: all cores by default; the returns do not depend on it.
        on_lane: told the number of episodes whenever a lane ends (for a progress bar).
        recorder: keeps the episodes that it was made for.

    Raises:
        PolicyError: an action is NaN, infinite or outside [-1, 1]; names policy, episode and step.
    """
    acting, batch = as_policy(policy), make_batch(environment, episodes)
    observations = batch.reset([first_seed + i for i in range(episodes)])
    returns = np.zeros(episodes)
    if recorder is not None:
        recorder._first_seed = first_seed

    def play(lane: np.ndarray) -> None:
        key = np.random.default_rng([first_seed, int(lane[0])])
        _play(acting, batch, lane, observations[lane], returns, key, f"{name}, reset seed {first_seed} + ", recorder)
        on_lane(len(lane))

    lanes = [np.arange(i, min(i + LANE, episodes)) for i in range(0, episodes, LANE)]
    # One BLAS thread a lane: the lanes are the parallelism.
    with threadpoolctl.threadpool_limits(1, "blas"), ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        list(pool.map(play, lanes))
    return returns


def _play(
    policy: Policy,
    batch: Batch,
    active: np.ndarray,
    observations: np.ndarray,
    returns: np.ndarray,
    key: np.random.Generator,
    name: str,
    recorder: Recorder | None,
) -> None:
    """Play the episodes ``active`` of a batch to their ends, adding their rewards to ``returns`` in place."""
    carry = policy.initial(len(active))
    step = 0
    while len(active):
        actions, carry = policy.act(carry, observations.astype(np.float32), key)
        valid = (np.abs(actions) <= 1).all(axis=1)  # NaN compares false
        if not valid.all():
            worst = int(np.argmin(valid))
            raise PolicyError(
                f"{name}{active[worst]}: the action at step {step} is {actions[worst].tolist()}; "
                "actions must be finite and within [-1, 1]."
            )
        kept = recorder._keep(batch, active, observations, actions) if recorder else []
        observations, rewards, terminated, truncated = batch.step(active, actions)
        if recorder:
            recorder._add(kept, rewards, terminated)
        returns[active] += rewards
        step += 1
        ended = terminated | truncated
        if ended.any():
            going = ~ended
            active, observations = active[going], observations[going]
            carry = jax.tree.map(lambda x: x[going], carry)  # noqa: B023 (used at once)
