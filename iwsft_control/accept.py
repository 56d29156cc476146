"""``python -m iwsft_control.accept``: which candidate for a reconstruction behaves like D4RL's data?

    python -m iwsft_control.collect --env hopper-medium-replay --seeds 0 1 2 --work pool
    python -m iwsft_control.accept --env hopper-medium-replay --work pool

Reference methods whose D4RL scores are public and that are not this project's own (BC, 10%BC, IQL, TD3+BC) are trained
on the candidates and compared with their published scores, by the rule in results/reconstruction/README.md: the
portraits choose candidates for BC and 10%BC, those choose candidates for IQL and TD3+BC, all four choose one, which
gets all seeds of IQL and TD3+BC. Kill it and start it again: finished runs are kept.

The data of other levels come from the chosen replay's run, so there is nothing to choose: the same methods are compared
on what ``python -m iwsft_control.collect --env hopper-medium`` wrote.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from iwsft_control.base import console, files
from iwsft_control.base.errors import require
from iwsft_control.benchmark import checks, jobs, processes, results, settings, stages
from iwsft_control.benchmark.jobs import DataSource, Failure, Job
from iwsft_control.benchmark.store import Store
from iwsft_control.datasets import facts, minari_files
from iwsft_control.envs import tasks
from iwsft_control.envs.tasks import Environment, Task
from iwsft_control.reconstruction import pool
from iwsft_control.reconstruction.pool import Candidate
from iwsft_control.reconstruction.portraits import Portrait

FIRST, SECOND = ("bc", "filtered-bc"), ("iql", "td3-bc")
TOLERANCE = {"bc": 10.0, "filtered-bc": 10.0, "iql": 10.0, "td3-bc": 15.0}
# Published on D4RL's own v2 data, medium-replay: the papers' figure and, where it is another, CORL's of the last
# checkpoint. CORL's 10%BC on HalfCheetah is left out: its loader cuts trajectories wrongly. Other levels: IQL's table.
PUBLISHED = {
    task: dict(zip(TOLERANCE, ranges, strict=True))
    for task, ranges in {
        "hopper-medium-replay": ((18.1, 29.8), (70.4, 75.9), (94.7, 94.7), (60.9, 60.9)),
        "halfcheetah-medium-replay": ((35.7, 36.6), (40.6, 40.6), (44.2, 44.2), (44.6, 44.6)),
        "walker2d-medium-replay": ((21.8, 26.0), (54.4, 62.5), (73.9, 73.9), (81.8, 81.8)),
        "hopper-medium": ((52.9, 52.9), (56.9, 56.9), (66.3, 66.3), (59.3, 59.3)),
        "halfcheetah-medium": ((42.6, 42.6), (42.5, 42.5), (47.4, 47.4), (48.3, 48.3)),
        "walker2d-medium": ((75.3, 75.3), (75.0, 75.0), (78.3, 78.3), (83.7, 83.7)),
        "hopper-medium-expert": ((52.5, 52.5), (110.9, 110.9), (91.5, 91.5), (98.0, 98.0)),
        "halfcheetah-medium-expert": ((55.2, 55.2), (92.9, 92.9), (86.7, 86.7), (90.7, 90.7)),
        "walker2d-medium-expert": ((107.5, 107.5), (109.0, 109.0), (109.6, 109.6), (110.1, 110.1)),
    }.items()
}
Scores = dict[str, dict[str, dict[int, float]]]  # normalised, by candidate, method and seed
SHIFT, SPREAD, MEAN = 0.3, 0.15, 0.15  # what a good portrait stays below: state shift and spread, deviation of the mean


@dataclasses.dataclass(frozen=True)
class AcceptConfig:
    """Which candidates, and how far."""

    env: str
    """Task: {hopper,halfcheetah,walker2d}-{medium-replay,medium,medium-expert}."""
    work: Path
    """Folder of the candidates, as python -m iwsft_control.collect --seeds makes it, and of finished stages."""
    candidates: tuple[str, ...] = ()
    """Names (seed0-u1, ...) to try instead of those that the rule chooses."""
    seeds: tuple[int, ...] = (200, 201, 202)
    """Seeds of the reference methods: neither those of tuning (100 and up) nor those of tables (0 to 9)."""
    first: int = 4
    """Candidates that BC and 10%BC are trained on."""
    second: int = 2
    """Candidates that IQL and TD3+BC are trained on at most: one that could not be the nearest any more is left out."""
    second_seeds: tuple[int, ...] = (200,)
    """Seeds of IQL and TD3+BC, which take most of the time, among which one is chosen; that one gets all seeds."""
    only_first: bool = False
    """Stop after BC and 10%BC."""
    out: Path = Path("results/reconstruction")
    """Folder of the portraits, scores and the choice."""
    workers: int = os.cpu_count() or 1


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
    low, high = PUBLISHED[task][method]
    return math.inf if math.isnan(score) else float(max(low - score, score - high, 0.0) / TOLERANCE[method])


def nearest(candidates: Sequence[Candidate], distances: Mapping[str, float], count: int) -> list[Candidate]:
    """The ``count`` candidates of the smallest distance; ties go to the lower seed."""
    finite = [c for c in candidates if math.isfinite(distances[c.name])]
    return sorted(finite, key=lambda c: (distances[c.name], c.seed))[:count]


def main(config: AcceptConfig) -> None:
    """Choose by portraits, then by BC and 10%BC, then by all four; or compare the data of another level."""
    task = tasks.parse_task(config.env)
    require(task.name in PUBLISHED, f"--env must be one of {', '.join(PUBLISHED)}.")
    checks.check_seeds(config.seeds)
    if task.level == "medium-replay":
        choose(config, task)
    else:
        compare(config, task)


def compare(config: AcceptConfig, task: Task) -> None:
    """Scores of the reference methods on the data of a level other than medium-replay."""
    identity = task.reconstruction_id
    require(
        minari_files.minari_path(identity).exists(),
        f"{identity} is not there; run 'python -m iwsft_control.collect --env {task.name}' first.",
    )
    console.writable(config.out)
    source = DataSource(None, identity)
    scores: Scores = {identity: {}}
    for methods in (FIRST,) if config.only_first else (FIRST, SECOND):
        scores[identity] |= run_methods({source: identity}, methods, config.seeds, config, task)[identity]
    behaviour = {identity: behaviour_distance(scores[identity], task.name)}
    dataset = {"id": identity, "sha256": source.load().sha256}
    write_record(config, task, scores, {"dataset": dataset, "behaviour_distance": _finite(behaviour)}, identity)
    console.console.print(behaviour_table(scores, {}, behaviour, task.name))


def choose(config: AcceptConfig, task: Task) -> None:
    """The choice among the candidates for a medium-replay reconstruction."""
    environment = task.environment
    everyone = pool.read(config.work, environment.name)
    known = ", ".join(c.name for c in everyone) or "none"
    require(bool(everyone), f"no candidates in {config.work}; make some with collect --seeds 0 1 --work.")
    unknown = sorted(set(config.candidates) - {c.name for c in everyone})
    require(not unknown, f"no candidate {', '.join(unknown)} in {config.work}; there are {known}.")
    console.writable(config.out)
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
        found = {"portrait_distance": _finite(portraits), "behaviour_distance": _finite(behaviour), "chosen": best}
        return write_record(config, task, scores, found, best)

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


def write_record(
    config: AcceptConfig, task: Task, scores: Scores, found: Mapping[str, Any], judged: str | None
) -> bool:
    """Write what was found; whether every mean score of the data that are judged is within its tolerance."""
    accepted = judged is not None and all(distance(m, mean_score(s), task.name) <= 1 for m, s in scores[judged].items())
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
    ranges = [f"{low:.1f}" if low == high else f"{low:.1f} to {high:.1f}" for low, high in PUBLISHED[task].values()]
    table.add_row("published", *ranges, "0", "0")
    for name, found in scores.items():
        cells = [f"{mean_score(found[m]):.1f}" if m in found else "-" for m in TOLERANCE]
        distances = (f"{found[name]:.2f}" if name in found else "-" for found in (portraits, behaviour))
        table.add_row(name, *cells, *distances)
    return table


def candidate_sources(
    candidates: Sequence[Candidate], config: AcceptConfig, environment: Environment
) -> dict[DataSource, str]:
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
    sources: Mapping[DataSource, str], methods: Sequence[str], seeds: Sequence[int], config: AcceptConfig, task: Task
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


def cli() -> None:
    """The command line."""
    console.command(lambda: AcceptConfig, main, "python -m iwsft_control.accept", __doc__)


if __name__ == "__main__":
    cli()
