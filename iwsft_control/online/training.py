"""The loop of online fine-tuning: draw starts, play, update, evaluate, until the budget of simulator steps is spent.

Every update begins with fresh episodes and draws from streams of (seed, update), so a killed training goes on from its
snapshot bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iwsft_control.base.snapshot import Snapshot
from iwsft_control.configs.online import PrefixConfig
from iwsft_control.learning.loop import DivergedError
from iwsft_control.online import learner, prefixes, rollouts
from iwsft_control.online.learner import Batch, LearnerState, Setup
from iwsft_control.online.policy import Actor
from iwsft_control.online.prefixes import Demonstrations, RestartableBatch, Starts
from iwsft_control.online.rollouts import Rollouts

DENSE_SCALE = 1000.0  # of a dense outcome, so that it is of the order of one


class Finetuned(NamedTuple):
    """What a training ends with."""

    policy: Any
    steps: int
    """Simulator steps of its rollouts; those of evaluations do not count."""
    points: list[dict[str, Any]]
    """Evaluations along training: {"step": ..., "returns": [...]}."""
    log: dict[str, list[float]]
    """One entry for each update; "step" is simulator steps."""
    seconds: dict[str, float]
    """Of rollouts, updates and evaluations."""


def learning_batch(
    setup: Setup, demonstrations: Demonstrations, starts: Starts, played: Rollouts, horizon: int
) -> Batch:
    """Episodes as the learner takes them.

    The dense reward is multiplied by 1 - discount, so that values are of the order of a reward. The sparse one is paid
    at the end, terminated or truncated, and nothing comes after; whether it will come depends on the time that is left
    and on the return so far, so the critic sees both.
    """
    groups, size = starts.steps.shape
    t, b = played.rewards.shape
    rows = starts.rows(demonstrations)
    before = demonstrations.return_before[rows].reshape(b)
    totals = before + played.returns
    lanes, last = np.arange(b), played.lengths - 1
    if setup.sparse:
        outcomes = (totals >= demonstrations.success).astype(np.float32)
        rewards = np.zeros((t, b), np.float32)
        rewards[last, lanes] = outcomes
        so_far = before + np.concatenate([np.zeros((1, b)), np.cumsum(played.rewards, axis=0, dtype=np.float64)])
        left = 1 - (starts.steps.reshape(b) + np.arange(t + 1)[:, None]) / horizon
        features = np.stack([left, so_far / demonstrations.success], axis=-1).astype(np.float32)
        final, features = features[played.lengths, lanes], features[:-1]
        terminated = np.ones(b, bool)
    else:
        outcomes = (totals / DENSE_SCALE).astype(np.float32)
        rewards = played.rewards * np.float32(1 - setup.discount)
        features, final = np.zeros((t, b, 0), np.float32), np.zeros((b, 0), np.float32)
        terminated = played.terminated
    k = starts.steps[:, -1]  # the last of a group has its prefix
    width = min(horizon, int(demonstrations.lengths.max()))
    index = demonstrations.starts[starts.demonstration][:, None] + np.minimum(
        np.arange(width), np.maximum(k, 1)[:, None] - 1
    )
    return Batch(
        played.observations,
        features,
        played.actions,
        rewards,
        played.lengths,
        terminated,
        played.final_observations,
        final,
        outcomes.reshape(groups, size),
        starts.hybrid,
        demonstrations.observations[index],
        demonstrations.actions[index],
        k.astype(np.int32),
    )


def finetune(
    setup: Setup,
    prefix: PrefixConfig,
    demonstrations: Demonstrations,
    batch: RestartableBatch,
    start: Any,
    seed: int,
    budget: int,
    evaluate: Callable[[Any], list[float]],
    evaluations: int = 10,
    *,
    progress: Callable[[int], None] = lambda steps: None,
    snapshot: Snapshot | None = None,
    threads: int | None = None,
    on_update: Callable[[int], None] = lambda update: None,
) -> Finetuned:
    """Train one method for one seed.

    Args:
        batch: of at least ``groups * group_size`` environments.
        start: the policy's parameters at the beginning; the reference, too.
        budget: simulator steps of the rollouts; the last update's episodes are played to their ends.
        evaluate: parameters to episode returns, called after every ``budget / evaluations`` steps, and at the end.
        progress: told simulator steps as they are taken.
        snapshot: where the training goes on that a kill has cut short.
        threads: of the rollouts; all cores by default.
        on_update: told the number of an update before it begins.

    Raises:
        DivergedError: a parameter is no longer finite.
    """
    key = jax.random.key(seed)
    state = learner.create(setup, start, batch.observation_dim, 2 if setup.sparse else 0, jax.random.fold_in(key, 1))
    snapshot = snapshot or Snapshot()
    state, record = snapshot.load(state)
    state = jax.tree.map(jnp.asarray, state)
    steps, number = record.get("steps", 0), record.get("update", 0)
    points, log = record.get("points", []), record.get("log", [])
    seconds = record.get("parts", {"rollouts": 0.0, "updates": 0.0, "evaluations": 0.0})
    progress(min(steps, budget))
    while steps < budget:
        on_update(number)
        began = time.perf_counter()
        starts = prefixes.draw(
            setup.method, prefix, demonstrations, steps / budget, setup.ppo.groups, setup.ppo.group_size, (seed, number)
        )
        played = rollouts.play(Actor.of(state.policy), batch, demonstrations, starts, (seed, number), threads)
        seconds["rollouts"] += time.perf_counter() - began
        began = time.perf_counter()
        learned = learning_batch(setup, demonstrations, starts, played, batch.max_steps)
        moves = jnp.bool_(number >= setup.ppo.critic_warmup or setup.estimator != "gae")
        state, means = learner.update(
            setup, state, learned, moves, jax.random.fold_in(jax.random.fold_in(key, 2), number)
        )
        values = {k: float(v) for k, v in means.items()}
        seconds["updates"] += time.perf_counter() - began
        _check_finite(state, values, seed, steps)
        before, steps, number = steps, steps + played.steps, number + 1
        log.append({"step": steps, **_figures(starts, learned), **values})
        progress(min(steps, budget) - min(before, budget))
        due = steps * evaluations // budget
        if due > before * evaluations // budget or steps >= budget:
            began = time.perf_counter()
            points.append({"step": steps, "returns": evaluate(state.policy)})
            seconds["evaluations"] += time.perf_counter() - began
        kept = {"steps": steps, "update": number, "points": points, "log": log, "parts": seconds}
        snapshot.save(state, kept)
    columns = {k: [row[k] for row in log] for k in (log[0] if log else ())}
    return Finetuned(state.policy, steps, points, columns, {k: round(v, 3) for k, v in seconds.items()})


def _figures(starts: Starts, learned: Batch) -> dict[str, float | None]:
    """What the log tells of an update's episodes: outcomes with and without a prefix, prefix lengths and advantages."""
    prefixed = starts.steps > 0
    outcomes = np.asarray(learned.outcomes)

    def mean(x: np.ndarray) -> float | None:
        return float(x.mean()) if x.size else None  # an update without such episodes

    difference = [float(r[h].mean() - r[~h].mean()) for r, h in zip(outcomes, starts.hybrid, strict=True) if h.any()]
    return {
        "outcome": mean(outcomes),
        "outcome_without_prefix": mean(outcomes[~prefixed]),
        "prefix_steps": mean(starts.steps.astype(float)),
        "prefix_advantage": mean(np.array(difference)),
        "episode_steps": mean(np.asarray(learned.lengths, float)),
    }


def _check_finite(state: LearnerState, values: dict[str, float], seed: int, steps: int) -> None:
    learned = jax.tree.leaves((state.policy, state.critic))
    if not (all(np.isfinite(v) for v in values.values()) and all(bool(jnp.isfinite(x).all()) for x in learned)):
        raise DivergedError(
            f"online training (seed {seed}) diverged after {steps:,} simulator steps: a parameter is not finite. "
            "Try a smaller --ppo.policy-learning-rate."
        )
