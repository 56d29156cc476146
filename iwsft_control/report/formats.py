"""Tables as Markdown, LaTeX, CSV, JSON and HTML."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iwsft_control.report import statistics
from iwsft_control.report.runs import Report, differences, notes, strata
from iwsft_control.report.tables import sections


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
        parts += ["\\begin{table}", f"\\caption{{{_tex(f'{trial}{section.title}. {section.text}')}}}"]
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
    """One line per data set and method; the differences are those to the baseline, empty for itself."""
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
                line += [*map(number, statistics.mean_interval(pairs)), str(len(pairs)), number(chance)]
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


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 88rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.8rem; }
th, td { padding: 0.3rem 0.5rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child, .words { text-align: left; }
thead th { border-bottom: 2px solid #444; }
figure { margin: 1.5rem 0; } figure svg { max-width: 100%; height: auto; }
figcaption, li, p { max-width: 50rem; } figcaption { color: #555; font-size: 0.9rem; }
"""


def to_html(report: Report, figures: Mapping[str, tuple[str, str]]) -> str:
    """One self-contained page. ``figures`` maps a title to its SVG and its caption."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>iwsft_control: results</title>',
        f"<style>{STYLE}</style></head><body><h1>Results</h1><ul>",
        *(f"<li>{html.escape(line)}</li>" for line in notes(report)),
        "</ul>",
    ]
    for section in sections(report):
        parts.append(f"<h2>{html.escape(section.title)}</h2><p>{html.escape(section.text)}</p>")
        # Columns of words, not of numbers.
        kinds = [' class="words"' if name.startswith(("verdict", "published")) else "" for name in section.header]
        head = "".join(f"<th{k}>{html.escape(cell)}</th>" for k, cell in zip(kinds, section.header, strict=True))
        parts.append(f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>')
        for row in section.rows:
            cells = "".join(f"<td{k}>{html.escape(cell)}</td>" for k, cell in zip(kinds, row, strict=True))
            parts.append(f"<tr>{cells}</tr>")
        parts.append("</tbody></table></div>")
    for title, (svg, caption) in figures.items():
        svg = svg[svg.index("<svg") :]  # without the XML header, which has no place inside a page
        parts.append(
            f"<h2>{html.escape(title)}</h2><figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    return "\n".join([*parts, "</body></html>", ""])


def to_json(value: Any) -> str:
    """Compact JSON, one line per entry of ``scores``."""
    rows = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in value["scores"].items())
    return f'{{\n "tasks": {json.dumps(value["tasks"])},\n "scores": {{\n{rows}\n }}\n}}\n'
