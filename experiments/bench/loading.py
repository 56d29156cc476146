"""Loading a data set here against iterating over the episodes of the same data with Minari.

    python experiments/bench/loading.py

Four ways to the same arrays, one after the other in every round, medians over rounds, on one core: ``iterate`` is
``minari.load_dataset(...).iterate_episodes()``, every episode read once and nothing kept; ``cold`` is the suite's own
load of Minari's files, with every check, the arrays joined and the cache written; ``warm`` is the load from that cache;
``embedded`` the cold load of the packed file that ships with the package, where the data are among these. Ratios are of
iterating's seconds over each way's, round by round. The files are in the system's cache already: what is measured is
not the disk.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated
from unittest import mock

import minari
import numpy as np
import shared
from rich.table import Table

from iwsft_control.base import bounds, console
from iwsft_control.base.bounds import POSITIVE
from iwsft_control.datasets import load, minari_files, packed

WAYS = ("iterate", "cold", "warm", "embedded")


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What to measure."""

    datasets: tuple[str, ...] = tuple(packed.embedded_manifest())
    """Ids of embedded data sets, of which a copy in Minari's format is made first, or of some in the Minari root."""
    rounds: Annotated[int, POSITIVE] = 5


def iterate(dataset_id: str) -> int:
    """Transitions that Minari's episodes hold, all of them read."""
    return sum(len(episode.rewards) for episode in minari.load_dataset(dataset_id).iterate_episodes())


def loaded(dataset_id: str, scores: tuple[float, float] | None, cache: Path) -> int:
    """Transitions that the suite loads."""
    return len(load.load(None, dataset_id, scores, cache).rewards)


def seconds(way: Callable[[], int]) -> tuple[float, int]:
    """How long a way takes, and the transitions that it found."""
    began = time.perf_counter()
    found = way()
    return time.perf_counter() - began, found


def measure(dataset_id: str, copy: str, rounds: int) -> tuple[int, dict[str, list[float]]]:
    """Transitions of a data set, and the seconds of every way to them in every round.

    Args:
        copy: its id in the Minari root; where that is the same, nothing is embedded.
    """
    taken: dict[str, list[float]] = {way: [] for way in WAYS if way != "embedded" or copy != dataset_id}
    scores = None if "ref_min_score" in minari_files.read_metadata(copy) else (0.0, 1.0)
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            ways: dict[str, Callable[[], int]] = {
                "iterate": partial(iterate, copy),
                "cold": partial(loaded, copy, scores, Path(folder, "minari")),
                "warm": partial(loaded, copy, scores, Path(folder, "minari")),
                "embedded": partial(loaded, dataset_id, None, Path(folder, "packed")),
            }
            found = set()
            for name, values in taken.items():
                took, transitions = seconds(ways[name])
                values.append(took)
                found.add(transitions)
            assert len(found) == 1, f"the ways do not agree: {found}"
    return found.pop(), taken


def main(config: BenchConfig) -> None:
    """Measure every data set, print a row for every way."""
    bounds.check(config, "")
    shared.pin()
    shared.head()
    table = Table("data set", "transitions", "way", "seconds", "times as fast as iterating", "least", "most")
    for dataset_id in config.datasets:
        if dataset_id not in packed.embedded_manifest():
            _rows(table, dataset_id, *measure(dataset_id, dataset_id, config.rounds))
            continue
        with (
            tempfile.TemporaryDirectory() as root,
            mock.patch.dict(os.environ, {"MINARI_DATASETS_PATH": root}),
        ):
            episodes, metadata = packed.read_embedded(dataset_id)
            known = {k: metadata[k] for k in ("ref_min_score", "ref_max_score")}
            environment = load.load(None, dataset_id, cache=Path(root, "cache")).env_id
            copy = f"bench/{dataset_id}"
            minari_files.write_minari(copy, episodes, environment, known)
            del episodes
            _rows(table, dataset_id, *measure(dataset_id, copy, config.rounds))
    console.console.print(table)


def _rows(table: Table, dataset_id: str, transitions: int, taken: dict[str, list[float]]) -> None:
    """Add a row for every way."""
    iterated = np.array(taken["iterate"])
    for way, values in taken.items():
        ratios = iterated / np.array(values)
        cells = [f"{f(ratios):.1f}" for f in (np.median, np.min, np.max)]
        table.add_row(dataset_id, f"{transitions:,}", way, f"{np.median(values):.3f}", *cells)


if __name__ == "__main__":
    console.command(lambda: BenchConfig, main, "python experiments/bench/loading.py", __doc__)
