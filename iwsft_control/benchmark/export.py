"""From artefacts to results: one result file and one policy file for every method, data set and seed."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from iwsft_control.base import files
from iwsft_control.base.errors import UserError, told_apart
from iwsft_control.benchmark import results, store
from iwsft_control.benchmark.stages import Stage, configuration, dependencies
from iwsft_control.datasets.types import Dataset
from iwsft_control.envs import evaluation
from iwsft_control.learning.method import Artefact
from iwsft_control.methods import registry


def whole_configuration(stage: Stage) -> dict[str, Any]:
    """Every setting that a result depends on, those of the stages that it started from included, and the digest of the
    code of methods that are not of this package."""
    config = configuration(stage)
    for name, each in dependencies(stage).items():
        own = {k: v for k, v in whole_configuration(each).items() if k != "code"}
        if registry.card(name).group is not None:  # one group: under its name, as on the command line
            config[name] = own
        else:  # groups that they share: what only the other depends on is added
            config |= {
                k: {**v, **config.get(k, {})} if isinstance(v, dict) else config.get(k, v) for k, v in own.items()
            }
    config.pop("quick")
    if (code := store.own_code(stage)) is not None:  # two versions of one's own method are two configurations
        config["code"] = code
    return files.through_json(config)


def run_results(
    stage: Stage, data: Dataset, task: str, inputs: Mapping[str, Artefact], artefact: Artefact
) -> list[results.RunResult]:
    """The result of every seed of a method's stage.

    Args:
        task: task name, or the data set's id where there is none.
        inputs: the artefacts of :func:`dependencies`.
    """
    settings, record = stage.settings, artefact.record
    seconds: dict[str, float] = {}
    for each in (*inputs.values(), artefact):
        seconds |= each.record["seconds"]
    kind = record["policy"]["kind"]
    acts = "mean action" if kind == "tanh-mlp" else f"as {kind} acts"
    evaluated = "exponential average of the parameters" if stage.config.average_decay else "last parameters"
    found = []
    for s, seed in enumerate(stage.seeds):
        mean, error = results.score(np.array(record["returns"][s]), data.ref_min_score, data.ref_max_score)
        extra: dict[str, Any] = {"training": record["logs"][s]}
        for name, each in inputs.items():  # the score of a policy that it started from, the log of a critic
            if "returns" in each.record:
                start = results.score(np.array(each.record["returns"][s]), data.ref_min_score, data.ref_max_score)
                extra[f"{name}_start"] = {"normalised_score": start[0], "standard_error": start[1]}
            else:
                extra[name] = each.record["logs"][s]
        found.append(
            results.RunResult(
                schema=results.SCHEMA,
                task=task,
                method=stage.method,
                quality=stage.quality,
                seed=seed,
                quick=settings.quick,
                dataset=results.describe_data(data),
                physics=store.environment(data),
                evaluation=describe_evaluation(data, f"{acts}, {evaluated}, last checkpoint"),
                episode_returns=list(record["returns"][s]),
                normalised_score=mean,
                standard_error=error,
                config=whole_configuration(stage),
                diagnostics=record["diagnostics"][s] | extra,
                seconds=seconds,
                versions=record["versions"],
                device=record["device"],
                git_commit=record["git_commit"],
            )
        )
    return found


def describe_evaluation(data: Dataset, policy: str) -> dict[str, Any]:
    """How a result was evaluated: the reset seeds, the returns that score 0 and 100, and which ``policy`` acted."""
    return {
        "first_reset_seed": evaluation.FIRST_RESET_SEED,
        "ref_min_score": data.ref_min_score,
        "ref_max_score": data.ref_max_score,
        "policy": policy,
    }


def result_path(folder: Path, result: results.RunResult) -> Path:
    """Where a result belongs: its name tells method and seed, its last part the configuration and data."""
    identity = json.dumps([result.config, result.dataset, result.physics, result.quick], sort_keys=True)
    label = hashlib.sha256(identity.encode()).hexdigest()[:8]
    return _named(folder, result.task, result.method, result.quality, result.seed, label)


def _named(folder: Path, task: str, method: str, quality: str | None, seed: int, label: str) -> Path:
    stem = "-".join([method, *([f"by-{quality}"] if quality else []), f"seed{seed}", label])
    return folder / task.replace("/", "-") / f"{stem}.json"


def with_other_settings(folder: Path, stage: Stage, task: str) -> dict[Path, str]:
    """Results in the folder of a stage's method, quality and seeds that have another configuration (or other code of
    one's own), and so would stand beside what the stage makes; with where they differ."""
    wanted, found = whole_configuration(stage), {}
    for seed in stage.seeds:
        pattern = _named(folder, task, stage.method, stage.quality, seed, "*")
        for path in sorted(pattern.parent.glob(pattern.name)):
            with contextlib.suppress(UserError):  # what cannot be read is told where it is asked for
                if (config := results.read(path).config) != wanted:
                    found[path] = told_apart(config, wanted)
    return found


def write_results(
    folder: Path, stage: Stage, data: Dataset, task: str, inputs: Mapping[str, Artefact], artefact: Artefact
) -> list[Path]:
    """A result file and, beside it, the policy (safetensors) of every seed of a method's stage, where not there yet."""
    paths = []
    described = artefact.record["policy"]
    for s, result in enumerate(run_results(stage, data, task, inputs, artefact)):
        path = result_path(folder, result)
        paths.append(path)
        if files.is_whole(path.with_suffix(".safetensors")) and results.holds(path, result):
            continue
        params = jax.tree.map(lambda x, s=s: x[s], artefact.arrays)
        write_policy(path, result, params["params"], described, data)
        results.write(path, result)
    return paths


def write_policy(
    path: Path, result: results.RunResult, params: Any, described: Mapping[str, Any], data: Dataset
) -> None:
    """The policy of a result, in the safetensors file beside where the result will be: for ``load_policy``.

    Args:
        described: its kind, and its layout where the kind has one.
    """
    description = {"task": result.task, "method": result.method, "seed": result.seed, "dataset": data.id}
    description |= {"score": result.normalised_score, "commit": result.git_commit, "policy": described}
    description |= {"observation_dim": data.observations.shape[1]}
    files.save_pytree(path.with_suffix(".safetensors"), params, description)
