"""A learned Q of prefixes, the judge of quality of ``sft-q`` and ``iw-sft-q`` (``--qualities q``).

    L = -(1/N) sum_i sum_t [R_i log Q(x, y_<=t) + (1 - R_i) log(1 - Q(x, y_<=t))]

over pi_ref's answers, the wrong ones too: Q is the probability that an answer which begins like this one gets the
reward when pi_ref goes on (a Monte-Carlo return without discount). The network is pi_ref's with a head of one output,
and begins at pi_ref's parameters. An answer's quality is the mean of Q over its tokens, as an episode's on the control
side is the mean of its learned Q.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from iwsft_control.learning import objectives
from iwsft_control.learning.defaults import uniform
from iwsft_control.learning.gradient import descend
from iwsft_control.learning.method import Inputs, Method, Prepared
from iwsft_control.sequences.methods import CALL_STEPS, SequenceConfig
from iwsft_control.sequences.model import Transformer, layout

CHUNK = 1024  # answers of one pass


class CriticConfig(SequenceConfig):
    """The configuration, with the critic's steps."""

    @property
    def steps(self) -> int:
        return self.critic.steps


class Judged(NamedTuple):
    """Prompts (N, P), answers (N, R) and their rewards (N,)."""

    observations: Any
    actions: Any
    rewards: Any


class State(NamedTuple):
    """Parameters and the optimiser's state; there is no policy."""

    critic: Any
    optimiser: Any


def logits(config: SequenceConfig, params: Any, batch: Any) -> jax.Array:
    """logit Q of the prefixes that end with each token of the answers, (B, R)."""
    tokens = jnp.concatenate([batch.observations, batch.actions], axis=1).astype(jnp.int32)
    outputs, _ = Transformer(config.model, outputs=1).apply(params, tokens)
    return outputs[:, batch.observations.shape[1] :, 0]


def loss(config: SequenceConfig, params: Any, batch: Judged) -> jax.Array:
    """The cross-entropy above."""
    of = layout(batch.actions)
    found = logits(config, params, batch)
    each = optax.sigmoid_binary_cross_entropy(found, jnp.broadcast_to(batch.rewards[:, None], found.shape))
    return (each.reshape(-1) * objectives.token_weights(jnp.ones(of.lengths.shape), *of)).sum()


def _optimiser(config: SequenceConfig) -> optax.GradientTransformation:
    return optax.adam(config.critic.learning_rate)


def prepare(config: SequenceConfig, inputs: Inputs) -> Prepared:
    """pi_ref's answers with their rewards."""
    data = inputs.data
    start = jax.tree.map(lambda x: jnp.asarray(x)[None], inputs.artefacts["bc"].arrays["params"])
    return Prepared(Judged(*map(jnp.asarray, (data.observations, data.actions, data.rewards))), start)


def create(config: SequenceConfig, prompt_length: int, answer_length: int, key: jax.Array) -> State:
    """Fresh parameters from ``key``."""
    tokens = jnp.zeros((1, prompt_length + answer_length), jnp.int32)
    params = Transformer(config.model, outputs=1).init(key, tokens)
    return State(params, _optimiser(config).init(params))


def from_bc(config: SequenceConfig, state: State, data: Prepared) -> State:
    """All but the head begins at bc's parameters."""
    head = {"head": state.critic["params"]["head"]}
    return state._replace(critic={"params": data.own["params"] | head})


def update(config: SequenceConfig, state: State, batch: Judged, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
    """One gradient step."""
    params, opt, value = descend(partial(loss, config), _optimiser(config), state.critic, state.optimiser, batch)
    return State(params, opt), {"critic_loss": value}


@partial(jax.jit, static_argnums=0)
def _means(config: SequenceConfig, params: Any, batch: Judged) -> jax.Array:
    of = layout(batch.actions)
    return objectives.unit_means(jax.nn.sigmoid(logits(config, params, batch)).reshape(-1), *of)


def scores(config: SequenceConfig, params: Any, data: Any) -> np.ndarray:
    """The mean of Q over the tokens of every answer of a data set, (N,)."""
    rows = Judged(data.observations, data.actions, data.rewards)
    pieces = range(0, len(data.rewards), CHUNK)
    return np.concatenate([_means(config, params, Judged(*(x[i : i + CHUNK] for x in rows))) for i in pieces])


METHOD = Method(
    name="critic",
    config=CriticConfig,
    prepare=prepare,
    create=create,
    sample=uniform,
    update=update,
    random_update=False,
    warm_start=from_bc,
    call_steps=lambda config: CALL_STEPS,
    export=None,
    option=None,
)
