"""Gradient steps per second on one core, as a share of what the core's matrix products allow.

    python experiments/bench/training.py

For every method: steps/s of its compiled loop; the floating-point operations of its matrix products (counted in its
traced program, recomputation included); the limit, which is the measured rate of 256 x 256 float32 products divided by
that count; the share of the limit that is reached. Everything is measured in turns in one process, pinned to one core;
medians over rounds.
Data: random transitions of Hopper's shape. Batch 256 and two layers of 256 for all, then what the methods really use.

    git clone https://github.com/EmptyJackson/unifloral && pip install distrax
    python experiments/bench/training.py --unifloral unifloral --methods iql td3-bc rebrac

measures unifloral's own loops in the same turns (ReBRAC's with our batch); last come the ratios of the same method and
size. unifloral takes TD3+BC's and ReBRAC's two critic steps on one batch, which spares it every second pass of the
target policy. So ReBRAC is measured with a step of the policy after every critic step too, where both do the same work.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

if hasattr(os, "sched_setaffinity"):  # before JAX starts its threads
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import numpy as np
import shared
import unifloral
from rich.table import Table

from iwsft_control.base import bounds, console
from iwsft_control.base.bounds import POSITIVE
from iwsft_control.benchmark import settings
from iwsft_control.datasets.types import Dataset
from iwsft_control.learning import loop
from iwsft_control.learning.method import Inputs, Method
from iwsft_control.methods import registry

# By method and size: how to take n steps, and the operations of one.
Cases = dict[tuple[str, str], tuple[Callable[[int], Any], float]]

PRODUCTS = 2000  # 256 x 256 products of one measurement of the limit


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What to measure."""

    methods: tuple[str, ...] = ("bc", "critic", "iql", "td3-bc", "awac", "rebrac", "cql")
    """Methods that train on the data alone."""
    seconds: Annotated[float, POSITIVE] = 2.0
    """Of one measurement."""
    rounds: Annotated[int, POSITIVE] = 5
    transitions: Annotated[int, POSITIVE] = 400_000
    """Rows of the random data."""
    unifloral: Path | None = None
    """A clone of unifloral, to measure its loops too."""


def product_flops(jaxpr: Any, branch_share: float) -> float:
    """Operations of the matrix products in a traced program, what is the same twice counted once (compilers merge it).

    Args:
        branch_share: of the costlier branch of every cond.
    """
    total = 0.0
    names: dict[Any, Any] = {}
    seen: dict[Any, Any] = {}
    for equation in jaxpr.eqns:
        inputs = tuple(str(v.val) if hasattr(v, "val") else names.get(v, v) for v in equation.invars)
        signature = (equation.primitive.name, inputs, str(equation.params))
        if signature in seen:
            names |= zip(equation.outvars, (names.get(v, v) for v in seen[signature]), strict=True)
            continue
        seen[signature] = equation.outvars
        params = equation.params
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
        elif equation.primitive.name == "cond":
            total += branch_share * max(product_flops(b.jaxpr, branch_share) for b in params["branches"])
        elif equation.primitive.name == "scan":
            total += params["length"] * product_flops(params["jaxpr"].jaxpr, branch_share)
        else:
            inner = [p for p in params.values() if hasattr(p, "jaxpr") or hasattr(p, "eqns")]
            total += sum(product_flops(getattr(p, "jaxpr", p), branch_share) for p in inner)
    return total


@jax.jit
def _products(x: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, PRODUCTS, lambda i, y: (y @ x) * 0.06, x)


def limit_rate() -> float:
    """Floating-point operations per second of 256 x 256 products."""
    x = jax.random.normal(jax.random.key(0), (256, 256))
    _products(x).block_until_ready()
    began = time.perf_counter()
    _products(x).block_until_ready()
    return PRODUCTS * 2 * 256**3 / (time.perf_counter() - began)


def method_case(method: Method, config: Any, data: Dataset) -> tuple[Callable[[int], Any], float]:
    """How to take n steps of a method in its loop, and the floating-point operations of one."""
    prepared = method.prepare(config, Inputs(data, {}, None, (0,)))
    carry, packed, keys = loop.begin(method, config, prepared, (0,))
    state, own = jax.tree.map(lambda x: x[0], (carry[0], packed.own))
    batch = method.sample(config, packed._replace(own=own), keys[0])
    traced = jax.make_jaxpr(lambda s, b, k: method.update(config, s, b, k))(state, batch, keys[0])
    flops = product_flops(traced.jaxpr, 1 / getattr(config, "policy_delay", 1))
    return lambda n: loop._call(method, config, n, jax.tree.map(jnp.copy, carry), packed, keys), flops


def add_peer(cases: Cases, clone: Path, method: unifloral.Method, label: str, data: Any, **settings: float) -> None:
    """The same for unifloral's loop; its operations are those of a critic's step."""
    peer = unifloral.load(clone, method, data, batch_size=256, **settings)
    traced = jax.make_jaxpr(peer.step)(peer.carry, None)
    cases[f"{method}, unifloral", label] = (
        partial(peer.run, carry=peer.carry),
        product_flops(traced.jaxpr, 1.0) / peer.critic_steps,
    )


def measure(run: Callable[[int], Any], steps: int) -> float:
    """Steps per second."""
    began = time.perf_counter()
    jax.block_until_ready(run(steps))
    return steps / (time.perf_counter() - began)


def _resized(config: Any) -> Any:
    """A configuration with batches of 256 and two layers of 256."""
    known = hasattr(getattr(config, "policy", config), "hidden")  # a transformer has other sizes
    return shared.resized(config, hidden=(256, 256), batch_size=256) if known else config


def main(config: BenchConfig) -> None:
    """Measure in turns, print one row per method and size."""
    bounds.check(config, "")
    shared.check_methods(config.methods, made=())
    shared.head()
    data = shared.random_data(config.transitions)
    defaults = settings.make()
    cases: Cases = {}
    for found in map(registry.get, config.methods):
        own = defaults.of(found)
        for sized in dict.fromkeys((_resized(own), own)):
            of = getattr(sized, "policy", sized)  # bc's sizes are in its policy's group
            hidden = of.hidden if hasattr(of, "hidden") else (of.width,) * of.layers  # a transformer's
            label = f"{of.batch_size:,}, {len(hidden)} x {hidden[0]}"
            cases[found.name, label] = method_case(found, sized, data)
    if config.unifloral is not None:
        rebrac = registry.get("rebrac")
        next_actions = rebrac.prepare(defaults["rebrac"], Inputs(data, {}, None, (0,))).shared
        for peer in [m for m in typing.get_args(unifloral.Method) if m in config.methods]:
            label = "256, 3 x 256" if peer == "rebrac" else "256, 2 x 256"
            add_peer(cases, config.unifloral, peer, label, next_actions)
        if "rebrac" in config.methods:
            label = "256, 3 x 256, policy every step"
            cases["rebrac", label] = method_case(rebrac, dataclasses.replace(defaults["rebrac"], policy_delay=1), data)
            add_peer(cases, config.unifloral, "rebrac", label, next_actions, num_critic_updates_per_step=1)
    counts: dict[tuple[str, str], int] = {}
    rates: dict[tuple[str, str], list[tuple[float, float]]] = {name: [] for name in cases}
    limits = []
    for name, (run, flops) in cases.items():  # compile, then choose how many steps fill the time
        expected = max(20, int(config.seconds * 0.6 * limit_rate() / flops / 20) * 20)
        jax.block_until_ready(run(expected))
        counts[name] = expected
    for _ in range(config.rounds):
        limits.append(limit_rate())
        for name, (run, _) in cases.items():
            before = limit_rate()
            rates[name].append((measure(run, counts[name]), (before + limit_rate()) / 2))
    table = Table("method", "batch, layers", "GFLOP a step", "steps/s", "limit", "share")
    for name, (_, flops) in cases.items():
        speed, limit = np.array(rates[name]).T
        share = np.median(speed * flops / limit)
        table.add_row(
            *name, f"{flops / 1e9:.3f}", f"{np.median(speed):.0f}", f"{np.median(limit) / flops:.0f}", f"{share:.2f}"
        )
    console.console.print(f"256 x 256 products: {np.median(limits) / 1e9:.0f} GFLOP/s on one core")
    console.console.print(table)
    for (method, size), values in rates.items():
        if (peers := rates.get((f"{method}, unifloral", size))) is not None:
            ratios = [own[0] / peer[0] for own, peer in zip(values, peers, strict=True)]
            console.console.print(
                f"{method} ({size}): {np.median(ratios):.2f} times unifloral's critic steps a second "
                f"({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds)"
            )


if __name__ == "__main__":
    console.command(lambda: BenchConfig, main, "python experiments/bench/training.py", __doc__)
