"""The table command's work: all files of a report, written side by side."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from iwsft_control.base.files import write_text
from iwsft_control.benchmark.results import RunResult
from iwsft_control.envs import tasks, video
from iwsft_control.networks.policies import load_policy
from iwsft_control.report import figures, formats
from iwsft_control.report.curves import read as read_curves
from iwsft_control.report.runs import SCORES_FILE, Report


def everything(report: Report, out: Path, run: RunResult | None = None, filmstrip: Path | None = None) -> list[str]:
    """Write tables, figures and the page; the names of the files beside the figures.

    Args:
        out: their folder; learning curves in its folder curves join the page.
        run: whose training is drawn; by default the first of the report's focus.
        filmstrip: policy file, pictures of whose first evaluation episode join the page.

    Raises:
        UserError: a file cannot be read or written, or nothing here draws the filmstrip.
    """
    curves = out / "curves"
    drawn = [
        ("scores", "Who scores what?", figures.scores(report), "Mean over seeds, 95% t interval, and every seed."),
        (
            "differences",
            f"Whom does {report.focus.label} beat?",
            figures.differences(report),
            "Its score minus the method's, paired by seed, with the corrected 95% interval of the tables. Right of "
            "zero it is better; an interval that holds zero shows no difference.",
        ),
        (
            "profile",
            "How do runs spread?",
            figures.profiles(report),
            "Share of runs above a score, averaged over data sets; pointwise 95% band of a stratified bootstrap.",
        ),
        (
            "budget",
            "What do evaluation episodes buy?",
            figures.budgets(report),
            "Score of the policy that is chosen among a method's seeds by its mean over n evaluation episodes, which "
            "the policies share equally; 0 episodes: one at random.",
        ),
        (
            "training",
            "What happens in one run?",
            figures.training(run or figures.pick(report, report.focus)),
            "Losses along training; of importance weights the effective sample size, quantiles, bound and gap.",
        ),
    ]
    learned = read_curves(curves) if curves.is_dir() else []
    if learned:
        caption = "Score against updates on tuning seeds, which no table uses; band: standard error."
        drawn.insert(3, ("learning", "How long do baselines learn?", figures.curves(learned), caption))
    if filmstrip is not None:
        drawn.append(("filmstrip", *_strip(filmstrip)))
    pictures = [
        formats.Picture(name, question, caption, figures.save(figure, out / "figures", name))
        for name, question, figure, caption in drawn
    ]
    texts = {
        "table.md": formats.to_markdown(report),
        "short.md": formats.to_short_markdown(report),
        "table.tex": formats.to_latex(report),
        "table.csv": formats.to_csv(report),
        SCORES_FILE: formats.to_json(formats.to_rliable(report)),
        "report.html": formats.to_html(report, pictures),
    }
    for name, text in texts.items():
        write_text(out / name, text)
    return list(texts)


def _strip(path: Path) -> tuple[str, Figure, str]:
    """Question, figure and caption of a policy's filmstrip.

    Raises:
        UserError: the file is no policy or does not say its task, or nothing here draws.
    """
    policy = load_policy(path)
    environment = tasks.environment_of_policy(path, policy.task, "give the policy beside a result file")
    frames, seconds, total = video.play(policy, environment, size=240)
    who = f"{policy.method or 'policy'} in {policy.task}"
    caption = f"Its first evaluation episode, {seconds * (len(frames) - 1):.1f} s long; return {total:.0f}."
    return f"What does it look like ({who})?", figures.filmstrip(frames, seconds), caption
