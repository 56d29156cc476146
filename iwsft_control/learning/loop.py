"""The training loop, one for all methods: compiled calls of ``lax.scan``, for several seeds at once.

Every array that is learned has a leading seed axis S, and a call is one ``vmap`` over it: on an accelerator all seeds
are one program, on a CPU S is one. A step is ``sample`` and ``update`` of the method; around it the loop keeps the
exponential average of the policy's parameters, logs, snapshots (a killed training goes on, bit for bit), progress, and
stops a training that diverges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from iwsft_control.base.errors import RunError, require
from iwsft_control.base.snapshot import Snapshot
from iwsft_control.datasets.transitions import Table
from iwsft_control.learning.method import Method, Prepared

Progress = Callable[[int, Mapping[str, Any]], None]  # steps just done, and what they logged


class DivergedError(RunError):
    """A parameter or a loss is no longer a finite number."""


class Trained(NamedTuple):
    """What a training ends with."""

    state: Any
    """(S, ...)"""
    policy: Any
    """The exponential average of the policy's parameters (S, ...); () for what has no policy."""
    logs: list[dict[str, Any]]
    """For every seed {"step": [...], "loss": [...], ...}, one entry per compiled call."""


def train(
    method: Method,
    config: Any,
    data: Prepared,
    seeds: Sequence[int],
    progress: Progress = lambda steps, values: None,
    *,
    checkpoint: Callable[[int, Any, Any], None] | None = None,
    snapshot: Snapshot | None = None,
) -> Trained:
    """Train a method for every seed.

    Args:
        data: what ``method.prepare`` made.
        progress: told the steps as they are done, and the entry of the log that they made.
        checkpoint: told the steps done and given the policy's averaged and its last parameters (S, ...) after every
            compiled call.
        snapshot: where the training goes on that a kill has cut short.

    Raises:
        DivergedError: a parameter or a loss is no longer finite.
    """
    carry, data, loop_keys = begin(method, config, data, seeds)
    snapshot = snapshot or Snapshot()
    carry, record = snapshot.load(carry)
    log: list[dict[str, Any]] = record.get("log", [])
    done = log[-1]["step"] if log else 0
    progress(done, {})
    carry = jax.tree.map(jnp.asarray, carry)
    each = method.call_steps(config)
    for first in range(0, config.steps, each):
        count = min(each, config.steps - first)  # equal but for the last: at most two programs are compiled
        if first < done:
            continue
        carry, values, finite = _call(method, config, count, carry, data, _fold(loop_keys, first))
        entry = {"step": first + count, **{k: np.asarray(v).tolist() for k, v in values.items()}}
        _check_finite(method, seeds, np.asarray(finite), entry, log)
        log.append(entry)
        progress(count, entry)
        if checkpoint is not None:
            # Copies: the next call takes the buffers.
            checkpoint(first + count, *jax.tree.map(np.array, (carry[1], _acting(carry[0]))))
        snapshot.save(carry, {"log": log})
    return Trained(carry[0], carry[1], _per_seed(log, len(seeds)))


def begin(method: Method, config: Any, data: Prepared, seeds: Sequence[int]) -> tuple[Any, Prepared, jax.Array]:
    """What the loop starts from: (states and averaged policies (S, ...), data as a table, keys (S,)).

    Raises:
        UserError: the method's functions do not give what its record says.
    """
    require(
        isinstance(data, Prepared) and {"observations", "actions"} <= set(getattr(data.shared, "_fields", ())),
        f"prepare of {method.name} must give Prepared(a NamedTuple with observations and actions).",
    )
    keys = jax.vmap(jax.random.split)(seed_keys(method, seeds))
    create_keys, loop_keys = keys[:, 0], keys[:, 1]
    dims = data.shared.observations.shape[1], data.shared.actions.shape[1]
    data = Prepared(Table.of(data.shared), data.own)
    states = jax.vmap(lambda key: method.create(config, *dims, key))(create_keys)
    states = jax.vmap(lambda state, own: method.warm_start(config, state, Prepared(data.shared, own)))(states, data.own)
    require(
        not method.has_policy or hasattr(states, "policy"),
        f"the state that create of {method.name} gives has no field policy; name the parameters that act so.",
    )
    return jax.tree.map(jnp.copy, (states, _acting(states))), data, loop_keys  # one buffer cannot be donated twice


def seed_keys(method: Method, seeds: Sequence[int]) -> jax.Array:
    """One key per seed, (S,), of the method's own stream of random numbers."""
    return jnp.stack([jax.random.fold_in(jax.random.key(s), method.random_stream) for s in seeds])


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _call(method: Method, config: Any, steps: int, carry: Any, data: Prepared, keys: jax.Array):
    """``steps`` steps for every seed: the carry, mean values (S, ...) for the log, and whether all is finite (S,)."""

    def one_seed(carry: Any, own: Any, key: jax.Array):
        current, report = method.refresh(config, carry[0], Prepared(data.shared, own))

        def step(carry: Any, key: jax.Array):
            state, average = carry
            sample_key, update_key = jax.random.split(key) if method.random_update else (key, key)
            batch = method.sample(config, current, sample_key)
            state, values = method.update(config, state, batch, update_key)
            require(
                isinstance(values, dict) and bool(values) and all(jnp.ndim(v) == 0 for v in values.values()),
                f"update of {method.name} must give its new state and a dict of numbers to log, as {{'loss': loss}}.",
            )
            if hasattr(state, "policy"):
                average = optax.incremental_update(state.policy, average, 1 - config.average_decay)
            return (state, average), values

        carry, values = jax.lax.scan(step, carry, jax.random.split(key, steps))
        means = {k: (jnp.nanmean if k in method.sparse_logs else jnp.mean)(v) for k, v in values.items()}
        shown = [v for k, v in means.items() if k not in method.sparse_logs]
        finite = [jnp.isfinite(x).all() for x in (*jax.tree.leaves(carry), *shown)]
        return carry, means | report, jnp.stack(finite).all()

    return over_seeds(one_seed, carry, data.own, keys)


def over_seeds(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function`` for every entry of the leading seed axis: a ``vmap``, or a plain call where there is one seed.

    (A batched product of batch one runs at less than half the speed of a plain one on a CPU.)
    """
    if jax.tree.leaves(arguments)[0].shape[0] > 1:
        return jax.vmap(function)(*arguments)
    result = function(*jax.tree.map(lambda x: x[0], arguments))
    return jax.tree.map(lambda x: x[None], result)


def _acting(state: Any) -> Any:
    return getattr(state, "policy", ())


@jax.jit
def _fold(keys: jax.Array, step: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)


def _check_finite(
    method: Method, seeds: Sequence[int], finite: np.ndarray, entry: dict[str, Any], log: Sequence[dict[str, Any]]
) -> None:
    if finite.all():
        return
    where = int(np.argmin(finite))
    last = _per_seed(log[-1:], len(seeds))[where] if log else {}
    scalars = [f"{k} {v[0]:.4g}" for k, v in last.items() if k != "step" and isinstance(v[0], float)]
    known = f"after step {log[-1]['step']:,}: {', '.join(scalars)}" if log else "none: it was in the first steps"
    raise DivergedError(
        f"{method.name} (seed {seeds[where]}) diverged by step {entry['step']:,}: a parameter or a loss is not finite. "
        f"Last good values {known}. Try a smaller learning rate."
    )


def _per_seed(log: Sequence[dict[str, Any]], seeds: int) -> list[dict[str, Any]]:
    """A log of (S, ...) values as one dict of lists per seed: {"step": [...], "loss": [...], ...}.

    What is not a number (of a policy that did not move) is None, since JSON has no word for it.
    """
    names = log[0].keys() if log else ()
    columns = {k: [np.asarray(row[k]) for row in log] for k in names}

    def values(x: np.ndarray) -> Any:
        if x.ndim:
            return [values(each) for each in x]
        return x.item() if np.isfinite(x) else None

    return [{k: [values(v[s] if v.ndim else v) for v in column] for k, column in columns.items()} for s in range(seeds)]
