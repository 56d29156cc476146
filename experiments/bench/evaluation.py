"""Evaluation against open-loop physics: the same model, start states and number of steps, ratios from one run.

    python experiments/bench/evaluation.py

Open loop is ``mujoco.rollout`` of the same recorded actions from the same states, one thread. Each round measures both,
one after the other; the median of the rounds' ratios is printed.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Annotated

import jax
import mujoco.rollout
import numpy as np
import shared
import threadpoolctl
from rich.table import Table

from iwsft_control.base import bounds, children, console
from iwsft_control.base.bounds import POSITIVE
from iwsft_control.envs import evaluation, tasks
from iwsft_control.envs.batch import D4RLBatch
from iwsft_control.methods import supervised
from iwsft_control.networks import policies
from iwsft_control.networks.policies import Exported

TARGETS = {"hopper": 0.80, "walker2d": 0.80, "halfcheetah": 0.70}  # shares of the open-loop rate on one core
SPEED_UP = 1.8  # on two cores


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What to measure."""

    episodes: Annotated[int, POSITIVE] = 100
    steps: Annotated[int, POSITIVE] = 1000
    """Environment steps of each episode (termination is ignored, so that both sides do the same work)."""
    rounds: Annotated[int, POSITIVE] = 5


class EndlessBatch(D4RLBatch):
    """Never terminates and stops after a given number of steps; keeps what it was told to do."""

    def step(self, active, actions):
        observations, rewards, terminated, truncated = super().step(active, actions)
        return observations, rewards, np.zeros_like(terminated), truncated


def closed_loop(env_id: str, policy, config: BenchConfig, threads: int) -> float:
    """Environment steps per second of :func:`evaluation.evaluate`."""

    def make(spec, n):
        batch = EndlessBatch(env_id, n)
        batch.max_steps = config.steps
        return batch

    original = evaluation.make_batch
    evaluation.make_batch = make
    try:
        began = time.perf_counter()
        evaluation.evaluate(policy, env_id, config.episodes, threads=threads)
        return config.episodes * config.steps / (time.perf_counter() - began)
    finally:
        evaluation.make_batch = original


def record(env_id: str, policy, config: BenchConfig):
    """Start states (E, S) and controls (E, T * frame_skip, A) of the episodes that the closed loop plays."""
    batch = EndlessBatch(env_id, config.episodes)
    everyone = np.arange(config.episodes)
    observations = batch.reset([evaluation.FIRST_RESET_SEED + i for i in range(config.episodes)])
    states = np.array([_state(batch, int(i)) for i in everyone])
    controls = []
    for _ in range(config.steps):
        actions = policy(observations.astype(np.float32))
        controls.append(np.clip(actions.astype(np.float64), -1, 1))
        observations, *_ = batch.step(everyone, actions)
    frame_skip = batch._env.frame_skip
    return batch.model, states, np.repeat(np.stack(controls, axis=1), frame_skip, axis=1)


def _state(batch: D4RLBatch, i: int) -> np.ndarray:
    spec = mujoco.mjtState.mjSTATE_FULLPHYSICS
    state = np.empty(mujoco.mj_stateSize(batch.model, spec))
    mujoco.mj_getState(batch.model, batch.data[i], state, spec)
    return state


def open_loop(model, states: np.ndarray, controls: np.ndarray, config: BenchConfig) -> float:
    """Environment steps per second of physics alone, one thread."""
    data = mujoco.MjData(model)
    began = time.perf_counter()
    mujoco.rollout.rollout(model, data, states, controls)
    return config.episodes * config.steps / (time.perf_counter() - began)


def main(config: BenchConfig) -> None:
    """Measure and print the shares."""
    bounds.check(config, "")
    shared.head()
    table = Table(
        "environment", "open loop, 1 core", "evaluation, 1 core", "share", "wanted", "2 cores", "speed-up", "wanted"
    )
    for name, wanted in TARGETS.items():
        env_id = tasks.ENVIRONMENTS[name].env_id
        batch = D4RLBatch(env_id, 1)
        own = supervised.SupervisedConfig()
        state = supervised.create(own, batch.observation_dim, batch.action_dim, jax.random.key(0))
        policy = policies.make(Exported(state.policy))
        model, states, controls = record(env_id, policy, config)
        rates = []
        for _ in range(config.rounds):
            # One core each: the calling thread for rollout, one worker for the evaluation.
            with threadpoolctl.threadpool_limits(1, "blas"):
                rates.append(
                    (
                        open_loop(model, states, controls, config),
                        closed_loop(env_id, policy, config, 1),
                        closed_loop(env_id, policy, config, 2),
                    )
                )
        physics, one, two = np.array(rates).T
        share, speed_up = np.median(one / physics), np.median(two / one)
        table.add_row(
            env_id,
            f"{np.median(physics):,.0f}",
            f"{np.median(one):,.0f}",
            f"{share:.2f}",
            f"{wanted:.2f}",
            f"{np.median(two):,.0f}" if children.usable_cores() > 1 else "-",
            f"{speed_up:.2f}",
            f"{SPEED_UP:.2f}",
        )
    console.console.print(table)


if __name__ == "__main__":
    console.command(lambda: BenchConfig, main, "python experiments/bench/evaluation.py", __doc__)
