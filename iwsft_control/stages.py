"""The stages of a run: BC, the critic and the methods, each for a group of seeds.

A stage is a pure function of the data, its settings, its seeds and what the stages that it needs have made. Stages
that methods share (BC, the critic) are therefore done once; :mod:`iwsft_control.store` keeps what they made.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iwsft_control import critic, curation, evaluation, quality, results, training
from iwsft_control.critic import CriticConfig
from iwsft_control.dataset import Dataset
from iwsft_control.files import require
from iwsft_control.networks import greedy
from iwsft_control.objectives import METHODS, ImportanceConfig
from iwsft_control.training import PolicyConfig

QUICK_EPISODES = 5

Start = Callable[[str, int], Callable[[int], None]]  # (what, steps) -> advance(steps)


@dataclasses.dataclass(frozen=True)
class CurationConfig:
    """Which units fine-tuning sees, and how often."""

    filter_percentile: float = 90
    """filtered-bc, sft, iw-sft: episodes above this percentile of return."""
    q_unit: Literal["episode", "transition"] = "episode"
    """--quality q: whole episodes by their mean learned Q, or single transitions by their learned advantage."""
    episode_strata: tuple[float, ...] = (90, 95, 98)
    """Episodes are taken once for each of these percentiles of quality that they exceed (the paper's)."""
    transition_strata: tuple[float, ...] = (70, 85, 95)
    """Likewise for transitions."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything but data, method and seed that decides a run's numbers."""

    quick: bool = False
    """A trial of a few steps and 5 episodes, marked as such in its result; within a minute."""
    whole_trajectory: bool = False
    """iw-sft and iw-sft-q (--quality return) exactly as in the paper's released code; slow, for comparison."""
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    critic: CriticConfig = dataclasses.field(default_factory=CriticConfig)
    importance: ImportanceConfig = dataclasses.field(default_factory=ImportanceConfig)
    curation: CurationConfig = dataclasses.field(default_factory=CurationConfig)


def validate(settings: Settings) -> Settings:
    """The settings with ``quick`` applied.

    Raises:
        UserError: a value that cannot be meant; the sentence names it and what would do.
    """
    p, c, i = settings.policy, settings.critic, settings.importance
    positive: dict[str, float] = {
        "policy.bc-steps": p.bc_steps,
        "policy.fine-tune-steps": p.fine_tune_steps,
        "policy.batch-size": p.batch_size,
        "policy.bc-learning-rate": p.bc_learning_rate,
        "policy.fine-tune-learning-rate": p.fine_tune_learning_rate,
        "critic.steps": c.steps,
        "critic.batch-size": c.batch_size,
        "critic.learning-rate": c.learning_rate,
        "importance.refresh-every": i.refresh_every,
        "importance.high": i.high,
    }
    for name, value in positive.items():
        require(value > 0, f"--{name} must be positive, not {value}.")
    for name, value in {
        "policy.average-decay": p.average_decay,
        "critic.expectile": c.expectile,
        "critic.discount": c.discount,
        "critic.target-rate": c.target_rate,
        "importance.lag": i.lag,
    }.items():
        require(0 <= value <= 1, f"--{name} must lie between 0 and 1, not {value}.")
    require(0 <= i.low <= i.high, "--importance.low must lie between 0 and --importance.high.")
    percentiles = (
        settings.curation.filter_percentile,
        *settings.curation.episode_strata,
        *settings.curation.transition_strata,
    )
    require(all(0 <= x < 100 for x in percentiles), "--curation percentiles must lie in [0, 100).")
    require(
        bool(settings.curation.episode_strata and settings.curation.transition_strata),
        "--curation strata must not be empty.",
    )
    require(all(w > 0 for w in (*p.hidden, *c.hidden)), "hidden widths must be positive.")
    if not settings.quick:
        return settings
    return dataclasses.replace(
        settings,
        policy=dataclasses.replace(p, bc_steps=min(p.bc_steps, 500), fine_tune_steps=min(p.fine_tune_steps, 200)),
        critic=dataclasses.replace(c, steps=min(c.steps, 1000)),
    )


@dataclasses.dataclass(frozen=True)
class Stage:
    """One piece of work: the critic or a method, for seeds that are trained in one program."""

    method: str
    """"critic" or one of :data:`METHODS`."""
    quality: str | None
    """q or return for a method that curates by quality, else None."""
    seeds: tuple[int, ...]
    settings: Settings

    @property
    def name(self) -> str:
        return self.method if self.quality is None else f"{self.method} by {self.quality}"


def method_stage(method: str, source: str, seeds: tuple[int, ...], settings: Settings) -> Stage:
    """The stage that ends in the results of ``method``; ``source`` (q or return) counts where it curates by quality."""
    return Stage(method, source if METHODS[method].curation == "quality" else None, seeds, settings)


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
    settings = {k: dataclasses.asdict(getattr(stage.settings, k)) for k in ("policy", "importance", "curation")}
    policy = settings["policy"]
    own: dict[str, Any] = {"quick": stage.settings.quick}
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


Values = tuple[np.ndarray, np.ndarray]  # the learned Q and V of every transition


def curate(
    config: CurationConfig, method: str, source: str | None, data: Dataset, values: Values | None
) -> tuple[training.Curated, np.ndarray | None]:
    """The multiset of units that ``method`` samples from, and the scores behind it (None where all data count)."""
    kind = METHODS[method].curation
    transitions, episodes = quality.transition_units(data), quality.episode_units(data)
    if kind == "everything":
        return training.curate(curation.everything(len(data.rewards)), transitions), None
    scores = quality.episode_returns(data)
    if kind == "quality":
        if source == "return":
            return training.curate(curation.nested_strata(scores, config.episode_strata), episodes), scores
        assert values is not None
        if config.q_unit == "transition":
            scores = quality.transition_advantages(*values)
            return training.curate(curation.nested_strata(scores, config.transition_strata), transitions), scores
        scores = quality.episode_values(data, values[0])
        return training.curate(curation.nested_strata(scores, config.episode_strata), episodes), scores
    best = curation.above(scores, config.filter_percentile)
    if kind == "filtered":  # transitions of the best episodes, uniformly: long episodes count by their length
        rows = np.flatnonzero(np.isin(data.episode_of, best))
        return training.curate(rows, transitions), scores
    return training.curate(best, episodes), scores


def compute(
    stage: Stage, data: Dataset, inputs: Mapping[str, Artefact], start: Start, threads: int | None = None
) -> Artefact:
    """Do the work of a stage.

    Args:
        data: what it learns from.
        inputs: the artefacts of :func:`needs`, under the same names.
        start: told of every loop before it begins; what it returns is told the steps as they are done.
        threads: of evaluation; all cores by default.

    Raises:
        PolicyError: a trained policy answers with something that is not an action.
    """
    work = _critic if stage.method == "critic" else _policy
    arrays, record = work(stage, data, inputs, start, threads)
    origin = {
        "device": results.device(),
        "versions": results.versions(),
        "git_commit": results.git_commit(),
    }
    return Artefact(jax.tree.map(np.asarray, arrays), record | origin)


def _critic(stage: Stage, data: Dataset, inputs: Mapping[str, Artefact], start: Start, threads: int | None):
    config, began = stage.settings.critic, time.perf_counter()
    states, logs = training.train_critics(config, critic.to_device(data), stage.seeds, start("critic", config.steps))
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
    params, logs = (training.train_whole_trajectories if whole else training.train_policies)(
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
    episodes = QUICK_EPISODES if settings.quick else evaluation.EPISODES
    advance = start(f"{method} evaluation", episodes * len(stage.seeds))
    returns, diagnostics = [], []
    for s, seed in enumerate(stage.seeds):
        policy = greedy(jax.tree.map(lambda x, s=s: x[s], params))
        name = f"{stage.name} (seed {seed})"
        returns.append(
            evaluation.evaluate(
                policy, data.environment, episodes, name=name, threads=threads, on_lane=advance
            ).tolist()
        )
        own, score = curated[s % len(curated)], scores[s % len(scores)]
        sizes = {k: int(getattr(own, k).size) for k in ("entries", "starts", "rows")}
        diagnostics.append({} if score is None else {"curated": sizes, "scores": quality.summary(score)})
    seconds = {method: round(trained - began, 3), f"{method} evaluation": round(time.perf_counter() - trained, 3)}
    record = {"returns": returns, "logs": logs, "diagnostics": diagnostics, "seconds": seconds}
    return {"params": params}, record
