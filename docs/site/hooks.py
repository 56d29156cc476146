"""What the site makes by itself: the page of results, one for every file of methods, and the navigation.

A method's page is its file's docstring (paper, equations, deviations), its hyper-parameters and its rows of results.

The pages are also read as files, so their links lead to files of the repository, and what only the site can show
(``::: name``, the documentation of a name) stands in comments. Here both become what they are on the site.
"""

from __future__ import annotations

import csv
import importlib
import re
from pathlib import Path
from typing import Any

from iwsft_control.configs.card import Card
from iwsft_control.methods import registry
from iwsft_control.report.runs import short

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
QUESTIONS = {
    "scores": "Who scores what? Mean over seeds, 95% interval, and every seed.",
    "differences": "Whom does iw-SFT(Q) by learned Q beat? Its score minus the method's, with corrected intervals.",
    "profile": "How do runs spread? Share of runs above a score.",
    "learning": "How long do baselines learn? Score against updates on tuning seeds.",
}
ROLE = ":(?:mod|func|class|data|attr|meth):"
MADE = ("results.md", "methods")
OUTSIDE = re.compile(r"(?<=\]\(\.\./)[^)#\s]+")  # of a link that leaves docs/: the path from the repository's root
SHOWN = {".py": "python", ".md": "markdown", ".toml": "toml"}  # files that become a page; others are copied


def on_config(config: Any) -> Any:
    """Leave out pages that are not there; list those of methods."""
    pages = _that_are_there(config.nav, Path(config.docs_dir))
    listed = [f"methods/{module}.md" for module in modules()]
    config.nav = [{"Methods": listed} if "Methods" in page else page for page in pages]
    return config


def _that_are_there(pages: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Of pages, and of sections of pages at any depth."""
    found = []
    for page in pages:
        ((title, place),) = page.items()
        if isinstance(place, list):
            found.append({title: _that_are_there(place, folder)})
        elif place in MADE or (folder / place).is_file():
            found.append(page)
    return found


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of results and methods."""
    from mkdocs.structure.files import File

    scores = list(csv.DictReader((RESULTS / "table.csv").read_text(encoding="utf-8").splitlines()))
    files.append(File.generated(config, "results.md", content=results()))
    for name in figures():
        files.append(File.generated(config, f"figures/{name}.svg", abs_src_path=str(RESULTS / f"figures/{name}.svg")))
    for module, cards in modules().items():
        files.append(File.generated(config, f"methods/{module}.md", content=page(module, cards, scores)))
    for path in sorted(linked()):
        place = place_of(path)
        if place not in MADE:
            made = {"content": shown(path)} if place.endswith(".md") else {"abs_src_path": str(ROOT / path)}
            files.append(File.generated(config, place, **made))
    return files


def linked() -> set[str]:
    """The files of the repository outside docs/ that a page links to."""
    pages = (ROOT / "docs").glob("*.md")
    found = {path for page in pages for path in OUTSIDE.findall(page.read_text(encoding="utf-8"))}
    return {path for path in found if (ROOT / path).is_file()}  # of what is not there the strict build complains


def place_of(path: str) -> str:
    """Where the site has a file of the repository: "results/table.md" is its page of results."""
    if path == "results/table.md":
        return "results.md"
    return f"repository/{path}" + (".md" if Path(path).suffix in SHOWN else "")


def shown(path: str) -> str:
    """A page that shows a file of text."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return f"# {path}\n\n````{SHOWN[Path(path).suffix]}\n{text}````\n"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """A page as the site has it."""
    return markdown if "/" in page.file.src_uri else of_site(markdown)


def of_site(markdown: str) -> str:
    """A page of docs/: links that leave it lead to places of the site, and the documentation of names is asked for."""
    markdown = OUTSIDE.sub(lambda path: place_of(path[0]), markdown).replace("](../", "](")
    return re.sub(r"<!-- (::: .*?) -->", r"\1", markdown, flags=re.DOTALL)


def figures() -> dict[str, str]:
    """The figures of the results that there are, with their questions: learning curves are no part of every table."""
    return {name: question for name, question in QUESTIONS.items() if (RESULTS / f"figures/{name}.svg").is_file()}


def results() -> str:
    """The page of results: figures and the tables of results/table.md."""
    text = (RESULTS / "table.md").read_text(encoding="utf-8")
    pictures = [f"![{question}](figures/{name}.svg)\n\n{question}\n" for name, question in figures().items()]
    first = text.index("\n## ")
    return text[:first] + "\n## Figures\n\n" + "\n".join(pictures) + text[first:]


def modules() -> dict[str, list[Card]]:
    """The methods of this package by the file that they are in."""
    found: dict[str, list[Card]] = {}
    for card in registry.OURS:
        found.setdefault(card.config.__module__.rpartition(".")[2], []).append(card)
    return found


def page(module: str, cards: list[Card], scores: list[dict[str, str]]) -> str:
    """The page of a file of methods.

    Args:
        scores: rows of results/table.csv.
    """
    names = [card.name for card in cards]
    title = "Supervised fine-tuning" if module == "supervised" else " and ".join(names)
    code, config = f"iwsft_control.methods.{module}", f"iwsft_control.configs.{module}"
    parts = [
        f"# {title}",
        f"`--method {' '.join(names)}`" if cards[0].has_policy else "A critic, trained as a stage of other methods.",
        f"The code is in `iwsft_control/methods/{module}.py`; this is its head.",
        _docstring(code),
    ]
    if module == "supervised":
        parts += ["## The objectives", _docstring("iwsft_control.learning.objectives")]
    if cards[0].has_policy:
        parts += ["## What the runs show", _scores(names, scores), _published(cards)]
    groups = {type(getattr(cards[0].config(), name)) for name in cards[0].groups} if cards[0].group is None else ()
    configs = [c for c in groups if hasattr(c, "__dataclass_fields__")] if groups else [cards[0].config]
    parts += ["## Hyper-parameters", f"Defaults, in `{config.replace('.', '/')}.py`."]
    options = "\n    options: {members_order: source, inherited_members: true, filters: ['!^problem$']}"
    parts += [f"::: {c.__module__}.{c.__qualname__}{options}" for c in sorted(configs, key=lambda c: c.__qualname__)]
    parts += [
        "## Functions",
        f"::: {code}\n    options: {{show_root_heading: false, show_docstring_description: false}}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _docstring(module: str) -> str:
    """A module's docstring as Markdown: its indented equations are blocks of code."""
    text = (importlib.import_module(module).__doc__ or "").strip()
    return re.sub(ROLE + r"`~?\.?([^`]*)`", r"`\1`", text.replace("<", "&lt;"))


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Docstrings name things by Sphinx's roles, which Markdown does not know."""
    return re.sub(ROLE + r"(?=<code>)", "", html)


def _scores(names: list[str], scores: list[dict[str, str]]) -> str:
    rows = [row for row in scores if row["method"] in names]
    if not rows:
        return "No run of it is in the results table yet."
    lines = ["| data set | method | seeds | mean [95% interval] | minus bc |", "|---|---|---|---|---|"]
    for row in rows:
        label = row["method"] + (f" ({row['quality']})" if row["quality"] else "")
        interval = f" [{float(row['low']):.1f}, {float(row['high']):.1f}]" if row["low"] else ""
        minus = f"{float(row['difference']):+.1f}" if row["difference"] else "-"
        lines.append(
            f"| {short(row['dataset'])} | {label} | {row['n_seeds']} | {float(row['mean']):.1f}{interval} | {minus} |"
        )
    return "\n".join(
        [*lines, "", "Made from the files in `results/sweep`; [Results](../results.md) compares all methods."]
    )


def _published(cards: list[Card]) -> str:
    known = [card.published for card in cards if card.published is not None]
    lines = [f"| {p.label} | " + " | ".join(f"{score:.1f}" for score in p.scores) + " |" for p in known]
    head = [
        "As published, on D4RL's own medium-replay-v2 data:",
        "",
        "| | hopper | halfcheetah | walker2d |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *lines]) if lines else ""
