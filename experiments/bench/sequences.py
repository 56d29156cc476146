"""Tokens per second of the sequence model: training, and decoding with the key-value cache.

    python experiments/bench/sequences.py

On one core, then on all that there are, each in a process of its own; medians of compiled calls after the first, which
compiles. Training: tokens of prompts and answers, padding left out, that a gradient step passes, times steps per
second; iw-sft passes them twice, once for its weights. Decoding: the greedy answers of a batch of 1,024 problems, every
place of an answer counted, since a place after the end costs as much.
"""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import shared
from rich.table import Table

from iwsft_control.base import bounds, children, console
from iwsft_control.base.bounds import POSITIVE
from iwsft_control.base.errors import require
from iwsft_control.datasets.types import Dataset
from iwsft_control.learning.method import Artefact, Inputs
from iwsft_control.sequences import generate, runs, task
from iwsft_control.sequences.methods import METHODS
from iwsft_control.sequences.model import ModelConfig, Transformer, check_length
from iwsft_control.sequences.task import PAD, Task

DECODING = "decoding, greedy"


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What to measure."""

    task: str = "modchain-8"
    """Task: modchain-4, -8, -12 or -16."""
    methods: tuple[str, ...] = ("bc", "iw-sft")
    """Methods whose training is measured: bc, sft or a form of iw-sft."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    corpus: Annotated[int, POSITIVE] = 8192
    """Answers that are trained on."""
    rounds: Annotated[int, POSITIVE] = 20
    """Compiled calls after the first: 50 steps of training, or the answers of a batch."""


def training(config: BenchConfig, of: Task, name: str, params: dict) -> float:
    """Tokens per second of a method's training, from ``params`` where it starts from bc."""
    method = METHODS[name]
    own = method.config(model=config.model)
    own = shared.resized(own, (1 + config.rounds) * method.call_steps(own))
    traces = task.corpus(of, config.corpus)
    data: Dataset = runs.as_dataset(of, of.name, traces, task.verify(*traces).reward)
    samples = {
        "log_reference": np.full(traces.answers.shape, -1.0, np.float32),
        "thinks": traces.answers[:, 0] == task.THINK,
    }
    artefacts = {"samples": Artefact(samples, {}), "bc": Artefact({"params": params}, {})}
    _, taken = shared.train(method, own, method.prepare(own, Inputs(data, artefacts, None, (0,))))
    tokens = of.prompt_length + (traces.answers != PAD).sum(axis=1).mean()
    return own.batch_size * float(tokens / np.median(taken))


def decoding(config: BenchConfig, of: Task, params: dict) -> float:
    """Tokens per second of greedy answers."""
    prompts = jnp.asarray(task.corpus(of, generate.BATCH).prompts)
    taken = []
    for _ in range(1 + config.rounds):
        began = time.perf_counter()
        answers = generate.decode(config.model, params, prompts, of.answer_length, jax.random.key(0), True)
        answers.block_until_ready()
        taken.append(time.perf_counter() - began)
    return answers.size / float(np.median(taken[1:]))


def measure(config: BenchConfig, cores: int) -> dict[str, float]:
    """Tokens per second of everything on so many cores; in a process of its own, before JAX has its threads."""
    shared.pin(cores)
    of = task.parse(config.task)
    params = Transformer(config.model).init(jax.random.key(0), jnp.zeros((1, of.length), jnp.int32))
    params = jax.tree.map(np.asarray, params)
    found = {f"training, {name}": training(config, of, name, params) for name in config.methods}
    return found | {DECODING: decoding(config, of, params)}


def main(config: BenchConfig) -> None:
    """Measure, print a row for everything."""
    bounds.check(config, "")
    bounds.check(config.model, "model")
    check_length(config.model, task.parse(config.task))
    runs.check_methods(config.methods)
    graded = [name for name in config.methods if METHODS[name].by_quality]
    require(not graded, f"{', '.join(graded)} differ from others in their data alone; choose other --methods.")
    shared.head()
    sizes = sorted({1, children.usable_cores()})
    found = {}
    for cores in sizes:
        os.environ["PJRT_NPROC"] = str(cores)  # XLA's threads, inherited
        found[cores] = shared.alone(measure, config, cores)
    table = Table("tokens/s", *(f"{n} core{'s' if n > 1 else ''}" for n in sizes), *(["speed-up"] if sizes[1:] else []))
    for name, one in found[1].items():
        rates = [found[cores][name] for cores in sizes]
        table.add_row(name, *(f"{x:,.0f}" for x in rates), *([f"{rates[-1] / one:.2f}"] if sizes[1:] else []))
    console.console.print(table)


if __name__ == "__main__":
    console.command(lambda: BenchConfig, main, "python experiments/bench/sequences.py", __doc__)
