"""Evaluation: many episodes of a deterministic policy at once, on all cores, exactly as Gymnasium would play them.

Episodes are dealt to fixed lanes, each a batch with its own policy calls, played by a pool of threads: MuJoCo and
BLAS release the GIL. The lanes do not depend on the number of cores, so neither does any return.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import threadpoolctl
from gymnasium.envs.registration import EnvSpec

from iwsft_control.simulation import make_batch

EPISODES = 100
FIRST_RESET_SEED = 1_000_000  # evaluation episode i is reset with FIRST_RESET_SEED + i, for every method and seed
LANE = 25  # episodes that share a policy call: large enough for BLAS, small enough to spread over cores

Policy = Callable[[np.ndarray], np.ndarray]


class PolicyError(Exception):
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
    lanes = [range(i, min(i + LANE, episodes)) for i in range(0, episodes, LANE)]

    def play(lane: range) -> np.ndarray:
        returns = _play(policy, environment, [first_seed + i for i in lane], name)
        on_lane(len(lane))
        return returns

    # One BLAS thread a lane: the lanes are the parallelism.
    with threadpoolctl.threadpool_limits(1, "blas"), ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        return np.concatenate(list(pool.map(play, lanes)))


def _play(policy: Policy, environment: str | EnvSpec, seeds: list[int], name: str) -> np.ndarray:
    batch = make_batch(environment, len(seeds))
    observations = batch.reset(seeds)
    active, returns = np.arange(len(seeds)), np.zeros(len(seeds))
    for step in range(batch.max_steps):
        actions = policy(observations.astype(np.float32))
        if not (np.abs(actions) <= 1).all():  # NaN compares false
            episode = int(np.argmax(~(np.abs(actions) <= 1).all(axis=1)))
            raise PolicyError(
                f"{name} gave the action {actions[episode].tolist()} at step {step} of the episode with reset seed "
                f"{seeds[active[episode]]}; actions must be finite and within [-1, 1]."
            )
        observations, rewards, terminated = batch.step(active, actions)
        returns[active] += rewards
        if terminated.any():
            active, observations = active[~terminated], observations[~terminated]
            if not len(active):
                break
    return returns
