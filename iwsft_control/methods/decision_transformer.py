"""Decision Transformer: Chen et al., "Decision Transformer: Reinforcement Learning via Sequence Modeling", NeurIPS.

    policy  E[(pi(R_{t-K+1}, s_{t-K+1}, a_{t-K+1}, ..., R_t, s_t) - a_t)^2],  R_t = r_t + r_{t+1} + ...    section 3
    acting  R_0 is the target return, R_{t+1} = R_t - r_t                                              algorithm 1

A causal transformer reads the last K steps, three tokens each (return-to-go, state, action), to which a learned
embedding of the episode's timestep is added; no critic, no bootstrap. Segments of K steps begin at any row alike, so an
episode is drawn in proportion to its length; they end with their episode, and what is missing counts for nothing.

Sizes and optimiser are those of the paper's table for Gym (arXiv 2106.01345, appendix A) and of the authors' code
(https://github.com/kzl/decision-transformer, gym/experiment.py): K 20, 3 layers, 1 head, width 128, ReLU, dropout 0.1
(on embeddings, attention and what a layer adds), layer normalisation on embeddings, tanh on actions, returns divided by
1,000, AdamW with learning rate 1e-4, weight decay 1e-4 on all parameters, gradients clipped at 0.25, batches of 64
segments, normalised observations. Target returns are the paper's: Hopper 3,600, HalfCheetah 6,000, Walker2d 5,000 (the
code plays a second one for each: 1,800, 12,000, 2,500).

Deviations: 20,000 steps (authors: 100,000, nine hours of one core); the learning rate rises in the first tenth of them,
as in the code's 10,000 of 100,000 (paper: 1e5). Padding stands behind a segment while learning, where causality hides
it (authors: in front, masked). 1e-3 instead of 1e-6 is added to standard deviations, as for TD3+BC. Flax's
initialisation, but for the timesteps' embeddings (N(0, 1), as the code's). Elsewhere than in those three environments,
and where the best episode is not within a factor of two of the target (other rewards, poor data), the target is the
best episode's return. The last layer computes states' tokens alone, which changes nothing: actions
are read from them.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from iwsft_control.configs.decision_transformer import CARD, DecisionTransformerConfig
from iwsft_control.datasets.types import Dataset
from iwsft_control.learning.gradient import descend
from iwsft_control.learning.method import Inputs, Method, Prepared
from iwsft_control.methods.td3_bc import normalisation
from iwsft_control.networks.decision_transformer import DecisionTransformer, History, empty
from iwsft_control.networks.policies import Exported

TARGETS = {"d4rl/Hopper-v2": 3600.0, "d4rl/HalfCheetah-v2": 6000.0, "d4rl/Walker2d-v2": 5000.0}
CALL_STEPS = 100  # of a compiled call: a step takes a third of a second on one core


class Steps(NamedTuple):
    """Rows: (N, O) normalised, (N, A), (N,) returns-to-go divided by their scale, (N,) steps of the episode before."""

    observations: Any
    actions: Any
    returns: Any
    timesteps: Any


class Segments(NamedTuple):
    """A batch: histories of B segments, and which of their steps there are (B, K)."""

    history: History
    real: Any


class DTState(NamedTuple):
    """The policy and its optimiser's state."""

    policy: Any
    optimiser: Any


def returns_to_go(data: Dataset) -> np.ndarray:
    """R_t = r_t + r_{t+1} + ... to the end of the episode, undiscounted, of every row, (N,) float64."""
    summed = np.cumsum(data.rewards, dtype=np.float64)
    return np.repeat(summed[data.starts[1:] - 1], data.lengths) - summed + data.rewards


def timesteps(data: Dataset) -> np.ndarray:
    """Steps since the episode began, of every row, (N,)."""
    return np.arange(data.starts[-1]) - np.repeat(data.starts[:-1], data.lengths)


def target_return(config: DecisionTransformerConfig, data: Dataset) -> float:
    """The return that is asked for in evaluation: the option's, the paper's, or the best episode's.

    The paper's is meant for the environment's own rewards, and for data that come near it: it holds where the best
    episode is within a factor of two of it.
    """
    if config.target_return is not None:
        return config.target_return
    best = float(data.returns.max())
    paper = TARGETS.get(data.env_id, best)
    return paper if paper / 2 <= best <= 2 * paper else best


def prepare(config: DecisionTransformerConfig, inputs: Inputs) -> Prepared:
    """Normalised observations, actions, scaled returns-to-go and timesteps of all rows."""
    data = inputs.data
    mean, std = normalisation(data)
    columns = (data.observations - mean) / std, data.actions, returns_to_go(data) / config.return_scale, timesteps(data)
    shared = Steps(*(jnp.asarray(x, jnp.float32) for x in columns))
    return Prepared(shared, diagnostics=[{"target_return": target_return(config, data)}] * len(inputs.seeds))


def network(config: DecisionTransformerConfig, action_dim: int) -> DecisionTransformer:
    """The network of a configuration."""
    sizes = config.timesteps, config.width, config.layers, config.heads
    return DecisionTransformer(action_dim, *sizes, dropout=config.dropout)


def optimiser(config: DecisionTransformerConfig) -> optax.GradientTransformation:
    """AdamW with clipped gradients; the learning rate rises linearly, then stays."""
    rising = max(1, round(config.warmup * config.steps))

    def rate(step: Any) -> Any:
        return config.learning_rate * jnp.minimum(1.0, (step + 1) / rising)

    clip = optax.clip_by_global_norm(config.gradient_clip)
    return optax.flatten(optax.chain(clip, optax.adamw(rate, weight_decay=config.weight_decay)))


def create(config: DecisionTransformerConfig, observation_dim: int, action_dim: int, key: jax.Array) -> DTState:
    """Fresh parameters from ``key``."""
    policy = network(config, action_dim).init(key, empty(1, 1, observation_dim, action_dim))
    return DTState(policy, optimiser(config).init(policy))


def sample(config: DecisionTransformerConfig, data: Prepared, key: jax.Array) -> Segments:
    """Segments that begin at rows drawn uniformly and end after K steps or with their episode."""
    first = jax.random.randint(key, (config.batch_size, 1), 0, len(data.shared))
    place = jnp.arange(config.context)
    rows: Steps = data.shared.rows(jnp.minimum(first + place, len(data.shared) - 1).reshape(-1))
    rows = jax.tree.map(lambda x: x.reshape(config.batch_size, config.context, *x.shape[1:]), rows)
    expected = rows.timesteps[:, :1] + place  # another episode's are smaller; behind the last row none is
    real = (rows.timesteps == expected) & (first + place < len(data.shared))
    history = History(rows.returns, rows.observations, rows.actions, expected.astype(jnp.int32))
    return Segments(history, real.astype(jnp.float32))


def policy_loss(config: DecisionTransformerConfig, policy: Any, batch: Segments, key: jax.Array) -> jax.Array:
    """E[(pi(history) - a)^2], the mean over the steps that there are and over actions' dimensions."""
    actions = batch.history.actions
    found = network(config, actions.shape[-1]).apply(policy, batch.history, rngs={"dropout": key})
    return (batch.real * ((found - actions) ** 2).mean(axis=-1)).sum() / batch.real.sum()


def update(
    config: DecisionTransformerConfig, state: DTState, batch: Segments, key: jax.Array
) -> tuple[DTState, dict[str, jax.Array]]:
    """One step of the policy; ``key`` draws what is dropped."""
    loss = partial(policy_loss, config)
    policy, own, value = descend(loss, optimiser(config), state.policy, state.optimiser, batch, key)
    return DTState(policy, own), {"policy_loss": value}


def export(config: DecisionTransformerConfig, data: Dataset, params: Any) -> Exported:
    """The network, what normalises its observations, and the return that is asked of it."""
    mean, std = normalisation(data)
    layout = {"heads": config.heads, "context": config.context, "return_scale": config.return_scale}
    layout["target_return"] = target_return(config, data)
    return Exported({**params, "normalisation": {"mean": mean, "std": std}}, "decision-transformer", layout)


def trial(config: DecisionTransformerConfig) -> DecisionTransformerConfig:
    """A configuration for a trial of seconds: a step costs a hundred of other methods'."""
    return dataclasses.replace(config, steps=min(config.steps, 30))


METHOD = Method(
    **vars(CARD),
    prepare=prepare,
    create=create,
    sample=sample,
    update=update,
    export=export,
    call_steps=lambda config: CALL_STEPS,
    quick=trial,
)
