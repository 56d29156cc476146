"""``python -m iwsft_control.table``: result files to tables and figures.

    python -m iwsft_control.table                                  # results/sweep -> results/
    python -m iwsft_control.table my/runs --out my/table --baseline sft-q --focus iw-sft-q

Writes table.md, short.md, table.tex, table.csv, scores.json (rliable's layout), report.html and figures/; learning
curves from the folder curves beside them join the page. From the same files it writes the same bytes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from matplotlib.figure import Figure

from iwsft_control.base import console
from iwsft_control.base.errors import require
from iwsft_control.base.files import write_text
from iwsft_control.benchmark import results
from iwsft_control.methods import registry
from iwsft_control.networks.policies import load_policy
from iwsft_control.report import figures, formats
from iwsft_control.report import runs as grouped
from iwsft_control.report.curves import read as read_curves
from iwsft_control.video import environment_of


@dataclasses.dataclass(frozen=True)
class TableConfig:
    """Which results, and what to compare them with."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("results/sweep"),)
    """Folders (or single files) of results, ours or yours."""
    out: Path = Path("results")
    """Folder of the tables and figures."""
    baseline: str = "bc"
    """Every method is compared with this one: a method, or "sft-q by return"."""
    focus: str = "iw-sft-q"
    """This method is compared with every other."""
    run: Path | None = None
    """Result file of the run whose training is drawn; by default the first of --focus."""
    method_file: tuple[Path, ...] = ()
    """Python files with methods of your own, whose runs are among the results."""
    filmstrip: Path | None = None
    """Policy file (.safetensors beside a result): pictures of its first evaluation episode join the page."""
    quick: bool = False
    """Make a table of trial runs (--quick), marked as such."""


def main(config: TableConfig) -> None:
    """Read, check, compare and write."""
    for file in config.method_file:
        registry.load_file(file)
    baseline, focus = grouped.parse_row(config.baseline), grouped.parse_row(config.focus)
    runs = grouped.find(config.folders, config.quick)
    table = grouped.collect(runs, baseline, focus, grouped.find_failures(config.folders))
    shown = results.read(config.run) if config.run else figures.pick(table, focus)
    console.writable(config.out)
    curves = config.out / "curves"
    drawn = [
        ("scores", "Who scores what?", figures.scores(table), "Mean over seeds, 95% t interval, and every seed."),
        (
            "differences",
            f"Whom does {focus.label} beat?",
            figures.differences(table),
            "Its score minus the method's, paired by seed, with the corrected 95% interval of the tables. Right of "
            "zero it is better; an interval that holds zero shows no difference.",
        ),
        (
            "profile",
            "How do runs spread?",
            figures.profiles(table),
            "Share of runs above a score, averaged over data sets; pointwise 95% band of a stratified bootstrap.",
        ),
        (
            "budget",
            "What do evaluation episodes buy?",
            figures.budgets(table),
            "Score of the policy that is chosen among a method's seeds by its mean over n evaluation episodes, which "
            "the policies share equally; 0 episodes: one at random.",
        ),
        (
            "training",
            "What happens in one run?",
            figures.training(shown),
            "Losses along training; of importance weights the effective sample size, quantiles, bound and gap.",
        ),
    ]
    if curves.is_dir():
        caption = "Score against updates on tuning seeds, which no table uses; band: standard error."
        drawn.insert(3, ("learning", "How long do baselines learn?", figures.curves(read_curves(curves)), caption))
    if config.filmstrip is not None:
        drawn.append(("filmstrip", *strip(config.filmstrip)))
    pictures = [
        formats.Picture(name, question, caption, figures.save(figure, config.out / "figures", name))
        for name, question, figure, caption in drawn
    ]
    texts = {
        "table.md": formats.to_markdown(table),
        "short.md": formats.to_short_markdown(table),
        "table.tex": formats.to_latex(table),
        "table.csv": formats.to_csv(table),
        grouped.SCORES_FILE: formats.to_json(formats.to_rliable(table)),
        "report.html": formats.to_html(table, pictures),
    }
    for name, text in texts.items():
        write_text(config.out / name, text)
    console.console.print(f"{len(runs)} runs -> {', '.join(texts)} and figures in {config.out}")


def strip(path: Path) -> tuple[str, Figure, str]:
    """Question, figure and caption of a policy's filmstrip.

    Raises:
        UserError: the file is no policy or does not say its task, or nothing here draws.
    """
    from iwsft_control.envs import video  # here: the other tables need no MuJoCo

    policy = load_policy(path)
    require(policy.task is not None, f"{path} does not say its task; give the policy beside a result file.")
    environment = environment_of(str(policy.task))
    frames, seconds, total = video.play(policy, environment, size=240)
    who = f"{policy.method or 'policy'} in {policy.task}"
    caption = f"Its first evaluation episode, {seconds * (len(frames) - 1):.1f} s long; return {total:.0f}."
    return f"What does it look like ({who})?", figures.filmstrip(frames, seconds), caption


def cli() -> None:
    """The command line."""
    console.command(lambda: TableConfig, main, "python -m iwsft_control.table", __doc__)


if __name__ == "__main__":
    cli()
