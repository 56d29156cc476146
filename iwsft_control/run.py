"""``python -m iwsft_control.run``: from data to a normalised score.

For every seed: behaviour cloning, the critic (where a method needs its scores), the methods asked for, and 100
evaluation episodes of each. One result file and one policy file per method and seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from iwsft_control import (
    cli,
    critic,
    curation,
    evaluation,
    files,
    physics,
    quality,
    results,
    tasks,
    training,
)
from iwsft_control.critic import CriticConfig
from iwsft_control.dataset import Dataset, load
from iwsft_control.networks import greedy
from iwsft_control.objectives import METHODS, ImportanceConfig
from iwsft_control.training import PolicyConfig


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
class RunConfig:
    """What to run."""

    env: str | None = None
    """Task, e.g. hopper-medium-replay. May be left out where --dataset is given."""
    method: tuple[str, ...] = ("iw-sft-q",)
    """One or more of bc, filtered-bc, sft, iw-sft, sft-q, iw-sft-q."""
    seeds: tuple[int, ...] = (0,)
    """One run for each. Several are one program on an accelerator and one process per core on a CPU."""
    quality: Literal["q", "return"] = "q"
    """What scores the data for sft-q and iw-sft-q: a learned Q-function, or the return of the episode."""
    dataset: str | None = None
    """Id of a data set in the local Minari root; by default D4RL's if imported, else the embedded reconstruction."""
    ref_min_score: float | None = None
    """Return that scores 0, for a data set that declares none."""
    ref_max_score: float | None = None
    """Return that scores 100, for a data set that declares none."""
    results: Path = Path("results/runs")
    """Folder of result files and policies."""
    quick: bool = False
    """A trial of a few steps and 5 episodes, marked as such in its result; within a minute."""
    whole_trajectory: bool = False
    """iw-sft and iw-sft-q (--quality return) exactly as in the paper's released code; slow, for comparison."""
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    critic: CriticConfig = dataclasses.field(default_factory=CriticConfig)
    importance: ImportanceConfig = dataclasses.field(default_factory=ImportanceConfig)
    curation: CurationConfig = dataclasses.field(default_factory=CurationConfig)


QUICK_EPISODES = 5

Start = Callable[[str, int], Callable[[int], None]]  # (stage, steps) -> advance(steps)


@dataclasses.dataclass
class Outcome:
    """What one method gave for one seed."""

    method: str
    seed: int
    params: Any
    returns: np.ndarray
    diagnostics: dict[str, Any]
    seconds: dict[str, float]


def validate(config: RunConfig) -> RunConfig:
    """The configuration with --quick applied.

    Raises:
        UserError: a value that cannot be meant; the sentence names it and what would do.
    """
    cli.require(config.env is not None or config.dataset is not None, "say what to run: --env hopper-medium-replay.")
    for method in config.method:
        if method not in METHODS:
            raise files.UserError(f"unknown method {method!r}: {tasks.near(method, list(METHODS))}")
    cli.require(len(set(config.method)) == len(config.method) > 0, "--method must name one or more different methods.")
    cli.require(len(set(config.seeds)) == len(config.seeds) > 0, "--seeds must name one or more different seeds.")
    cli.require(all(0 <= s < 2**31 for s in config.seeds), "--seeds must lie between 0 and 2147483647.")
    p, c, i = config.policy, config.critic, config.importance
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
        cli.require(value > 0, f"--{name} must be positive, not {value}.")
    for name, value in {
        "policy.average-decay": p.average_decay,
        "critic.expectile": c.expectile,
        "critic.discount": c.discount,
        "critic.target-rate": c.target_rate,
        "importance.lag": i.lag,
    }.items():
        cli.require(0 <= value <= 1, f"--{name} must lie between 0 and 1, not {value}.")
    cli.require(0 <= i.low <= i.high, "--importance.low must lie between 0 and --importance.high.")
    percentiles = (
        config.curation.filter_percentile,
        *config.curation.episode_strata,
        *config.curation.transition_strata,
    )
    cli.require(all(0 <= x < 100 for x in percentiles), "--curation percentiles must lie in [0, 100).")
    cli.require(
        bool(config.curation.episode_strata and config.curation.transition_strata),
        "--curation strata must not be empty.",
    )
    cli.require(all(w > 0 for w in (*p.hidden, *c.hidden)), "hidden widths must be positive.")
    scores = (config.ref_min_score, config.ref_max_score)
    cli.require(
        (scores[0] is None) == (scores[1] is None), "give both --ref-min-score and --ref-max-score, or neither."
    )
    if scores[0] is not None and scores[1] is not None:
        cli.require(scores[0] < scores[1], "--ref-min-score must be below --ref-max-score.")
    if config.whole_trajectory:
        weighted = all(METHODS[m].importance_weighted for m in config.method)
        episodic = config.quality == "return" or all(METHODS[m].curation == "binary" for m in config.method)
        cli.require(
            weighted and episodic, "--whole-trajectory is for --method iw-sft, or iw-sft-q with --quality return."
        )
    if not config.quick:
        return config
    return dataclasses.replace(
        config,
        policy=dataclasses.replace(p, bc_steps=min(p.bc_steps, 500), fine_tune_steps=min(p.fine_tune_steps, 200)),
        critic=dataclasses.replace(c, steps=min(c.steps, 1000)),
    )


Values = tuple[np.ndarray, np.ndarray]  # the learned Q and V of every transition


def curate(
    config: CurationConfig, method: str, source: str, data: Dataset, values: Values | None
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


def run_seeds(config: RunConfig, data: Dataset, seeds: Sequence[int], start: Start) -> Iterator[Outcome]:
    """All methods for a group of seeds trained in one program; yields what each method gave for each seed."""
    seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[stage] = time.perf_counter() - began

    device_data = (jnp.asarray(data.observations), jnp.asarray(data.actions))
    bc_params, bc_scores, bc_log, values, critic_log = None, None, None, None, None
    needs_bc = any(METHODS[m].fine_tunes or m == "bc" for m in config.method)
    needs_q = config.quality == "q" and any(METHODS[m].curation == "quality" for m in config.method)
    if needs_bc:
        with timed("bc"):
            everything, _ = curate(config.curation, "bc", config.quality, data, None)
            advance = start("BC", config.policy.bc_steps)
            bc_params, bc_log = training.train_policies(
                config.policy, config.importance, "bc", device_data, [everything], seeds, None, advance
            )
        with timed("bc evaluation"):
            bc_scores = _evaluate_all(config, data, bc_params, seeds, "bc", start)
    if needs_q:
        with timed("critic"):
            advance = start("critic", config.critic.steps)
            critics, critic_log = training.train_critics(config.critic, critic.to_device(data), seeds, advance)
            values = [
                critic.values(
                    config.critic, jax.tree.map(lambda x, s=s: x[s], critics), data.observations, data.actions
                )
                for s in range(len(seeds))
            ]
    for method in config.method:
        kind = METHODS[method]
        if method == "bc":
            assert bc_scores is not None and bc_log is not None
            params, returns, logs = bc_params, bc_scores, bc_log
            diagnostics: list[dict[str, Any]] = [{} for _ in seeds]
            own = {"bc", "bc evaluation"}
        else:
            with timed(method):
                per_seed = values if kind.curation == "quality" and values is not None else [None]
                curated, scores = zip(
                    *(curate(config.curation, method, config.quality, data, a) for a in per_seed), strict=True
                )
                steps = config.policy.fine_tune_steps if kind.fine_tunes else config.policy.bc_steps
                train = training.train_whole_trajectories if config.whole_trajectory else training.train_policies
                params, logs = train(
                    config.policy,
                    config.importance,
                    method,
                    device_data,
                    curated,
                    seeds,
                    bc_params,
                    start(method, steps),
                )
            with timed(f"{method} evaluation"):
                returns = _evaluate_all(config, data, params, seeds, method, start)
            diagnostics = [
                {
                    "curated": {
                        k: int(getattr(curated[s % len(curated)], k).size) for k in ("entries", "starts", "rows")
                    },
                    "scores": quality.summary(scores[s % len(scores)]),
                }
                for s in range(len(seeds))
            ]
            own = {method, f"{method} evaluation"} | ({"bc", "bc evaluation"} if kind.fine_tunes else set())
            own |= {"critic"} if kind.curation == "quality" and needs_q else set()
        for s, seed in enumerate(seeds):
            extra: dict[str, Any] = {"training": logs[s]}
            if kind.fine_tunes and bc_scores is not None:
                mean, error = results.score(bc_scores[s], data.ref_min_score, data.ref_max_score)
                extra["bc_start"] = {"normalised_score": mean, "standard_error": error}
            if critic_log is not None and "critic" in own:
                extra["critic"] = critic_log[s]
            yield Outcome(
                method,
                seed,
                jax.tree.map(lambda x, s=s: np.asarray(x[s]), params),
                returns[s],
                diagnostics[s] | extra,
                {k: round(v, 3) for k, v in seconds.items() if k in own},
            )


def _evaluate_all(
    config: RunConfig, data: Dataset, params: Any, seeds: Sequence[int], method: str, start: Start
) -> list[np.ndarray]:
    episodes = QUICK_EPISODES if config.quick else evaluation.EPISODES
    advance = start(f"{method} evaluation", episodes * len(seeds))
    returns = []
    for s, seed in enumerate(seeds):
        policy = greedy(jax.tree.map(lambda x, s=s: x[s], params))
        name = f"{method} (seed {seed})"
        returns.append(evaluation.evaluate(policy, data.environment, episodes, name=name, on_lane=advance))
    return returns


def save(config: RunConfig, data: Dataset, outcome: Outcome) -> Path:
    """Write one result and its policy; the name tells method and seed, its last part the configuration and data."""
    kind = METHODS[outcome.method]
    source = config.quality if kind.curation == "quality" else None
    settings = {k: dataclasses.asdict(getattr(config, k)) for k in ("policy", "critic", "importance", "curation")} | {
        "whole_trajectory": config.whole_trajectory
    }
    mean, error = results.score(outcome.returns, data.ref_min_score, data.ref_max_score)
    task = tasks.parse_task(config.env).name if config.env else data.id
    result = results.RunResult(
        schema=results.SCHEMA,
        task=task,
        method=outcome.method,
        quality=source,
        seed=outcome.seed,
        quick=config.quick,
        dataset={
            "id": data.id,
            "sha256": data.sha256,
            "origin": data.origin,
            "transitions": len(data.rewards),
            "episodes": len(data.starts) - 1,
        },
        physics=physics.describe(data.env_id),
        evaluation={
            "first_reset_seed": evaluation.FIRST_RESET_SEED,
            "ref_min_score": data.ref_min_score,
            "ref_max_score": data.ref_max_score,
            "policy": "mean action, exponential average of the parameters, last checkpoint",
        },
        episode_returns=[float(r) for r in outcome.returns],
        normalised_score=mean,
        standard_error=error,
        config=settings,
        diagnostics=outcome.diagnostics,
        seconds=outcome.seconds,
        versions=results.versions(),
        device=f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores",
        git_commit=results.git_commit(),
    )
    identity = json.dumps([settings, result.dataset, result.physics, config.quick], sort_keys=True)
    label = hashlib.sha256(identity.encode()).hexdigest()[:8]
    stem = "-".join([outcome.method, *([f"by-{source}"] if source else []), f"seed{outcome.seed}", label])
    path = config.results / task.replace("/", "-") / f"{stem}.json"
    description = {"task": task, "method": outcome.method, "seed": outcome.seed, "dataset": data.id}
    files.save_pytree(path.with_suffix(".safetensors"), outcome.params, description)
    results.write(path, result)
    return path


# --- the command -------------------------------------------------------------------------------------------------


def main(config: RunConfig) -> None:
    """Check everything that can be checked, then train, evaluate, write and print."""
    config = validate(config)
    task = tasks.parse_task(config.env) if config.env else None
    scores = None
    if config.ref_min_score is not None and config.ref_max_score is not None:
        scores = (config.ref_min_score, config.ref_max_score)
    data = load(task, config.dataset, scores)
    _check_environment(task, data)
    cli.writable(config.results)
    kind = {"reconstruction": "a reconstruction, not D4RL's own data", "D4RL": "D4RL's own data"}
    cli.console.print(
        f"data: {data.id} ({kind.get(data.origin, 'a Minari data set')}), {len(data.rewards):,} transitions, "
        f"{len(data.starts) - 1:,} episodes, sha256 {data.sha256[:12]}; evaluated in {data.env_id}"
    )
    if config.quick:
        cli.console.print("quick: a few steps and 5 episodes; this is a trial, not a score.")
    workers = min(len(config.seeds), os.cpu_count() or 1)
    with cli.progress_bar() as bar:
        if jax.default_backend() == "cpu" and workers > 1:
            outcomes = _in_processes(config, scores, workers, _start_on(bar))
        else:
            outcomes = _here(config, data, config.seeds, _start_on(bar))
        for outcome, path in outcomes:
            _print(data, outcome, path)


def _check_environment(task: tasks.Task | None, data: Dataset) -> None:
    if task is not None and data.origin != "Minari":
        cli.require(
            data.env_id == task.environment.env_id,
            f"--dataset {data.id} is of {data.env_id}, --env {task.name} of {task.environment.env_id}; leave one out.",
        )
    try:
        from iwsft_control.simulation import make_batch

        batch = make_batch(data.environment, 1)
    except Exception as error:  # whatever Gymnasium or an environment's package raises
        raise files.UserError(
            f"the environment {data.env_id} of {data.id} cannot be made ({error}); install the package it comes from."
        ) from error
    cli.require(
        (batch.observation_dim, batch.action_dim) == (data.observations.shape[1], data.actions.shape[1]),
        f"{data.id} does not have the observations and actions of {data.env_id}; choose another data set.",
    )


def _start_on(bar: Any, prefix: str = "") -> Start:
    def start(stage: str, steps: int) -> Callable[[int], None]:
        line = bar.add_task(prefix + stage, total=steps)
        return lambda done: bar.advance(line, done)

    return start


def _print(data: Dataset, outcome: Outcome, path: Path) -> None:
    start = outcome.diagnostics.get("bc_start")
    if start:
        cli.console.print(
            f"seed {outcome.seed}  bc (its start)  normalised score {start['normalised_score']:6.1f} "
            f"+- {start['standard_error']:.1f}"
        )
    mean, error = results.score(outcome.returns, data.ref_min_score, data.ref_max_score)
    cli.console.print(
        f"seed {outcome.seed}  {outcome.method:<14}  normalised score {mean:6.1f} +- {error:.1f} "
        f"(standard error over {len(outcome.returns)} episodes) -> {path}"
    )


def _here(config: RunConfig, data: Dataset, seeds: Sequence[int], start: Start) -> Iterator[tuple[Outcome, Path]]:
    cli.cache_compiled_programs()
    for outcome in run_seeds(config, data, seeds, start):
        yield outcome, save(config, data, outcome)


def _in_processes(
    config: RunConfig, scores: tuple[float, float] | None, workers: int, start: Start
) -> Iterator[tuple[Outcome, Path]]:
    """One process per core and seed: on a CPU that beats both a vmap over seeds and one seed on all cores."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(workers, context, _single_threaded) as pool:
        messages = manager.Queue()
        futures = [pool.submit(_worker, config, scores, seed, messages) for seed in config.seeds]
        lines: dict[tuple[int, str], Callable[[int], None]] = {}
        while not all(f.done() for f in futures) or not messages.empty():
            try:
                seed, stage, total, done = messages.get(timeout=0.2)
            except queue.Empty:
                continue
            if (seed, stage) not in lines:
                lines[seed, stage] = start(f"seed {seed} {stage}", total)
            lines[seed, stage](done)
        for future in futures:
            yield from future.result()


def _single_threaded() -> None:
    # Set before the worker's first computation, when XLA reads it.
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"


def _worker(
    config: RunConfig, scores: tuple[float, float] | None, seed: int, messages: Any
) -> list[tuple[Outcome, Path]]:
    def start(stage: str, steps: int) -> Callable[[int], None]:
        messages.put((seed, stage, steps, 0))
        return lambda done: messages.put((seed, stage, steps, done))

    task = tasks.parse_task(config.env) if config.env else None
    data = load(task, config.dataset, scores)
    return [(dataclasses.replace(outcome, params=None), path) for outcome, path in _here(config, data, (seed,), start)]


if __name__ == "__main__":
    cli.command(RunConfig, main, "run", __doc__)
