"""The stages of a run: BC, the critic and the methods, each for a group of seeds.

A stage is a pure function of the data, its settings, its seeds and what the stages that it needs have made. Stages
that methods share (BC, the critic) are therefore done once; :mod:`iwsft_control.store` keeps what they made.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iwsft_control.base.errors import UserError
from iwsft_control.base.snapshot import Snapshot
from iwsft_control.benchmark import results
from iwsft_control.benchmark.settings import QUICK_EPISODES, Settings, baseline_config, by_quality
from iwsft_control.datasets import transitions
from iwsft_control.datasets.types import Dataset
from iwsft_control.envs import evaluation
from iwsft_control.learning import curation, loop
from iwsft_control.learning.curation import Values
from iwsft_control.methods import critic, rebrac
from iwsft_control.methods.registry import BASELINES
from iwsft_control.methods.supervised import METHODS, curate
from iwsft_control.networks.policies import greedy

Start = Callable[[str, int], Callable[[int], None]]  # (what, steps) -> advance(steps)


def silent(what: str, steps: int) -> Callable[[int], None]:
    """A :data:`Start` that nobody listens to."""
    return lambda done: None


@dataclasses.dataclass(frozen=True)
class Stage:
    """One piece of work: the critic or a method, for seeds that are trained in one program."""

    method: str
    """"critic" or one of :data:`NAMES`."""
    quality: str | None
    """q or return for a method that curates by quality, else None."""
    seeds: tuple[int, ...]
    settings: Settings

    @property
    def name(self) -> str:
        return self.method if self.quality is None else f"{self.method} by {self.quality}"


def method_stage(method: str, source: str, seeds: tuple[int, ...], settings: Settings, task: str) -> Stage:
    """The stage that ends in the results of ``method`` on a task.

    Args:
        source: q or return; counts where the method curates by quality.
        task: rebrac-tuned takes its settings from there.

    Raises:
        UserError: rebrac-tuned has no settings for the task.
    """
    if method == "rebrac-tuned":
        if task not in rebrac.TUNED:
            raise UserError(f"rebrac-tuned is for --env {', '.join(rebrac.TUNED)}, not for {task}; use rebrac.")
        policy, critic = rebrac.TUNED[task]
        tuned = dataclasses.replace(settings.rebrac, beta_policy=policy, beta_critic=critic)
        settings = dataclasses.replace(settings, rebrac=tuned)
    return Stage(method, source if by_quality(method) else None, seeds, settings)


def needs(stage: Stage) -> dict[str, Stage]:
    """The stages whose artefacts a stage starts from: {"bc": ..., "critic": ...}, each only where it is needed."""
    kind = METHODS.get(stage.method)
    found = {}
    if kind is not None and kind.fine_tunes:
        found["bc"] = dataclasses.replace(stage, method="bc", quality=None)
    if stage.quality == "q":
        found["critic"] = dataclasses.replace(stage, method="critic", quality=None)
    return found


def configuration(stage: Stage) -> dict[str, Any]:
    """The settings that a stage's own work depends on (not those of the stages it needs)."""
    own: dict[str, Any] = {"quick": stage.settings.quick}
    if stage.method in BASELINES:
        return own | dataclasses.asdict(baseline_config(stage.settings, stage.method))
    settings = {k: dataclasses.asdict(getattr(stage.settings, k)) for k in ("policy", "importance", "curation")}
    policy = settings["policy"]
    kind = METHODS.get(stage.method)
    if kind is None:
        return own | dataclasses.asdict(stage.settings.critic)
    fine_tuning = ("fine_tune_steps", "fine_tune_learning_rate", "length_weighted")
    cloning = ("bc_steps", "bc_learning_rate")
    own["policy"] = {k: v for k, v in policy.items() if k not in (cloning if kind.fine_tunes else fine_tuning)}
    if kind.curation != "everything":
        own["curation"] = settings["curation"]
    if kind.importance_weighted:
        own |= {"importance": settings["importance"], "whole_trajectory": stage.settings.whole_trajectory}
    return own


class Artefact(NamedTuple):
    """What a stage made."""

    arrays: dict[str, Any]
    """Nested arrays with a leading seed axis S: policies have "params", the critic "q" and "v" (S, N) and "params"."""
    record: dict[str, Any]
    """What JSON can hold: logs, evaluation returns, diagnostics, seconds, device, versions, commit."""


def compute(
    stage: Stage,
    data: Dataset,
    inputs: Mapping[str, Artefact],
    start: Start,
    threads: int | None = None,
    snapshot: Snapshot | None = None,
) -> Artefact:
    """Do the work of a stage.

    Args:
        data: what it learns from.
        inputs: the artefacts of :func:`needs`, under the same names.
        start: told of every loop before it begins; what it returns is told the steps as they are done.
        threads: of evaluation; all cores by default.
        snapshot: where a baseline's training goes on that a kill has cut short; the other stages take minutes.

    Raises:
        PolicyError: a trained policy answers with something that is not an action.
    """
    if stage.method in BASELINES:
        arrays, record = _baseline(stage, data, start, threads, snapshot or Snapshot())
    else:
        arrays, record = (_critic if stage.method == "critic" else _policy)(stage, data, inputs, start, threads)
    return Artefact(jax.tree.map(np.asarray, arrays), record | results.provenance())


def _critic(stage: Stage, data: Dataset, inputs: Mapping[str, Artefact], start: Start, threads: int | None):
    config, began = stage.settings.critic, time.perf_counter()
    states, logs = loop.train_critics(config, transitions.to_device(data), stage.seeds, start("critic", config.steps))
    each = [jax.tree.map(lambda x, s=s: x[s], states) for s in range(len(stage.seeds))]
    values = [critic.values(config, state, data.observations, data.actions) for state in each]
    q, v = (np.stack(part) for part in zip(*values, strict=True))
    params = {"critic": states.critic, "target": states.target, "value": states.value}
    seconds = {"critic": round(time.perf_counter() - began, 3)}
    return {"q": q, "v": v, "params": params}, {"logs": logs, "seconds": seconds}


def _policy(stage: Stage, data: Dataset, inputs: Mapping[str, Artefact], start: Start, threads: int | None):
    settings, method, began = stage.settings, stage.method, time.perf_counter()
    kind = METHODS[method]
    values: list[Values | None] = [None]
    if "critic" in inputs:
        values = list(zip(inputs["critic"].arrays["q"], inputs["critic"].arrays["v"], strict=True))
    curated, scores = zip(
        *(curate(settings.curation, method, stage.quality, data, each) for each in values), strict=True
    )
    reference = jax.tree.map(jnp.asarray, inputs["bc"].arrays["params"]) if "bc" in inputs else None
    whole = settings.whole_trajectory and kind.importance_weighted
    params, logs = (loop.train_whole_trajectories if whole else loop.train_policies)(
        settings.policy,
        settings.importance,
        method,
        (jnp.asarray(data.observations), jnp.asarray(data.actions)),
        curated,
        stage.seeds,
        reference,
        start(method, settings.policy.fine_tune_steps if kind.fine_tunes else settings.policy.bc_steps),
    )
    trained = time.perf_counter()
    returns = _evaluate(stage, data, params, start, threads)
    diagnostics = []
    for s in range(len(stage.seeds)):
        own, score = curated[s % len(curated)], scores[s % len(scores)]
        sizes = {k: int(getattr(own, k).size) for k in ("entries", "starts", "rows")}
        diagnostics.append({} if score is None else {"curated": sizes, "scores": curation.summary(score)})
    seconds = {method: round(trained - began, 3), f"{method} evaluation": round(time.perf_counter() - trained, 3)}
    record = {"returns": returns, "logs": logs, "diagnostics": diagnostics, "seconds": seconds}
    return {"params": params}, record


def _baseline(stage: Stage, data: Dataset, start: Start, threads: int | None, snapshot: Snapshot):
    method, config = stage.method, baseline_config(stage.settings, stage.method)
    algorithm = BASELINES[method]
    trained, logs = loop.train_baselines(
        algorithm,
        config,
        algorithm.prepare(config, data),
        method,
        stage.seeds,
        start(method, config.steps),
        snapshot=snapshot,
    )
    each = [jax.tree.map(lambda x, s=s: np.asarray(x[s]), trained) for s in range(len(stage.seeds))]
    params = jax.tree.map(lambda *x: np.stack(x), *(algorithm.policy(config, data, own) for own in each))
    training_seconds, middle = snapshot.seconds, time.perf_counter()
    returns = _evaluate(stage, data, params, start, threads)
    seconds = {method: round(training_seconds, 3), f"{method} evaluation": round(time.perf_counter() - middle, 3)}
    diagnostics: list[dict[str, Any]] = [{} for _ in stage.seeds]
    return {"params": params}, {"returns": returns, "logs": logs, "diagnostics": diagnostics, "seconds": seconds}


def _evaluate(stage: Stage, data: Dataset, params: Any, start: Start, threads: int | None) -> list[list[float]]:
    """Episode returns of every seed's policy."""
    episodes = QUICK_EPISODES if stage.settings.quick else evaluation.EPISODES
    advance = start(f"{stage.method} evaluation", episodes * len(stage.seeds))
    returns = []
    for s, seed in enumerate(stage.seeds):
        policy = greedy(jax.tree.map(lambda x, s=s: x[s], params))
        name = f"{stage.name} (seed {seed})"
        found = evaluation.evaluate(policy, data.environment, episodes, name=name, threads=threads, on_lane=advance)
        returns.append(found.tolist())
    return returns
