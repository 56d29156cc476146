"""The collect command's work: replays and the episodes of fixed policies, reported, written and packed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich import box
from rich.table import Table

from iwsft_control.base import children, console, files
from iwsft_control.base.errors import UserError, require
from iwsft_control.datasets import facts, minari_files, packed
from iwsft_control.datasets.facts import Fingerprint
from iwsft_control.datasets.types import Episodes, content_sha256
from iwsft_control.envs import tasks
from iwsft_control.envs.tasks import Task
from iwsft_control.reconstruction import pool, sac
from iwsft_control.reconstruction.collection import ITERATION_STEPS, Run, concatenate, provenance, rollout
from iwsft_control.reconstruction.pool import Candidate
from iwsft_control.reconstruction.portraits import fingerprint

ROLLOUT_STEPS = 1_000_000  # transitions of random, medium and expert data
STREAMS = {"random": 1, "medium": 2, "expert": 3}  # random streams of the fixed policies' data
TRY_STEPS = 2_000  # environment steps between the policies that may become the expert
EXPERT_SHARE = 0.9  # of the mean return of D4RL's expert data, below which a policy is told to be none
SAC = sac.SACConfig()


def learner(updates_per_step: float | None) -> sac.SACConfig:
    """SAC as rlkit has it, or with another number of updates a step."""
    return SAC if updates_per_step is None else dataclasses.replace(SAC, updates_per_step=updates_per_step)


def make(
    task: Task, config: sac.SACConfig, seed: int, expert_steps: int, work: Path, folder: Path | None, record: Path
) -> None:
    """Collect (or continue to collect) one data set, compare it with D4RL's and write it as a Minari data set.

    Args:
        work: folder of checkpoints.
        folder: where the data set is packed too, with its manifest.
        record: folder of accept's record, which names the only replay that is packed.

    Raises:
        UserError: the data set exists already, or another replay is to be packed than the chosen one. What can be
            known of that before the replay is made is said before; its content only afterwards, and the replay is kept.
    """
    whole = expert_steps > 0 and expert_steps % ITERATION_STEPS == 0
    require(whole, f"--expert-steps must be a positive multiple of {ITERATION_STEPS}.")
    identity, own = task.reconstruction_id, _own_id(task, config, seed)
    places = [minari_files.minari_path(own)]
    if own != identity and (folder is not None or _may_be_embedded(task, config, seed)):
        places.append(minari_files.minari_path(identity))
    for place in places:
        require(not place.exists(), f"{place} exists already; delete it to collect {task.name} again.")
    chosen = None if folder is None else _to_pack(task, config, seed, record)
    console.cache_compiled_programs()
    for each in (work, places[0].parent, *([] if folder is None else [folder])):
        console.writable(each)
    if folder is not None:
        packed.read_manifest(folder / packed.MANIFEST)  # a damaged one is said before the replay is made
    episodes, run = _collect(task, config, seed, expert_steps, work)
    found = fingerprint(episodes)
    report(task, episodes, found)
    made = f"A reconstruction of D4RL's {task.name}-v2 by D4RL's protocol, not D4RL's own data."
    described = metadata(task, seed, found, made)
    if run is not None:
        described |= {"generation_config": dataclasses.asdict(config), "run": run.made}
        if task.level == "medium-replay":
            described |= run.made
        if run.best is not None:
            described |= {"expert": {"steps": run.best.steps, "trial_mean_return": run.best.mean_return}}
        level = facts.D4RL_MEDIUM_REPLAY[task.environment.name].transitions
        if run.steps >= level:  # else of a short --expert-steps: no replay to compare
            replay = content_sha256(run.episodes(level))
            described |= {"replay_sha256": replay}
            if folder is None and replay != _embedded_sha256(task):
                identity = own
                console.console.print(
                    f"The SAC run of these data is not that of the embedded {task.environment.name} data: a run is "
                    "another one with another seed or number of updates a step, and on another kind of processor."
                )
                if task.level == "medium-replay":
                    console.console.print(f"So they have an id of their own: --dataset {identity}")
    if folder is not None and chosen is not None:
        require(
            content_sha256(episodes) == chosen.sha256,
            f"this replay is not {chosen.name} of {record / task.name}.json, which accept chose: on another kind of "
            f"processor a replay is another one. It is kept in {work}; leave out --embed to use it here.",
        )
        embed(folder, task, episodes, described)
    written = minari_files.write_minari(identity, episodes, task.environment.env_id, described)
    console.console.print(f"written: {identity} in {written}")


def _own_id(task: Task, config: sac.SACConfig, seed: int) -> str:
    """The id of a replay that is not the embedded one, whose id it must not take; of other levels their only id."""
    if task.level != "medium-replay":
        return task.reconstruction_id
    stem, _, number = task.reconstruction_id.rpartition("-v")
    return f"{stem}-{pool.replay_name(seed, config.updates_per_step)}-v{number}"


def _may_be_embedded(task: Task, config: sac.SACConfig, seed: int) -> bool:
    """Whether a replay has the seed and the updates of the embedded one: on its kind of processor it is that one."""
    known = packed.read_metadata(packed.embedded_file(task.reconstruction_id)[0])
    return (known["seed"], known["generation_config"]["updates_per_step"]) == (seed, config.updates_per_step)


def _embedded_sha256(task: Task) -> str:
    """Of the content of the embedded medium-replay data of a task's body."""
    identity = Task(task.environment, "medium-replay").reconstruction_id
    return content_sha256(packed.read_embedded(identity)[0])


def _to_pack(task: Task, config: sac.SACConfig, seed: int, record: Path) -> Candidate:
    """The candidate that accept chose, which a replay must be if it is to be packed.

    Raises:
        UserError: there is no choice, or it is another seed or another number of updates a step.
    """
    chosen = pool.chosen(record, task)
    require(
        (chosen.seed, chosen.updates_per_step) == (seed, config.updates_per_step),
        f"{record / task.name}.json names {chosen.name}, not {pool.replay_name(seed, config.updates_per_step)}; "
        f"give --seed {chosen.seed} --updates-per-step {chosen.updates_per_step:g}, or leave out --embed.",
    )
    return chosen


def _collect(
    task: Task, config: sac.SACConfig, seed: int, expert_steps: int, work: Path
) -> tuple[Episodes, Run | None]:
    """Episodes of a level, and the run of SAC that they come from, if they come from one."""
    env_id, name = task.environment.env_id, task.environment.name
    medium_steps = facts.D4RL_MEDIUM_REPLAY[name].transitions

    def fixed(level: str) -> tuple[Episodes, Run | None]:
        run, policy = None, None
        if level != "random":
            steps = medium_steps if level == "medium" else expert_steps
            run = _train(env_id, config, seed, steps, medium_steps, work, tries=level == "expert")
            policy = jax.tree.map(np.asarray, run.learner.policy)
            if level == "expert" and run.best is not None:
                policy = run.best.policy
                console.console.print(f"expert: the policy after {run.best.steps:,} steps is the best of those tried")
        episodes = play(env_id, policy, level, seed, ROLLOUT_STEPS)
        console.console.print(beside_d4rl(task, level, episodes))
        return episodes, run

    if task.level == "medium-replay":
        replay = _train(env_id, config, seed, medium_steps, medium_steps, work)
        return replay.episodes(), replay
    if task.level == "medium-expert":
        (medium, _), (expert, run) = fixed("medium"), fixed("expert")
        return concatenate(medium, expert), run
    return fixed(task.level)


def beside_d4rl(task: Task, level: str, episodes: Episodes) -> str:
    """The mean return of a fixed policy's episodes beside that of D4RL's; whether an expert's is far from it."""
    environment, mean = task.environment, float(episodes.returns.mean())
    wanted = {"medium": environment.medium_return, "expert": environment.expert_return}.get(level)
    line = f"{level} policy: mean return {mean:.0f}" + ("" if wanted is None else f", D4RL's {wanted:.0f}")
    if level != "expert" or wanted is None or mean >= EXPERT_SHARE * wanted:
        return line
    return f"{line}: NO EXPERT. No policy of the run came nearer; a larger --expert-steps takes it on from here."


def play(env_id: str, policy: Any | None, level: str, seed: int, transitions: int) -> Episodes:
    """Episodes of a fixed policy (None: uniform actions) with the random stream of its level, with progress."""
    with console.progress_bar() as bar:
        line = bar.add_task(f"{level} policy", total=transitions)
        return rollout(env_id, policy, transitions, [seed, STREAMS[level]], lambda n: bar.advance(line, n))


def _train(
    env_id: str, config: sac.SACConfig, seed: int, steps: int, medium_steps: int, work: Path, tries: bool = False
) -> Run:
    """SAC's run up to ``steps``; its checkpoint at the medium level is kept. ``tries``: from there on policies are
    tried, and the run keeps its best."""
    with console.progress_bar() as bar:
        line = bar.add_task(f"SAC, seed {seed}", total=steps)

        def tell(run: Run) -> None:
            returns = run.returns()[-10:]
            text = f"SAC, seed {seed}, last 10 returns {returns.mean():.0f}"
            if tries and run.steps > medium_steps and run.steps % TRY_STEPS == 0:
                run.try_policy()
            if run.best is not None:
                text += f", best policy {run.best.mean_return:.0f}"
            bar.update(line, completed=run.steps, description=text)

        run = pool.grow(env_id, config, seed, steps, work, tell, keep_at=(medium_steps,))
        if tries and run.best is None:  # a checkpoint of before, or no more steps than the medium level's
            run.try_policy()
        return run


def _train_together(env_id: str, config: sac.SACConfig, seeds: Sequence[int], steps: int, work: Path) -> list[Run]:
    """The runs of several seeds on an accelerator."""
    with console.progress_bar() as bar:
        line = bar.add_task(f"SAC, {len(seeds)} seeds", total=steps)
        return pool.grow_together(
            env_id, config, seeds, steps, work, children.usable_cores(), lambda done: bar.update(line, completed=done)
        )


def fill_pool(task: Task, config: sac.SACConfig, seeds: Sequence[int], folder: Path) -> None:
    """Make a replay for every seed, keep its portrait, and print those of all candidates in the folder."""
    environment = task.environment
    steps = facts.D4RL_MEDIUM_REPLAY[environment.name].transitions
    console.cache_compiled_programs()
    console.writable(folder)
    if jax.default_backend() == "cpu" or len(seeds) == 1:
        for seed in seeds:
            pool.write(folder, pool.candidate(_train(environment.env_id, config, seed, steps, steps, folder)))
    else:
        runs = _train_together(environment.env_id, config, seeds, steps, folder)
        with ThreadPoolExecutor(children.usable_cores()) as threads:
            for found in threads.map(pool.candidate, runs):
                pool.write(folder, found)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=f"{task.name}: candidates in {folder}")
    for name in pool.COLUMNS:
        table.add_column(name, no_wrap=name == pool.COLUMNS[0])
    for row in pool.rows(pool.read(folder, environment.name), environment):
        table.add_row(*row)
    console.console.print(table)


def report(task: Task, episodes: Episodes, found: Fingerprint) -> None:
    """Print the fingerprint beside D4RL's, where it is known, and a histogram of episode returns."""
    environment = task.environment
    wanted = facts.D4RL_MEDIUM_REPLAY.get(environment.name) if task.level == "medium-replay" else None
    table = Table("", "here", "D4RL", title=f"{task.reconstruction_id}: a reconstruction")
    for field in dataclasses.fields(Fingerprint):
        here, there = getattr(found, field.name), getattr(wanted, field.name, None)
        table.add_row(field.name, f"{here:,.6g}", f"{there:,.6g}" if there is not None else "-")
    lo, hi = environment.ref_min_score, environment.ref_max_score
    there = f"{tasks.normalise(wanted.mean, lo, hi):.1f}" if wanted else "-"
    table.add_row("mean normalised", f"{tasks.normalise(found.mean, lo, hi):.1f}", there)
    returns = episodes.returns
    last = returns[-max(1, len(returns) // 10) :]
    table.add_row("mean of the last tenth", f"{last.mean():.0f}", f"medium level {environment.medium_return}")
    console.console.print(table)
    counts, edges = np.histogram(returns, bins=10)
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        console.console.print(f"{low:8.0f} to {high:6.0f} {count:6d} {'#' * int(np.ceil(50 * count / counts.max()))}")


def metadata(task: Task, seed: int, found: Fingerprint, description: str) -> dict[str, Any]:
    """What a Minari data set says of how it was made, whoever plays it."""
    return {
        "ref_min_score": task.environment.ref_min_score,
        "ref_max_score": task.environment.ref_max_score,
        "algorithm_name": "uniform" if task.level == "random" else "SAC",
        "author": ["iwsft_control"],
        "description": description,
        "reconstruction": True,
        "seed": seed,
        "fingerprint": dataclasses.asdict(found),
        **provenance(task.environment.env_id),
    }


def embed(folder: Path, task: Task, episodes: Episodes, metadata: dict[str, Any]) -> None:
    """Pack a data set into ``folder`` and enter its size and sha256 into the manifest there."""
    path = folder / f"{'-'.join(task.reconstruction_id.split('/')[1:])}.hdf5"
    environment = {"env_spec": minari_files.environment_spec(task.environment.env_id)}
    packed.pack(path, episodes, {"dataset_id": task.reconstruction_id, **environment, **metadata})
    manifest = folder / packed.MANIFEST
    entries = packed.read_manifest(manifest)
    entries[task.reconstruction_id] = {
        "file": path.name,
        "sha256": files.sha256(path),
        "bytes": path.stat().st_size,
    }
    files.write_json(manifest, dict(sorted(entries.items())))
    console.console.print(f"packed: {path} ({path.stat().st_size / 1e6:.1f} MB)")


def unpack(task: Task) -> None:
    """Write the embedded reconstruction of a task into the local Minari root."""
    identity = task.reconstruction_id
    if identity not in packed.embedded_manifest():
        raise UserError(f"{identity} is not embedded; run 'python -m iwsft_control.collect --env {task.name}' instead.")
    episodes, kept = packed.read_embedded(identity)
    kept = {k: v for k, v in kept.items() if k not in ("dataset_id", "env_spec")}
    written = minari_files.write_minari(identity, episodes, task.environment.env_id, kept)
    console.console.print(f"written: {identity} in {written}")
