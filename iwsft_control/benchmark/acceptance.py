"""The accept command's work: the rule by which a reconstruction is chosen, as results/reconstruction/README.md states
it, and the comparison of the data of other levels."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.table import Table

from iwsft_control.base import console, files
from iwsft_control.base.errors import UserError, require
from iwsft_control.benchmark import jobs, processes, results, settings, stages
from iwsft_control.benchmark.jobs import DataSource, Failure, Job
from iwsft_control.benchmark.store import Store
from iwsft_control.datasets import facts, minari_files
from iwsft_control.datasets.facts import PUBLISHED_SCORES
from iwsft_control.envs import tasks
from iwsft_control.envs.tasks import Environment, Task
from iwsft_control.reconstruction import pool
from iwsft_control.reconstruction.pool import Candidate
from iwsft_control.reconstruction.portraits import Portrait

FIRST, SECOND = ("bc", "filtered-bc"), ("iql", "td3-bc")
TOLERANCE = {"bc": 10.0, "filtered-bc": 10.0, "iql": 10.0, "td3-bc": 15.0}
Scores = dict[str, dict[str, dict[int, float]]]  # normalised, by candidate, method and seed
SHIFT, SPREAD, MEAN = 0.3, 0.15, 0.15  # what a good portrait stays below: state shift and spread, deviation of the mean


def portrait_distance(portrait: Portrait, environment: Environment) -> float:
    """How far a portrait is from D4RL's: the mean of state shift, state spread and the mean return's relative
    deviation, each in units of what a good one stays below; infinite where the best episode is not between 80% and 115%
    of D4RL's best."""
    wanted = facts.D4RL_MEDIUM_REPLAY[environment.name]
    if not 0.80 <= portrait.max / wanted.max <= 1.15:
        return math.inf
    low, high = environment.ref_min_score, environment.ref_max_score
    mean = tasks.normalise(portrait.mean, low, high) / tasks.normalise(wanted.mean, low, high)
    assert portrait.state_shift is not None and portrait.state_spread is not None
    return float(np.mean([portrait.state_shift / SHIFT, portrait.state_spread / SPREAD, abs(mean - 1) / MEAN]))


def behaviour_distance(scores: Mapping[str, Mapping[int, float]], task: str) -> float:
    """How far scores (by method and seed) are from the published ones: the mean over methods of the distance
    of the mean score from the published range, in units of the tolerance; at most 1 in each where it is accepted."""
    return float(np.mean([distance(m, mean_score(by_seed), task) for m, by_seed in scores.items()]))


def mean_score(by_seed: Mapping[int, float]) -> float:
    """Of the scores of all seeds."""
    return float(np.mean([*by_seed.values()]))


def distance(method: str, score: Any, task: str) -> float:
    """Distance of a mean score from the published range, in units of the tolerance; infinite for a failed run."""
    low, high = PUBLISHED_SCORES[task][method]
    return math.inf if math.isnan(score) else float(max(low - score, score - high, 0.0) / TOLERANCE[method])


def nearest(candidates: Sequence[Candidate], distances: Mapping[str, float], count: int) -> list[Candidate]:
    """The ``count`` candidates of the smallest distance; ties go to the lower seed."""
    finite = [c for c in candidates if math.isfinite(distances[c.name])]
    return sorted(finite, key=lambda c: (distances[c.name], c.seed))[:count]


def compare(config: Any, task: Task) -> None:
    """Scores of the reference methods on the data of a level other than medium-replay."""
    identity = task.reconstruction_id
    require(
        minari_files.minari_path(identity).exists(),
        f"{identity} is not there; run 'python -m iwsft_control.collect --env {task.name}' first.",
    )
    console.writable(config.out)
    _known(config, task)
    source = DataSource(None, identity)
    scores: Scores = {identity: {}}
    for methods in (FIRST,) if config.only_first else (FIRST, SECOND):
        scores[identity] |= run_methods({source: identity}, methods, config.seeds, config, task)[identity]
    behaviour = {identity: behaviour_distance(scores[identity], task.name)}
    dataset = {"id": identity, "sha256": source.load().sha256}
    write_record(config, task, scores, {"dataset": dataset, "behaviour_distance": _finite(behaviour)}, identity)
    console.console.print(behaviour_table(scores, {}, behaviour, task.name))


def choose(config: Any, task: Task) -> None:
    """The choice among the candidates for a medium-replay reconstruction."""
    environment = task.environment
    everyone = pool.read(config.work, environment.name)
    known = ", ".join(c.name for c in everyone) or "none"
    require(bool(everyone), f"no candidates in {config.work}; make some with collect --seeds 0 1 --work.")
    unknown = sorted(set(config.candidates) - {c.name for c in everyone})
    require(not unknown, f"no candidate {', '.join(unknown)} in {config.work}; there are {known}.")
    console.writable(config.out)
    known_scores = _known(config, task)
    portraits = {c.name: portrait_distance(c.portrait, environment) for c in everyone}
    for each in everyone:
        pool.write(config.out / "pool", each)
    chosen = [c for c in everyone if c.name in config.candidates] or nearest(everyone, portraits, config.first)
    require(bool(chosen), "no candidate's best episode is between 80% and 115% of D4RL's best; make more of them.")
    scores: Scores = {c.name: {} for c in chosen}

    def try_on(tried: Sequence[Candidate], methods: Sequence[str], seeds: Sequence[int]) -> dict[str, float]:
        """Train the methods on some candidates; what is known of all of them now, as a distance."""
        sources = candidate_sources(tried, config, environment)
        for name, found in run_methods(sources, methods, seeds, config, task).items():
            scores[name] |= found
        return {name: behaviour_distance(found, task.name) for name, found in scores.items()}

    def record(behaviour: Mapping[str, float], best: str | None) -> bool:
        others = {name: found for name, found in known_scores.items() if name not in scores}
        distances = {**{name: behaviour_distance(found, task.name) for name, found in others.items()}, **behaviour}
        found = {"portrait_distance": _finite(portraits), "behaviour_distance": _finite(distances), "chosen": best}
        return write_record(config, task, others | scores, found, best)

    behaviour, best = try_on(chosen, FIRST, config.seeds), None
    if not config.only_first:
        complete: dict[str, float] = {}
        for each in nearest(chosen, behaviour, config.second):
            # With perfect scores in the rest it would be this far: one that could not be the nearest is left out.
            if behaviour[each.name] * len(FIRST) / len(TOLERANCE) < min(complete.values(), default=math.inf):
                behaviour = try_on([each], SECOND, config.second_seeds)
                complete[each.name] = behaviour[each.name]
        best = min(complete, key=lambda name: complete[name]) if complete else None
        record(behaviour, best)  # the choice stands, whatever its other seeds will say
        behaviour = try_on([c for c in chosen if c.name == best], SECOND, config.seeds)
    accepted = record(behaviour, best)
    console.console.print(behaviour_table(scores, portraits, behaviour, task.name))
    if best is not None:
        verdict = "accepted: every score is within its tolerance" if accepted else "the nearest, but not accepted"
        console.console.print(f"chosen: {best} ({verdict})")


def _known(config: Any, task: Task) -> Scores:
    """The scores in the record of an earlier call, which the new one will hold as well.

    Raises:
        UserError: the record is damaged, or holds seeds or methods of a candidate that this call leaves out.
    """
    path = config.out / f"{task.name}.json"
    if not path.is_file():
        return {}
    remedy = "delete it, or choose another --out"
    record = files.read_json(path, "accept's record", remedy)
    try:
        scores = {
            name: {m: {int(s): math.nan if x is None else float(x) for s, x in of.items()} for m, of in each.items()}
            for name, each in record["scores"].items()
        }
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); {remedy}.") from error
    methods = {method for each in scores.values() for method in each}
    seeds = {seed for each in scores.values() for of in each.values() for seed in of}
    require(
        seeds <= set(config.seeds) and not (config.only_first and methods & set(SECOND)),
        f"{path} holds more seeds or methods than this would write; choose another --out, or delete it.",
    )
    return scores


def write_record(config: Any, task: Task, scores: Scores, found: Mapping[str, Any], judged: str | None) -> bool:
    """Write what was found; whether the mean score of every method, on the data judged, is within its tolerance."""
    of_judged = {} if judged is None else scores[judged]
    near = all(distance(m, mean_score(s), task.name) <= 1 for m, s in of_judged.items())
    accepted = near and set(of_judged) == set(TOLERANCE)  # two methods alone accept nothing
    record = {
        "task": task.name,
        "scores": {name: {m: _finite(by_seed) for m, by_seed in each.items()} for name, each in scores.items()},
        **found,
        "accepted": accepted,
        "seeds": config.seeds,
        **results.provenance(),
    }
    files.write_json(config.out / f"{task.name}.json", record)
    return accepted


def _finite(values: Mapping[Any, float]) -> dict[Any, float | None]:
    """None for what is not finite: JSON has no word for it."""
    return {k: v if math.isfinite(v) else None for k, v in values.items()}


def behaviour_table(
    scores: Scores,
    portraits: Mapping[str, float],
    behaviour: Mapping[str, float],
    task: str,
) -> Table:
    """Mean scores of every candidate beside the published ones."""
    table = Table("candidate", *TOLERANCE, "portrait", "behaviour", title="mean normalised score; distances")
    published = (PUBLISHED_SCORES[task][method] for method in TOLERANCE)
    ranges = [f"{low:.1f}" if low == high else f"{low:.1f} to {high:.1f}" for low, high in published]
    table.add_row("published", *ranges, "0", "0")
    for name, found in scores.items():
        cells = [f"{mean_score(found[m]):.1f}" if m in found else "-" for m in TOLERANCE]
        distances = (f"{found[name]:.2f}" if name in found else "-" for found in (portraits, behaviour))
        table.add_row(name, *cells, *distances)
    return table


def candidate_sources(candidates: Sequence[Candidate], config: Any, environment: Environment) -> dict[DataSource, str]:
    """Candidates as Minari data sets in the folder of candidates, apart from the user's own data."""
    os.environ["MINARI_DATASETS_PATH"] = str((config.work / "minari").resolve())
    sources: dict[DataSource, str] = {}
    for each in candidates:
        name = f"candidate/{environment.name}/medium-replay-{each.name.replace('.', 'p')}-v0"
        if not minari_files.minari_path(name).exists():
            scores = {"ref_min_score": environment.ref_min_score, "ref_max_score": environment.ref_max_score}
            episodes = pool.load_episodes(config.work, environment, each)
            minari_files.write_minari(name, episodes, environment.env_id, scores)
        source = DataSource(None, name)
        require(
            source.load().sha256 == each.sha256, f"{name} holds another replay; delete it from {config.work}/minari."
        )
        sources[source] = each.name
    return sources


def run_methods(
    sources: Mapping[DataSource, str], methods: Sequence[str], seeds: Sequence[int], config: Any, task: Task
) -> Scores:
    """Normalised scores by name of the data, method and seed; NaN for a run that failed."""
    store, chosen = Store(config.work / "stages"), settings.make()
    wanted = [
        Job(source, stages.method_stage(method, "q", group, chosen, task.name))
        for group in jobs.groups(seeds)
        for source in sources
        for method in methods
    ]
    found: Scores = {name: {m: {} for m in methods} for name in sources.values()}
    with console.progress_bar() as bar:
        line = bar.add_task(", ".join(methods), total=len(wanted))
        workers: jobs.Pool = jobs.InProcessPool(store, lambda *event: None)  # an accelerator is one for all
        if jax.default_backend() == "cpu":
            workers = processes.Processes(store, lambda *event: None, min(config.workers, max(1, len(wanted))))

        def finished(job: Job, failure: Failure | None) -> None:
            bar.advance(line)
            scores = found[sources[job.source]][job.stage.method]
            if failure is not None:  # diverged, say: such a candidate is none
                require(not failure.mistake, failure.error)
                console.console.print(f"{job.name} failed: {failure.error}")
                scores |= dict.fromkeys(job.stage.seeds, math.nan)
                return
            data = job.source.load()
            artefact = store.read(job.stage, data)
            assert artefact is not None
            for seed, returns in zip(job.stage.seeds, artefact.record["returns"], strict=True):
                scores[seed], _ = results.score(np.array(returns), data.ref_min_score, data.ref_max_score)
            console.console.print(f"{job.name}: {', '.join(f'{scores[seed]:.1f}' for seed in job.stage.seeds)}")

        try:
            jobs.execute(wanted, workers, store, lambda job: None, finished)
        finally:
            workers.close()
    return found
