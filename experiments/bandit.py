"""The shortest explanation of iw-SFT: two slot machines, and the objective code that trains policies here.

    python experiments/bandit.py

The right machine always pays, the left one half of the time; the record was made by pulling uniformly at random. The
paper's example (Qin & Springenberg 2025): SFT on the pulls that paid gives right = 2/3, which pays 0.83; iw-SFT with q
the policy of the round before goes 2/3, 4/5, 8/9, 16/17, ... to 1. Printed are those rounds exactly and from a finite
record, and how clipping, a lagging q, weights relative to their mean and a target effective sample size bend the path.
The picture goes to results/figures/bandit.svg.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt
from rich.table import Table

from iwsft_control.base import bounds, console
from iwsft_control.base.bounds import POSITIVE
from iwsft_control.learning import objectives
from iwsft_control.learning.gradient import descend
from iwsft_control.learning.objectives import ImportanceConfig
from iwsft_control.report import figures

PAYS = np.array([0.5, 1.0])  # probability that the left and the right machine pay
FREE = ImportanceConfig(None, temperature=1.0, relative=False, high=1e6, lag=0.0)
Weights = Callable[[jax.Array], jax.Array]  # log-ratios of the two machines' pulls (2,) -> weights (2,)


@dataclasses.dataclass(frozen=True)
class BanditConfig:
    """What to show."""

    rounds: Annotated[int, POSITIVE] = 6
    pulls: Annotated[int, POSITIVE] = 300
    """Pulls of the finite record."""
    seed: int = 0
    out: Path = Path("results/figures")
    """Folder of the picture."""


def log_prob(params: jax.Array, pulls: jax.Array) -> jax.Array:
    """log pi of pulls (B,) of a policy with one logit per machine (2,)."""
    return jax.nn.log_softmax(params)[pulls]


@jax.jit
def fit(paid: jax.Array, weights: jax.Array) -> jax.Array:
    """The policy (2,) that maximises the weighted likelihood of pulls (B,) with weights (B,): by gradient steps."""
    loss = partial(objectives.sequence_loss, log_prob)
    optimiser = optax.sgd(4.0)
    params = jnp.zeros(2)

    def step(carry, _):
        params, state, _ = descend(loss, optimiser, *carry, paid, weights / weights.sum())
        return (params, state), None

    (params, _), _ = jax.lax.scan(step, (params, optimiser.init(params)), None, 2000)
    return jax.nn.softmax(params)


def path(paid: np.ndarray, weigh: Weights, rounds: int, lag: float = 0.0) -> list[float]:
    """Probability of the right machine after SFT (round 1) and after each round of iw-SFT.

    Args:
        paid: machines of the pulls that paid, (B,).
        weigh: importance weights of the machines from log q - log pi_ref (2,).
        lag: q is ``lag`` times the q before and (1 - lag) times the policy.
    """
    pulls, reference = jnp.asarray(paid), jnp.log(jnp.full(2, 0.5))
    policy = fit(pulls, jnp.ones(len(paid)))
    q, found = policy, [float(policy[1])]
    for _ in range(rounds - 1):
        policy = fit(pulls, weigh(jnp.log(q) - reference)[pulls])
        q = lag * q + (1 - lag) * policy
        found.append(float(policy[1]))
    return found


def record(pulls: int, seed: int) -> np.ndarray:
    """Machines of the pulls that paid in a record of uniformly random pulls."""
    rng = np.random.default_rng(seed)
    pulled = rng.integers(2, size=pulls)
    return pulled[rng.random(pulls) < PAYS[pulled]]


def targeted(target: float, paid: np.ndarray) -> Weights:
    """Weights whose effective sample size over the pulls that paid is ``target``."""

    def weigh(log_ratio: jax.Array) -> jax.Array:
        units = log_ratio[jnp.asarray(paid)]
        temperature = objectives.temperature_for(target, units, largest=50.0)
        return jnp.exp(temperature * (log_ratio - log_ratio.max()))

    return weigh


def paths(config: BanditConfig) -> dict[str, list[float]]:
    """Every path that is shown, by name."""
    exact = np.array([0, 1, 1])  # of four pulls, two of each machine, these paid
    clipped = dataclasses.replace(FREE, low=0.2, high=1.2)
    free = partial(objectives.importance_weights, FREE)
    return {
        "exact": path(exact, free, config.rounds),
        f"from {config.pulls} pulls": path(record(config.pulls, config.seed), free, config.rounds),
        "relative to their mean": path(exact, partial(objectives.relative_weights, 1.0), config.rounds),
        "clipped to [0.2, 1.2]": path(exact, partial(objectives.importance_weights, clipped), config.rounds),
        "q lags by 0.9": path(exact, free, config.rounds, lag=0.9),
        "effective sample size 0.8": path(exact, targeted(0.8, exact), config.rounds),
    }


def main(config: BanditConfig) -> None:
    """Print and draw the paths."""
    bounds.check(config, "")
    found = paths(config)
    table = Table("weights", "SFT", *(f"round {k}" for k in range(2, config.rounds + 1)), "pays")
    for name, values in found.items():
        cells = [f"{p:.4f}" for p in values]
        table.add_row(name, *cells, f"{values[-1] * PAYS[1] + (1 - values[-1]) * PAYS[0]:.4f}")
    powers = [2**k for k in range(1, config.rounds + 1)]
    table.add_row("the paper's", *(f"{p}/{p + 1}" for p in powers), "-> 1")
    console.console.print(table)
    figure, axis = plt.subplots(figsize=(5.2, 3.2))
    for i, (name, values) in enumerate(found.items()):
        style, width = figures.LINES[i % len(figures.LINES)], 5.0 if name == "exact" else 1.5  # another lies on it
        axis.plot(
            range(1, config.rounds + 1),
            values,
            style,
            marker="o",
            markersize=3,
            linewidth=width,
            label=name,
            color=figures.COLOURS[i],
        )
    axis.axhline(1.0, color="#cccccc", linewidth=0.8, zorder=0)
    axis.set(xlabel="round (1: SFT)", ylabel="probability of the right machine")
    axis.legend(frameon=False, fontsize=8)
    figures.save(figure, config.out, "bandit")


if __name__ == "__main__":
    console.command(lambda: BanditConfig, main, "python experiments/bandit.py", __doc__)
