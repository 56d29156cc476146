"""Statistics of scores over seeds. The run (seed) is the unit: the episodes of one run are not independent evidence.

Intervals are Student's t, not a percentile bootstrap: with few seeds that is too narrow. Five seeds from a normal
distribution: the 95% percentile bootstrap of the mean covers the truth in 84% of repetitions, t in 95% (measured by
``tests/test_statistics.py``). For means over tasks the degrees of freedom are Welch and Satterthwaite's; the
interquartile mean, which has no such formula, takes its standard error from a stratified bootstrap and t's quantile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
POWER = 0.8  # the usual probability with which a study should show a difference that is there
RESAMPLES = 2000
SEED = 0  # of the bootstrap, so that a table can be made again byte for byte


class Estimate(NamedTuple):
    """A value and its 95% interval; the ends are NaN where there are too few seeds for one."""

    value: float
    low: float
    high: float


def t_quantile(share: float, freedom: float) -> float:
    """The value that a ``share`` of Student's t with ``freedom`` degrees lies below."""
    from scipy import special  # here: who only reads results needs none of it; scipy.stats takes long to import

    return float(special.stdtrit(freedom, share))


def paired(mine: Mapping[int, float], theirs: Mapping[int, float]) -> np.ndarray:
    """Scores by seed minus others by seed, (n,) of the seeds that both have, in order."""
    return np.array([mine[seed] - theirs[seed] for seed in sorted(set(mine) & set(theirs))])


def over_tasks(by_task: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The mean over tasks of the scores by seed, of the seeds that have all tasks."""
    shared = sorted(set.intersection(*(set(scores) for scores in by_task)))
    return {seed: float(np.mean([scores[seed] for scores in by_task])) for seed in shared}


def mean_interval(scores: np.ndarray, comparisons: int = 1) -> Estimate:
    """Mean of scores (n,) over seeds with Student's t interval; ``comparisons`` as in :func:`stratified_mean`.

    Raises:
        ValueError: no scores.
    """
    return stratified_mean([scores], comparisons)


def deviation(scores: np.ndarray) -> Estimate:
    """Standard deviation of scores (n,) over seeds, with the interval of a normal distribution's.

    (n - 1) s^2 / sigma^2 is distributed as chi-square with n - 1 degrees of freedom.

    Raises:
        ValueError: fewer than two scores.
    """
    from scipy import special

    if len(scores) < 2:
        raise ValueError("a standard deviation needs at least two scores")
    freedom = len(scores) - 1
    value = float(np.std(scores, ddof=1))
    low, high = (
        value * np.sqrt(freedom / special.chdtri(freedom, share)) for share in ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    )
    return Estimate(value, float(low), float(high))


def stratified_mean(strata: Sequence[np.ndarray], comparisons: int = 1) -> Estimate:
    """Mean over tasks of the mean over seeds, from one array of scores (n_k,) per task, with its t interval.

    Var = (1/K^2) sum_k s_k^2 / n_k; degrees of freedom (sum_k v_k)^2 / sum_k v_k^2 / (n_k - 1) with v_k = s_k^2 / n_k
    (Welch 1947, Satterthwaite 1946). For one task this is the ordinary t interval.

    Args:
        comparisons: of intervals that are read together, so that all of them cover the truth in 95% of repetitions
            (Bonferroni): each is then of level 1 - 0.05 / ``comparisons``.

    Raises:
        ValueError: a task without scores.
    """
    if not strata or not all(len(x) for x in strata):
        raise ValueError("every task needs at least one score")
    value = float(np.mean([np.mean(x) for x in strata]))
    if min(len(x) for x in strata) < 2:
        return Estimate(value, np.nan, np.nan)
    variances = np.array([np.var(x, ddof=1) / len(x) for x in strata])
    if variances.sum() == 0:
        return Estimate(value, value, value)
    freedom = variances.sum() ** 2 / sum(v**2 / (len(x) - 1) for v, x in zip(variances, strata, strict=True))
    half = t_quantile(1 - (1 - LEVEL) / 2 / comparisons, freedom) * np.sqrt(variances.sum()) / len(strata)
    return Estimate(value, value - half, value + half)


def unpaired(mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray], comparisons: int = 1) -> Estimate:
    """Mean over tasks of a method's mean minus another's, from scores (n_k,) and (m_k,) per task, with its t interval.

    For runs that are not paired by seed (Welch 1947): twice the :func:`stratified_mean` of 2 K strata, the other's
    scores with their signs turned.
    """
    return Estimate(*(2 * x for x in stratified_mean([*mine, *(-scores for scores in theirs)], comparisons)))


def power(strata: Sequence[np.ndarray], difference: float, seeds: int, comparisons: int = 1) -> float:
    """Probability that the interval of :func:`stratified_mean` excludes zero, for ``seeds`` runs of every task.

    The statistic is then noncentral t's with parameter difference / standard error (Cohen 1988); the spread is that of
    ``strata``, differences paired by seed, normally distributed. A spread is itself uncertain: the standard error of
    that of ten seeds is a quarter of it.

    Args:
        strata: differences (n_k,) of every task, two of each at least.
        difference: the true mean over tasks.
        comparisons: as in :func:`stratified_mean`.
    """
    from scipy import special

    squares = np.array([np.var(x, ddof=1) for x in strata])
    if squares.sum() == 0:
        return float(difference != 0)
    freedom = (seeds - 1) * squares.sum() ** 2 / (squares**2).sum()
    limit = t_quantile(1 - (1 - LEVEL) / 2 / comparisons, freedom)
    shift = abs(difference) / (np.sqrt(squares.sum() / seeds) / len(strata))
    tail = np.nan_to_num(special.nctdtr(freedom, shift, -limit))  # the wrong one: NaN where it is next to nothing
    return float(1 - special.nctdtr(freedom, shift, limit) + tail)


def detectable(strata: Sequence[np.ndarray], seeds: int, comparisons: int = 1) -> float:
    """The smallest true difference that ``seeds`` runs of every task show with probability :data:`POWER`."""
    if all(np.ptp(x) == 0 for x in strata):
        return 0.0
    low, high = 0.0, 1.0
    while power(strata, high, seeds, comparisons) < POWER:
        low, high = high, 2 * high
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if power(strata, middle, seeds, comparisons) < POWER else (low, middle)
    return high


def seeds_needed(strata: Sequence[np.ndarray], difference: float, comparisons: int = 1, most: int = 1000) -> int | None:
    """The fewest seeds, two at least, that show a true difference with probability :data:`POWER`; None if ``most`` do
    not."""
    few, many = 1, 2
    while many < most and power(strata, difference, many, comparisons) < POWER:
        few, many = many, min(2 * many, most)
    if power(strata, difference, many, comparisons) < POWER:
        return None
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if power(strata, difference, middle, comparisons) < POWER else (few, middle)
    return many


def iqm(scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Interquartile mean along the last axis: the mean of the middle half, (..., n) -> (...).

    Values at the quartiles count by the fraction of them that lies inside, so that every n is exact (Agarwal et al.
    2021, arXiv 2108.13264, truncate instead; the two agree where n is a multiple of 4).

    Args:
        weights: of the scores, (n,); all the same by default.
    """
    order = np.argsort(scores, axis=-1, kind="stable")
    scores = np.take_along_axis(scores, order, axis=-1)
    share = (np.ones(scores.shape[-1]) if weights is None else weights)[order]
    share = share / share.sum(axis=-1, keepdims=True)
    end = np.cumsum(share, axis=-1)
    inside = np.clip(np.minimum(end, 0.75) - np.maximum(end - share, 0.25), 0, None)
    return (scores * inside).sum(axis=-1) / inside.sum(axis=-1)


def resample(strata: Sequence[np.ndarray], rng: np.random.Generator, resamples: int = RESAMPLES) -> list[np.ndarray]:
    """Stratified bootstrap: each task's seeds drawn with replacement, one array (resamples, n_k) per task."""
    return [np.asarray(x)[rng.integers(len(x), size=(resamples, len(x)))] for x in strata]


def iqm_interval(strata: Sequence[np.ndarray], resamples: int = RESAMPLES) -> Estimate:
    """IQM over the runs of all tasks, with a stratified-bootstrap interval: IQM +- t * standard error.

    Every task weighs the same, however many seeds it has: a run counts 1 / n_k.
    The quartiles cut through one or two of the tasks, and the seeds of these alone carry the error: t has n - 1 degrees
    of freedom, of the task with the fewest seeds. Three tasks far apart, normal scores: this covers the truth in 96% of
    repetitions for 5 seeds and 93% for 10, plain percentiles in 88% and 91%; it is wider than need be where tasks
    overlap (97%), and strongly skewed scores take 4 to 5 points.
    """
    weights = np.concatenate([np.full(len(x), 1 / len(x)) for x in strata])
    value = float(iqm(np.concatenate(strata), weights))
    fewest = min(len(x) for x in strata)
    if fewest < 2:
        return Estimate(value, np.nan, np.nan)
    drawn = iqm(np.concatenate(resample(strata, np.random.default_rng(SEED), resamples), axis=1), weights)
    half = t_quantile((1 + LEVEL) / 2, fewest - 1) * drawn.std(ddof=1)
    return Estimate(value, value - half, value + half)


def probability_of_improvement(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Mean over tasks of P(X > Y) + P(X = Y) / 2 for independent runs X of a method and Y of its baseline.

    Mann and Whitney's U / (n m); Agarwal et al. 2021 use it in this sense.
    """
    wins = [(x[:, None] > y).mean() + 0.5 * (x[:, None] == y).mean() for x, y in pairs]
    return float(np.mean(wins))


def profile(strata: Sequence[np.ndarray], thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Performance profile: share of runs that score above each threshold (T,), the mean over tasks of their shares.

    Returns:
        The profile (T,) and the ends of its pointwise 95% band, by percentiles of a stratified bootstrap.
    """

    def shares(samples: Sequence[np.ndarray]) -> np.ndarray:
        return np.mean([(np.asarray(x)[..., None] > thresholds).mean(axis=-2) for x in samples], axis=0)

    drawn = shares(resample(strata, np.random.default_rng(SEED), 500))
    low, high = np.percentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=0)
    return shares(strata), low, high


def best_of(episodes: np.ndarray, budgets: Sequence[int], repetitions: int = 1000) -> np.ndarray:
    """Expected score of the policy chosen among K by a budget of evaluation episodes, (B,).

    Policies take turns to play (round robin), the one with the best mean is chosen, and its mean over all recorded
    episodes is what it is worth. The question is unifloral's (Jackson et al. 2025, arXiv 2504.11453): how good is a
    method for who can afford n episodes? With a budget below K, only as many policies, drawn at random, play.

    Args:
        episodes: normalised scores (K, E) of every episode of every policy; budgets draw from them with replacement.
        budgets: numbers of episodes, each at least 0; with 0 a policy is chosen at random.
    """
    rng = np.random.default_rng(SEED)
    k, e = episodes.shape
    worth = episodes.mean(axis=1)
    longest = -(-max(budgets) // k)
    order = rng.permuted(np.tile(np.arange(k), (repetitions, 1)), axis=1)  # who plays first
    played = episodes[order[..., None], rng.integers(e, size=(repetitions, k, max(longest, 1)))]
    sums = np.cumsum(played, axis=-1)
    values = []
    for budget in budgets:
        turns = budget // k + (np.arange(k) < budget % k)  # in the order of `order`
        means = np.where(turns > 0, sums[:, np.arange(k), np.maximum(turns, 1) - 1] / np.maximum(turns, 1), -np.inf)
        chosen = order[np.arange(repetitions), means.argmax(axis=1)]
        values.append(worth[chosen].mean())
    return np.array(values)
