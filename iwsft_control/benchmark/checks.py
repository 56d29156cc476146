"""What can be checked before anything is trained: methods, seeds, and that a data set can be evaluated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from iwsft_control.base import console
from iwsft_control.base.errors import UserError, require
from iwsft_control.benchmark.settings import Settings
from iwsft_control.configs.supervised import KINDS
from iwsft_control.datasets.types import Dataset, describe_origin
from iwsft_control.envs import specs
from iwsft_control.envs.actions import ActionBox
from iwsft_control.envs.tasks import parse_task
from iwsft_control.methods import registry

if TYPE_CHECKING:  # it loads JAX
    from iwsft_control.benchmark.store import Store


def check_methods(methods: Sequence[str]) -> None:
    """Refuse unknown, repeated and no methods.

    Raises:
        UserError: in these cases; unknown names list the near ones.
    """
    for method in methods:
        require(registry.card(method).has_policy, f"{method} has no policy to evaluate; name a method that has one.")
    require(len(set(methods)) == len(methods) > 0, "name one or more different methods.")


def check_seeds(seeds: Sequence[int], option: str = "--seeds") -> None:
    """Refuse repeated, negative and no seeds, and what is no whole number.

    Args:
        option: what gave them, for the sentence.

    Raises:
        UserError: in these cases.
    """
    require(all(type(s) is int for s in seeds), f"seeds must be whole numbers, as in seeds=[0, 1]: {seeds}.")
    told = " ".join(map(str, seeds)) or "none"
    require(len(set(seeds)) == len(seeds) > 0, f"{option} must name one or more different seeds, not {told:.80}.")
    require(all(0 <= s < 2**31 for s in seeds), f"{option} must lie between 0 and 2147483647.")


def check_tasks(names: Sequence[str]) -> None:
    """Refuse unknown, repeated and no tasks.

    Raises:
        UserError: in these cases; unknown names list the near ones.
    """
    found = {parse_task(name).name for name in names}
    require(len(found) == len(names) > 0, "--tasks must name one or more different tasks.")


def reference_scores(low: float | None, high: float | None) -> tuple[float, float] | None:
    """The reference scores that options give, or None.

    Raises:
        UserError: one without the other, or they are not finite, the lower one first.
    """
    require((low is None) == (high is None), "give both --ref-min-score and --ref-max-score, or neither.")
    if low is None or high is None:
        return None
    finite = math.isfinite(low) and math.isfinite(high)
    require(finite and low < high, "--ref-min-score must be below --ref-max-score, both finite.")
    return low, high


def check_preset(methods: Sequence[str], quality: str, settings: Settings) -> None:
    """Refuse ``--preset released`` for what the released code does not do.

    Raises:
        UserError: another method than its own, or quality by the learned Q.
    """
    if settings["preset"] != "released":
        return
    kinds = [KINDS.get(method) for method in methods]
    known = all(kind is not None and kind.curation != "filtered" for kind in kinds)
    by_return = quality == "return" or all(kind is None or kind.curation != "quality" for kind in kinds)
    require(
        known and by_return, "--preset released is for bc, sft, iw-sft and, with --quality return, sft-q and iw-sft-q."
    )


def check_environment(data: Dataset) -> None:
    """Make sure that a data set can be evaluated before anything is trained on it.

    Raises:
        UserError: its environment cannot be made or does not fit.
    """
    # Here, since it loads MuJoCo: commands check their options without it.
    from iwsft_control.envs.batch import GymnasiumBatch, make_batch

    batch = make_batch(data.environment, 1)
    parts = batch.observation_parts if isinstance(batch, GymnasiumBatch) else {}
    require(
        not data.observation_parts or list(parts.items()) == list(data.observation_parts.items()),
        f"{data.id} declares the observations {dict(data.observation_parts)}, its environment {data.env_id} has "
        f"{parts}, or in another order; choose another data set.",
    )
    require(
        (batch.observation_dim, batch.action_dim) == (data.observations.shape[1], data.actions.shape[1]),
        f"{data.id} does not have the observations and actions of {data.env_id}; choose another data set.",
    )
    box = data.action_box or ActionBox.unit(batch.action_dim)
    require(
        np.allclose(box.low, batch.action_box.low) and np.allclose(box.high, batch.action_box.high),
        f"{data.id} declares actions in {box.text()}, its environment {data.env_id} takes "
        f"{batch.action_box.text()}; correct its action_space, or choose another data set.",
    )


def check_store(store: Store) -> None:
    """Say where finished stages are not kept, which costs time and no result: they are made again the next time."""
    try:
        console.writable(store.folder)
    except UserError as error:
        store.problem = str(error)
    say_unkept(store)


def say_unkept(store: Store) -> None:
    """Say why finished stages were not kept, if they were not."""
    if store.problem is not None:
        console.console.print(f"note: finished stages are not kept ({store.problem.rstrip('.')}).")
        store.problem = None


def describe(data: Dataset) -> None:
    """Print which data set is used and what it is."""
    console.console.print(
        f"data: {data.id} ({describe_origin(data.origin)}), {len(data.rewards):,} transitions, "
        f"{len(data.starts) - 1:,} episodes, sha256 {data.sha256[:12]}; evaluated in "
        f"{specs.in_words(data.environment)}"
        + (f"; actions scaled from {data.action_box.text()}" if data.action_box else "")
    )
