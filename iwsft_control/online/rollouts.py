"""Rollouts: every group of episodes is played to its end by one thread, with random numbers of its own.

So the episodes do not depend on the number of cores. MuJoCo and BLAS release the GIL.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import threadpoolctl

from iwsft_control.base import children
from iwsft_control.base.errors import RunError
from iwsft_control.online.policy import Actor
from iwsft_control.online.prefixes import Demonstrations, RestartableBatch, Starts


class Rollouts(NamedTuple):
    """B = G N episodes of at most T steps; row 0 is the first step after the prefix. Episode b is of group b // N."""

    observations: np.ndarray  # (T, B, O) float32
    actions: np.ndarray  # (T, B, A) float32, not clipped
    rewards: np.ndarray  # (T, B) float32
    lengths: np.ndarray  # (B,) steps of every episode; rows from there on are zero
    terminated: np.ndarray  # (B,); else truncated
    final_observations: np.ndarray  # (B, O) float32, after the last step
    returns: np.ndarray  # (B,) float64, undiscounted, of these steps

    @property
    def steps(self) -> int:
        """Simulator steps that were taken."""
        return int(self.lengths.sum())


def play(
    actor: Actor,
    batch: RestartableBatch,
    demonstrations: Demonstrations,
    starts: Starts,
    seed: tuple[int, int],
    threads: int | None = None,
) -> Rollouts:
    """Play the episodes of an update.

    Args:
        batch: of at least G N environments.
        seed: of the run, and the number of the update.
        threads: all cores by default; the episodes do not depend on it.

    Raises:
        RunError: an action is not a finite number.
    """
    (groups, size), t, o, a = starts.steps.shape, batch.max_steps, batch.observation_dim, batch.action_dim
    b = groups * size
    found = Rollouts(
        np.zeros((t, b, o), np.float32),
        np.zeros((t, b, a), np.float32),
        np.zeros((t, b), np.float32),
        np.zeros(b, np.int32),
        np.zeros(b, bool),
        np.zeros((b, o), np.float32),
        np.zeros(b),
    )
    rows = starts.rows(demonstrations)

    def group(g: int) -> None:
        lanes = np.arange(g * size, (g + 1) * size)
        observations = np.array(
            [
                batch.set_state(lane, demonstrations.qpos[row], demonstrations.qvel[row], int(elapsed))
                for lane, row, elapsed in zip(lanes.tolist(), rows[g], starts.steps[g], strict=True)
            ]
        )
        _play(actor, batch, lanes, observations, found, np.random.default_rng([*seed, 2, g]))

    # One BLAS thread a group: the groups are the parallelism.
    with threadpoolctl.threadpool_limits(1, "blas"), ThreadPoolExecutor(threads or children.usable_cores()) as pool:
        list(pool.map(group, range(groups)))
    return found


def _play(
    actor: Actor,
    batch: RestartableBatch,
    active: np.ndarray,
    observations: np.ndarray,
    found: Rollouts,
    rng: np.random.Generator,
) -> None:
    """Play the episodes ``active`` to their ends and note them in ``found``."""
    for t in range(batch.max_steps):
        observations = observations.astype(np.float32)
        mean, std = actor.mean_std(observations)
        actions = mean + std * rng.standard_normal(mean.shape, np.float32)
        if not np.isfinite(actions).all():
            raise RunError("the policy's actions are not finite numbers; try a smaller --ppo.policy-learning-rate.")
        found.observations[t, active], found.actions[t, active] = observations, actions
        observations, rewards, terminated, truncated = batch.step(active, actions)
        found.rewards[t, active] = rewards
        found.returns[active] += rewards
        ended = terminated | truncated
        if ended.any():
            over = active[ended]
            found.lengths[over], found.terminated[over] = t + 1, terminated[ended]
            found.final_observations[over] = observations[ended]
            active, observations = active[~ended], observations[~ended]
            if not len(active):
                return
    raise AssertionError("an episode outlasted its horizon")
