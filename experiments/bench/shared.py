"""What the benches share: cores, the line at their head, random data and stand-ins, timed training, fresh processes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import jax
import numpy as np

from iwsft_control.base import children, console
from iwsft_control.base.errors import require
from iwsft_control.benchmark import results
from iwsft_control.datasets.types import Dataset
from iwsft_control.learning import loop
from iwsft_control.learning.loop import Trained
from iwsft_control.learning.method import Artefact, Method, Prepared
from iwsft_control.methods import registry

STAND_INS = ("bc", "critic")  # stages that stand_ins has something for


def pin(cores: int = 1) -> int:
    """Keep this process, and those that it starts, on the last ``cores`` cores that it may use; how many these are.

    Before JAX starts its threads. Where the system cannot do that, nothing happens.
    """
    if not hasattr(os, "sched_setaffinity"):
        return os.cpu_count() or 1
    mine = sorted(os.sched_getaffinity(0))[-cores:]
    os.sched_setaffinity(0, mine)
    return len(mine)


def head() -> None:
    """Print the processor, how many of its cores are used, and how busy it was before: figures mean little without."""
    busy = f", load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""
    console.console.print(f"{results.processor()}, {children.usable_cores()} of them used{busy}")


def random_data(n: int, length: int = 200) -> Dataset:
    """Random transitions of Hopper's shape, in episodes of ``length``; every second one terminates."""
    rng = np.random.default_rng(0)
    observations = rng.standard_normal((n + 1, 11), np.float32)
    actions = rng.standard_normal((n, 3), np.float32)
    return Dataset(
        id="bench/hopper/random-v0",
        sha256="",
        origin="Minari",
        environment="d4rl/Hopper-v2",
        ref_min_score=0.0,
        ref_max_score=1.0,
        observations=observations[:-1],
        actions=np.tanh(actions, out=actions),
        rewards=rng.random(n, np.float32),
        next_observations=observations[1:].copy(),
        terminations=np.arange(n) % (2 * length) == length - 1,
        starts=np.append(np.arange(0, n, length), n),
    )


def resized(config: Any, steps: int | None = None, **sizes: Any) -> Any:
    """A method's configuration with other ``hidden`` layers, ``batch_size`` or steps, wherever it keeps them."""
    if hasattr(config, "policy"):  # in the policy's group
        counts = {} if steps is None else {"bc_steps": steps, "fine_tune_steps": steps}
        return dataclasses.replace(config, policy=dataclasses.replace(config.policy, **sizes, **counts))
    return dataclasses.replace(config, **sizes, **({} if steps is None else {"steps": steps}))


def check_methods(names: Sequence[str], made: Collection[str] = STAND_INS) -> None:
    """Refuse unknown, repeated and no methods; the critics are methods here.

    Args:
        made: the stages that a method may start from.

    Raises:
        UserError: in these cases; or a method starts from another stage.
    """
    for method in map(registry.get, names):
        other = [name for name in _dependencies(method) if name not in made]
        sentence = f"{method.name} starts from {' and '.join(other)}, which this bench does not make; "
        require(not other, f"{sentence}choose other --methods.")
    require(len(set(names)) == len(names) > 0, "--methods must name one or more different methods.")


def _dependencies(method: Method) -> Sequence[str]:
    return method.dependencies("q" if method.by_quality else None)


def stand_ins(method: Method, config: Any, data: Dataset, seeds: int) -> dict[str, Artefact]:
    """In place of what the stages made that a method starts from: BC's fresh parameters, random Q and V."""
    dims, rng = (data.observations.shape[1], data.actions.shape[1]), np.random.default_rng(0)
    found = {}
    for name in _dependencies(method):
        if name == "bc":
            keys = jax.random.split(jax.random.key(0), seeds)
            policies = jax.vmap(lambda key: method.create(config, *dims, key).policy)(keys)
            found[name] = Artefact({"params": jax.tree.map(np.asarray, policies)}, {})
        else:
            assert name == "critic", name
            shape = seeds, len(data.rewards)
            found[name] = Artefact({k: rng.standard_normal(shape, np.float32) for k in ("q", "v")}, {})
    return found


def train(method: Method, config: Any, data: Prepared, seeds: tuple[int, ...] = (0,)) -> tuple[Trained, list[float]]:
    """Train, and the seconds of a step in every compiled call but the first, which compiles.

    Args:
        config: its steps are whole calls, at least two.
    """
    times: list[float] = []
    trained = loop.train(method, config, data, seeds, lambda done, values: times.append(time.perf_counter()))
    return trained, (np.diff(times)[1:] / method.call_steps(config)).tolist()


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives in a fresh process of its own: nothing that ran before is in its memory or its caches.

    Raises:
        MemoryError: the process was killed, which is how the system answers when memory runs out.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise MemoryError("the process was killed") from error
