"""``python -m iwsft_control.accept``: which candidate for a reconstruction behaves like D4RL's data?

    python -m iwsft_control.collect --env hopper-medium-replay --seeds 0 1 2 --work pool
    python -m iwsft_control.accept --env hopper-medium-replay --work pool

Reference methods whose D4RL scores are public and that are not this project's own (BC, 10%BC, IQL, TD3+BC) are trained
on the candidates and compared with their published scores, by the rule in results/reconstruction/README.md: the
portraits choose candidates for BC and 10%BC, those choose candidates for IQL and TD3+BC, all four choose one, which
gets all seeds of IQL and TD3+BC. Kill it and start it again: finished runs are kept.
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
from iwsft_control.envs.tasks import Environment
from iwsft_control.reconstruction import pool
from iwsft_control.reconstruction.acceptance import Portrait
from iwsft_control.reconstruction.pool import Candidate

FIRST, SECOND = ("bc", "filtered-bc"), ("iql", "td3-bc")
TOLERANCE = {"bc": 10.0, "filtered-bc": 10.0, "iql": 10.0, "td3-bc": 15.0}
# Published on D4RL's own medium-replay-v2: the papers' figure and, where it is another, CORL's of the last checkpoint.
# CORL's 10%BC on HalfCheetah is left out: its loader cuts trajectories wrongly.
PUBLISHED = {
    "hopper": {"bc": (18.1, 29.8), "filtered-bc": (70.4, 75.9), "iql": (94.7, 94.7), "td3-bc": (60.9, 60.9)},
    "halfcheetah": {"bc": (35.7, 36.6), "filtered-bc": (40.6, 40.6), "iql": (44.2, 44.2), "td3-bc": (44.6, 44.6)},
    "walker2d": {"bc": (21.8, 26.0), "filtered-bc": (54.4, 62.5), "iql": (73.9, 73.9), "td3-bc": (81.8, 81.8)},
}
Scores = dict[str, dict[str, dict[int, float]]]  # normalised, by candidate, method and seed
SHIFT, SPREAD, MEAN = 0.3, 0.15, 0.15  # what a good portrait stays below: state shift and spread, deviation of the mean


@dataclasses.dataclass(frozen=True)
class AcceptConfig:
    """Which candidates, and how far."""

    env: str
    """Task: {hopper,halfcheetah,walker2d}-medium-replay."""
    work: Path
    """Folder of the candidates, as python -m iwsft_control.collect --seeds makes it."""
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


def behaviour_distance(scores: Mapping[str, Mapping[int, float]], environment: str) -> float:
    """How far scores (by method and seed) are from the published ones: the mean over methods of the distance
    of the mean score from the published range, in units of the tolerance; at most 1 in each where it is accepted."""
    return float(np.mean([distance(m, mean_score(by_seed), environment) for m, by_seed in scores.items()]))


def mean_score(by_seed: Mapping[int, float]) -> float:
    """Of the scores of all seeds."""
    return float(np.mean([*by_seed.values()]))


def distance(method: str, score: Any, environment: str) -> float:
    """Distance of a mean score from the published range, in units of the tolerance; infinite for a failed run."""
    low, high = PUBLISHED[environment][method]
    return math.inf if math.isnan(score) else float(max(low - score, score - high, 0.0) / TOLERANCE[method])


def nearest(candidates: Sequence[Candidate], distances: Mapping[str, float], count: int) -> list[Candidate]:
    """The ``count`` candidates of the smallest distance; ties go to the lower seed."""
    finite = [c for c in candidates if math.isfinite(distances[c.name])]
    return sorted(finite, key=lambda c: (distances[c.name], c.seed))[:count]


def main(config: AcceptConfig) -> None:
    """Choose by portraits, then by BC and 10%BC, then by all four."""
    task = tasks.parse_task(config.env)
    environment = task.environment
    require(task.level == "medium-replay" and environment.name in PUBLISHED, "--env must be a medium-replay task.")
    checks.check_seeds(config.seeds)
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
        for name, found in run_methods(tried, methods, seeds, config, task.name).items():
            scores[name] |= found
        return {name: behaviour_distance(found, environment.name) for name, found in scores.items()}

    behaviour, best = try_on(chosen, FIRST, config.seeds), None
    if not config.only_first:
        complete: dict[str, float] = {}
        for each in nearest(chosen, behaviour, config.second):
            # With perfect scores in the rest it would be this far: one that could not be the nearest is left out.
            if behaviour[each.name] * len(FIRST) / len(TOLERANCE) < min(complete.values(), default=math.inf):
                behaviour = try_on([each], SECOND, config.second_seeds)
                complete[each.name] = behaviour[each.name]
        best = min(complete, key=lambda name: complete[name]) if complete else None
        behaviour = try_on([c for c in chosen if c.name == best], SECOND, config.seeds)
    accepted = best is not None and all(
        distance(m, mean_score(s), environment.name) <= 1 for m, s in scores[best].items()
    )
    record = {
        "task": task.name,
        "portrait_distance": _finite(portraits),
        "scores": {name: {m: _finite(by_seed) for m, by_seed in each.items()} for name, each in scores.items()},
        "behaviour_distance": _finite(behaviour),
        "chosen": best,
        "accepted": accepted,
        "seeds": config.seeds,
        **results.provenance(),
    }
    files.write_json(config.out / f"{task.name}.json", record)
    console.console.print(behaviour_table(scores, portraits, behaviour, environment.name))
    if best is not None:
        verdict = "accepted: every score is within its tolerance" if accepted else "the nearest, but not accepted"
        console.console.print(f"chosen: {best} ({verdict})")


def _finite(values: Mapping[Any, float]) -> dict[Any, float | None]:
    """None for what is not finite: JSON has no word for it."""
    return {k: v if math.isfinite(v) else None for k, v in values.items()}


def behaviour_table(
    scores: Scores,
    portraits: Mapping[str, float],
    behaviour: Mapping[str, float],
    environment: str,
) -> Table:
    """Mean scores of every candidate beside the published ones."""
    table = Table("candidate", *TOLERANCE, "portrait", "behaviour", title="mean normalised score; distances")
    ranges = [
        f"{low:.1f}" if low == high else f"{low:.1f} to {high:.1f}" for low, high in PUBLISHED[environment].values()
    ]
    table.add_row("published", *ranges, "0", "0")
    for name, found in scores.items():
        cells = [f"{mean_score(found[m]):.1f}" if m in found else "-" for m in TOLERANCE]
        table.add_row(name, *cells, f"{portraits[name]:.2f}", f"{behaviour[name]:.2f}" if name in behaviour else "-")
    return table


def run_methods(
    candidates: Sequence[Candidate], methods: Sequence[str], seeds: Sequence[int], config: AcceptConfig, task: str
) -> Scores:
    """Normalised scores by candidate, method and seed; NaN for a run that failed."""
    environment = tasks.parse_task(task).environment
    os.environ["MINARI_DATASETS_PATH"] = str((config.work / "minari").resolve())  # apart from the user's own data
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
    store, chosen = Store(config.work / "stages"), settings.make()
    wanted = [
        Job(source, stages.method_stage(method, "q", group, chosen, task))
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
