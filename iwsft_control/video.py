"""``python -m iwsft_control.video``: a video of a trained policy.

iwsft video hopper-medium-replay      # a policy that comes with the package
iwsft video results/runs/hopper-medium-replay/iw-sft-q-by-q-seed0-....safetensors
iwsft video POLICY --env hopper-medium-replay --out hopper.gif --steps 300
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from iwsft_control.base import bounds, console
from iwsft_control.base.bounds import NOT_NEGATIVE, POSITIVE
from iwsft_control.base.errors import require
from iwsft_control.envs import tasks
from iwsft_control.methods import registry


@dataclasses.dataclass(frozen=True)
class VideoConfig:
    """Whose video, and of what."""

    policy: Annotated[Path, tyro.conf.Positional]
    """The .safetensors file beside a result, or the task of a policy that comes with the package."""
    env: str | None = None
    """Task or Gymnasium id; by default the task that the policy was trained on."""
    out: Path | None = None
    """File to write, .mp4 or .gif; by default the policy's name in this folder, .mp4 where that can be encoded."""
    episode: Annotated[int, NOT_NEGATIVE] = 0
    """Which of the evaluation's episodes: it decides the reset."""
    steps: Annotated[int | None, POSITIVE] = None
    """End the video after so many steps; by default with the episode."""
    size: Annotated[int, POSITIVE] = 480
    """Width and height in pixels."""
    method_file: Path | None = None
    """Python file of the method that made the policy, where it has a kind of policy of its own."""


def main(config: VideoConfig) -> None:
    """Check, play, write."""
    bounds.check(config, "")
    if not config.policy.is_file():
        path = config.policy.suffix != "" or len(config.policy.parts) > 1
        require(not path, f"{config.policy} does not exist or is no file; check the path.")
        tasks.parse_task(str(config.policy))  # of a policy that comes with the package
    if config.env is not None:
        tasks.environment_of(config.env)
    from iwsft_control.envs import evaluation, video  # here: help and a mistake need none of MuJoCo
    from iwsft_control.networks.policies import load_policy

    last = 2**32 - 1 - evaluation.FIRST_RESET_SEED
    require(config.episode <= last, f"--episode must be {last} at most, not {config.episode}.")
    if config.method_file is not None:
        registry.load_file(config.method_file)
    policy = load_policy(config.policy)
    if config.env is not None:
        environment = tasks.environment_of(config.env)
    else:
        environment = tasks.environment_of_policy(config.policy, policy.task, "give --env")
    out = config.out or Path(config.policy.stem + (".mp4" if video.encodes_mp4() else ".gif"))
    console.writable(out.parent)
    total = video.record_video(
        policy,
        environment,
        out,
        seed=evaluation.FIRST_RESET_SEED + config.episode,
        steps=config.steps,
        size=config.size,
    )
    console.console.print(f"{policy.method or 'policy'} in {config.env or policy.task}: return {total:.0f} -> {out}")


def cli() -> None:
    """The command line."""
    console.command(lambda: VideoConfig, main, "python -m iwsft_control.video", __doc__)


if __name__ == "__main__":
    cli()
