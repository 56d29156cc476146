"""What a method does unless its record says otherwise. The loop's numbers depend on these functions."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from iwsft_control.datasets.types import Dataset
from iwsft_control.networks.policies import Exported

CALL_STEPS = 500  # steps of one compiled call, between two reports of progress
QUICK_STEPS = 300  # of a trial (--quick)


def uniform(config: Any, prepared: Any, key: jax.Array) -> Any:
    """A batch of ``config.batch_size`` rows, drawn uniformly with replacement."""
    rows = jax.random.randint(key, (config.batch_size,), 0, len(prepared.shared))
    return prepared.shared.rows(rows)


def fresh(config: Any, state: Any, prepared: Any) -> Any:
    """Training starts from the parameters that ``create`` drew."""
    return state


def as_it_is(config: Any, state: Any, prepared: Any) -> tuple[Any, dict[str, jax.Array]]:
    """Nothing is computed anew between two compiled calls."""
    return prepared, {}


def call_steps(config: Any) -> int:
    """Steps of a compiled call."""
    return CALL_STEPS


def tanh_mlp(config: Any, data: Dataset, params: Any) -> Exported:
    """The policy's parameters act as they are: a = tanh(f(s)), a Gaussian policy by its mean."""
    return Exported(params)


def shorten(config: Any) -> Any:
    """A configuration for a trial of seconds."""
    return dataclasses.replace(config, steps=min(config.steps, QUICK_STEPS))
