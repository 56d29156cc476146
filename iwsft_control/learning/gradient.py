"""A gradient step, and the optimiser that most methods take it with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax


def adam(learning_rate: float | optax.Schedule) -> optax.GradientTransformation:
    """Adam on all parameters as one vector: the same numbers, 3% more IQL steps a second on a CPU."""
    return optax.flatten(optax.adam(learning_rate))


def descend(
    loss: Callable[..., Any],
    optimiser: optax.GradientTransformation,
    params: Any,
    optimiser_state: Any,
    *arguments: Any,
    has_aux: bool = False,
) -> tuple[Any, Any, Any]:
    """One step down the gradient of ``loss(params, *arguments)``.

    Args:
        has_aux: whether the loss comes with something else: ``(loss, aux)``.

    Returns:
        The new parameters, the optimiser's new state, and what the loss gave.
    """
    value, grad = jax.value_and_grad(loss, has_aux=has_aux)(params, *arguments)
    change, optimiser_state = optimiser.update(grad, optimiser_state, params)
    return optax.apply_updates(params, change), optimiser_state, value
