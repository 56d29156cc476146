"""``python -m iwsft_control.run``: from data to a normalised score.

For every seed: behaviour cloning, the critic (where a method needs its scores), the methods asked for, and 100
evaluation episodes of each. One result file and one policy file per method and seed. Finished stages are kept: a run
that was stopped goes on where it was, and one that differs in fine-tuning alone starts from the same BC and critic.

--help shows the options of the chosen methods, --help-all those of all.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from iwsft_control.base import console
from iwsft_control.base.errors import require
from iwsft_control.benchmark import checks, settings
from iwsft_control.benchmark.settings import Settings
from iwsft_control.envs import tasks
from iwsft_control.methods import registry


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What to run; every method's own settings join these options."""

    env: str | None = None
    """Task, e.g. hopper-medium-replay. May be left out where --dataset is given."""
    method: tuple[str, ...] = ("iw-sft-q",)
    """One or more methods: bc, filtered-bc, sft, iw-sft, sft-q, iw-sft-q, iql, td3-bc, awac, cql, rebrac, rebrac-tuned,
    one-step, decision-transformer."""
    seeds: tuple[int, ...] = (0,)
    """One run for each: 0 1 2, or 0-9. Several are one program on an accelerator and one process per core on a CPU."""
    quality: Literal["q", "return"] = "q"
    """What scores the data for sft-q and iw-sft-q: a learned Q-function, or the return of the episode."""
    dataset: str | None = None
    """Id of a data set in the local Minari root; by default D4RL's if imported, else the embedded reconstruction."""
    ref_min_score: float | None = None
    """Return that scores 0, for a data set that declares none."""
    ref_max_score: float | None = None
    """Return that scores 100, for a data set that declares none."""
    trust_environment: bool = False
    """Import and call what the data set's environment names (an entry point, wrappers). Look at it first."""
    flatten_observations: bool = False
    """Lay dict observations (a goal beside the state) end to end, in the data and in the environment."""
    results: Path | None = None
    """Folder of result files and policies; by default results/runs, or results/quick with --quick."""
    stages: Path | None = None
    """Folder of finished stages, which are not done again; by default ~/.cache/iwsft_control/stages."""
    method_file: tuple[Path, ...] = ()
    """Python files with methods of your own (METHOD = Method(...)), which --method may then name."""
    quiet: bool = False
    """No bars and no log of progress: results and errors alone."""
    track: Literal["csv", "tensorboard", "wandb"] | None = None
    """Send losses and scores on, into the folder of results: track.csv, TensorBoard's or (offline) W&B's files."""
    quick: bool = False
    """A trial of a few steps and 5 episodes, marked as such in its result; within a minute."""
    preset: Literal["", "released"] = ""
    """"released": bc, sft, iw-sft, and with --quality return sft-q and iw-sft-q, exactly as the paper's released code
    trains them (whole trajectories; slow). It sets all options of --policy but the width, --importance, --curation."""


if TYPE_CHECKING:
    RunConfig = Any
else:
    RunConfig = settings.with_options(RunOptions)


def validate(config: RunConfig) -> Settings:
    """The settings of a run.

    Raises:
        UserError: an option that is not what it must be; the sentence names it and says what it must be.
    """
    require(config.env is not None or config.dataset is not None, "say what to run: --env hopper-medium-replay.")
    if config.env is not None:
        tasks.parse_task(config.env)
    checks.check_methods(config.method)
    checks.check_seeds(config.seeds)
    checks.reference_scores(config.ref_min_score, config.ref_max_score)
    chosen = settings.of_options(config)
    checks.check_preset(config.method, config.quality, chosen)
    return chosen


def main(config: RunConfig) -> None:
    """Check everything that can be checked, then train, evaluate, write and print."""
    for file in config.method_file:
        registry.load_file(file)
    chosen = validate(config)
    from iwsft_control.benchmark import local  # here: help and a mistake in an option need none of JAX

    local.run(config, chosen)


def cli() -> None:
    """The command line."""
    options = functools.partial(settings.command_line, RunOptions, "method", "quality")
    console.command(options, main, "python -m iwsft_control.run", __doc__, positional="env")


if __name__ == "__main__":
    cli()
