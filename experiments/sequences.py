"""The same objectives on token sequences: pre-train a small language model, curate its right answers, fine-tune it.

    python experiments/sequences.py                              # ten seeds, all methods -> results/sequences
    python experiments/sequences.py --methods sft iw-sft --seeds 0 1
    python experiments/sequences.py --quick                      # a trial of a minute
    python experiments/table.py results/sequences/runs --out results/sequences --baseline sft --focus iw-sft

The task, modchain, is verifiable and has two modes of answering; pass@1 is on held-out problems, in percent. Kill it at
any moment and start it again: what is finished is kept. Beside the result files, which the suite's report reads, it
writes details.md: greedy pass@1, shares and successes of the modes, length, KL to pi_ref. docs/sequences.md says which
part of the recipe is whose.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from iwsft_control.base import console, files
from iwsft_control.base.errors import RunError, require
from iwsft_control.base.files import cache_home
from iwsft_control.benchmark import checks, results
from iwsft_control.benchmark.results import RunResult
from iwsft_control.learning import loop
from iwsft_control.report import formats, statistics, tables
from iwsft_control.report import runs as grouped
from iwsft_control.report.runs import Row
from iwsft_control.sequences import runs, task
from iwsft_control.sequences.evaluation import EvaluationConfig
from iwsft_control.sequences.methods import METHODS, SequenceConfig
from iwsft_control.sequences.runs import Bench, Job
from iwsft_control.sequences.task import Task


@dataclasses.dataclass(frozen=True)
class SequencesConfig(SequenceConfig):
    """What to run; the groups of options are those of every method."""

    task: str = "modchain-8"
    """Task: modchain-4, -8, -12 or -16, by the number of operations."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Methods."""
    qualities: tuple[Literal["steps", "q"], ...] = ("steps", "q")
    """What grades the right answers for sft-q and iw-sft-q: their share of right steps, or a learned Q of prefixes."""
    seeds: tuple[int, ...] = tuple(range(10))
    """Seeds: of pre-training too. Tune on others (100 and up) than those that are reported."""
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    out: Path | None = None
    """Folder of runs/ and details.md; by default results/sequences, or results/quick/sequences with --quick."""
    stages: Path | None = None
    """Folder of finished stages, which are not done again; by default ~/.cache/iwsft_control/sequences."""
    quick: bool = False
    """A trial of a few steps, marked as such in its results."""


def validate(config: SequencesConfig) -> tuple[Task, SequenceConfig, list[Job]]:
    """The task, the settings and the runs.

    Raises:
        UserError: an option is not what it must be.
    """
    of = task.parse(config.task)
    runs.check_methods(config.methods)
    checks.check_seeds(config.seeds)
    require(len(set(config.qualities)) == len(config.qualities) > 0, "--qualities must be steps, q or both.")
    settings = SequenceConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(SequenceConfig)})
    runs.check(settings, config.evaluation, of)
    return of, settings, runs.jobs(config.methods, config.qualities, config.seeds)


def command(config: SequencesConfig) -> None:
    """What the command line does: an option without an effect is a mistake there."""
    of, settings, wanted = validate(config)
    runs.check_effects(settings, config.evaluation, of, wanted)
    main(config)


def main(config: SequencesConfig) -> None:
    """Check, run what is missing, write and print."""
    of, settings, wanted = validate(config)
    evaluated = config.evaluation
    if config.quick:
        settings, evaluated = runs.trial(settings, evaluated)
    folder = config.out or Path("results/quick/sequences" if config.quick else "results/sequences")
    stages = config.stages or cache_home() / "sequences"
    _check_protocol(folder / "runs", evaluated, config.quick)
    console.writable(folder)
    console.writable(stages)
    console.cache_compiled_programs()
    failed = 0
    with console.progress_bar() as bar:
        total = bar.add_task("runs", total=len(wanted))

        def report(what: str, steps: int) -> loop.Progress:
            return lambda done, values: bar.loop(what, steps, done, values, owner="runs")

        bench = Bench(of, settings, evaluated, config.quick, stages, report)
        for job in wanted:
            try:
                path, result = bench.run(job, folder / "runs")
            except RunError as error:  # recorded, and no reason to stop the others
                failed += 1
                what = {"task": of.name, "method": job.method, "quality": job.quality, "seeds": [job.seed]}
                results.record_failure(folder / "runs", f"{of.name} {job.name}", what | {"error": str(error)})
                bar.console.print(f"failed: {job.name}: {error}")
            else:
                results.record_failure(folder / "runs", f"{of.name} {job.name}", None)
                bar.console.print(_line(job, result, path))
            bar.advance(total)
    if len(wanted) > failed:  # of all that lie there, from other calls too
        files.write_text(folder / "details.md", details(grouped.find([folder / "runs"], config.quick)))
        console.console.print(f"{len(wanted) - failed} runs -> {folder / 'runs'}, {folder / 'details.md'}")
    if failed:
        sys.exit(1)


def _check_protocol(folder: Path, evaluated: EvaluationConfig, quick: bool) -> None:
    """See that the results in a folder were evaluated as others will be: they would be replaced, or fit no table.

    Raises:
        UserError: they were not, or one is damaged.
    """
    for path in grouped.result_files(folder):
        run = results.read(path)
        problems, samples = len(run.episode_returns), run.evaluation.get("samples")
        require(
            run.quick != quick or (problems, samples) == (evaluated.problems, evaluated.samples),
            f"{path} is of {problems} problems and {samples} samples; choose another --out, or remove it.",
        )


def _line(job: Job, result: RunResult, path: Path) -> str:
    figures = result.diagnostics["figures"]
    return (
        f"{job.name:<28} pass@1 {result.normalised_score:5.1f} +- {result.standard_error:.1f}, greedy "
        f"{figures['pass_at_1_greedy']:5.1f}, thinks {figures['think_share']:.2f} -> {path.name}"
    )


COLUMNS = {  # figure of an evaluation: title, factor, digits
    "pass_at_1": ("pass@1, sampled (%)", 1, 1),
    "pass_at_1_greedy": ("pass@1, greedy (%)", 1, 1),
    "think_share": ("share of T (%)", 100, 1),
    "success_think": ("right of T (%)", 100, 1),
    "success_direct": ("right of D (%)", 100, 1),
    "steps_right": ("steps right (%)", 100, 1),
    "length": ("tokens", 1, 2),
    "kl_to_reference": ("KL to pi_ref (nats)", 1, 3),
}


def details(found: Mapping[Path, RunResult]) -> str:
    """What pass@1 is made of, a row for each method, in Markdown: mean over seeds [95% t interval].

    Raises:
        UserError: runs that do not belong into one table, or one without these figures.
    """
    for path, run in found.items():
        known = run.diagnostics.get("figures")
        whole = isinstance(known, dict) and set(COLUMNS) <= set(known)
        require(whole, f"{path} lacks figures of its evaluation; it is of other runs, or damaged: run it again.")
    some = next(iter(found.values()))
    report = grouped.collect(found, Row(some.method, some.quality), Row(some.method, some.quality))
    titles = [title for title, _, _ in COLUMNS.values()] + ["T in D+ (%)", "effective sample size (%)"]
    lines = [
        "# What pass@1 is made of",
        "",
        "Mean over seeds [95% interval, Student's t]. Shares, lengths and KL are of the sampled answers. T in D+ is "
        "the share of curated answers that think, repeated ones counted each time: what SFT and SFT(Q) come to in the "
        "limit of an exact fit. The effective sample size is that of the importance weights, a mean over training.",
        "",
    ]
    rows = []
    for dataset, row in itertools.product(report.datasets, report.scores):
        of = [r for r in found.values() if r.dataset["id"] == dataset and Row(r.method, r.quality) == row]
        if not of:
            continue
        cells = [_cell([r.diagnostics["figures"][name] for r in of], *how) for name, (_, *how) in COLUMNS.items()]
        cells.append(_cell([r.diagnostics.get("curated_think_share") for r in of], 100, 1))
        logs = [r.diagnostics["training"].get("effective_sample_size") for r in of]
        cells.append(_cell([None if log is None else float(np.mean(log)) for log in logs], 100, 1))
        rows.append([of[0].task, row.label, str(len(of)), *cells])
    return "\n".join([*lines, formats.markdown_table(["task", "method", "seeds", *titles], rows), ""])


def _cell(values: Sequence[float | None], factor: float, digits: int) -> str:
    known = [factor * v for v in values if v is not None]
    return tables.cell(statistics.mean_interval(np.array(known)) if known else None, digits=digits)


if __name__ == "__main__":
    console.command(lambda: SequencesConfig, command, "python experiments/sequences.py", __doc__)
