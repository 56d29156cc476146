"""``python -m iwsft_control.collect``: reconstruct D4RL's locomotion data by D4RL's own protocol.

rlkit's, as far as its code tells (github.com/rail-berkeley/rlkit, examples/sac.py and what it calls):

- the loop: 1,000 rows of the untrained stochastic policy, then again and again 1,000 environment steps of a fixed,
  sampled policy and 1,000 updates; paths are cut at 1,000 steps and at the end of each block;
- the learner: soft actor-critic with twin critics, two layers of 256, batches of 256, learning rates of 3e-4, discount
  0.99, target rate 0.005, automatic temperature with target entropy -A, its initialisation (reconstruction/sac.py).

Not rlkit's: the updates per step where ``--updates-per-step`` says other than 1, the random numbers, JAX and float32
sums in another order. D4RL's authors do not say which version of rlkit they ran, nor their seed.

``medium-replay`` is every transition from the first until the policy reaches the medium level (D4RL's sizes),
``medium`` are episodes of the policy at that point, ``expert`` those of the finished one. What comes out is a
reconstruction, not D4RL's own data. Which replay is embedded, ``python -m iwsft_control.accept`` decides.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich import box
from rich.table import Table

from iwsft_control.base import console, files
from iwsft_control.base.errors import UserError, require
from iwsft_control.base.versions import version
from iwsft_control.benchmark import checks
from iwsft_control.datasets import facts, minari_files, packed
from iwsft_control.datasets.facts import Fingerprint
from iwsft_control.datasets.types import Episodes, content_sha256
from iwsft_control.envs import physics, tasks
from iwsft_control.envs.tasks import Task
from iwsft_control.reconstruction import pool, sac
from iwsft_control.reconstruction.collection import ITERATION_STEPS, Run, concatenate, rollout
from iwsft_control.reconstruction.portraits import fingerprint

ROLLOUT_STEPS = 1_000_000  # transitions of random, medium and expert data
STREAMS = {"random": 1, "medium": 2, "expert": 3}  # random streams of the fixed policies' data
ENVIRONMENTS = ("hopper", "halfcheetah", "walker2d")
CHOSEN = {"hopper": (2, 0.4), "halfcheetah": (18, 1.0), "walker2d": (16, 1.0)}  # seed and updates a step of accept's
SAC = sac.SACConfig()


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """What to collect."""

    env: str
    """Task to reconstruct: {hopper,halfcheetah,walker2d}-{random,medium,expert,medium-replay,medium-expert}."""
    seed: int | None = None
    """Seed of everything; by default that of the embedded medium-replay data, and their updates per step."""
    seeds: tuple[int, ...] = ()
    """Write no data set: make a replay for each of these seeds, candidates for a reconstruction, and compare them."""
    updates_per_step: float | None = None
    """SAC updates per environment step; rlkit's by default, 1, where a seed is given."""
    expert_steps: int = 1_000_000
    """Environment steps after which SAC counts as finished (expert, medium-expert)."""
    work: Path | None = None
    """Folder of checkpoints; a stopped collection continues from it. Default: ~/.cache/iwsft_control/collect."""
    unpack: bool = False
    """Collect nothing: write the embedded reconstruction of this task into the local Minari root."""
    embed: Path | None = None
    """Also pack the replay into this folder and its manifest (how the embedded data are made)."""
    record: Path = Path("results/reconstruction")
    """Folder of accept's record: only the replay that it chose is packed."""


def main(config: CollectConfig) -> None:
    """Collect (or continue to collect) one data set, compare it with D4RL's and write it as a Minari data set."""
    task = tasks.parse_task(config.env)
    name = task.environment.name
    require(
        name in ENVIRONMENTS and task.level != "full-replay",
        f"{task.name} is not reconstructed here; use one of {', '.join(ENVIRONMENTS)} with random, medium, expert, "
        "medium-replay or medium-expert.",
    )
    if config.unpack:
        _unpack(task)
        return
    require(config.updates_per_step is None or config.updates_per_step > 0, "--updates-per-step must be positive.")
    require(config.expert_steps >= ITERATION_STEPS, f"--expert-steps must be at least {ITERATION_STEPS}.")
    seed, sac_config = config.seed, SAC
    updates = config.updates_per_step
    if seed is None and not config.seeds:
        seed, chosen_updates = CHOSEN[name]
        updates = updates or chosen_updates
    if updates is not None:
        sac_config = dataclasses.replace(sac_config, updates_per_step=updates)
    work = config.work or files.cache_home() / "collect"
    if config.seeds:
        require(task.level == "medium-replay", "--seeds is for medium-replay; leave it out or give --seed.")
        checks.check_seeds(config.seeds)
        console.cache_compiled_programs()
        console.writable(work)
        fill_pool(task, sac_config, config.seeds, work)
        return
    assert seed is not None
    folder = minari_files.minari_path(task.reconstruction_id)
    require(not folder.exists(), f"{folder} exists already; delete it to collect {task.name} again.")
    require(config.embed is None or task.level == "medium-replay", "--embed is for medium-replay; leave it out.")
    console.cache_compiled_programs()
    console.writable(work)

    episodes = _collect(task, sac_config, seed, config.expert_steps, work)
    found = fingerprint(episodes)
    report(task, episodes, found)
    metadata = _metadata(task, sac_config, seed, found)
    if config.embed is not None:
        chosen = pool.chosen(config.record, task)
        require(
            content_sha256(episodes) == chosen.sha256,
            f"this replay is not {chosen.name} of {config.record / task.name}.json, which accept chose; on another "
            "kind of processor a replay is another one.",
        )
        embed(config.embed, task, episodes, dict(metadata))
    written = minari_files.write_minari(task.reconstruction_id, episodes, task.environment.env_id, metadata)
    console.console.print(f"written: {task.reconstruction_id} in {written}")


def _collect(task: Task, config: sac.SACConfig, seed: int, expert_steps: int, work: Path) -> Episodes:
    env_id, name = task.environment.env_id, task.environment.name
    medium_steps = facts.D4RL_MEDIUM_REPLAY[name].transitions

    def fixed(level: str) -> Episodes:
        policy = None
        if level != "random":
            steps = medium_steps if level == "medium" else expert_steps
            policy = jax.tree.map(np.asarray, _train(env_id, config, seed, steps, medium_steps, work).learner.policy)
        with console.progress_bar() as bar:
            line = bar.add_task(f"{level} policy", total=ROLLOUT_STEPS)
            stream = [seed, STREAMS[level]]
            return rollout(env_id, policy, ROLLOUT_STEPS, stream, lambda n: bar.advance(line, n))

    if task.level == "medium-replay":
        return _train(env_id, config, seed, medium_steps, medium_steps, work).episodes()
    if task.level == "medium-expert":
        return concatenate(fixed("medium"), fixed("expert"))
    return fixed(task.level)


def _train(env_id: str, config: sac.SACConfig, seed: int, steps: int, medium_steps: int, work: Path) -> Run:
    """SAC's run up to ``steps``; its checkpoint at the medium level is kept."""
    with console.progress_bar() as bar:
        line = bar.add_task(f"SAC, seed {seed}", total=steps)

        def tell(run: Run) -> None:
            returns = run.returns()[-10:]
            text = f"SAC, seed {seed}, last 10 returns {returns.mean():.0f}"
            bar.update(line, completed=run.steps, description=text)

        return pool.grow(env_id, config, seed, steps, work, tell, keep_at=(medium_steps,))


def _train_together(env_id: str, config: sac.SACConfig, seeds: Sequence[int], steps: int, work: Path) -> list[Run]:
    """The runs of several seeds on an accelerator."""
    with console.progress_bar() as bar:
        line = bar.add_task(f"SAC, {len(seeds)} seeds", total=steps)
        return pool.grow_together(
            env_id, config, seeds, steps, work, os.cpu_count() or 1, lambda done: bar.update(line, completed=done)
        )


def fill_pool(task: Task, config: sac.SACConfig, seeds: Sequence[int], folder: Path) -> None:
    """Make a replay for every seed, keep its portrait, and print those of all candidates in the folder."""
    environment = task.environment
    steps = facts.D4RL_MEDIUM_REPLAY[environment.name].transitions
    if jax.default_backend() == "cpu" or len(seeds) == 1:
        for seed in seeds:
            pool.write(folder, pool.candidate(_train(environment.env_id, config, seed, steps, steps, folder)))
    else:
        runs = _train_together(environment.env_id, config, seeds, steps, folder)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
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


def _metadata(task: Task, config: sac.SACConfig, seed: int, found: Fingerprint) -> dict[str, Any]:
    return {
        "ref_min_score": task.environment.ref_min_score,
        "ref_max_score": task.environment.ref_max_score,
        "algorithm_name": "SAC",
        "author": ["iwsft_control"],
        "description": f"A reconstruction of D4RL's {task.name}-v2 by D4RL's protocol, not D4RL's own data.",
        "reconstruction": True,
        "seed": seed,
        "generation_config": dataclasses.asdict(config),
        "physics": physics.describe(task.environment.env_id),
        "fingerprint": dataclasses.asdict(found),
        "versions": {p: version(p) for p in ("mujoco", "gymnasium", "jax", "numpy", "minari")},
    }


def embed(folder: Path, task: Task, episodes: Episodes, metadata: dict[str, Any]) -> None:
    """Pack a data set into ``folder`` and enter its size and sha256 into the manifest there."""
    path = folder / f"{task.name}-v1.hdf5"
    environment = {"env_spec": minari_files.environment_spec(task.environment.env_id)}
    packed.pack(path, episodes, {"dataset_id": task.reconstruction_id, **environment, **metadata})
    manifest = folder / "manifest.json"
    entries = packed.read_manifest(manifest)
    entries[task.reconstruction_id] = {
        "file": path.name,
        "sha256": files.sha256(path),
        "bytes": path.stat().st_size,
    }
    files.write_json(manifest, dict(sorted(entries.items())))
    console.console.print(f"packed: {path} ({path.stat().st_size / 1e6:.1f} MB)")


def _unpack(task: Task) -> None:
    identity = task.reconstruction_id
    if identity not in packed.embedded_manifest():
        raise UserError(f"{identity} is not embedded; run 'python -m iwsft_control.collect --env {task.name}' instead.")
    episodes, metadata = packed.read_embedded(identity)
    metadata = {k: v for k, v in metadata.items() if k not in ("dataset_id", "env_spec")}
    written = minari_files.write_minari(identity, episodes, task.environment.env_id, metadata)
    console.console.print(f"written: {identity} in {written}")


def cli() -> None:
    """The command line."""
    console.command(lambda: CollectConfig, main, "python -m iwsft_control.collect", __doc__)


if __name__ == "__main__":
    cli()
