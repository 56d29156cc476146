"""Answers of a model to many problems: greedy or sampled, one compiled scan with a key-value cache."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iwsft_control.sequences.model import ModelConfig, Transformer, empty_cache
from iwsft_control.sequences.task import EOS, PAD

BATCH = 1024  # problems of one compiled call


@partial(jax.jit, static_argnums=(0, 3, 5))
def decode(
    config: ModelConfig, params: Any, prompts: jax.Array, length: int, key: jax.Array, greedy: bool = False
) -> jax.Array:
    """Answers (B, length) to prompts (B, P) at temperature 1, or the likeliest token each time; PAD after EOS."""
    batch, prompt_length = prompts.shape
    model = Transformer(config)
    cache = empty_cache(config, batch, prompt_length + length)
    logits, cache = model.apply(params, prompts, 0, cache)

    def step(carry: Any, place_and_key: Any) -> Any:
        logits, cache, ended = carry
        place, key = place_and_key
        token = logits.argmax(axis=-1) if greedy else jax.random.categorical(key, logits)
        token = jnp.where(ended, PAD, token).astype(jnp.int32)
        outputs, cache = model.apply(params, token[:, None], place, cache)
        return (outputs[:, 0], cache, ended | (token == EOS)), token

    places = prompt_length + jnp.arange(length)
    start = logits[:, -1], cache, jnp.zeros(batch, bool)
    _, tokens = jax.lax.scan(step, start, (places, jax.random.split(key, length)))
    return tokens.T


def answers(
    config: ModelConfig, params: Any, prompts: np.ndarray, length: int, key: jax.Array, greedy: bool = False
) -> np.ndarray:
    """:func:`decode` of any number of prompts (N, P), in equal compiled calls: (N, length)."""
    padded = np.pad(prompts, ((0, -len(prompts) % BATCH), (0, 0)), mode="edge")
    found = [
        decode(config, params, jnp.asarray(chunk), length, jax.random.fold_in(key, i), greedy)
        for i, chunk in enumerate(padded.reshape(-1, BATCH, prompts.shape[1]))
    ]
    return np.concatenate(found)[: len(prompts)]
