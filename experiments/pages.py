"""The tables in README and documentation that come from results: ``python experiments/pages.py`` after new results.

Each stands between two comments that name its source; the text around it is written by hand.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from iwsft_control.base import console
from iwsft_control.base.errors import require
from iwsft_control.base.files import write_text
from iwsft_control.benchmark import results
from iwsft_control.benchmark.acceptance import mean_score
from iwsft_control.configs.critic import CriticConfig
from iwsft_control.datasets.facts import REFERENCE_METHODS, published_range
from iwsft_control.methods import registry
from iwsft_control.report import curves, formats, runs, statistics, tables
from iwsft_control.report.published import PUBLISHED_TASKS

ROOT = Path(__file__).parents[1]
METHODS = {
    "bc": "BC",
    "filtered-bc": "10%BC",
    "td3-bc": "TD3+BC",
    "iql": "IQL",
    "cql": "CQL",
    "awac": "AWAC",
    "one-step": "OneStep",
    "rebrac-tuned": "ReBRAC",
    "decision-transformer": "DT",
}


def whole(folder: Path, name: str) -> str:
    """A table that a command wrote. ``folder`` is that of all results, here and below."""
    return (folder / name).read_text(encoding="utf-8").strip()


# --- known methods, here and as published ------------------------------------------------------------------------


def published(task: str, method: str) -> tuple[float, float]:
    """The published scores of a method, from and to: its paper's column and CORL's."""
    column = registry.card(method).published
    own = (column.scores[PUBLISHED_TASKS.index(task)],) if column is not None and task in PUBLISHED_TASKS else ()
    return published_range(task, method, *own)


def scores(task: str, folder: Path) -> dict[str, dict[int, float]]:
    """Normalised scores on the embedded data, by method and seed; ``folder`` is that of all results."""
    record = json.loads((folder / "reconstruction" / f"{task}.json").read_text(encoding="utf-8"))
    found = {m: {int(s): x for s, x in by.items()} for m, by in record["scores"][record["chosen"]].items()}
    return added(found, folder / "baselines" / task)


def added(found: dict[str, dict[int, float]], folder: Path) -> dict[str, dict[int, float]]:
    """Scores and those of a folder's result files, where a method has none of that seed."""
    for path in sorted(folder.glob("*.json")):
        run = results.read(path)
        found.setdefault(run.method, {}).setdefault(run.seed, run.normalised_score)
    return found


def rows_of(task: str, methods: Iterable[str], found: Mapping[str, Mapping[int, float]]) -> list[list[str]]:
    """Three rows: published, here (with the number of runs), the distance of the mean from the published range."""
    wanted, here, far = [], [], []
    for method in methods:
        low, high = published(task, method)
        wanted.append(f"{low:.1f}" if low == high else f"{low:.1f} to {high:.1f}")
        mean = mean_score(found[method]) if found.get(method) else None
        here.append("-" if mean is None else f"{mean:.1f} ({len(found[method])})")
        distance = None if mean is None else mean - np.clip(mean, low, high)
        far.append("-" if distance is None else "within" if distance == 0 else f"{distance:+.1f}")
    name = task.removesuffix("-medium-replay")
    return [[name, "published", *wanted], [name, "here (runs)", *here], [name, "**distance**", *far]]


def beside_published(folder: Path) -> str:
    """Known methods here and as published.

    What they score here is of the runs by which the data were accepted (results/reconstruction) and of the baselines'
    own (results/baselines).
    """
    rows = [row for task in PUBLISHED_TASKS for row in rows_of(task, METHODS, scores(task, folder))]
    return formats.markdown_table(["task", "score", *METHODS.values()], rows)


def beside_ours(folder: Path) -> str:
    """What has no row in the results table: means over runs, and iw-SFT(Q)'s mean by learned Q minus theirs.

    The differences are not paired by seed, and their intervals are corrected for their number.
    """
    focus = runs.Row("iw-sft-q", "q")
    report = runs.collect(runs.find([folder / "sweep"]), runs.Row("bc", None), focus)
    in_table = {row.method for row in report.scores}
    by_task = [scores(task, folder) for task in PUBLISHED_TASKS]
    found = {m: [np.array(list(by.get(m, {}).values())) for by in by_task] for m in METHODS if m not in in_table}
    found = {method: each for method, each in found.items() if all(map(len, each))}
    ours, several = runs.strata(report, focus), sum(min(map(len, each)) > 1 for each in found.values())
    rows = []
    for name, each in [("iw-SFT(Q)", ours), *((METHODS[method], each) for method, each in found.items())]:
        apart = None if each is ours else statistics.unpaired(ours, each, several)
        count = ", ".join(map(str, sorted({len(x) for x in each})))
        mean, means = statistics.stratified_mean(each), [f"{x.mean():.1f}" for x in each]
        rows.append([name, count, *means, tables.cell(mean), tables.cell(apart, signed=True)])
    tasks = [task.removesuffix("-medium-replay") for task in PUBLISHED_TASKS]
    header = ["method", "runs a task", *tasks, "mean of the tasks", "iw-SFT(Q) minus it"]
    return formats.markdown_table(header, rows)


def other_level(folder: Path, name: str) -> str:
    """The same of the tasks of another level, whose runs a folder of results has by task."""
    bodies = [task.split("-")[0] for task in PUBLISHED_TASKS]
    tasks = sorted((path.name for path in (folder / name).iterdir()), key=lambda task: bodies.index(task.split("-")[0]))
    found = {task: added({}, folder / name / task) for task in tasks}
    rows = [row for task in tasks for row in rows_of(task, REFERENCE_METHODS, found[task])]
    return formats.markdown_table(["task", "score", *(METHODS[m] for m in REFERENCE_METHODS)], rows)


def every_method(folder: Path, name: str) -> str:
    """Mean over seeds with its interval of every method on these data, whether or not anything is published of it."""
    report = runs.collect(runs.find([folder / name]), runs.Row("bc", None), runs.Row("iw-sft-q", "q"))
    scores, *_ = tables.sections(report)
    kept = [i for i, title in enumerate(scores.header) if title not in ("updates", "IQM")]
    return formats.markdown_table([scores.header[i] for i in kept], [[row[i] for i in kept] for row in scores.rows])


# --- the ablation ------------------------------------------------------------------------------------------------


def ablation(folder: Path) -> str:
    """The ablation's means, and in the last column the difference from the default with its interval."""
    lines = (folder / "ablation" / "ablation.md").read_text(encoding="utf-8").splitlines()
    header, _, *rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    means = [i for i, title in enumerate(header) if i > 2 and not title.startswith("minus")]
    last = header.index("minus the default")
    kept = [0, 1, 2, *means, last]
    shown = []
    for row in rows:
        cells = [row[i].split()[0] if i in means else row[i] for i in kept]
        cells[1] = cells[1].replace("ess ", "size ")
        is_default = row[last] == "-" and row[0] != rows[0][0]
        shown.append([f"**{cell}**" if is_default and cell != "-" else cell for cell in cells])
    return formats.markdown_table([header[i].removesuffix("-medium-replay") for i in kept], shown)


def released(folder: Path) -> str:
    """The recipe of the paper's released code on Hopper, seed by seed beside the default; differences are paired."""
    names = ("released-recipe-temperature-10", "return-episodes-ess-0.5", "learned-Q-episodes-ess-0.5")
    task = PUBLISHED_TASKS[0]
    found = [runs.by_seed(folder / "ablation" / name).get(task, {}) for name in names]
    runs.require_alike([{task: by} for by in found])
    starts = {seed: runs.bc_start(run) for seed, run in found[0].items()}
    recipe, *others = ({seed: run.normalised_score for seed, run in by.items()} for by in found)
    rows = [
        [str(seed), *(f"{by[seed]:.1f}" if seed in by else "-" for by in (starts, recipe, *others))]
        for seed in sorted(recipe)
    ]
    rows.append(["minus the released recipe", "-", "-", *(tables.difference(by, recipe) for by in others)])
    header = ["seed", "the recipe's BC", "released iw-SFT(Q)", "default by return", "default by learned Q"]
    return formats.markdown_table(header, rows)


# --- critics -----------------------------------------------------------------------------------------------------

MEASURES = {
    "row": "Q(s, a) with the return from there, rank correlation",
    "slope": "slope",
    "episode": "mean Q with the episode's return, rank correlation",
    "top": "share of the best tenth",
}


def critics(folder: Path) -> str:
    """How well critics know returns of held-out episodes, means over seeds: the default's by updates, others at its."""
    rows, chosen = [], CriticConfig()
    for task in PUBLISHED_TASKS:
        record = json.loads((folder / "critic" / f"{task}.json").read_text(encoding="utf-8"))
        for each in record["critics"]:
            name = each["critic"].removesuffix(f", discount {chosen.discount:g}")
            as_default = name == f"expectile {chosen.expectile:g}", each["updates"] == chosen.steps
            if any(as_default):
                found = [f"{np.mean([x[m] for x in each['found']]):.2f}" for m in MEASURES]
                cells = [name, f"{each['updates']:,}", str(len(each["found"])), *found]
                rows.append(
                    [task.removesuffix("-medium-replay"), *(f"**{x}**" if all(as_default) else x for x in cells)]
                )
    return formats.markdown_table(["task", "critic", "updates", "seeds", *MEASURES.values()], rows)


# --- token sequences ---------------------------------------------------------------------------------------------


def sequence_tuning(folder: Path) -> str:
    """Pass@1 of the tuning seeds, a row for each learning rate, seed by seed."""
    found: dict[float, dict[str, list[str]]] = {}
    for path in sorted((folder / "sequences" / "tuning").rglob("*.json")):
        run = results.read(path)
        rate = run.config["policy"]["fine_tune_learning_rate"]
        found.setdefault(rate, {}).setdefault(run.method, []).append(f"{run.normalised_score:.1f}")
    rows = [[f"{rate:g}", *(", ".join(of[name]) for name in ("sft", "iw-sft"))] for rate, of in sorted(found.items())]
    return formats.markdown_table(["learning rate", "sft, seeds 100 and 101", "iw-sft, for the record"], rows)


# --- pages -------------------------------------------------------------------------------------------------------

TABLES: dict[tuple[str, str], Callable[[Path], str]] = {
    ("README.md", "results/short.md"): partial(whole, name="short.md"),
    ("docs/data.md", "results/reconstruction, results/baselines"): beside_published,
    ("docs/data.md", "results/d4rl-medium"): partial(other_level, name="d4rl-medium"),
    ("docs/data.md", "results/d4rl-medium, every method"): partial(every_method, name="d4rl-medium"),
    ("docs/data.md", "results/medium-expert"): partial(other_level, name="medium-expert"),
    ("docs/data.md", "results/medium-expert, every method"): partial(every_method, name="medium-expert"),
    ("docs/difference.md", "results/sweep, results/reconstruction, results/baselines"): beside_ours,
    ("docs/difference.md", "results/ablation/ablation.md"): ablation,
    ("docs/difference.md", "results/ablation/released-recipe-temperature-10"): released,
    ("docs/difference.md", "results/critic"): critics,
    ("docs/difference.md", "results/variance"): partial(whole, name="variance/hopper-medium-replay.md"),
    ("docs/tuning.md", "results/tuning/knobs"): partial(whole, name="tuning/knobs/knobs.md"),
    ("docs/tuning.md", "results/tuning/anchor"): partial(whole, name="tuning/anchor/knobs.md"),
    ("docs/tuning.md", "results/tuning/parts"): partial(whole, name="tuning/parts/knobs.md"),
    ("docs/tuning.md", "results/tuning/advantage"): partial(whole, name="tuning/advantage/knobs.md"),
    ("docs/tuning.md", "results/tuning/spread"): partial(whole, name="tuning/spread/knobs.md"),
    ("docs/physics.md", "results/bench/fidelity.md"): partial(whole, name="bench/fidelity.md"),
    ("docs/uft.md", "results/figures/tree.md"): partial(whole, name="figures/tree.md"),
    ("docs/sequences.md", "results/sequences/tuning"): sequence_tuning,
    ("docs/reproducing.md", "results/curves"): lambda folder: curves.tables(folder / "curves"),
}
"""By page and by the source that its mark names, what makes the table."""


def filled(page: str, source: str, text: str, folder: Path) -> str:
    """The text of a page with a table of it made anew."""
    begin, end = f"<!-- from {source}: experiments/pages.py -->", "<!-- end -->"
    made = f"{begin}\n{TABLES[page, source](folder)}\n{end}"
    found, count = re.subn(f"{begin}.*?{end}", lambda _: made, text, flags=re.DOTALL)
    require(count == 1, f"{page} must have one {begin} and an {end} after it.")
    return found


@dataclasses.dataclass(frozen=True)
class PagesConfig:
    """What the pages show."""

    results: Path = ROOT / "results"
    """Folder of the committed results."""


def main(config: PagesConfig) -> None:
    """Make every table anew."""
    for page, source in TABLES:
        path = ROOT / page
        write_text(path, filled(page, source, path.read_text(encoding="utf-8"), config.results))


if __name__ == "__main__":
    console.command(lambda: PagesConfig, main, "python experiments/pages.py", __doc__)
