"""``python -m iwsft_control.sweep``: tasks x methods x seeds, every run of a benchmark.

    python -m iwsft_control.sweep                                   # three tasks, six methods, ten seeds
    python -m iwsft_control.sweep --tasks hopper-medium-replay --seeds 0 1 2 --methods bc sft-q
    python -m iwsft_control.sweep --datasets my/hopper/noisy-v0     # your own data
    python -m iwsft_control.sweep --ray auto --gpus-per-stage 0.25  # on a Ray cluster

Kill it at any moment and start it again: finished stages are kept, a training goes on from its last minute (on Ray
from its beginning), results are the same bit for bit. A run that fails is recorded in FOLDER/failures and does not stop
the others; the exit code is then 1.

--help shows the options of the chosen methods, --help-all those of all.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from iwsft_control.base import bounds, console
from iwsft_control.base.bounds import NOT_NEGATIVE, POSITIVE
from iwsft_control.base.errors import require
from iwsft_control.benchmark import checks, settings
from iwsft_control.benchmark.settings import Settings
from iwsft_control.configs.supervised import KINDS
from iwsft_control.methods import registry


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """What to run, and where; every method's own settings join these options."""

    tasks: tuple[str, ...] | None = None
    """Tasks, each with its default data set (D4RL's if imported, else the embedded reconstruction). By default hopper-,
    halfcheetah- and walker2d-medium-replay; none where --datasets is given."""
    datasets: tuple[str, ...] | None = None
    """Ids of data sets in the local Minari root, each evaluated in the environment that it declares."""
    ref_min_score: float | None = None
    """Return that scores 0, for a single one of --datasets that declares none."""
    ref_max_score: float | None = None
    """Return that scores 100, likewise."""
    methods: tuple[str, ...] = tuple(KINDS)
    """Methods."""
    qualities: tuple[Literal["q", "return"], ...] = ("q", "return")
    """What scores the data for sft-q and iw-sft-q; each is a row of the table."""
    seeds: tuple[int, ...] = tuple(range(10))
    """Seeds: 0 1 2, or 0-9. Tune on others (100 and up) than those that are reported."""
    trust_environment: bool = False
    """Import and call what the data sets' environments name (an entry point, wrappers). Look at it first."""
    flatten_observations: bool = False
    """Lay dict observations (a goal beside the state) end to end, in the data and in the environments."""
    results: Path | None = None
    """Folder of result files; by default results/my-sweep, or results/quick with --quick."""
    stages: Path | None = None
    """Folder of finished stages; by default ~/.cache/iwsft_control/stages, which python -m iwsft_control.run shares."""
    workers: Annotated[int | None, POSITIVE] = None
    """Local processes that share the cores; by default one per core. On an accelerator: this process alone."""
    ray: str | None = None
    """Address of a Ray cluster ("auto" for the one that this machine is part of), or "local" to start one here."""
    cpus_per_stage: Annotated[int, POSITIVE] = 1
    """Cores that a stage asks Ray for."""
    gpus_per_stage: Annotated[float, NOT_NEGATIVE] = 0.0
    """GPUs, or a share of one, that a stage asks Ray for."""
    dry_run: bool = False
    """Print what would be done, and an estimate; do nothing."""
    method_file: tuple[Path, ...] = ()
    """Python files with methods of your own (METHOD = Method(...)), which --methods may then name."""
    quiet: bool = False
    """No bars and no log of progress: results and errors alone."""
    quick: bool = False
    """A trial of a few steps and 5 episodes of each run, marked as such in its result."""


if TYPE_CHECKING:
    Plan = Any
else:
    Plan = settings.with_options(PlanOptions)


def validate(plan: Plan) -> Settings:
    """The settings of a sweep.

    Raises:
        UserError: an option that is not what it must be; the sentence names it and says what it must be.
    """
    checks.check_methods(plan.methods)
    checks.check_seeds(plan.seeds)
    if plan.tasks is not None:
        checks.check_tasks(plan.tasks)
    different = plan.datasets is None or len(set(plan.datasets)) == len(plan.datasets) > 0
    require(different, "--datasets must name one or more different data sets.")
    scores = checks.reference_scores(plan.ref_min_score, plan.ref_max_score)
    require(
        scores is None or len(plan.datasets or ()) == 1,
        "--ref-min-score and --ref-max-score are for a single data set of --datasets; sweep over each by itself.",
    )
    require(len(set(plan.qualities)) == len(plan.qualities) > 0, "--qualities must be q, return or both.")
    bounds.check(plan, "")
    chosen = settings.of_options(plan)
    for quality in plan.qualities:
        checks.check_preset(plan.methods, quality, chosen)
    return chosen


def main(plan: Plan) -> None:
    """Check everything that can be checked, then say what will be done and do it."""
    for file in plan.method_file:
        registry.load_file(file)
    chosen = validate(plan)
    from iwsft_control.benchmark import grid  # here: help and a mistake in an option need none of JAX

    grid.run(plan, chosen)


def cli() -> None:
    """The command line."""
    options = functools.partial(settings.command_line, PlanOptions, "methods", "qualities")
    console.command(options, main, "python -m iwsft_control.sweep", __doc__, positional="tasks")


if __name__ == "__main__":
    cli()
