"""The finetune command's work: from an offline policy to an online one, its result and its policy file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iwsft_control.base import console, files
from iwsft_control.base.errors import RunError, UserError
from iwsft_control.base.snapshot import Snapshot
from iwsft_control.benchmark import checks, export, jobs, results, sources, stages, store
from iwsft_control.benchmark.jobs import DataSource
from iwsft_control.benchmark.perform import QUICK_EPISODES, DeadPolicyError, Report, perform, silent, watched_states
from iwsft_control.benchmark.results import RunResult
from iwsft_control.benchmark.settings import Settings
from iwsft_control.benchmark.store import Store
from iwsft_control.datasets.transitions import Demonstrations as Pairs
from iwsft_control.datasets.types import Dataset
from iwsft_control.envs import evaluation, physics
from iwsft_control.envs.batch import D4RLBatch, make_batch
from iwsft_control.learning import curation
from iwsft_control.learning.method import Artefact
from iwsft_control.networks import policies
from iwsft_control.networks.policies import Exported
from iwsft_control.online import methods, policy, prefixes, training
from iwsft_control.online.learner import Setup

FIRST_RESET_SEED = 4_000_000  # of the evaluations along training; that of the result is every method's
QUICK_STEPS = 2_000
NO_STATES = (
    "the environment of {} cannot be put into a recorded state; online training works in "
    f"{', '.join(e for e in physics.ENVIRONMENTS if e != 'd4rl/Ant-v2')}."
)


def run(config: Any, chosen: Settings) -> None:
    """Do what the options of the finetune command say; a run that fails is recorded and does not stop the others.

    Args:
        config: its ``FinetuneConfig``, checked.
        chosen: the settings of the offline policy.

    Raises:
        UserError: the data cannot be used, or something cannot be written.
        SystemExit: a training failed.
    """
    config = shortened(config)
    scores = checks.reference_scores(config.ref_min_score, config.ref_max_score)
    source = DataSource(config.env, config.dataset, scores)
    folder = config.results or Path("results/quick" if config.quick else "results/my-online")
    try:
        kept = jobs.begin([source], folder, config.stages)
    except UserError as error:
        if "--trust-environment" in str(error) or "--flatten-observations" in str(error):  # options of run
            raise UserError(NO_STATES.format(source.task)) from error
        raise
    console.cache_compiled_programs()
    failed = 0
    with console.progress_bar() as bar:
        for seed in config.seeds:
            for name in config.method:
                label = f"seed {seed} {name} ({config.reward})"
                report = jobs.reporter(lambda what, *event, label=label: bar.loop(f"{label} {what}", *event))
                run = f"{source.task} {name} {config.reward} {config.steps} steps from {config.start} seed{seed}"
                try:
                    result, path = train(config, chosen, source, kept, folder, name, seed, report)
                except RunError as error:
                    failed += 1
                    what = {"task": source.task, "method": name, "quality": None, "seeds": [seed], "error": str(error)}
                    what |= {"variant": f"{config.reward}, {config.steps:,} steps"}
                    results.record_failure(folder, run, what)
                    console.console.print(f"failed: {label}: {error}")
                    continue
                results.record_failure(folder, run, None)
                console.console.print(
                    f"seed {seed}  {name:<17} {config.reward:<6}  normalised score {result.normalised_score:6.1f} "
                    f"+- {result.standard_error:.1f} after {result.evaluation['simulator_steps']:,} simulator steps "
                    f"-> {path}"
                )
    if failed:
        console.console.print(f"{failed} failed: see {folder / 'failures'}.")
        raise SystemExit(1)


def shortened(config: Any) -> Any:
    """The configuration, of a trial if it is one."""
    if not config.quick:
        return config
    short = min(config.steps, QUICK_STEPS)
    return dataclasses.replace(config, steps=short, evaluations=2, evaluation_episodes=QUICK_EPISODES)


def train(
    config: Any,
    chosen: Settings,
    source: DataSource,
    kept: Store,
    folder: Path,
    name: str,
    seed: int,
    report: Report = silent,
    threads: int | None = None,
) -> tuple[RunResult, Path]:
    """One method for one seed: its result, made or found, and where it is kept.

    Raises:
        UserError: the data set holds no simulator states, its environment cannot be set to one, or the training failed.
    """
    data, method = source.load(), methods.get(name)
    stage = stages.method_stage(config.start, "q", (seed,), chosen, source.task)
    skeleton = _skeleton(config, data, source.task, name, seed, export.whole_configuration(stage))
    path = export.result_path(folder, skeleton)
    if path.is_file() and files.is_whole(path.with_suffix(".safetensors")):
        try:
            found = results.read(path)
            if all(found.evaluation[k] == skeleton.evaluation[k] for k in results.REFERENCES):  # no part of its name
                return found, path
        except UserError:  # damaged: it is made again
            pass
    batch = make_batch(data.environment, config.ppo.groups * config.ppo.group_size)
    if not isinstance(batch, D4RLBatch):
        raise UserError(NO_STATES.format(data.env_id))
    demonstrations = prefixes.curate(config.prefix, data, batch)
    started = None if method.scratch else perform(stage, data, kept, report, threads)
    setup = Setup(
        config.ppo,
        method,
        chosen["policy"].hidden,
        batch.action_dim,
        config.reward == "sparse",
        config.prefix.entropy_share,
    )
    start = starting_policy(setup, config, data, started, seed)

    def acting(params: Any) -> policies.Policy:
        return policies.make(Exported(jax.tree.map(np.asarray, params)))

    def score(actor: policies.Policy, episodes: int, first_seed: int) -> list[float]:
        return evaluation.evaluate(
            actor, data.environment, episodes, name=f"{name} (seed {seed})", first_seed=first_seed, threads=threads
        ).tolist()

    advance = report("online", config.steps)
    snapshot = Snapshot(_snapshot_path(skeleton, stage, data, kept))
    trained = training.finetune(
        setup,
        config.prefix,
        demonstrations,
        batch,
        start,
        seed,
        config.steps,
        lambda params: score(acting(params), config.evaluation_episodes, FIRST_RESET_SEED),
        config.evaluations,
        progress=lambda steps: advance(steps, {}),
        snapshot=snapshot,
        threads=threads,
    )
    final, states = acting(trained.policy), watched_states(data)
    action = None if states is None else policies.constant_action(final, states)
    if action is not None:
        raise DeadPolicyError(
            f"{name} (seed {seed}) ended after {trained.steps:,} simulator steps in a policy that answers every state "
            f"with one action, {action.tolist()}. Try a smaller --ppo.policy-learning-rate."
        )
    returns = score(final, QUICK_EPISODES if config.quick else evaluation.EPISODES, evaluation.FIRST_RESET_SEED)
    mean, error = results.score(np.array(returns), data.ref_min_score, data.ref_max_score)
    diagnostics: dict[str, Any] = {
        "training": trained.log,
        "curve": _curve(data, demonstrations.success, trained.points),
        "demonstrations": len(demonstrations.lengths),
        "success_return": demonstrations.success,
        "success": float(np.mean(np.array(returns) >= demonstrations.success)),
    }
    if started is not None:
        first = np.array(started.record["returns"][0])
        at_start = results.score(first, data.ref_min_score, data.ref_max_score)
        diagnostics[f"{config.start}_start"] = {
            "normalised_score": at_start[0],
            "standard_error": at_start[1],
            "success": float(np.mean(first >= demonstrations.success)),
        }
    result = dataclasses.replace(
        skeleton,
        evaluation=skeleton.evaluation | {"simulator_steps": trained.steps},
        episode_returns=returns,
        normalised_score=mean,
        standard_error=error,
        diagnostics=diagnostics,
        seconds=(started.record["seconds"] if started else {}) | trained.seconds,
        **results.provenance(),
    )
    export.write_policy(path, result, jax.tree.map(np.asarray, trained.policy), {"kind": "tanh-mlp"}, data)
    results.write(path, result)
    snapshot.remove()
    return result, path


def starting_policy(setup: Setup, config: Any, data: Dataset, started: Artefact | None, seed: int) -> Any:
    """Parameters of the online policy at the beginning: those of the offline one, fresh ones where there is none.

    Its spread is a part of that of the actions around it: in all data for bc, in the demonstrations for a method that
    learned from the best of them.
    """
    key = jax.random.fold_in(jax.random.key(seed), 0)
    start = None if started is None else jax.tree.map(lambda x: x[0], started.arrays["params"])
    params = policy.create(setup.policy, data.observations.shape[1], key, start)
    if start is None:
        return params
    rows = np.arange(len(data.rewards))
    if config.start != "bc":
        rows = np.flatnonzero(np.isin(data.episode_of, curation.above(data.returns, config.prefix.percentile)))
    pairs = Pairs(jnp.asarray(data.observations[rows]), jnp.asarray(data.actions[rows]))
    fitted = policy.fit_spread(setup.policy, config.ppo.spread_steps, params, pairs, jax.random.fold_in(key, 1))
    return policy.scale_std(fitted, config.ppo.start_std)


def _skeleton(config: Any, data: Dataset, task: str, name: str, seed: int, offline: dict[str, Any]) -> RunResult:
    """What is known of a result before it is made: all that its file is named by."""
    groups = {k: dataclasses.asdict(getattr(config, k)) for k in ("ppo", "prefix")}
    online = {k: getattr(config, k) for k in ("reward", "steps", "start", "evaluations", "evaluation_episodes")}
    return RunResult(
        schema=results.SCHEMA,
        task=task,
        method=name,
        quality=None,
        seed=seed,
        quick=config.quick,
        dataset=results.describe_data(data),
        physics=store.environment(data),
        evaluation=export.describe_evaluation(data, "mean action, last parameters"),
        episode_returns=[],
        normalised_score=0.0,
        standard_error=0.0,
        config=files.through_json({**online, **groups, **offline}),
        diagnostics={},
        seconds={},
        versions={},
        device="",
        git_commit=None,
    )


def _curve(data: Dataset, success: float, points: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Evaluations along training: simulator steps, normalised score, its standard error, share of successes."""
    scores = [results.score(np.array(p["returns"]), data.ref_min_score, data.ref_max_score) for p in points]
    return {
        "step": [p["step"] for p in points],
        "normalised_score": [s for s, _ in scores],
        "standard_error": [e for _, e in scores],
        "success": [float(np.mean(np.array(p["returns"]) >= success)) for p in points],
    }


def _snapshot_path(skeleton: RunResult, stage: stages.Stage, data: Dataset, kept: Store) -> Path:
    """Where a training keeps how far it has come: named by all that its numbers depend on."""
    code = sorted(sources.import_closure(sources.PACKAGE / "online/training.py") | {Path(__file__)})
    depends = [
        dataclasses.asdict(skeleton),
        store.key(stage, data, kept.device),
        sources.code_version(tuple(code)),
        results.versions(),
        store.device_kind(),
    ]
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
    return kept.folder / f"{skeleton.method}-{digest[:20]}.unfinished"
