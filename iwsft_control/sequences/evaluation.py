"""What a model does on held-out problems: pass@1 sampled and greedy, by mode of answering, and how far from pi_ref."""

from __future__ import annotations

import dataclasses
import zlib
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iwsft_control.base.bounds import POSITIVE
from iwsft_control.sequences import generate, task
from iwsft_control.sequences.model import ModelConfig, Transformer, answer_outputs


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What pass@1 is measured on."""

    problems: Annotated[int, POSITIVE] = 1000
    """Held-out problems, the same for every run."""
    samples: Annotated[int, POSITIVE] = 4
    """Answers to each, sampled at temperature 1; beside them one greedy answer."""


class Evaluation(NamedTuple):
    """Of one model."""

    rewards: np.ndarray
    """(problems,) share of the sampled answers to each that are right: its pass@1."""
    figures: dict[str, float | None]
    """pass@1 in percent, greedy too; shares, lengths and KL of the sampled answers; None where there is nothing to
    average (no answer thinks, say)."""


def evaluate(
    model: ModelConfig,
    params: Any,
    reference: Any,
    config: EvaluationConfig,
    prompts: np.ndarray,
    length: int,
    seed: int,
) -> Evaluation:
    """Answer held-out problems.

    Args:
        reference: pi_ref's parameters.
        prompts: (problems, P).
        length: of the longest answer.
        seed: of the run, which decides what is sampled: for all of its methods alike.
    """
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"evaluation"))
    asked = np.repeat(prompts, config.samples, axis=0)
    given = generate.answers(model, params, asked, length, key)
    found = task.verify(asked, given)
    greedy = task.verify(prompts, generate.answers(model, params, prompts, length, key, greedy=True))
    thinks = found.thinks
    figures = {
        "pass_at_1": 100 * _mean(found.reward),
        "pass_at_1_greedy": 100 * _mean(greedy.reward),
        "think_share": _mean(thinks),
        "think_share_greedy": _mean(greedy.thinks),
        "success_think": _mean(found.reward[thinks]),
        "success_direct": _mean(found.reward[~thinks]),
        "steps_right": _mean(found.steps_right[thinks]),
        "well_formed": _mean(found.well_formed),
        "length": _mean(task.lengths(given)),
        "kl_to_reference": _mean(divergences(model, params, reference, asked, given)),
    }
    known = {name: value if np.isfinite(value) else None for name, value in figures.items()}
    return Evaluation(found.reward.reshape(-1, config.samples).mean(axis=1), known)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def divergences(
    model: ModelConfig, params: Any, reference: Any, prompts: np.ndarray, answers: np.ndarray
) -> np.ndarray:
    """sum_t KL(pi(.|x, y_<t) || pi_ref(.|x, y_<t)) in nats along answers (N, R) that pi gave: (N,).

    Its mean estimates KL(pi || pi_ref) of whole answers, with less noise than their log-ratios have.
    """
    pieces = range(0, len(prompts), generate.BATCH)
    parts = [
        _divergences(model, params, reference, prompts[i : i + generate.BATCH], answers[i : i + generate.BATCH])
        for i in pieces
    ]
    return np.concatenate(parts)


@partial(jax.jit, static_argnums=0)
def _divergences(model: ModelConfig, params: Any, reference: Any, prompts: jax.Array, answers: jax.Array) -> jax.Array:
    ours, theirs = (
        jax.nn.log_softmax(answer_outputs(Transformer(model), each, prompts, answers)) for each in (params, reference)
    )
    each = (jnp.exp(ours) * (ours - theirs)).sum(axis=-1)
    return jnp.where(answers != task.PAD, each, 0.0).sum(axis=1)
