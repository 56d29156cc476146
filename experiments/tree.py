"""The theory of UFT in a tree: how many leaves are looked at until the policy succeeds every second time.

    python experiments/tree.py

A tree of height H and branching B, one rewarded leaf, a uniform softmax policy; the demonstration is the path to that
leaf. UFT's paper (arXiv 2505.16984) proves that without hints any method needs B^H/4 leaves on average (theorem 4.2),
and that with hints of uniform length and the likelihood term a polynomial in H is enough (theorem 4.3, algorithm 2,
which this is). Compared are:

    rft             never a hint
    uft-uniform     hints of l steps, l uniform on 0..H: the theorem's
    uft-cosine      l ~ Binomial(H, p(t)), p as in training (``online/schedules.py``): the paper's practice
    hint-cosine     the same without the likelihood term

Every update ascends ``online/objectives.py``'s UFT objective with respect to the policy's probabilities. A rollout
that leaves the path is never rewarded, so nothing is learned off the path: its logits (H, B) are the whole state, and
the probability of success is a product of theirs, exactly. B leaves are counted for each inner node that a rollout
visits.

What it does not show: the demonstration is the solution, so plain SFT needs no leaf at all here.
"""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

from iwsft_control.base import bounds, console, files
from iwsft_control.base.bounds import POSITIVE, TWO_OR_MORE
from iwsft_control.base.errors import require
from iwsft_control.online import objectives, schedules
from iwsft_control.report import figures, formats


class Law(NamedTuple):
    """How hints are drawn, and whether their actions are made more likely."""

    hints: str
    likelihood: bool


LAWS = {
    "rft": Law("none", False),
    "uft-uniform": Law("uniform", True),
    "uft-cosine": Law("cosine", True),
    "hint-cosine": Law("cosine", False),
}
SHOWN = {  # in the figure, as docs/uft.md names them
    "rft": "rft (no hints)",
    "uft-uniform": "UFT, uniform l",
    "uft-cosine": "UFT, cosine",
    "hint-cosine": "the same without the likelihood",
}
PLAIN_LEAVES = 4e6  # rft is not tried where its lower bound exceeds a hundredth of these


@dataclasses.dataclass(frozen=True)
class TreeConfig:
    """What to show."""

    heights: Annotated[tuple[int, ...], POSITIVE] = (2, 4, 6, 8, 10, 12, 16, 20)
    branching: Annotated[int, TWO_OR_MORE] = 2
    seeds: Annotated[int, POSITIVE] = 20
    step: Annotated[float, POSITIVE] = 1.0
    """Of gradient ascent on probabilities: eta."""
    weight: Annotated[float, POSITIVE] = 1e-3
    """Of the KL and the likelihood term: the paper's one beta."""
    hinted_updates: Annotated[int, POSITIVE] = 400
    """Updates until the cosine schedule gives no more hints."""
    out: Path = Path("results/figures")
    """Folder of the table and the picture."""


def objective(
    probabilities: jax.Array,
    advantages: jax.Array,
    visited: jax.Array,
    hinted: jax.Array,
    reference: jax.Array,
    weight: float,
    likelihood: bool,
) -> jax.Array:
    """UFT's J of an update on the path, whose action is the first of every node.

    Args:
        probabilities: (H, B); advantages: (H, B), constants.
        visited: nodes that the rollout came to, (H,); hinted: nodes before its start, (H,).
    """
    value = jnp.where(visited, (probabilities * advantages).sum(-1), 0.0).sum()
    log_ratio = jnp.log(jnp.maximum(probabilities, 1e-30) / reference)  # a float32 is 0 when its logit is 100 lower
    divergence = jnp.where(visited, (probabilities * log_ratio).sum(-1), 0.0).sum()
    log_likelihood = jnp.where(hinted, jnp.log(probabilities[:, 0]), 0.0).sum()
    return objectives.uft(value, divergence, log_likelihood, weight, weight * likelihood)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def leaves_until_success(
    law: Law, branching: int, step: float, weight: float, highest: int, height: jax.Array, p: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Leaves that are looked at until the policy succeeds with probability 1/2, and updates.

    Args:
        highest: of the trees that one program is for; rows from ``height`` on are none.
        p: of UFT's schedule at every update, the last one for good, (U,).
    """
    rows = jnp.arange(highest)
    real = rows < height
    reference = jnp.full((highest, branching), 1 / branching)

    def success_after(right: jax.Array) -> jax.Array:
        """Probability of the path below every node's child on it, (H,)."""
        log = jnp.where(real, jnp.log(right), 0.0)
        return jnp.exp(log.sum() - jnp.cumsum(log))

    def update(carry):
        logits, leaves, count, key = carry
        key, hint_key, action_key, leaf_key = jax.random.split(key, 4)
        probabilities = jax.nn.softmax(logits)
        if law.hints == "none":
            hint = jnp.int32(0)
        elif law.hints == "uniform":
            hint = jax.random.randint(hint_key, (), 0, height + 1)
        else:
            chance = p[jnp.minimum(count, len(p) - 1)]
            hint = (real & (jax.random.uniform(hint_key, (highest,)) < chance)).sum()
        right = probabilities[:, 0]
        taken = jax.random.uniform(action_key, (highest,)) < right  # whether the path's action is sampled
        on_path = jnp.cumprod(jnp.where(rows < hint, True, taken)) > 0
        visited = real & (rows >= hint) & jnp.concatenate([jnp.ones(1, bool), on_path[:-1]])
        q = jnp.zeros_like(probabilities).at[:, 0].set(jax.random.uniform(leaf_key, (highest,)) < success_after(right))
        advantages = q - (probabilities * q).sum(-1, keepdims=True)
        gradient = jax.grad(objective)(
            probabilities, advantages, visited, real & (rows < hint), reference, weight, law.likelihood
        )
        return logits + step * gradient, leaves + branching * (height - hint), count + 1, key

    def fails(carry):
        return success_after(jax.nn.softmax(carry[0])[:, 0])[0] * jax.nn.softmax(carry[0])[0, 0] < 0.5

    start = (jnp.zeros((highest, branching)), jnp.int32(0), jnp.int32(0), key)
    _, leaves, count, _ = jax.lax.while_loop(fails, update, start)
    return leaves, count


def measure(config: TreeConfig, name: str, height: int, seeds: int) -> np.ndarray:
    """Leaves until success of every seed, (S,)."""
    p = [schedules.hint_probability((t + 1) / config.hinted_updates, 1.0) for t in range(config.hinted_updates)]
    keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(s), height))(jnp.arange(seeds))
    law, highest = LAWS[name], max(config.heights)
    one = partial(leaves_until_success, law, config.branching, config.step, config.weight, highest)
    leaves, _ = jax.vmap(one, in_axes=(None, None, 0))(jnp.int32(height), jnp.asarray(p), keys)
    return np.asarray(leaves)


def slopes(heights: np.ndarray, medians: np.ndarray, branching: int) -> tuple[float, float]:
    """How log_B(leaves) grows with H, and log(leaves) with log(H): least squares over the upper half of heights."""
    half = len(heights) // 2 if len(heights) > 3 else 0
    x, y = heights[half:].astype(float), np.log(medians[half:])
    return float(np.polyfit(x, y / np.log(branching), 1)[0]), float(np.polyfit(np.log(x), y, 1)[0])


def main(config: TreeConfig) -> None:
    """Print and draw the leaves by height."""
    bounds.check(config, "")
    require(len(set(config.heights)) > 1, "--heights must name two or more different heights.")
    began, heights = time.perf_counter(), np.array(sorted(set(config.heights)))
    lower = config.branching ** heights.astype(float) / 4
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name in LAWS:
        tried = heights[lower * 100 <= PLAIN_LEAVES] if name == "rft" else heights
        require(len(tried) > 1, "--heights must name two that plain search can do: lower ones, or less --branching.")
        each = [measure(config, name, int(height), config.seeds) for height in tried]
        found[name] = (tried, np.array(each))
    header = [f"B = {config.branching}, H", *map(str, heights), "slope"]
    rows = [["B^H/4, lower bound without hints", *(f"{x:,.0f}" for x in lower), "1 log_B per H"]]
    figure, axis = plt.subplots(figsize=(5.2, 3.4))
    axis.plot(heights, lower, ":", color="#999999", label="$B^H/4$: bound without hints")
    for i, (name, (tried, leaves)) in enumerate(found.items()):
        medians = np.median(leaves, axis=1)
        cells = [f"{x:,.0f}" for x in medians] + ["-"] * (len(heights) - len(tried))
        per_level, power = slopes(tried, medians, config.branching)
        rows.append([SHOWN[name], *cells, f"{per_level:.2f} log_B per H" if name == "rft" else f"H^{power:.1f}"])
        colour = figures.COLOURS[1 + i]
        line = figures.LINES[i % len(figures.LINES)]
        axis.plot(tried, medians, line, marker="o", markersize=3, color=colour, label=SHOWN[name])
        axis.fill_between(tried, *np.percentile(leaves, [25, 75], axis=1), color=colour, alpha=0.15, linewidth=0)
    console.print_table(header, rows)
    files.write_text(config.out / "tree.md", formats.markdown_table(header, rows) + "\n")
    console.console.print(
        f"Medians of {config.seeds} seeds; slopes over the upper half of the heights; "
        f"{time.perf_counter() - began:.0f} s. The demonstration is the solution, so SFT alone needs no leaf here."
    )
    axis.set(yscale="log", xticks=heights, xlabel="height of the tree", ylabel="leaves until success")
    axis.legend(frameon=False, fontsize=8)
    figures.save(figure, config.out, "tree")


if __name__ == "__main__":
    console.command(lambda: TreeConfig, main, "python experiments/tree.py", __doc__)
