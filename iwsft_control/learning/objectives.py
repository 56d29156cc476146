r"""The objectives of all six methods on one page, each beside its equation.

Notation of the paper (Qin & Springenberg 2025, arXiv 2507.12856): tau = (s_0, a_0, ...), R(tau) its quality,
J(theta) = E_{p(tau; theta)}[R(tau)], pi_ref the policy of the data, D+ the curated data. With x >= 1 + log x,

    J(theta) >= E_ref[R log p(tau; theta)] + const                            SFT is a lower bound of RL
    J(theta) >= E_{D+}[(q(tau) / pi_ref(tau)) log p(tau; theta)] + const      iw-SFT is a tighter one, for any q

The dynamics cancel in q/pi_ref and are constant in log p, so policies are all that is left:

    bc            L = -E_{(s,a) ~ D}[log pi(a|s)]
    filtered-bc   L = -E_{(s,a) ~ D+}[log pi(a|s)]              D+ = top 10% of episodes by return, from scratch
    sft           L = -E_{tau ~ D+}[sum_t log pi(a_t|s_t)] / E_{D+}[T]                  D+ as above, from bc
    sft-q         L = -E_{u ~ D_Q}[sum_t log pi(a_t|s_t)] / E_{D_Q}[T_u]                D_Q = nested strata of quality
    iw-sft        L = -E_{tau ~ D+}[w(tau) sum_t log pi(a_t|s_t)] / E_{D+}[w T]
    iw-sft-q      L = -E_{u ~ D_Q}[w(u) sum_t log pi(a_t|s_t)] / E_{D_Q}[w T_u]

    w(u) = clip(exp(temperature * x(u)) / mean_{v in D+} exp(temperature * x(v)), low, high)
    x(u) = mean_{t in u}[log q(a_t|s_t) - log pi_ref(a_t|s_t)]

A unit u is a whole episode (T_u = T) or a single transition (T_u = 1); pi_ref is the run's own BC policy and q lags
behind pi. Training draws units with probability proportional to w(u) T_u over the *whole* curated set and then one of
the unit's transitions uniformly, so :func:`loss` on such a batch has, in expectation, exactly the gradient above. The
paper's released code takes (1/T) sum_t instead, which lets short episodes count for more: ``length_weighted=False``
draws in proportion to w(u) alone and has that gradient.

Which bound that is. Weights that average one over D+ are a distribution over its units. Jensen's inequality on the log
gives, with r(u) = p(u)/pi_ref(u) divided by its mean over D+,

    log E_{D+}[p/pi_ref] = E_{D+}[w log(p/pi_ref)] - E_{D+}[w log w] + E_{D+}[w log(w/r)]
                           `-------------- the bound --------------'   `----- the gap -----'

The gap is a Kullback-Leibler divergence: never negative, zero where w = r. It is the paper's
E_ref[(q/pi_ref) R (p/q - 1 - log(p/q))] with q and p scaled to the same mass on D+. Only the first term depends on the
policy, so descending the loss above ascends the bound, and a constant factor on q changes neither. w = r is the
tightest bound, but nearly all of r lies on one episode: its variance is unbearable. w = 1 is SFT. The temperature lies
between, and :func:`effective_sample_size` reads how far.

Nothing here knows what a policy is: its only door is ``log_prob(params, batch)``, log pi of every row of a batch, be
the rows transitions with a Gaussian policy or tokens with a language model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from iwsft_control.configs.importance import ImportanceConfig

LogProb = Callable[[Any, Any], jax.Array]  # (params, batch of B rows) -> (B,)


def loss(log_prob: LogProb, params: Any, batch: Any) -> jax.Array:
    """-mean log pi over the rows of a batch: what every method descends; the batch's distribution is what differs."""
    return -log_prob(params, batch).mean()


def importance_weights(
    config: ImportanceConfig,
    log_ratio: jax.Array,
    counts: jax.Array | None = None,
    temperature: jax.Array | float | None = None,
) -> jax.Array:
    """w(u) of every unit (U,) from its mean log-ratio (U,); all ones where q equals pi_ref.

    Args:
        counts: how often each unit stands in the curated multiset, (U,); 0 for padding. By default once.
        temperature: instead of the configured one, as :func:`temperature_of` finds it.
    """
    temperature = config.temperature if temperature is None else temperature
    if config.relative:
        weights = relative_weights(temperature, log_ratio, counts)
    else:
        weights = jnp.exp(temperature * log_ratio)
    return jnp.clip(weights, config.low, config.high)


def relative_weights(
    temperature: jax.Array | float, log_ratio: jax.Array, counts: jax.Array | None = None
) -> jax.Array:
    """exp(temperature * log_ratio) divided by its mean over the multiset of units (U,): they average one.

    While a policy learns a curated set, its likelihood of all of it rises, and exp(log_ratio) too. That common drift
    says nothing about which unit is better. Divided by the mean it drops out: multiplying all densities of q by a
    constant changes nothing. The bound at the module's head is then scaled by a constant: its maximiser stays.
    """
    counts = jnp.ones_like(log_ratio) if counts is None else counts
    scaled = jnp.where(counts > 0, temperature * log_ratio, -jnp.inf)  # or padding could overflow, and 0 * inf is none
    return jnp.exp(scaled - jax.nn.logsumexp(scaled, b=counts)) * counts.sum()


def temperature_of(config: ImportanceConfig, log_ratio: jax.Array, counts: jax.Array | None = None) -> jax.Array:
    """The configured temperature, or the one that meets the configured effective sample size."""
    if config.effective_sample_size is None:
        return jnp.float32(config.temperature)
    return temperature_for(config.effective_sample_size, log_ratio, counts)


def temperature_for(
    target: float, log_ratio: jax.Array, counts: jax.Array | None = None, largest: float = 1e4
) -> jax.Array:
    """The temperature at which :func:`relative_weights` have an effective sample size of ``target``, by bisection.

    The effective sample size falls from 1 at temperature 0: its logarithm has the slope 2 (m_t - m_2t), where m_t is
    the mean log-ratio under the weights at temperature t and rises with t. So there is one answer. Where even
    ``largest`` leaves the weights too even (all log-ratios are equal, say), it is ``largest``.

    Args:
        target: in (0, 1]; at least the share of units that have the largest log-ratio.
        log_ratio: mean log-ratio of every unit, (U,).
        counts: as in :func:`importance_weights`.
    """

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        weights = relative_weights(jnp.exp(middle), log_ratio, counts)
        too_even = effective_sample_size(weights, counts) > target
        return jnp.where(too_even, middle, low), jnp.where(too_even, high, middle)

    ends = jnp.log(1e-4), jnp.log(jnp.float32(largest))
    return jnp.exp(jax.lax.fori_loop(0, 40, halve, ends)[1])


def unit_means(values: jax.Array, unit_of_row: jax.Array, lengths: jax.Array) -> jax.Array:
    """Mean over each unit's rows: packed values (R,) with their unit's index (R,), unit lengths (U,) -> (U,)."""
    return jax.ops.segment_sum(values, unit_of_row, num_segments=lengths.shape[0]) / lengths


def effective_sample_size(weights: jax.Array, counts: jax.Array | None = None) -> jax.Array:
    """(sum w)^2 / (n sum w^2) in (0, 1]: the share of the curated multiset that the weights (U,) leave."""
    counts = jnp.ones_like(weights) if counts is None else counts
    return (counts * weights).sum() ** 2 / (counts.sum() * (counts * weights**2).sum())


def bound_and_gap(weights: jax.Array, log_ratio: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The bound on log E_{D+}[p/pi_ref] at the module's head and its gap, for weights (U,) of any mean.

    Args:
        log_ratio: log p(u) - log pi_ref(u) of whole units, summed over their rows, (U,).
        counts: as in :func:`importance_weights`.
    """
    share = counts / counts.sum()
    weights = weights / (share * weights).sum()
    log_weights = jnp.where(weights > 0, jnp.log(jnp.where(weights > 0, weights, 1.0)), 0.0)  # 0 log 0 = 0
    bound = (share * weights * (log_ratio - log_weights)).sum()
    return bound, jax.nn.logsumexp(log_ratio, b=share) - bound


QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)  # of the weights, for the log


def weight_figures(
    config: ImportanceConfig, weights: jax.Array, log_ratio: jax.Array, counts: jax.Array
) -> dict[str, jax.Array]:
    """What the log tells of the weights (U,) at a refresh: their quantiles, and the share of units at each clip."""
    total, real = counts.sum(), counts > 0
    return {
        "effective_sample_size": effective_sample_size(weights, counts),
        "mean_log_ratio": (counts * log_ratio).sum() / total,
        "weight_quantiles": jnp.nanquantile(jnp.where(real, weights, jnp.nan), jnp.array(QUANTILES)),
        "share_at_low": (counts * (weights <= config.low)).sum() / total,
        "share_at_high": (counts * (weights >= config.high)).sum() / total,
    }


# --- Whole sequences, packed end to end without padding -----------------------------------------------------------
#
#     L = -(1/B) sum_i w_i (1/T_i) sum_t log pi(a_t|s_t)
#
# for B sequences (trajectories, or answers of a language model) of T_i rows each.


def normalised_weights(
    config: ImportanceConfig, mean_log_ratio: jax.Array, counts: jax.Array | None = None
) -> jax.Array:
    """:func:`importance_weights` of B sequences (B,), divided by their sum, as the released control code does.

    Args:
        counts: how often each sequence stands in the batch, (B,); by default once.
    """
    weights = importance_weights(config, mean_log_ratio, counts)
    return weights / (weights.sum() if counts is None else (counts * weights).sum())


def row_weights(weights: jax.Array, unit_of_row: jax.Array, lengths: jax.Array) -> jax.Array:
    """w_i / (B T_i) of every row (R,) from the weights (B,) and lengths (B,) of the sequences.

    Rows that belong to no sequence carry an index past the last one; their weight is zero.
    """
    return (weights / (lengths * lengths.shape[0])).at[unit_of_row].get(mode="fill", fill_value=0.0)


def token_weights(weights: jax.Array, unit_of_row: jax.Array, lengths: jax.Array) -> jax.Array:
    """w_i / sum_j T_j of every row (R,), arguments as in :func:`row_weights`: a sequence counts by its length.

    This is the mean over all tokens of a batch, however it is split or packed, as language models are trained.
    """
    return row_weights(weights * lengths / lengths.mean(), unit_of_row, lengths)


def sequence_loss(log_prob: LogProb, params: Any, batch: Any, weights: jax.Array) -> jax.Array:
    """-sum_r c_r log pi of packed rows (R,), c from :func:`row_weights` (the loss above) or :func:`token_weights`."""
    return -(weights * log_prob(params, batch)).sum()
