"""How many updates the baselines need: scores along training, on a tuning seed.

    python experiments/learning_curve.py --methods iql td3-bc awac --steps 300000
    python experiments/learning_curve.py --methods cql --steps 100000 --every 5000
    python experiments/learning_curve.py --methods iql --datasets mine/hopper/noisy-v0

One process per core; a file per task and method in results/curves, written as the curve grows and not made again when
it is whole; a killed curve goes on where it was; then a figure of all that are there. The scores are of 25 episodes on
reset seeds that no result uses, so they are for choosing a number of updates, never for a table. A learning rate that
decays (IQL's) does so over all steps, which is kinder to the end of a curve than to its middle. A curve's score is of
what the method evaluates; beside it are those of the policy's last parameters and of their exponential average, to tell
what the average does.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any

import jax

from iwsft_control.base import bounds, children, console, files
from iwsft_control.base.bounds import POSITIVE
from iwsft_control.base.errors import require
from iwsft_control.base.snapshot import Snapshot
from iwsft_control.benchmark import checks, jobs, settings, stages
from iwsft_control.benchmark.jobs import DataSource
from iwsft_control.configs.supervised import PolicyConfig
from iwsft_control.learning import loop
from iwsft_control.learning.defaults import CALL_STEPS
from iwsft_control.learning.method import Inputs
from iwsft_control.methods import registry
from iwsft_control.report import curves


@dataclasses.dataclass(frozen=True)
class CurveConfig:
    """What to draw."""

    tasks: tuple[str, ...] | None = None
    """Tasks. By default hopper-, halfcheetah- and walker2d-medium-replay; none where --datasets is given."""
    datasets: tuple[str, ...] = ()
    """Ids of data sets in the local Minari root, each evaluated in the environment that it declares."""
    methods: tuple[str, ...] = ("iql", "td3-bc", "awac", "rebrac", "cql")
    """Methods that train from scratch, on the data alone."""
    steps: Annotated[int, POSITIVE] = 300_000
    """Gradient steps of every run."""
    every: int = 10_000
    """Steps between two evaluations; a multiple of 500."""
    seed: int = 100
    """A tuning seed: not one that is reported."""
    episodes: Annotated[int, POSITIVE] = 25
    workers: Annotated[int, POSITIVE] = children.usable_cores()
    out: Path = Path("results/curves")


def main(config: CurveConfig) -> None:
    """Make the curves that are missing, then the figure."""
    checks.check_methods(config.methods)
    checks.check_seeds((config.seed,), "--seed")
    if config.tasks is not None:
        checks.check_tasks(config.tasks)
    require(len(set(config.datasets)) == len(config.datasets), "--datasets must name different data sets.")
    bounds.check(config, "")
    alone = {name: method for name, method in registry.every().items() if not method.dependencies(None)}
    possible = [name for name in registry.names() if name in alone and alone[name].group is not None]
    require(set(config.methods) <= set(possible), f"--methods must be among {', '.join(possible)}.")
    require(config.every % CALL_STEPS == 0 < config.every, f"--every must be a multiple of {CALL_STEPS}.")
    console.writable(config.out)
    sources = jobs.sources(config.tasks, config.datasets)
    for source in sources:
        checks.check_environment(source.load())
    wanted = [(config, source, method) for method in config.methods for source in sources]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(config.workers, len(wanted)), context, children.end_with_parent) as pool:
        for future in as_completed([pool.submit(curve, *each) for each in wanted]):
            console.console.print(future.result())
    curves.draw(config.out)


def curve(config: CurveConfig, source: DataSource, name: str) -> str:
    """Train one method on one data set, evaluating as it goes; returns a line for the log."""
    console.cache_compiled_programs()
    task = source.task
    path = config.out / f"{task.replace('/', '-')}-{name}-seed{config.seed}.json"
    method, defaults = registry.get(name), settings.make()
    longer = defaults.with_config(method, dataclasses.replace(defaults.of(method), steps=config.steps))
    chosen = settings.validate(longer)
    stage = stages.method_stage(name, "q", (config.seed,), chosen, task)
    own, data, export = stage.config, source.load(), method.export
    assert export is not None
    record = curves.begin(task, name, config.seed, stages.configuration(stage), data, config.episodes)
    if curves.is_there(path, record, lambda its: its.get("steps")):
        return f"{path} is there"
    if path.is_file():
        known = curves.read_record(path)
        if all(known.get(k) == v for k, v in files.through_json(record).items()):  # this very code has begun it
            record = known
    snapshot = Snapshot(path.with_suffix(".unfinished"))  # beside the points: what goes on is what they belong to
    if "step" not in record:
        snapshot.remove()

    def score(parameters: Any) -> tuple[float, float]:
        return curves.score(record, export(own, data, jax.tree.map(lambda x: x[0], parameters)), data)

    def point(step: int, average: Any, last: Any) -> None:
        if (step % config.every and step != config.steps) or step in record.get("step", ()):
            return
        averaged, iterate = score(average), score(last)
        value, error = averaged if own.average_decay else iterate
        measured = {"normalised_score": value, "standard_error": error}
        measured |= {"averaged_score": averaged[0], "last_iterate_score": iterate[0]}
        curves.add_point(path, record, step=step, seconds=round(snapshot.seconds, 1), **measured)
        console.console.print(f"{task} {name}: {value:.1f} after {step:,} of {config.steps:,} steps")

    prepared = method.prepare(own, Inputs(data, {}, None, (config.seed,)))
    averaging = dataclasses.replace(own, average_decay=own.average_decay or PolicyConfig().average_decay)
    loop.train(method, averaging, prepared, (config.seed,), checkpoint=point, snapshot=snapshot)
    snapshot.remove()
    scores = ", ".join(f"{x:.0f}" for x in record["normalised_score"])
    return f"{task} {name}: {scores} ({record['seconds'][-1]:.0f} s)"


if __name__ == "__main__":
    console.command(lambda: CurveConfig, main, "python experiments/learning_curve.py", __doc__)
