"""The work of a stage: prepare, train, evaluate, keep."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from iwsft_control.base.errors import RunError
from iwsft_control.benchmark import results, stages
from iwsft_control.benchmark.stages import Stage
from iwsft_control.benchmark.store import Store
from iwsft_control.datasets.types import Dataset
from iwsft_control.envs import evaluation
from iwsft_control.learning import loop
from iwsft_control.learning.method import Artefact, Inputs
from iwsft_control.methods import registry
from iwsft_control.networks import policies
from iwsft_control.networks.policies import Exported

QUICK_EPISODES = 5
WATCHED_STATES = 256  # of the data, evenly spread

Advance = Callable[[int, Mapping[str, Any]], None]  # (steps just done, what they logged)
Report = Callable[[str, int], Advance]  # (what, its steps) -> advance


def silent(what: str, steps: int) -> Advance:
    """Reports nothing."""
    return lambda done, values: None


def perform(stage: Stage, data: Dataset, store: Store, report: Report = silent, threads: int | None = None) -> Artefact:
    """The artefact of a stage: the one that the store keeps, or a new one.

    Args:
        data: what it learns from.
        report: told of every loop before it begins; what it returns is told the steps as they are done, and their logs;
            first those that were done before a kill, if only 0.
        threads: of evaluation; all cores by default.

    Raises:
        PolicyError: a trained policy answers with something that is not an action.
        DivergedError: a parameter or a loss is no longer finite.
        DeadPolicyError: a trained policy answers every state with one action.
    """
    # First, since a damaged one is made again even where what came of it is there.
    inputs = {name: perform(each, data, store, report, threads) for name, each in stages.dependencies(stage).items()}
    found = store.read(stage, data)
    if found is not None:
        return found
    with store.alone(stage, data):
        found = store.read(stage, data)  # made by another process while this one waited
        if found is not None:
            return found
        config, snapshot = stage.config, store.snapshot(stage, data)
        method = registry.get(stage.method)
        method = method.variant(config) or method
        prepared = method.prepare(config, Inputs(data, inputs, stage.quality, stage.seeds))
        advance = report(stage.method, config.steps)
        watch = None if method.export is None else _Watch(stage, method.export, data)
        trained = loop.train(method, config, prepared, stage.seeds, advance, checkpoint=watch, snapshot=snapshot)
        if watch is not None:
            watch.require_life(trained)
        record: dict[str, Any] = {"logs": trained.logs, "seconds": {stage.method: round(snapshot.seconds, 3)}}
        if method.export is not None:
            exported = export(method.export, config, data, trained.policy)
            arrays = {"params": jax.tree.map(lambda *x: np.stack(x), *(each.params for each in exported))}
            began = time.perf_counter()
            record |= {
                "returns": evaluate(stage, data, exported, report, threads),
                "diagnostics": list(prepared.diagnostics) or [{} for _ in stage.seeds],
                "policy": {"kind": exported[0].kind, "layout": dict(exported[0].layout)},
            }
            record["seconds"][f"{stage.method} evaluation"] = round(time.perf_counter() - began, 3)
        else:
            assert method.values is not None
            arrays = method.values(config, data, trained.state)
            record["seconds"][stage.method] = round(snapshot.seconds, 3)
        made = Artefact(jax.tree.map(np.asarray, arrays), record | results.provenance())
        store.write(stage, data, made)
        snapshot.remove()
    return made


def watched_states(data: Dataset) -> np.ndarray | None:
    """States (N, O) in which a policy that lives acts differently; None where the data's own actions are constant."""
    rows = np.linspace(0, len(data.observations) - 1, min(WATCHED_STATES, len(data.observations))).astype(int)
    applies = len(rows) > 1 and (np.ptp(data.actions, axis=0) > policies.CONSTANT).any()
    return data.observations[rows] if applies else None


class DeadPolicyError(RunError):
    """A trained policy answers every state with one action."""


class _Watch:
    """Tells policies that have died: that answer every state with one and the same action, where the data do not.

    Units of a network that never fire again, or a tanh that is saturated everywhere, leave nothing but a constant. It
    is finite, and would be scored. Policies that learned are not that: even where one action is best in every state,
    or the data hold no other, what networks learn differs from state to state by 0.04 of [-1, 1] and more
    (``python experiments/promises.py constant``), and :data:`~iwsft_control.networks.policies.CONSTANT` is 1e-6. Only
    data whose own actions are constant may rightly lead to such a policy; those are left alone.
    """

    def __init__(self, stage: Stage, export: Callable[..., Exported], data: Dataset):
        self.stage, self.export, self.data, self.states = stage, export, data, watched_states(data)
        self.first: int | None = None  # when they were first looked at
        self.alive: list[int | None] = [None] * len(stage.seeds)  # when every seed's policy was last seen to live
        self.constant: list[np.ndarray | None] = [None] * len(stage.seeds)

    def __call__(self, step: int, averaged: Any, last: Any) -> None:
        """Look at the policies that would be evaluated if training ended here."""
        if self.states is None:
            return
        self.first = step if self.first is None else self.first
        for s, each in enumerate(export(self.export, self.stage.config, self.data, averaged)):
            self.constant[s] = policies.constant_action(policies.make(each), self.states)
            self.alive[s] = step if self.constant[s] is None else self.alive[s]

    def require_life(self, trained: loop.Trained) -> None:
        """Refuse what would be scored.

        Raises:
            DeadPolicyError: a policy has died; the sentence says since when, and the last good values.
        """
        # What is scored itself: a training that was killed at its end has no call left in which it was seen.
        self(trained.logs[0]["step"][-1], trained.policy, None)
        for seed, action, alive, log in zip(self.stage.seeds, self.constant, self.alive, trained.logs, strict=True):
            if action is not None:
                good = f"none: it was so at step {self.first:,} already"
                if alive is not None:
                    row = log["step"].index(alive)
                    values = [f"{k} {v[row]:.4g}" for k, v in log.items() if k != "step" and isinstance(v[row], float)]
                    good = f"after step {alive:,}: {', '.join(values)}"
                raise DeadPolicyError(
                    f"{self.stage.name} (seed {seed}) ended at step {log['step'][-1]:,} in a policy that answers every "
                    f"state with one action, {action.tolist()}. Last good values {good}. Try a smaller learning rate."
                )


def export(export: Callable[..., Exported], config: object, data: Dataset, params: object) -> list[Exported]:
    """The policy of every seed from parameters (S, ...)."""
    seeds = jax.tree.leaves(params)[0].shape[0]
    return [export(config, data, jax.tree.map(lambda x, s=s: np.asarray(x[s]), params)) for s in range(seeds)]


def evaluate(
    stage: Stage, data: Dataset, exported: list[Exported], report: Report, threads: int | None
) -> list[list[float]]:
    """Episode returns of every seed's policy."""
    episodes = QUICK_EPISODES if stage.settings.quick else evaluation.EPISODES
    advance = report(f"{stage.method} evaluation", episodes * len(stage.seeds))
    advance(0, {})
    returns = []

    def played(episodes: int) -> None:
        advance(episodes, {})

    for seed, each in zip(stage.seeds, exported, strict=True):
        name = f"{stage.name} (seed {seed})"
        policy = policies.make(each)
        found = evaluation.evaluate(policy, data.environment, episodes, name=name, threads=threads, on_lane=played)
        returns.append(found.tolist())
    return returns
