"""``python -m iwsft_control.accept``: which candidate for a reconstruction behaves like D4RL's data?

    python -m iwsft_control.collect --env hopper-medium-replay --seeds 0 1 2 --work pool
    python -m iwsft_control.accept --env hopper-medium-replay --work pool

Reference methods whose D4RL scores are public and that are not this project's own (BC, 10%BC, IQL, TD3+BC) are trained
on the candidates and compared with their published scores, by the rule in results/reconstruction/README.md: the
portraits choose candidates for BC and 10%BC, those choose candidates for IQL and TD3+BC, all four choose one, which
gets all seeds of IQL and TD3+BC. Kill it and start it again: finished runs are kept.

The data of other levels come from one run of SAC, so there is nothing to choose: the same methods are compared
on what ``python -m iwsft_control.collect --env hopper-medium`` wrote.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from iwsft_control.base import bounds, children, console
from iwsft_control.base.bounds import POSITIVE
from iwsft_control.base.errors import require
from iwsft_control.benchmark import checks
from iwsft_control.datasets import facts
from iwsft_control.envs import tasks


@dataclasses.dataclass(frozen=True)
class AcceptConfig:
    """Which candidates, and how far."""

    env: str
    """Task: {hopper,halfcheetah,walker2d}-{medium-replay,medium,medium-expert}."""
    work: Path
    """Folder of the candidates, as python -m iwsft_control.collect --seeds makes it, and of finished stages."""
    candidates: tuple[str, ...] = ()
    """Names (seed0-u1, ...) to try instead of those that the rule chooses."""
    seeds: tuple[int, ...] = (200, 201, 202)
    """Seeds of the reference methods: neither those of tuning (100 and up) nor those of tables (0 to 9)."""
    first: Annotated[int, POSITIVE] = 4
    """Candidates that BC and 10%BC are trained on."""
    second: Annotated[int, POSITIVE] = 2
    """Candidates that IQL and TD3+BC are trained on at most: one that could not be the nearest any more is left out."""
    second_seeds: tuple[int, ...] = ()
    """Those of --seeds by which IQL and TD3+BC, which take most of the time, choose one; by default the first. The one
    that is chosen gets all."""
    only_first: bool = False
    """Stop after BC and 10%BC."""
    out: Path = Path("results/my-reconstruction")
    """Folder of the portraits, scores and the choice (those of the embedded data are in results/reconstruction)."""
    workers: Annotated[int, POSITIVE] = children.usable_cores()


def main(config: AcceptConfig) -> None:
    """Choose by portraits, then by BC and 10%BC, then by all four; or compare the data of another level."""
    task = tasks.parse_task(config.env)
    require(task.name in facts.PUBLISHED_SCORES, f"--env must be one of {', '.join(facts.PUBLISHED_SCORES)}.")
    checks.check_seeds(config.seeds)
    second = config.second_seeds or config.seeds[:1]
    checks.check_seeds(second, "--second-seeds")
    require(set(second) <= set(config.seeds), "--second-seeds must be among --seeds.")
    bounds.check(config, "")
    replay = task.level == "medium-replay"
    for idle, options, sentence in (
        (not replay, ("candidates", "first", "second", "second_seeds"), "is for medium-replay"),
        (bool(config.candidates), ("first",), "has no effect with --candidates"),
        (config.only_first, ("second", "second_seeds"), "has no effect with --only-first"),
    ):
        for name in options if idle else ():
            untouched = getattr(config, name) == getattr(AcceptConfig, name)
            require(untouched, f"--{name.replace('_', '-')} {sentence}; leave it out.")
    config = dataclasses.replace(config, second_seeds=second)
    from iwsft_control.benchmark import acceptance  # here: help and a mistake in an option need none of JAX

    (acceptance.choose if replay else acceptance.compare)(config, task)


def cli() -> None:
    """The command line."""
    console.command(lambda: AcceptConfig, main, "python -m iwsft_control.accept", __doc__)


if __name__ == "__main__":
    cli()
