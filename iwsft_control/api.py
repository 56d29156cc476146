"""The suite from Python: load a task's data, train a method, evaluate a policy.

    import iwsft_control as iwsft

    data = iwsft.load("hopper-medium-replay")
    runs = iwsft.train("iw-sft-q", data, seeds=[0, 1])
    print([run.result.normalised_score for run in runs])
    returns = iwsft.evaluate(runs[0].policy, data, episodes=10)

The command line does the same with the same numbers; what either has finished the other finds in the store.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from iwsft_control.base import console, progress
from iwsft_control.base.errors import require
from iwsft_control.base.files import cache_home
from iwsft_control.benchmark import checks, export, jobs, settings, stages
from iwsft_control.benchmark.perform import Report, perform, silent
from iwsft_control.benchmark.results import RunResult
from iwsft_control.benchmark.store import Store
from iwsft_control.datasets.load import load as _load
from iwsft_control.datasets.types import Dataset
from iwsft_control.envs import evaluation
from iwsft_control.envs.evaluation import Recorder
from iwsft_control.envs.tasks import environment_of, parse_task
from iwsft_control.methods import registry
from iwsft_control.networks import policies
from iwsft_control.networks.policies import Exported, Policy


class Run(NamedTuple):
    """One trained and evaluated run."""

    result: RunResult
    """Scores, episode returns, settings and provenance, as in a result file."""
    policy: Policy
    """What was evaluated; call it with observations (K, O) or (O,) for actions in [-1, 1]. One with a memory:
    ``carry = policy.initial(K)``, then in every step ``actions, carry = policy.act(carry, observations, key)``."""


def load(
    task: str | None = None,
    dataset: str | None = None,
    reference_scores: tuple[float, float] | None = None,
    trust_environment: bool = False,
    flatten_observations: bool = False,
) -> Dataset:
    """The data set of a task, or any in the local Minari root, as flat arrays.

    Args:
        task: for instance "hopper-medium-replay"; D4RL's own data if imported, else the embedded reconstruction.
        dataset: a Minari id, in place of or beside a task.
        reference_scores: returns that score 0 and 100, for a data set that declares none.
        trust_environment: whether what its environment names (an entry point, wrappers) may be imported and called.
        flatten_observations: whether dict observations (a goal beside the state) are laid end to end.

    Returns:
        A :class:`~iwsft_control.datasets.types.Dataset`.

    Raises:
        UserError: no such task or data set, it is damaged, or its environment asks for trust.
    """
    require(task is not None or dataset is not None, "name a task or a data set.")
    return _load(
        parse_task(task) if task else None,
        dataset,
        reference_scores,
        trust_environment=trust_environment,
        flatten_observations=flatten_observations,
    )


def train(
    method: str,
    data: Dataset,
    seeds: Sequence[int] = (0,),
    *,
    quality: str = "q",
    quick: bool = False,
    store: str | Path | None = None,
    results: str | Path | None = None,
    method_file: str | Path | None = None,
    quiet: bool = False,
    report: Report | None = None,
    **configs: Any,
) -> list[Run]:
    """Train a method on a data set and evaluate it, for every seed, with progress on a terminal and a log elsewhere.

    Args:
        method: name of a method; :func:`method_names` lists them.
        data: what :func:`load` gave.
        seeds: one run for each.
        quality: "q" or "return": what scores the data, for sft-q and iw-sft-q.
        quick: a trial of about a minute, never a score.
        store: folder of finished stages; by default that of the command line.
        results: folder of the result files and policies to write, as the command line does; by default none is written.
        method_file: Python file whose method joins the others, as ``--method-file``.
        quiet: tell nothing.
        report: told of every loop instead: ``report(what, steps)`` before it begins, and what that gives,
            ``advance(done, values)``, whenever ``done`` more steps are over; first for those that were before a kill.
        configs: configurations in place of the defaults, by their group of options: ``iql=IQLConfig(beta=1.0)``.

    Returns:
        A :class:`Run` for every seed, in their order.

    Raises:
        UserError: an unknown method, a setting out of its bounds or without an effect, a folder that cannot be written,
            or a run that failed by its own numbers.
    """
    require(isinstance(data, Dataset), f"data must be a data set: load({data!r}) gives that of a task.")
    require(isinstance(seeds, Iterable), f"seeds must be a list of whole numbers: seeds=[{seeds}].")
    seeds = tuple(int(s) if isinstance(s, np.integer) else s for s in seeds)  # a generator can be read once
    if method_file is not None:
        registry.load_file(Path(method_file))
    checks.check_methods([method])
    checks.check_seeds(seeds)
    require(quality in ("q", "return"), f"quality must be 'q' or 'return', not {quality!r}.")
    settings.check_groups(configs, method, quality)
    console.cache_compiled_programs()
    chosen = settings.validate(settings.make(quick, **configs))
    checks.check_preset([method], quality, chosen)
    checks.check_environment(None, data)
    kept, task = Store(Path(store) if store else cache_home() / "stages"), data.task
    if results is not None:
        console.writable(Path(results))
    runs: list[Run] = []
    with contextlib.ExitStack() as stack:
        bar = None
        if report is None and not quiet:
            progress.to_stderr()
            bar = stack.enter_context(console.progress_bar())
        for group in jobs.groups(seeds):
            stage = stages.method_stage(method, quality, group, chosen, task)
            told = report or silent
            if bar is not None:
                seed = f"seed {', '.join(map(str, group))}  "
                told = jobs.reporter(lambda what, *event, seed=seed: bar.loop(seed + what, *event))
            artefact = perform(stage, data, kept, told)
            inputs = kept.inputs(stage, data)
            assert inputs is not None
            if results is not None:
                export.write_results(Path(results), stage, data, task, inputs, artefact)
            described = artefact.record["policy"]
            for s, result in enumerate(export.run_results(stage, data, task, inputs, artefact)):
                params = jax.tree.map(lambda x, s=s: x[s], artefact.arrays["params"])
                runs.append(Run(result, policies.make(Exported(params, described["kind"], described["layout"]))))
    return runs


def evaluate(
    policy: Policy | Callable[[np.ndarray], np.ndarray],
    data: Dataset | str,
    episodes: int = evaluation.EPISODES,
    recorder: Recorder | None = None,
) -> np.ndarray:
    """Undiscounted return of every evaluation episode, (episodes,), on the suite's fixed reset seeds.

    Args:
        policy: of a run, or a function from observations (K, O) to actions (K, A) in [-1, 1], which are scaled to the
            environment's own box.
        data: a data set (its environment is used), a task or a Gymnasium id.
        episodes: how many, on reset seeds that count up from the first.
        recorder: keeps the states and actions of the episodes that it names.

    Raises:
        PolicyError: an action is not finite, outside [-1, 1] or of another shape.
        UserError: neither a task nor an id, or no episode.
    """
    require(isinstance(episodes, int) and episodes > 0, f"episodes must be a whole number above zero: {episodes!r}.")
    environment = environment_of(data) if isinstance(data, str) else data.environment
    return evaluation.evaluate(policy, environment, episodes, recorder=recorder)


def method_names() -> tuple[str, ...]:
    """Names of all methods."""
    return registry.names()
