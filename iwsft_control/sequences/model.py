"""A small causal transformer: log-probabilities of answers, and the same layers with a key-value cache.

Decoder only, layer normalisation before attention and MLP, learned positions, GELU, an output layer of its own: with
the default sizes 106,143 parameters for a vocabulary of 31.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from iwsft_control.base.bounds import POSITIVE
from iwsft_control.base.errors import require
from iwsft_control.networks.transformer import block
from iwsft_control.sequences.task import PAD, VOCABULARY, Task

Cache = tuple[tuple[jax.Array, jax.Array], ...]  # of every layer keys and values, (B, L, heads, width / heads) each


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of the transformer."""

    width: Annotated[int, POSITIVE] = 64
    layers: Annotated[int, POSITIVE] = 2
    heads: Annotated[int, POSITIVE] = 4
    context: Annotated[int, POSITIVE] = 32
    """Longest sequence in tokens, prompt and answer."""

    def problem(self, option: str) -> str | None:
        """What no single field tells."""
        return None if self.width % self.heads == 0 else f"--{option}.width must be a multiple of --{option}.heads."


def check_length(config: ModelConfig, task: Task) -> None:
    """Refuse a task whose sequences are longer than the model.

    Raises:
        UserError: so it is.
    """
    require(
        task.length <= config.context,
        f"{task.name} has sequences of {task.length} tokens, the model holds {config.context}; "
        f"say --model.context {task.length}, or choose a shorter task.",
    )


class Transformer(nn.Module):
    """Tokens (B, T) at places ``start``, ... -> outputs (B, T, outputs) and the cache with these tokens in it."""

    config: ModelConfig
    outputs: int = VOCABULARY

    @nn.compact
    def __call__(self, tokens: jax.Array, start: Any = 0, cache: Cache | None = None) -> tuple[jax.Array, Cache]:
        width = self.config.width
        places = self.param("places", nn.initializers.normal(0.02), (self.config.context, width))
        x = nn.Embed(VOCABULARY, width, embedding_init=nn.initializers.normal(0.02))(tokens)
        x = x + jax.lax.dynamic_slice_in_dim(places, start, tokens.shape[1])
        caches = []
        for layer in range(self.config.layers):
            x, kept = block(x, self.config.heads, nn.gelu, start=start, cache=cache[layer] if cache else None)
            caches.append(kept)
        return nn.Dense(self.outputs, name="head")(nn.LayerNorm()(x)), tuple(caches)


def empty_cache(config: ModelConfig, batch: int, length: int) -> Cache:
    """A cache for ``length`` tokens of ``batch`` sequences."""
    shape = batch, length, config.heads, config.width // config.heads
    return tuple((jnp.zeros(shape), jnp.zeros(shape)) for _ in range(config.layers))


class Layout(NamedTuple):
    """The tokens of B padded answers (B, R) as rows, in the terms of :mod:`iwsft_control.learning.objectives`."""

    unit_of_row: jax.Array  # (B R,) the answer that a token belongs to; of padding B, past the last one
    lengths: jax.Array  # (B,)


def layout(answers: jax.Array) -> Layout:
    """Which of the tokens of answers (B, R) count, and for which answer."""
    real = answers != PAD
    unit = jnp.where(real, jnp.arange(len(answers))[:, None], len(answers))
    return Layout(unit.reshape(-1), real.sum(axis=1))


def answer_outputs(model: Transformer, params: Any, prompts: jax.Array, answers: jax.Array) -> jax.Array:
    """What the model says before every token of the answers: (B, P), (B, R) -> (B, R, outputs)."""
    tokens = jnp.concatenate([prompts, answers], axis=1).astype(jnp.int32)
    return model.apply(params, tokens[:, :-1])[0][:, prompts.shape[1] - 1 :]


def log_prob(config: ModelConfig, params: Any, batch: Any) -> jax.Array:
    """log pi of every token of the answers, given its prompt and the tokens before it: the objectives' only door.

    Args:
        batch: ``observations`` (B, P) are the prompts, ``actions`` (B, R) the answers; tokens, as floats too.

    Returns:
        (B R,), an answer's tokens side by side. Prompts have no row, so no loss; the rows of padding hold what nobody
        reads, since :func:`layout` gives them to no answer.
    """
    logits = answer_outputs(Transformer(config), params, batch.observations, batch.actions)
    chosen = batch.actions.astype(jnp.int32)[..., None]
    return jnp.take_along_axis(jax.nn.log_softmax(logits), chosen, axis=-1).reshape(-1)
