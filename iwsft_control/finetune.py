"""``python -m iwsft_control.finetune``: from an offline policy to an online one, by simulator steps.

For every seed: behaviour cloning (or another of the six methods), then a method that trains in the simulator: uft,
prefix-rft, bc-rl, rl-uniform-resets, uft-no-likelihood, rl. One result file and one policy file per method and seed,
like those of ``run``, with the simulator steps that were taken. They query a reward, so no offline table takes them;
they have their own: ``python experiments/online.py``. A finished run is not done again; a killed one goes on where it
was.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from iwsft_control.base import bounds, console
from iwsft_control.base.bounds import POSITIVE
from iwsft_control.base.errors import require
from iwsft_control.benchmark import checks, settings
from iwsft_control.benchmark.settings import Settings
from iwsft_control.configs.curation import CurationConfig
from iwsft_control.configs.online import PPOConfig, PrefixConfig, Reward, Start
from iwsft_control.configs.supervised import PolicyConfig
from iwsft_control.envs import tasks
from iwsft_control.online import methods


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """What to train, and for how long."""

    env: str | None = None
    """Task, e.g. hopper-medium-replay. May be left out where --dataset is given."""
    method: tuple[str, ...] = ("uft",)
    """One or more of rl, bc-rl, rl-uniform-resets, uft-no-likelihood, uft, prefix-rft."""
    seeds: tuple[int, ...] = (0,)
    """One run for each (0 1 2, or 0-9), one after the other: the simulator takes all cores."""
    reward: Reward = "dense"
    """The task's, or 1 at the end of an episode whose return reaches the middle demonstration's, else 0."""
    steps: Annotated[int, POSITIVE] = 300_000
    """Simulator steps of the rollouts; the last episodes are played to their ends."""
    start: Start = "bc"
    """The offline policy that training starts from and stays near to (rl starts from a fresh one); sft-q and iw-sft-q
    by learned Q."""
    evaluations: Annotated[int, POSITIVE] = 10
    """Along training; their simulator steps do not count."""
    evaluation_episodes: Annotated[int, POSITIVE] = 10
    """Of each of these; the result is of 100 episodes, like every method's."""
    dataset: str | None = None
    """Id of a data set in the local Minari root; by default D4RL's if imported, else the embedded reconstruction."""
    ref_min_score: float | None = None
    """Return that scores 0, for a data set that declares none."""
    ref_max_score: float | None = None
    """Return that scores 100, for a data set that declares none."""
    results: Path | None = None
    """Folder of result files and policies; by default results/my-online, or results/quick with --quick."""
    stages: Path | None = None
    """Folder of finished stages (the offline policy); by default ~/.cache/iwsft_control/stages."""
    quick: bool = False
    """A trial of a few steps, marked as such in its result."""
    ppo: PPOConfig = dataclasses.field(default_factory=PPOConfig)
    prefix: PrefixConfig = dataclasses.field(default_factory=PrefixConfig)
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    """Of the offline policy."""


def validate(config: FinetuneConfig) -> Settings:
    """The settings of the offline policy.

    Raises:
        UserError: an option that is not what it must be; the sentence names it and says what it must be.
    """
    require(config.env is not None or config.dataset is not None, "say what to run: --env hopper-medium-replay.")
    if config.env is not None:
        tasks.parse_task(config.env)
    for name in config.method:
        methods.get(name)
    require(len(set(config.method)) == len(config.method) > 0, "name one or more different methods.")
    checks.check_seeds(config.seeds)
    bounds.check(config, "")
    checks.reference_scores(config.ref_min_score, config.ref_max_score)
    bounds.check(config.ppo, "ppo")
    bounds.check(config.prefix, "prefix")
    one = config.ppo.group_size == 1 and "prefix-rft" in config.method
    require(not one, "--ppo.group-size must be at least 2 for prefix-rft: one episode of a group has the prefix.")
    alone = config.ppo.group_size == 1 and methods.estimator_of(config.ppo, config.reward) == "group"
    require(
        not alone, "--ppo.group-size must be at least 2 for --ppo.estimator group: an episode is held to its group."
    )
    curation = CurationConfig(filter_percentile=config.prefix.percentile)  # SFT learns from the demonstrations
    return settings.validate(settings.make(config.quick, policy=config.policy, curation=curation))


def main(config: FinetuneConfig) -> None:
    """Check everything that can be checked, then train, evaluate, write and print."""
    chosen = validate(config)
    from iwsft_control.benchmark import online  # here: help and a mistake in an option need none of JAX

    online.run(config, chosen)


def command(config: FinetuneConfig) -> None:
    """What the command line does: an option without an effect is a mistake there."""
    validate(config)
    methods.check_effects(config.method, (config.reward,), config.ppo, config.prefix)
    check_offline(config)
    main(config)


def check_offline(config: FinetuneConfig) -> None:
    """See that what was set of the offline policy has an effect.

    Raises:
        UserError: something has none.
    """
    used = {"hidden"}  # as wide is the policy of a method that starts from none
    scratch = all(methods.get(name).scratch for name in config.method)
    if not scratch:
        used |= settings.effective([config.start], ["q"])["policy"]
    why = f"{', '.join(config.method)} starts from no policy" if scratch else f"--start is {config.start}"
    for field in dataclasses.fields(PolicyConfig):
        idle = field.name not in used and getattr(config.policy, field.name) != field.default
        require(not idle, f"--policy.{field.name} has no effect, since {why}; leave it out.".replace("_", "-"))
    require(config.start == "bc" or not scratch, f"--start has no effect, since {why}; leave it out.")


def cli() -> None:
    """The command line."""
    program = "python -m iwsft_control.finetune"
    console.command(lambda: FinetuneConfig, command, program, __doc__, positional="env")


if __name__ == "__main__":
    cli()
