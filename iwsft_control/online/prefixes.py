"""Prefixes: where in which demonstration the episodes of an update start.

An episode starts in a recorded state, put into the simulator (``set_state``) with the steps that are over, so that its
horizon stays what it is. Actions are never replayed: recorded in float32 they drift from the recording.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from iwsft_control.base.errors import require
from iwsft_control.configs.online import PrefixConfig
from iwsft_control.datasets.types import VELOCITY_LIMIT, Dataset
from iwsft_control.envs.batch import Step
from iwsft_control.learning import curation
from iwsft_control.online import schedules
from iwsft_control.online.methods import OnlineMethod


class RestartableBatch(Protocol):
    """Environments that can be put into any state; those that are stepped together may be a part of them."""

    observation_dim: int
    action_dim: int
    max_steps: int

    def set_state(self, i: int, qpos: np.ndarray, qvel: np.ndarray, elapsed: int = 0) -> np.ndarray:
        """Put environment i into a state, ``elapsed`` steps of its episode over; its observation (O,)."""
        ...

    def step(self, active: np.ndarray, actions: np.ndarray) -> Step:
        """Step the environments ``active`` (K,) with ``actions`` (K, A)."""
        ...

    def terminal(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        """Whether an episode ends in states (K, nq), (K, nv), (K,)."""
        ...


class Demonstrations(NamedTuple):
    """The curated episodes, end to end: N steps of E episodes."""

    observations: np.ndarray  # (N, O) float32
    actions: np.ndarray  # (N, A) float32
    qpos: np.ndarray  # (N, nq)
    qvel: np.ndarray  # (N, nv)
    return_before: np.ndarray  # (N,) float64, of the episode's steps before this one
    permitted: np.ndarray  # (N,) the last step not after this one where an episode may start
    starts: np.ndarray  # (E + 1,)
    success: float  # the return from which an episode is a success

    @property
    def lengths(self) -> np.ndarray:
        """Steps of every demonstration, (E,)."""
        return np.diff(self.starts)


def curate(config: PrefixConfig, data: Dataset, batch: RestartableBatch) -> Demonstrations:
    """The demonstrations of a data set.

    A state is no start where the episode would end at once, where the recording terminates within ``margin`` steps, or
    where a recorded velocity lies at D4RL's clip (it is not the simulator's).

    Raises:
        UserError: the data set holds no simulator states, no episode of the best may be started, or one of them is
            longer than an episode of the environment.
    """
    states, scores = data.states(), curation.episode_returns(data)
    best = curation.above(scores, config.percentile)
    longest = int(data.lengths[best].max())
    require(
        longest <= batch.max_steps,
        f"{data.id} holds an episode of {longest:,} steps, and one of its environment ends after {batch.max_steps:,}; "
        "choose data whose environment (eval_env_spec) lets an episode last as long.",
    )
    clipped = (np.abs(states.qvel) == VELOCITY_LIMIT).any(axis=1)
    usable = ~batch.terminal(states.qpos.astype(np.float64), states.qvel.astype(np.float64)) & ~clipped
    rows, permitted, before, lengths = [], [], [], []
    for e in best:
        own = np.arange(data.starts[e], data.starts[e + 1])
        may = usable[own].copy()
        if data.terminations[own[-1]]:
            may[max(1, len(own) - config.margin) :] = False
        if not may[0]:  # every demonstration is started from its beginning, too
            continue
        rows.append(own)
        permitted.append(np.maximum.accumulate(np.where(may, np.arange(len(own)), 0)))
        before.append(np.concatenate([[0.0], np.cumsum(data.rewards[own[:-1]], dtype=np.float64)]))
        lengths.append(len(own))
    require(
        bool(rows),
        f"no episode of {data.id} above percentile {config.percentile:g} begins where an episode can start; "
        "choose another --prefix.percentile or data set.",
    )
    index = np.concatenate(rows)
    return Demonstrations(
        data.observations[index],
        data.actions[index],
        states.qpos[index],
        states.qvel[index],
        np.concatenate(before),
        np.concatenate(permitted),
        np.concatenate([[0], np.cumsum(lengths)]),
        float(np.percentile(scores[best], config.success_percentile)),
    )


class Starts(NamedTuple):
    """Where the episodes of an update start: G groups of N."""

    demonstration: np.ndarray  # (G,)
    steps: np.ndarray  # (G, N) steps of the demonstration that are over
    hybrid: np.ndarray  # (G, N) the one of its group that alone has a prefix

    def rows(self, demonstrations: Demonstrations) -> np.ndarray:
        """Rows of the demonstrations where the episodes start, (G, N)."""
        return demonstrations.starts[self.demonstration][:, None] + self.steps


def draw(
    method: OnlineMethod,
    config: PrefixConfig,
    demonstrations: Demonstrations,
    progress: float,
    groups: int,
    size: int,
    seed: tuple[int, int],
) -> Starts:
    """The starts of an update; every method draws the same demonstrations.

    Args:
        progress: share of the training that is over, in [0, 1].
        seed: of the run, and the number of the update.
    """
    chosen = np.random.default_rng([*seed, 0]).integers(len(demonstrations.lengths), size=groups)
    rng = np.random.default_rng([*seed, 1])
    steps, hybrid = np.zeros((groups, size), int), np.zeros((groups, size), bool)
    for g, e in enumerate(chosen):
        k = _prefix(method, config, int(demonstrations.lengths[e]), progress, rng)
        # From the end of a demonstration nothing can be learned: back to where an episode may start.
        k = int(demonstrations.permitted[demonstrations.starts[e] + min(k, demonstrations.lengths[e] - 1)])
        if method.law == "hybrid":
            steps[g, -1], hybrid[g, -1] = k, k > 0
        else:
            steps[g] = k
    return Starts(chosen, steps, hybrid)


def _prefix(method: OnlineMethod, config: PrefixConfig, length: int, progress: float, rng: np.random.Generator) -> int:
    """Steps of a demonstration of ``length`` steps that are given."""
    if method.law == "none":
        return 0
    if method.law == "hybrid":
        return schedules.prefix_steps(rng, length, progress, config.high, config.low)
    if rng.random() < config.unhinted_share:
        return 0
    if method.law == "uniform":
        return schedules.piece_steps(schedules.uniform_pieces(rng, config.pieces), config.pieces, length)
    p = schedules.hint_probability(progress, config.hinted_share, config.high, config.low)
    return schedules.piece_steps(schedules.hint_pieces(rng, config.pieces, p), config.pieces, length)
