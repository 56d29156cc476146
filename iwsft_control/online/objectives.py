r"""The objectives of online fine-tuning on one page, each beside its equation. Pure functions; they know no policy.

T steps, B episodes, in G groups of N episodes that share a demonstration; k is the length of an episode's prefix.

    gae       A_t = sum_{i>=0} (discount trace)^i delta_{t+i}
              delta_t = r_t + discount (1 - terminated_t) V(s_{t+1}) - V(s_t)
    group     A_t = R - mean of the group's R                                  for every t; R the outcome of the episode
    ppo       J_value = mean min(r_t A_t, clip(r_t, 1 - clip, 1 + clip) A_t),  r_t = pi(a_t|s_t) / pi_old(a_t|s_t)

    uft       J = J_value - beta_kl mean_{t>=k} KL(pi(.|s_t) || pi_ref(.|s_t)) + beta mean_{t<k} log pi(a*_t|s*_t)
              UFT, Liu et al. 2025 (arXiv 2505.16984), eq. 3.3; its beta_kl and beta are one, and its terms are sums.

    prefix    A = R_hybrid - m_0 on the demonstration's own steps t < k, as part of J_value; m_0 the mean outcome of the
              group's episodes without a prefix; only on the steps where the policy's entropy is highest.
              Prefix-RFT, Huang et al. 2025 (arXiv 2507.01679), eq. 3. No likelihood term.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def gae(
    rewards: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    terminated: jax.Array,
    ended: jax.Array,
    discount: float,
    trace: float,
) -> jax.Array:
    """Generalised advantages (T, B) (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

    Args:
        rewards: (T, B); values: V(s_t) (T, B); next_values: V(s_{t+1}) (T, B), of the state that the step led to.
        terminated: (T, B), where nothing can come after: V(s_{t+1}) does not count.
        ended: (T, B), the last step of an episode, be it terminated or truncated: nothing of the next row counts. What
            was truncated counts V(s_{t+1}).
    """
    deltas = rewards + discount * jnp.where(terminated, 0.0, next_values) - values

    def back(following: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        delta, last = step
        advantage = delta + discount * trace * jnp.where(last, 0.0, following)
        return advantage, advantage

    return jax.lax.scan(back, jnp.zeros_like(values[0]), (deltas, ended), reverse=True)[1]


def group_advantages(
    outcomes: jax.Array, hybrid: jax.Array, centred: bool = True, divide_by_std: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Advantages of whole episodes against their group: those of their own steps, and of their prefix, (G, N) each.

    Args:
        outcomes: R of every episode, the recorded prefix included, (G, N).
        hybrid: (G, N), the episodes that a policy without a prefix is compared with: Prefix-RFT's. None in UFT, whose
            groups share one prefix.
        centred: whether a hybrid's own steps get R - m_0 like all others; else R, as in Prefix-RFT's code.
        divide_by_std: as in GRPO and UFT's code.
    """
    ordinary = ~hybrid
    count = jnp.maximum(ordinary.sum(-1, keepdims=True), 1)
    baseline = jnp.where(ordinary, outcomes, 0.0).sum(-1, keepdims=True) / count
    difference = outcomes - baseline
    if divide_by_std:
        difference = difference / (outcomes.std(-1, keepdims=True) + 1e-6)
    own = difference if centred else jnp.where(hybrid, outcomes, difference)
    return own, jnp.where(hybrid, difference, 0.0)


def standardise(values: jax.Array, valid: jax.Array) -> jax.Array:
    """Values (T, G, N) less their group's mean over its valid steps, over their standard deviation; else zero."""
    count = jnp.maximum(valid.sum((0, 2), keepdims=True), 1)
    centred = jnp.where(valid, values, 0.0)
    centred = jnp.where(valid, centred - centred.sum((0, 2), keepdims=True) / count, 0.0)
    return centred / (jnp.sqrt((centred**2).sum((0, 2), keepdims=True) / count) + 1e-8)


def clipped_surrogate(log_ratio: jax.Array, advantages: jax.Array, clip: float, unclipped: jax.Array) -> jax.Array:
    """PPO's min(r A, clip(r) A) of every row (M,) (Schulman et al. 2017, arXiv 1707.06347, eq. 7); of some r A."""
    ratio = jnp.exp(log_ratio)
    clipped = jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - clip, 1 + clip) * advantages)
    return jnp.where(unclipped, ratio * advantages, clipped)


def gaussian_kl(mean: jax.Array, log_std: jax.Array, other_mean: jax.Array, other_log_std: jax.Array) -> jax.Array:
    """KL(N || N') of diagonal Gaussians, summed over action dimensions: (..., A) -> (...)."""
    spread = jnp.exp(2 * (log_std - other_log_std)) + ((mean - other_mean) * jnp.exp(-other_log_std)) ** 2
    return (other_log_std - log_std + 0.5 * (spread - 1)).sum(-1)


def gaussian_entropy(log_std: jax.Array) -> jax.Array:
    """Entropy of a diagonal Gaussian: (..., A) -> (...)."""
    return (log_std + 0.5 * jnp.log(2 * jnp.pi * jnp.e)).sum(-1)


def highest_entropy(entropy: jax.Array, valid: jax.Array, share: float, most: int) -> tuple[jax.Array, jax.Array]:
    """The steps of the prefixes that count: Prefix-RFT's code drops the floor((1 - share) n) of lowest entropy.

    Args:
        entropy: of the policy at n valid steps among P, (P,); valid: (P,).
        most: length of what is returned, at least what of P valid steps would be kept.

    Returns:
        Their indices, highest entropy first, (most,), and which of these count (most,).
    """
    order = jnp.argsort(jnp.where(valid, -entropy, jnp.inf), stable=True)[:most]
    n = valid.sum()
    dropped = jnp.floor((1 - share) * n + 1e-4).astype(n.dtype)  # 0.8 is no float: 0.8 * 5 must be 4
    return order, jnp.arange(most) < n - dropped


def uft(
    value: jax.Array, divergence: jax.Array, log_likelihood: jax.Array, kl_weight: float, likelihood_weight: float
) -> jax.Array:
    """UFT's objective of its three parts (to be maximised); without a prefix and a reference it is ``value``."""
    return value - kl_weight * divergence + likelihood_weight * log_likelihood


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean of values (M,) with weights (M,); zero where all weights are."""
    return (values * weights).sum() / jnp.maximum(weights.sum(), 1e-8)
