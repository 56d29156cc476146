"""Evaluation: many episodes of a deterministic policy at once, on all cores, exactly as Gymnasium would play them.

Episodes are dealt to fixed lanes, each with its own policy calls, played by a pool of threads: MuJoCo and BLAS
release the GIL. The lanes do not depend on the number of cores, so neither does any return.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import threadpoolctl
from gymnasium.envs.registration import EnvSpec

from iwsft_control.base.errors import UserError
from iwsft_control.envs.batch import Batch, make_batch

EPISODES = 100


FIRST_RESET_SEED = 1_000_000  # evaluation episode i is reset with FIRST_RESET_SEED + i, for every method and seed


LANE = 25  # episodes that share a policy call: large enough for BLAS, small enough to spread over cores


Policy = Callable[[np.ndarray], np.ndarray]


class PolicyError(UserError):
    """A policy answered with something that is not an action."""


def evaluate(
    policy: Policy,
    environment: str | EnvSpec,
    episodes: int = EPISODES,
    *,
    name: str = "policy",
    first_seed: int = FIRST_RESET_SEED,
    threads: int | None = None,
    on_lane: Callable[[int], None] = lambda episodes: None,
) -> np.ndarray:
    """Undiscounted return of every episode, (episodes,) float64.

    Args:
        policy: deterministic, thread-safe; float32 observations (K, O) to actions (K, A) in [-1, 1].
        environment: Gymnasium id or spec.
        name: names the policy in an error.
        first_seed: episode i is reset with ``first_seed + i``.
        threads: all cores by default; the returns do not depend on it.
        on_lane: told the number of episodes whenever a lane ends (for a progress bar).

    Raises:
        PolicyError: an action is NaN, infinite or outside [-1, 1]; names policy, episode and step.
    """
    batch = make_batch(environment, episodes)
    observations = batch.reset([first_seed + i for i in range(episodes)])
    returns = np.zeros(episodes)

    def play(lane: np.ndarray) -> None:
        _play(policy, batch, lane, observations[lane], returns, f"{name}, reset seed {first_seed} + ")
        on_lane(len(lane))

    lanes = [np.arange(i, min(i + LANE, episodes)) for i in range(0, episodes, LANE)]
    # One BLAS thread a lane: the lanes are the parallelism.
    with threadpoolctl.threadpool_limits(1, "blas"), ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        list(pool.map(play, lanes))
    return returns


def _play(
    policy: Policy, batch: Batch, active: np.ndarray, observations: np.ndarray, returns: np.ndarray, name: str
) -> None:
    """Play the episodes ``active`` of a batch to their ends, adding their rewards to ``returns`` in place."""
    for step in range(batch.max_steps):
        actions = policy(observations.astype(np.float32))
        valid = (np.abs(actions) <= 1).all(axis=1)  # NaN compares false
        if not valid.all():
            worst = int(np.argmin(valid))
            raise PolicyError(
                f"{name}{active[worst]}: the action at step {step} is {actions[worst].tolist()}; "
                "actions must be finite and within [-1, 1]."
            )
        observations, rewards, terminated = batch.step(active, actions)
        returns[active] += rewards
        if terminated.any():
            active, observations = active[~terminated], observations[~terminated]
            if not len(active):
                return
