"""A pool of candidates for a reconstruction: many replays, each with its portrait, in one folder."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iwsft_control.base import files
from iwsft_control.base.errors import UserError, require
from iwsft_control.datasets import facts
from iwsft_control.datasets.types import Episodes, content_sha256
from iwsft_control.envs import tasks
from iwsft_control.envs.tasks import Environment, Task
from iwsft_control.reconstruction import collection, sac
from iwsft_control.reconstruction.collection import Run
from iwsft_control.reconstruction.portraits import QUANTILES, Portrait, portrait

CHECKPOINT_STEPS = 20_000
CHECKPOINT_SECONDS = 1200  # of runs that grow together: their checkpoints are large


def replay_name(seed: int, updates_per_step: float) -> str:
    """The name of a replay: "seed0-u1"."""
    return f"seed{seed}-u{updates_per_step:g}"


def slug(env_id: str, seed: int, config: sac.SACConfig) -> str:
    """The name of a replay's files: "Hopper-v2-seed0-u1"."""
    return f"{env_id.split('/')[1]}-{replay_name(seed, config.updates_per_step)}"


def grow(
    env_id: str,
    config: sac.SACConfig,
    seed: int,
    steps: int,
    work: Path,
    tell: Callable[[Run], None] = lambda run: None,
    keep_at: Sequence[int] = (),
) -> Run:
    """SAC's run up to ``steps``, continued from the furthest checkpoint in a folder.

    Args:
        tell: called after every iteration.
        keep_at: further steps at which a checkpoint is kept.
    """
    run = begin(env_id, config, seed, steps, work, keep_at)
    while run.steps < steps:
        run.iterate()
        tell(run)
        kept = run.steps in {steps, *keep_at}
        if kept or run.steps % CHECKPOINT_STEPS == 0:
            _save(run, work, kept)
    return run


def _save(run: Run, work: Path, kept: bool) -> None:
    """Write a run's checkpoint, unless it would replace that of a longer run which was stopped."""
    path = checkpoint(work, run, run.steps if kept else None)
    if kept or not path.is_file() or steps_of(path) <= run.steps:
        run.save(path)


def begin(env_id: str, config: sac.SACConfig, seed: int, steps: int, work: Path, keep_at: Sequence[int] = ()) -> Run:
    """A run of at most ``steps``, at its furthest checkpoint in a folder."""
    run = Run(env_id, config, seed, steps)
    kept = [checkpoint(work, run, at) for at in sorted({steps, *keep_at}, reverse=True) if at <= steps]
    found = [path for path in (*kept, checkpoint(work, run)) if path.is_file() and steps_of(path) <= steps]
    if found:
        run.load(max(found, key=steps_of))
    return run


def checkpoint(work: Path, run: Run, steps: int | None = None) -> Path:
    """Where a run's checkpoint is: one that is kept, at ``steps``, or the one that it continues from."""
    return work / f"{slug(run.env_id, run.seed, run.config)}-{steps or 'current'}.safetensors"


def grow_together(
    env_id: str,
    config: sac.SACConfig,
    seeds: Sequence[int],
    steps: int,
    work: Path,
    workers: int,
    tell: Callable[[int], None] = lambda steps: None,
) -> list[Run]:
    """The runs of several seeds up to ``steps``: one program updates them all, processes share their environments.

    Made for an accelerator. A run's random streams are those of :func:`grow`; its sums are rounded in another order.

    Args:
        workers: processes that step environments.
        tell: called after every iteration with the environment steps of each run.
    """
    runs = [begin(env_id, config, seed, steps, work) for seed in seeds]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(runs)), spawn, collection.begin_process, (env_id,)) as processes:
        while (behind := min(run.steps for run in runs)) < steps:
            # A stop between two checkpoints leaves some runs behind; they catch up first.
            group = [run for run in runs if run.steps == behind]
            _iterate_together(
                group, min((run.steps for run in runs if run.steps > behind), default=steps), processes, tell
            )
            for run in group:
                _save(run, work, run.steps == steps)
    return runs


def _iterate_together(
    runs: Sequence[Run], steps: int, processes: ProcessPoolExecutor, tell: Callable[[int], None]
) -> None:
    """Runs of one length, up to ``steps`` or the next checkpoint, whichever comes first."""
    config, seeds, began = runs[0].config, [run.seed for run in runs], time.monotonic()
    learners = jax.tree.map(lambda *x: jnp.stack(x), *(run.learner for run in runs))
    replays = jax.tree.map(
        lambda *x: jnp.array(np.stack(x)), *(r.transitions(0, len(r.record["rewards"])) for r in runs)
    )
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    while runs[0].steps < steps:
        start = runs[0].steps
        iteration = start // collection.ITERATION_STEPS
        policies = jax.device_get(learners.policy)
        each = [jax.tree.map(lambda x, i=i: x[i], policies) for i in range(len(runs))]
        for run, rows in zip(
            runs, processes.map(collection.block_in_process, each, seeds, repeat(iteration)), strict=True
        ):
            run.write(rows)
        stop = runs[0].steps
        rows = jax.tree.map(lambda *x: np.stack(x), *(run.transitions(start, stop) for run in runs))
        replays = sac.insert_together(replays, rows, np.int32(start))
        if updates := collection.updates_of(config, start, stop):
            at = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, iteration)
            learners = sac.train_together(config, updates, learners, replays, np.int32(stop), at)
        tell(stop)
        if time.monotonic() - began >= CHECKPOINT_SECONDS:
            break
    learners = jax.device_get(learners)
    for i, run in enumerate(runs):
        run.learner = jax.tree.map(lambda x, i=i: jnp.array(x[i]), learners)


def steps_of(checkpoint: Path) -> int:
    """Environment steps of a checkpoint; 0 if it is damaged."""
    found = files.read_metadata(checkpoint).get("steps")
    return found if isinstance(found, int) else 0


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One replay of the pool."""

    environment: str
    seed: int
    updates_per_step: float
    sha256: str
    """Of its content, as :func:`~iwsft_control.datasets.types.content_sha256`."""
    portrait: Portrait

    @property
    def name(self) -> str:
        return replay_name(self.seed, self.updates_per_step)


def candidate(run: Run) -> Candidate:
    """The portrait of a finished replay."""
    environment = next(e for e in tasks.ENVIRONMENTS.values() if e.env_id == run.env_id)
    episodes = run.episodes()
    states = facts.D4RL_MEDIUM_REPLAY_STATES.get(environment.name)
    return Candidate(
        environment.name,
        run.seed,
        run.config.updates_per_step,
        content_sha256(episodes),
        portrait(episodes, states),
    )


def write(folder: Path, found: Candidate) -> None:
    """Keep a candidate's portrait."""
    files.write_json(folder / f"{found.environment}-{found.name}.json", dataclasses.asdict(found))


def read(folder: Path, environment: str) -> list[Candidate]:
    """The candidates of an environment whose portraits are in a folder, by updates a step and seed.

    Raises:
        UserError: a file is not a portrait.
    """
    found = [_read(path) for path in folder.glob(f"{environment}-seed*.json")]
    return sorted(found, key=lambda c: (c.updates_per_step, c.seed))


def _read(path: Path) -> Candidate:
    what, remedy = "a candidate's portrait", "collect it again"
    values = files.read_json(path, what, remedy)
    problem = files.problem_of(values, files.fields_of(Candidate))
    if problem is None:
        inner = values["portrait"]
        problem = files.problem_of(inner, files.fields_of(Portrait))
    if problem is None:
        inner["length_quantiles"] = quantiles = tuple(inner["length_quantiles"])
        if len(quantiles) != len(QUANTILES) or not all(map(files.is_number, quantiles)):
            problem = f"length_quantiles should be {len(QUANTILES)} numbers"
    require(problem is None, f"{path} is not {what} ({problem}); {remedy}.")
    return Candidate(**values | {"portrait": Portrait(**inner)})


def chosen(record: Path, task: Task) -> Candidate:
    """The candidate that ``python -m iwsft_control.accept`` chose, by its record in a folder.

    Raises:
        UserError: there is no record, it is damaged, or it names no candidate whose portrait is there.
    """
    path, command = record / f"{task.name}.json", f"'python -m iwsft_control.accept --env {task.name}'"
    found: Any = None
    if path.is_file():
        what, remedy = "accept's record", f"run {command} again"
        values = files.read_json(path, what, remedy)
        good = isinstance(values, dict) and "chosen" in values and files.is_of(values["chosen"], "str | None")
        require(good, f'{path} is not {what} (it names no candidate under "chosen"); {remedy}.')
        found = values["chosen"]
    require(found is not None, f"{path} names no chosen candidate; run {command} first.")
    for each in read(record / "pool", task.environment.name):
        if each.name == found:
            return each
    raise UserError(f"{record / 'pool'} holds no portrait of {found}, which {path} names; run {command} again.")


def load_episodes(work: Path, environment: Environment, found: Candidate) -> Episodes:
    """The transitions of a candidate from its checkpoint in ``work``.

    Raises:
        UserError: the checkpoint is gone, or holds another replay than the portrait is of.
    """
    steps = found.portrait.transitions
    config = dataclasses.replace(sac.SACConfig(), updates_per_step=found.updates_per_step)
    path = work / f"{slug(environment.env_id, found.seed, config)}-{steps}.safetensors"
    run = Run(environment.env_id, config, found.seed, steps)
    run.load(path)
    episodes = run.episodes()
    if content_sha256(episodes) != found.sha256:
        raise UserError(f"{path} is another replay than the portrait of {found.name} is of; collect it again.")
    return episodes


COLUMNS = (
    "candidate", "episodes", "mean", "sd", "min", "max", "last tenth", "full length", "best 2%: length", "return",
    "length 10, 50, 90%", "state shift", "spread",
)  # fmt: skip


def rows(candidates: Sequence[Candidate], environment: Environment) -> list[list[str]]:
    """A table's rows: D4RL's own figures first, where they are public, then the candidates."""
    wanted = facts.D4RL_MEDIUM_REPLAY[environment.name]
    moments = [
        f"{x:.0f}" for x in (wanted.mean, wanted.std, wanted.min, wanted.max, environment.medium_return or np.nan)
    ]
    found = [["D4RL", f"{wanted.episodes:,}", *moments, "-", "-", "-", "-", "0", "0"]]
    for each in candidates:
        p, quantiles = each.portrait, dict(zip(QUANTILES, each.portrait.length_quantiles, strict=True))
        found.append(
            [each.name, f"{p.episodes:,}"]
            + [f"{x:.0f}" for x in (p.mean, p.std, p.min, p.max, p.last_tenth, p.full_length)]
            + [f"{p.best_length:.0f}", f"{p.best_return:.0f}", " ".join(f"{quantiles[q]:.0f}" for q in (10, 50, 90))]
            + [f"{x:.2f}" if x is not None else "-" for x in (p.state_shift, p.state_spread)]
        )
    return found
