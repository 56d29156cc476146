"""Do known methods score here what is published? Data of D4RL's own medium policies, made anew.

    iwsft d4rl download hopper-medium --folder d4rl
    python experiments/d4rl_medium.py --d4rl d4rl --env hopper
    python -m iwsft_control.run --env hopper-medium --dataset d4rl-policy/hopper/medium-v0 \\
        --method bc filtered-bc td3-bc iql --seeds 0 --results results/d4rl-medium

D4RL's medium-v2 data are a million steps of one SAC policy with sampled actions, and its files hold the weights of that
policy. Played in the suite's physics it gives data that differ from D4RL's by the draws of resets and actions, and by
episodes that are cut where the recording ends. So this tries methods, settings and evaluation apart from any
reconstruction. Needs what experiments/fidelity.py needs.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import fidelity

from iwsft_control.base import bounds, console
from iwsft_control.base.bounds import NOT_NEGATIVE, POSITIVE
from iwsft_control.base.errors import require
from iwsft_control.datasets import minari_files
from iwsft_control.envs import tasks
from iwsft_control.reconstruction import levels
from iwsft_control.reconstruction.collection import ROLLOUT_LANES
from iwsft_control.reconstruction.portraits import fingerprint


@dataclasses.dataclass(frozen=True)
class MediumConfig:
    """What to play."""

    d4rl: Path
    """Folder with D4RL's <env>_medium-v2.hdf5 files, or <env>_medium-v2_subset.npz."""
    env: Literal["hopper", "halfcheetah", "walker2d"]
    transitions: Annotated[int, POSITIVE] = levels.ROLLOUT_STEPS
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Of resets and actions."""


def main(config: MediumConfig) -> None:
    """Play the policy and write a Minari data set."""
    bounds.check(config, "")
    whole = config.transitions % ROLLOUT_LANES == 0
    require(whole, f"--transitions must be a multiple of {ROLLOUT_LANES}: as many environments share them.")
    piece = fidelity.load_piece(config.d4rl, config.env)
    identity = f"d4rl-policy/{config.env}/medium-v0"
    place = minari_files.minari_path(identity)
    require(not place.exists(), f"{place} exists already; delete it to play {config.env}'s policy again.")
    console.writable(place.parent)
    task = tasks.parse_task(f"{config.env}-medium")
    environment = task.environment
    policy = fidelity.behaviour_parameters(piece)
    episodes = levels.play(environment.env_id, policy, "medium", config.seed, config.transitions)
    found = fingerprint(episodes)
    console.console.print(
        f"{found.transitions:,} transitions, {found.episodes:,} episodes, mean return {found.mean:.0f} (D4RL's "
        f"{environment.medium_return:.0f}), standard deviation {found.std:.0f}, {found.min:.0f} to {found.max:.0f}"
    )
    made = f"Episodes of the policy that D4RL's {task.name}-v2 is of, played anew; not D4RL's own data."
    metadata = levels.metadata(task, config.seed, found, made)
    written = minari_files.write_minari(identity, episodes, environment.env_id, metadata)
    console.console.print(f"written: {identity} in {written}")


if __name__ == "__main__":
    console.command(lambda: MediumConfig, main, "python experiments/d4rl_medium.py", __doc__)
