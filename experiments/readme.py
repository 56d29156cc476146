"""The README's short table of scores, from results/short.md: ``python experiments/readme.py`` after a new table."""

from __future__ import annotations

import re
from pathlib import Path

from iwsft_control.base.files import write_text

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- scores: results/short.md -->", "<!-- end of scores -->"


def with_scores(text: str, results: Path) -> str:
    """A README's text with the table of ``results`` between its marks."""
    short = (results / "short.md").read_text(encoding="utf-8").strip()
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{short}\n{END}", text, flags=re.DOTALL)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    made = with_scores(readme.read_text(encoding="utf-8"), ROOT / "results")
    write_text(readme, made)
