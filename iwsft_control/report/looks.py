"""How each method looks: one colour, marker and line, the same in every figure, by the group that it belongs to.

Groups differ in hue, methods of a group in lightness, marker and line, so that no two look alike, in grey too.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Look(NamedTuple):
    """Of one row of a table."""

    group: str
    colour: str
    marker: str
    line: Any
    """Matplotlib's."""


CLONING, CURATED, WEIGHTED, BASELINES, OTHERS = "cloning", "curated", "importance-weighted", "baselines", "others"
GROUPS = (CLONING, CURATED, WEIGHTED, BASELINES, OTHERS)
LOOKS = {
    "bc": Look(CLONING, "#222222", "o", "-"),
    "filtered-bc": Look(CLONING, "#8c8c8c", "s", "--"),
    "sft": Look(CURATED, "#7fb8e6", "o", "-"),
    "sft-q (return)": Look(CURATED, "#2f7fc1", "s", "--"),
    "sft-q (q)": Look(CURATED, "#0b3c6f", "D", "-."),
    "iw-sft": Look(WEIGHTED, "#f2a65a", "o", "-"),
    "iw-sft-q (return)": Look(WEIGHTED, "#dd6b20", "s", "--"),
    "iw-sft-q (q)": Look(WEIGHTED, "#a32a0f", "D", "-."),
    "iql": Look(BASELINES, "#1b9e77", "o", "-"),
    "td3-bc": Look(BASELINES, "#7a4fa3", "s", "--"),
    "awac": Look(BASELINES, "#b5a000", "D", "-."),
    "cql": Look(BASELINES, "#c2417c", "^", ":"),
    "rebrac": Look(BASELINES, "#0f5b4f", "v", (0, (5, 1, 1, 1, 1, 1))),
    "rebrac-tuned": Look(BASELINES, "#66c2a5", "P", (0, (1, 1))),
    "one-step": Look(BASELINES, "#b79bd2", "X", (0, (7, 2))),
    "decision-transformer": Look(BASELINES, "#5a6b1f", "p", (0, (3, 1, 1, 1))),
}
SPARE = tuple(
    Look(OTHERS, colour, marker, line)
    for colour, marker, line in zip(
        ("#8a5a2b", "#4d8f3a", "#c9302c", "#3b5b92", "#777733", "#aa66cc"), "<>hp*d", ("-", "--", "-.", ":", "-", "--"),
        strict=True,
    )
)  # fmt: skip


def look(label: str, known: list[str]) -> Look:
    """The look of a row; of a method that the suite does not have, a spare one by its place among ``known`` labels."""
    if label in LOOKS:
        return LOOKS[label]
    others = [each for each in known if each not in LOOKS]
    return SPARE[(others.index(label) if label in others else 0) % len(SPARE)]
