"""The temporal-difference loss that every critic here descends."""

from __future__ import annotations

from typing import Any

import jax


def temporal_difference_loss(discount: float, q: jax.Array, next_value: jax.Array, batch: Any) -> jax.Array:
    """E[sum_i (r + gamma (1 - d) v' - Q_i(s, a))^2]: what every critic here descends, for its own v' and Q.

    Args:
        q: Q_i(s, a) of the batch, (2, N).
        next_value: v', the value of the next states, (N,); no gradient flows into it.
        batch: has rewards (N,) and terminations (N,).
    """
    backup = batch.rewards + discount * (1 - batch.terminations) * next_value
    return ((q - jax.lax.stop_gradient(backup)) ** 2).mean(axis=-1).sum()
