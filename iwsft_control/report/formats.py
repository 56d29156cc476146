"""Tables as Markdown, LaTeX, CSV, JSON and HTML."""

from __future__ import annotations

import csv
import functools
import html
import io
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
import markupsafe
import numpy as np

from iwsft_control.report import statistics
from iwsft_control.report.runs import Report, differences, notes, overall, strata
from iwsft_control.report.tables import caveat, cell, messages, sections, without_mean


def to_markdown(report: Report) -> str:
    """The tables in Markdown."""
    parts = ["# Results", "", *(f"- {_markdown(line)}" for line in notes(report)), ""]
    for section in sections(report):
        parts += [f"## {_markdown(section.title)}", "", _markdown(section.text), ""]
        parts += [markdown_table(section.header, section.rows), ""]
    return "\n".join(parts)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, without a line break at its end."""
    lines = ["| " + " | ".join(map(_markdown, header)) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(map(_markdown, row)) + " |" for row in rows)])


def _line(text: str) -> str:
    """Text without line breaks: what follows one would no longer be a comment or a cell."""
    return " ".join(text.split())


def _markdown(text: str) -> str:
    """Text of a result file as Markdown that shows it: no tags, no links, no further cells."""
    return _line(html.escape(text, quote=False)).replace("|", "\\|").replace("](", "]\\(")


def to_latex(report: Report) -> str:
    """The tables in LaTeX (booktabs)."""
    parts = ["% Needs \\usepackage{booktabs}.", *(f"% {_line(line)}" for line in notes(report))]
    trial = "TRIAL RUNS, not scores. " if any(r.quick for r in report.runs.values()) else ""
    for section in sections(report):
        columns = "l" + "r" * (len(section.header) - 1)
        label = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-")
        caption = f"\\caption{{{_tex(f'{trial}{section.title}. {section.text}')}}}"
        parts += ["\\begin{table}", caption, f"\\label{{tab:{label}}}"]
        parts += [f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
        parts += [" & ".join(map(_tex, section.header)) + " \\\\", "\\midrule"]
        parts += [" & ".join(map(_tex, row)) + " \\\\" for row in section.rows]
        parts += ["\\bottomrule", "\\end{tabular}", "\\end{table}", ""]
    return "\n".join(parts)


def _tex(text: str) -> str:
    text = _line(text).replace("\\", "\\textbackslash ")
    return re.sub(r"([%&_#${}])", r"\\\1", text).replace("~", "\\textasciitilde ").replace("^", "\\textasciicircum ")


CSV_COLUMNS = (
    "dataset", "method", "quality", "n_seeds", "mean", "low", "high",
    "difference", "difference_low", "difference_high", "n_pairs", "probability_of_improvement",
)  # fmt: skip


def to_csv(report: Report) -> str:
    """One line per data set and method; the differences are those to the baseline, empty for itself, their intervals
    corrected for the number of methods as those of the Markdown table are."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)

    def number(x: float) -> str:
        return "" if np.isnan(x) else f"{x:.4f}"

    for i, dataset in enumerate(report.datasets):
        for row in report.scores:
            scores = strata(report, row)[i]
            if not len(scores):
                continue
            line = [
                dataset,
                row.method,
                row.quality or "",
                str(len(scores)),
                *map(number, statistics.mean_interval(scores)),
            ]
            pairs = differences(report, row, report.baseline).get(dataset)
            if row == report.baseline or pairs is None:
                line += [""] * 5
            else:
                chance = statistics.probability_of_improvement([(scores, strata(report, report.baseline)[i])])
                line += [
                    *map(number, statistics.mean_interval(pairs, len(report.scores) - 1)),
                    str(len(pairs)),
                    number(chance),
                ]
            writer.writerow(line)
    return out.getvalue()


def to_rliable(report: Report) -> dict[str, Any]:
    """Score matrices as rliable takes them: for every method (runs, tasks), over the seeds that all data sets have."""
    matrices = {}
    for row, by_dataset in report.scores.items():
        shared = set.intersection(*(set(by_dataset.get(d, {})) for d in report.datasets))
        if shared:
            matrices[row.label] = [[by_dataset[d][s] for d in report.datasets] for s in sorted(shared)]
    return {"tasks": report.datasets, "scores": matrices}


class Picture(NamedTuple):
    """A figure of the page."""

    name: str
    """Of its files."""
    question: str
    """That it answers."""
    caption: str
    svg: str


@functools.cache
def _page() -> jinja2.Template:
    """The page's template, which takes longer to compile than to fill in."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("iwsft_control.report"),
        autoescape=True,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2")


def to_html(report: Report, pictures: Sequence[Picture]) -> str:
    """One self-contained page: the message, a figure for each question, the tables, and where all comes from."""
    shown = [
        {
            "name": each.name,
            "question": each.question,
            "caption": each.caption,
            "alt": f"Figure. {each.question} {each.caption}",
            # Without the XML header, which has no place inside a page; our own figures, not a file's text.
            "svg": markupsafe.Markup(each.svg[each.svg.index("<svg") :].replace("<svg", '<svg role="img"', 1)),
        }
        for each in pictures
    ]
    headline, *message = messages(report)
    return _page().render(
        headline=headline, message=message, figures=shown, sections=sections(report), notes=notes(report)
    )


def to_short_markdown(report: Report) -> str:
    """A short table for a front page: method, seeds, mean over data sets with its interval; and one line of caveat."""
    rows = []
    for row in report.scores:
        total = overall(report, row)
        counts = {len(x) for x in strata(report, row)}
        if total is not None:
            rows.append([row.label, str(min(counts)), cell(total[0])])
    notes = [*without_mean(report), caveat(report)]
    table = markdown_table(["method", "seeds", "mean [95% interval]"], rows)
    return "\n".join([table, "", *(_markdown(note) for note in notes), ""])


def to_json(value: Any) -> str:
    """Compact JSON, one line per entry of ``scores``."""
    rows = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in value["scores"].items())
    return f'{{\n "tasks": {json.dumps(value["tasks"])},\n "scores": {{\n{rows}\n }}\n}}\n'
