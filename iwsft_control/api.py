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
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from gymnasium.envs.registration import EnvSpec

from iwsft_control.base import console, progress
from iwsft_control.base.errors import UserError, in_python, is_whole, require
from iwsft_control.base.files import cache_home
from iwsft_control.benchmark import checks, export, jobs, settings, stages
from iwsft_control.benchmark import store as store_module
from iwsft_control.benchmark.perform import Report, perform, silent
from iwsft_control.benchmark.results import RunResult
from iwsft_control.datasets.load import load as _load
from iwsft_control.datasets.types import Dataset
from iwsft_control.envs import evaluation, video
from iwsft_control.envs.evaluation import Recorder
from iwsft_control.envs.tasks import environment_of, parse_task
from iwsft_control.learning.method import Artefact
from iwsft_control.methods import registry
from iwsft_control.networks import policies
from iwsft_control.networks.policies import Exported, Policy, TrainedPolicy


class Run(NamedTuple):
    """One trained and evaluated run."""

    result: RunResult
    """Scores, episode returns, settings and provenance, as in a result file."""
    policy: TrainedPolicy
    """What was evaluated; call it with observations (K, O) or (O,) for actions in [-1, 1]. One with a memory:
    ``carry = policy.initial(K)``, then in every step ``actions, carry = policy.act(carry, observations, key)``."""


@contextlib.contextmanager
def _worded_for_python() -> Iterator[None]:
    """What errors call by its option on the command line is called by its name in Python."""
    try:
        yield
    except UserError as error:
        error.args = (in_python(str(error)),)
        raise


@_worded_for_python()
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
    for name, value in (("task", task), ("dataset", dataset)):
        require(isinstance(value, str | None), f"{name} must be a name, not {value!r:.80}.")
    require(task is not None or dataset is not None, "name a task or a data set.")
    return _load(
        parse_task(task) if task else None,
        dataset,
        reference_scores,
        trust_environment=trust_environment,
        flatten_observations=flatten_observations,
    )


@_worded_for_python()
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
    require(isinstance(method, str), f"method must be one name, as in train('bc', data): {method!r:.80}.")
    require(isinstance(data, Dataset), f"data must be a data set: load({data!r:.80}) gives that of a task.")
    require(
        not data.changed,
        f"the {' and '.join(data.changed)} of {data.id} are not those that it was loaded with, so its id and sha256 do "
        "not name them; make a data set of them: from_arrays('mine/hopper/relabelled-v0', ...).",
    )
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
    checks.check_environment(data)
    kept, task = store_module.Store(Path(store) if store else cache_home() / "stages"), data.task
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
            store_module.check_as_imported(stage, data)
            told = report or silent
            if bar is not None:
                seed = f"seed {', '.join(map(str, group))}  "
                told = jobs.reporter(lambda what, *event, seed=seed: bar.loop(seed + what, *event))
            artefact = perform(stage, data, kept, told)
            inputs = kept.inputs(stage, data)
            assert inputs is not None
            if results is not None:
                export.write_results(Path(results), stage, data, task, inputs, artefact)
            for s, result in enumerate(export.run_results(stage, data, task, inputs, artefact)):
                runs.append(Run(result, _policy(artefact, s, result, data)))
    return runs


def _policy(artefact: Artefact, s: int, result: RunResult, data: Dataset) -> TrainedPolicy:
    """The policy of the seed in place ``s``, with what is known of it: as its file would tell."""
    params = jax.tree.map(lambda x: x[s], artefact.arrays["params"])
    described = artefact.record["policy"]
    acting = policies.make(Exported(params, described["kind"], described["layout"]))
    return TrainedPolicy(
        acting,
        described["kind"],
        task=result.task,
        method=result.method,
        seed=result.seed,
        dataset=data.id,
        score=result.normalised_score,
        commit=result.git_commit,
        observation_dim=data.observations.shape[1],
    )


@_worded_for_python()
def evaluate(
    policy: Policy | Callable[[np.ndarray], np.ndarray],
    data: Dataset | EnvSpec | str,
    episodes: int = evaluation.EPISODES,
    recorder: Recorder | None = None,
) -> np.ndarray:
    """Undiscounted return of every evaluation episode, (episodes,), on the suite's fixed reset seeds.

    Args:
        policy: of a run, or a function from observations (K, O) to actions (K, A) in [-1, 1], which are scaled to the
            environment's own box.
        data: a data set (its environment is used), a task, a Gymnasium id or its specification.
        episodes: how many, on reset seeds that count up from the first.
        recorder: keeps the states and actions of the episodes that it names.

    Raises:
        PolicyError: an action is not finite, outside [-1, 1] or of another shape.
        UserError: neither a task nor an id, no such environment, what does not act, or no episode.
    """
    require(is_whole(episodes) and episodes > 0, f"episodes must be a whole number above zero: {episodes!r}.")
    return evaluation.evaluate(policy, _environment(data), int(episodes), recorder=recorder)


@_worded_for_python()
def record_video(
    policy: Policy | Callable[[np.ndarray], np.ndarray],
    data: Dataset | EnvSpec | str,
    path: str | Path,
    *,
    seed: int = evaluation.FIRST_RESET_SEED,
    steps: int | None = None,
    size: int = 480,
) -> float:
    """Play one episode and write it as a video, in the environment's own time.

    Args:
        policy: as for :func:`evaluate`; data: likewise.
        path: of an .mp4 or a .gif.
        seed: of the reset; by default that of the first evaluation episode.
        steps: ends the video before the episode.
        size: width and height in pixels.

    Returns:
        The undiscounted return of what the video shows.

    Raises:
        PolicyError: an action is not finite, outside [-1, 1] or of another shape.
        UserError: another kind of file, no such environment, nothing here draws or encodes, or imageio is missing.
    """
    return video.record_video(policy, _environment(data), path, seed=seed, steps=steps, size=size)


def _environment(data: Dataset | EnvSpec | str) -> str | EnvSpec:
    """What is played of what a user names."""
    require(
        isinstance(data, Dataset | EnvSpec | str),
        f"give a data set, a task or a Gymnasium id to play in, not a {type(data).__name__}.",
    )
    if isinstance(data, str):
        return environment_of(data)
    return data.environment if isinstance(data, Dataset) else data


def method_names() -> tuple[str, ...]:
    """Names of all methods."""
    return registry.names()
