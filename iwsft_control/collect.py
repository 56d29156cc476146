"""``python -m iwsft_control.collect``: reconstruct D4RL's locomotion data by D4RL's own protocol.

rlkit's, as far as its code tells (github.com/rail-berkeley/rlkit, examples/sac.py and what it calls):

- the loop: 1,000 rows of the untrained stochastic policy, then again and again 1,000 environment steps of a fixed,
  sampled policy and 1,000 updates; paths are cut at 1,000 steps and at the end of each block;
- the learner: soft actor-critic with twin critics, two layers of 256, batches of 256, learning rates of 3e-4, discount
  0.99, target rate 0.005, automatic temperature with target entropy -A, its initialisation (reconstruction/sac.py).

Not rlkit's: the updates per step where ``--updates-per-step`` says other than 1, the random numbers, JAX and float32
sums in another order. D4RL's authors do not say which version of rlkit they ran, nor their seed.

``medium-replay`` is every transition from the first until the policy reaches the medium level (D4RL's sizes),
``medium`` are episodes of the policy at that point. ``expert`` are episodes of the best policy after it: SAC's return
rises and falls to the end, so every 2,000 steps the policy plays ten episodes, and that of the highest mean return is
taken (D4RL's authors say only that theirs is "trained to completion"). What comes out is a reconstruction, not D4RL's
own data. Which replay is embedded, ``python -m iwsft_control.accept`` decides. On another kind of processor a seed
gives another run; the command says so, and a replay then has an id of its own.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from iwsft_control.base import bounds, console, files
from iwsft_control.base.bounds import POSITIVE
from iwsft_control.base.errors import require
from iwsft_control.benchmark import checks
from iwsft_control.envs import tasks

CHOSEN = {"hopper": (2, 0.4), "halfcheetah": (18, 1.0), "walker2d": (16, 1.0)}  # seed and updates a step of accept's
EXPERT_STEPS = 1_000_000


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """What to collect."""

    env: str
    """Task to reconstruct: {hopper,halfcheetah,walker2d}-{random,medium,expert,medium-replay,medium-expert}."""
    seed: int | None = None
    """Seed of everything; by default the embedded medium-replay data's, and their updates per step."""
    seeds: tuple[int, ...] = ()
    """Write no data set: make a replay for each of these seeds, candidates for a reconstruction, and compare them."""
    updates_per_step: Annotated[float | None, POSITIVE] = None
    """SAC updates per environment step; rlkit's by default, 1, where a seed is given."""
    expert_steps: int | None = None
    """Environment steps in which SAC looks for an expert (expert, medium-expert); by default 1,000,000."""
    work: Path | None = None
    """Folder of checkpoints; a stopped collection continues from it. Default: ~/.cache/iwsft_control/collect."""
    unpack: bool = False
    """Collect nothing: write the embedded reconstruction of this task into the local Minari root."""
    embed: Path | None = None
    """Also pack the replay into this folder and its manifest (how the embedded data are made)."""
    record: Path | None = None
    """Folder of accept's record, for --embed: only the replay that it chose is packed. By default
    results/reconstruction."""


def main(config: CollectConfig) -> None:
    """Check what can be checked, then collect."""
    task = tasks.parse_task(config.env)
    name, updates = task.environment.name, config.updates_per_step
    require(
        task.can_be_collected,
        f"{task.name} is not reconstructed here; use one of {', '.join(CHOSEN)} with random, medium, expert, "
        "medium-replay or medium-expert.",
    )
    bounds.check(config, "")
    replay = task.level == "medium-replay"
    require(replay or not config.seeds, "--seeds is for medium-replay; leave it out or give --seed.")
    require(replay or config.embed is None, "--embed is for medium-replay; leave it out.")
    trained = task.level in ("expert", "medium-expert")
    require(trained or config.expert_steps is None, "--expert-steps is for expert and medium-expert; leave it out.")
    require(config.embed is not None or config.record is None, "--record is for --embed; leave it out.")
    learns = task.level != "random"
    require(learns or updates is None, "--updates-per-step has no effect on random, whose policy never learns.")
    no_use = {
        "seeds": ("seed", "embed"),
        "unpack": ("seeds", "seed", "updates_per_step", "expert_steps", "embed", "work"),
    }
    for option, others in no_use.items():
        if getattr(config, option):
            idle = next((o for o in others if getattr(config, o) not in (None, ())), None)
            no_effect = f"--{idle} has no effect with --{option}; leave it out.".replace("_", "-")
            require(idle is None, no_effect)
    seeds, option = (config.seeds, "--seeds") if config.seeds else ((config.seed or 0,), "--seed")
    checks.check_seeds(seeds, option)
    from iwsft_control.reconstruction import levels  # here: help and a mistake in an option need none of JAX

    work = config.work or files.cache_home() / "collect"
    record = config.record or Path("results/reconstruction")
    if config.unpack:
        levels.unpack(task)
    elif config.seeds:
        levels.fill_pool(task, levels.learner(updates), config.seeds, work)
    else:
        seed = config.seed
        if seed is None:
            seed, updates = CHOSEN[name][0], updates or CHOSEN[name][1]
        steps = EXPERT_STEPS if config.expert_steps is None else config.expert_steps
        levels.make(task, levels.learner(updates), seed, steps, work, config.embed, record)


def cli() -> None:
    """The command line."""
    console.command(lambda: CollectConfig, main, "python -m iwsft_control.collect", __doc__)


if __name__ == "__main__":
    cli()
