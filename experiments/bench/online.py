"""How fast online training is, and how much of its time the physics take.

    python experiments/bench/online.py --tasks hopper-medium-replay

Plays and learns a few updates of UFT from the task's BC policy; then the same episodes once more by their recorded
actions alone, without a policy. The first update, which compiles, is not counted.
"""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import shared
from rich.table import Table

from iwsft_control import finetune
from iwsft_control.base import bounds, children, console
from iwsft_control.base.bounds import POSITIVE
from iwsft_control.base.files import cache_home
from iwsft_control.benchmark import checks, online, settings, stages
from iwsft_control.benchmark.jobs import DataSource
from iwsft_control.benchmark.perform import perform
from iwsft_control.benchmark.store import Store
from iwsft_control.envs.batch import D4RLBatch
from iwsft_control.online import learner, methods, prefixes, rollouts, training
from iwsft_control.online.learner import Setup
from iwsft_control.online.policy import Actor
from iwsft_control.online.prefixes import Demonstrations, Starts
from iwsft_control.online.rollouts import Rollouts


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What to time."""

    tasks: tuple[str, ...] = ("hopper-medium-replay", "halfcheetah-medium-replay", "walker2d-medium-replay")
    updates: Annotated[int, POSITIVE] = 4
    seed: int = 0
    stages: Path | None = None
    """Folder of finished stages, as of ``run``."""


def physics_alone(batch: D4RLBatch, demonstrations: Demonstrations, starts: Starts, played: Rollouts) -> float:
    """Seconds that the episodes of an update take by their recorded actions, a thread for each core as in training."""
    groups, size = starts.steps.shape
    rows = starts.rows(demonstrations)

    def group(g: int) -> None:
        lanes = np.arange(g * size, (g + 1) * size)
        for lane, row, elapsed in zip(lanes.tolist(), rows[g], starts.steps[g], strict=True):
            batch.set_state(lane, demonstrations.qpos[row], demonstrations.qvel[row], int(elapsed))
        for t in range(int(played.lengths[lanes].max())):
            active = lanes[played.lengths[lanes] > t]
            batch.step(active, played.actions[t, active])

    began = time.perf_counter()
    with ThreadPoolExecutor(children.usable_cores()) as pool:
        list(pool.map(group, range(groups)))
    return time.perf_counter() - began


def measure(config: BenchConfig, task: str) -> list[str]:
    """A row of the table."""
    options = finetune.FinetuneConfig(env=task)
    chosen, data = settings.make(), DataSource(task).load()
    stage = stages.method_stage("bc", "q", (config.seed,), chosen, task)
    started = perform(stage, data, Store(config.stages or cache_home() / "stages"))
    batch = D4RLBatch(data.environment, options.ppo.groups * options.ppo.group_size)
    setup = Setup(options.ppo, methods.get("uft"), chosen["policy"].hidden, batch.action_dim, False, 0.2)
    demonstrations = prefixes.curate(options.prefix, data, batch)
    start = online.starting_policy(setup, options, data, started, config.seed)
    state = learner.create(setup, start, batch.observation_dim, 0, jax.random.key(config.seed))
    steps, seconds = 0, dict.fromkeys(("rollouts", "physics", "updates"), 0.0)
    for number in range(config.updates + 1):
        seed = (config.seed, number)
        began = time.perf_counter()
        starts = prefixes.draw(
            setup.method, options.prefix, demonstrations, 0.3, options.ppo.groups, options.ppo.group_size, seed
        )
        played = rollouts.play(Actor.of(state.policy), batch, demonstrations, starts, seed)
        middle = time.perf_counter()
        learned = training.learning_batch(setup, demonstrations, starts, played, batch.max_steps)
        state, means = learner.update(setup, state, learned, jnp.bool_(True), jax.random.key(number))
        jax.block_until_ready(means)
        ended = time.perf_counter()
        physics = physics_alone(batch, demonstrations, starts, played)
        if number:
            steps += played.steps
            for name, value in (("rollouts", middle - began), ("updates", ended - middle), ("physics", physics)):
                seconds[name] += value
    whole = seconds["rollouts"] + seconds["updates"]
    rates = [f"{steps / x:,.0f}" for x in (seconds["physics"], seconds["rollouts"], whole)]
    return [task, f"{steps:,}", *rates, f"{100 * seconds['physics'] / whole:.0f}%"]


def main(config: BenchConfig) -> None:
    """Print the table."""
    checks.check_seeds((config.seed,), "--seed")
    checks.check_tasks(config.tasks)
    bounds.check(config, "")
    console.cache_compiled_programs()
    shared.head()
    table = Table("task", "steps", "physics alone, steps/s", "rollouts", "rollouts and updates", "share of physics")
    for task in config.tasks:
        table.add_row(*measure(config, task))
    console.console.print(table)


if __name__ == "__main__":
    console.command(lambda: BenchConfig, main, "python experiments/bench/online.py", __doc__)
