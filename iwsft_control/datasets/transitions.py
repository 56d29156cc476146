"""Transitions on the device: what critics, SAC and every method sample from."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from iwsft_control.datasets.types import Dataset


class Transitions(NamedTuple):
    """A batch of transitions: (N, O), (N, A), (N,), (N, O), (N,) (1.0 where the next state is terminal)."""

    observations: Any
    actions: Any
    rewards: Any
    next_observations: Any
    terminations: Any


class CriticData(NamedTuple):
    """The data set on the device: (N, O), (N, A), (N,), (N, O), (N,) (1.0 where the next state is terminal)."""

    observations: Any
    actions: Any
    rewards: Any
    next_observations: Any
    terminations: Any


def reward_scale(data: Dataset) -> float:
    """1000 / (best - worst episode return), IQL's scaling for locomotion; 1 where all episodes are equal."""
    spread = float(np.ptp(data.returns))
    return 1000.0 / spread if spread > 0 else 1.0


def transitions(data: Dataset) -> CriticData:
    """The data set on the device, rewards as they are."""
    return CriticData(
        jnp.asarray(data.observations),
        jnp.asarray(data.actions),
        jnp.asarray(data.rewards),
        jnp.asarray(data.next_observations),
        jnp.asarray(data.terminations, jnp.float32),
    )


def to_device(data: Dataset) -> CriticData:
    """The data set as the critic sees it, rewards scaled."""
    return transitions(data)._replace(rewards=jnp.asarray(data.rewards * np.float32(reward_scale(data))))
