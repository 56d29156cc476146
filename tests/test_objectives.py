"""The losses: against the released code's numbers, against NumPy, and by their defining properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iwsft_control.configs.supervised import PolicyConfig
from iwsft_control.learning import curation, objectives
from iwsft_control.learning.objectives import ImportanceConfig
from iwsft_control.methods import released
from iwsft_control.networks.policies import GaussianPolicy, gaussian_log_prob
from tests.conftest import SHARED

ORACLE = SHARED / "oracles" / "released_iw_loss.npz"


def oracle():
    if not ORACLE.is_file():
        pytest.skip(f"no numbers of the released code: {ORACLE} is not there (it is not part of the repository)")
    return np.load(ORACLE, allow_pickle=False)


def torch_policy(file, name):
    net = {
        f"Dense_{i}": {"kernel": file[f"{name}._net.{2 * i}.weight"].T, "bias": file[f"{name}._net.{2 * i}.bias"]}
        for i in range(4)
    }
    return {"params": {"net": net, "log_std": file[f"{name}._raw_log_std"]}}


@pytest.fixture
def packed():
    """The oracle's 16 padded trajectories, packed end to end, and log-probabilities of its three policies."""
    file = oracle()
    mask = file["mask"].astype(bool)
    s, a, lengths = file["s"][mask], file["a"][mask], mask.sum(1)
    policy = GaussianPolicy((256, 256, 256), 3)
    log_prob = jax.jit(lambda params: gaussian_log_prob(*policy.apply(params, s), a))
    return file, log_prob, np.repeat(np.arange(16), lengths), lengths


def test_sequence_loss_is_the_released_one(packed):
    file, log_prob, unit_of_row, lengths = packed
    log_ratio = log_prob(torch_policy(file, "iw")) - log_prob(torch_policy(file, "old"))
    means = objectives.unit_means(log_ratio, unit_of_row, lengths)
    weights = objectives.normalised_weights(released.IMPORTANCE, means)
    np.testing.assert_allclose(weights, file["ratio.11"], rtol=1e-4)
    coefficients = objectives.row_weights(weights, unit_of_row, lengths)
    seam = lambda params, batch: log_prob(params)  # noqa: E731
    loss = lambda p: objectives.sequence_loss(seam, p, None, coefficients)  # noqa: E731
    value, grad = jax.jit(jax.value_and_grad(loss))(torch_policy(file, "pol"))
    assert value == pytest.approx(float(file["loss.11"]), rel=1e-5)
    first = grad["params"]["net"]["Dense_0"]["kernel"].T
    assert np.abs(first - file["grad.11"]).max() <= 1e-4 * np.abs(file["grad.11"]).max()
    np.testing.assert_allclose(grad["params"]["log_std"], file["gls.11"], rtol=1e-4)


def test_unnormalised_and_per_step_weights_are_the_released_ones(packed):
    file, log_prob, unit_of_row, lengths = packed
    log_ratio = log_prob(torch_policy(file, "iw")) - log_prob(torch_policy(file, "old"))
    means = objectives.unit_means(log_ratio, unit_of_row, lengths)
    weights = objectives.importance_weights(released.IMPORTANCE, means)
    np.testing.assert_allclose(weights, file["ratio.01"], rtol=1e-4)
    per_step = objectives.importance_weights(
        ImportanceConfig(None, temperature=10, relative=False, low=0, high=2), log_ratio
    )
    mask = file["mask"].astype(bool)
    np.testing.assert_allclose(per_step, file["ratio.00"][mask], atol=1e-4)
    log_pi = log_prob(torch_policy(file, "pol"))
    loss = -(per_step * log_pi / lengths[unit_of_row]).sum() / 16
    assert float(loss) == pytest.approx(float(file["loss.00"]), rel=1e-5)


def small_problem(seed=0, episodes=12):
    """Episodes of several lengths, a policy, a reference near it and the curated set of all episodes."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 9, episodes)
    n = lengths.sum()
    s, a = rng.standard_normal((n, 4)).astype(np.float32), np.tanh(rng.standard_normal((n, 2))).astype(np.float32)
    policy = GaussianPolicy((16,), 2)
    init = jax.jit(policy.init)
    reference, other = init(jax.random.key(seed), s), init(jax.random.key(seed + 1), s)
    q = jax.tree.map(lambda x, y: np.float32(x + 0.1 * y), *map(jax.device_get, (reference, other)))
    starts = np.cumsum(lengths) - lengths
    return policy, reference, q, s, a, (starts, lengths)


def test_expected_gradient_is_that_of_the_whole_trajectory_loss():
    """Units drawn by w over the whole set, one row each: in expectation B times the released code's gradient."""
    policy, reference, q, s, a, units = small_problem(episodes=6)
    entries = np.array([0, 1, 2, 3, 4, 5, 3, 5, 5])  # nested strata repeat the best
    curated = curation.curate(entries, units)
    log_prob = jax.jit(lambda p: gaussian_log_prob(*policy.apply(p, s), a))
    log_ratio = (log_prob(q) - log_prob(reference))[curated.rows]
    means = objectives.unit_means(log_ratio, curated.unit_of_row, curated.lengths)
    weights = np.asarray(objectives.importance_weights(released.IMPORTANCE, means))[curated.entries]
    # Ours: every (entry, row of its unit) with its probability, through the loss that training uses.
    s, a = jnp.asarray(s), jnp.asarray(a)
    on_rows = lambda p, rows: gaussian_log_prob(*policy.apply(p, s[rows]), a[rows])  # noqa: E731
    expected = jax.tree.map(np.zeros_like, q)
    gradient = jax.jit(jax.grad(lambda p, rows: objectives.loss(on_rows, p, rows)))
    for entry, weight in zip(entries, weights, strict=True):
        rows = np.arange(units[0][entry], units[0][entry] + units[1][entry])
        share = float(weight / weights.sum())
        expected = jax.tree.map(lambda e, g, w=share: e + w * np.asarray(g), expected, gradient(q, rows))
    # The released code: all trajectories as one batch.
    rows = np.concatenate([np.arange(units[0][e], units[0][e] + units[1][e]) for e in entries])
    unit_of_row, lengths = np.repeat(np.arange(len(entries)), units[1][entries]), units[1][entries]
    ratios = (log_prob(q) - log_prob(reference))[rows]
    weights = objectives.normalised_weights(released.IMPORTANCE, objectives.unit_means(ratios, unit_of_row, lengths))
    each = objectives.row_weights(weights, unit_of_row, lengths)
    loss = lambda p: objectives.sequence_loss(lambda p, rows: log_prob(p)[rows], p, rows, each)  # noqa: E731
    whole = jax.jit(jax.grad(loss))(q)
    for ours, theirs in zip(jax.tree.leaves(expected), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, len(entries) * theirs, rtol=2e-4, atol=1e-6)


def test_draws_follow_the_weights():
    """The sampler in the training loop: frequencies of entries and rows against w, by a chi-square of 5 sigma."""
    policy, reference, q, s, a, units = small_problem()
    curated = curation.curate(np.arange(12), units)
    importance = ImportanceConfig(None, temperature=2.0, low=0.2, high=1.8)
    config = PolicyConfig(hidden=(16,), batch_size=200_000)
    log_prob = jax.jit(lambda p: gaussian_log_prob(*policy.apply(p, s), a))
    log_ratio = log_prob(q) - log_prob(reference)
    weights = objectives.importance_weights(
        importance, objectives.unit_means(log_ratio, curated.unit_of_row, curated.lengths)
    )
    assert weights.max() / weights.min() > 1.3  # else this would show nothing
    cumulative = jnp.cumsum(weights[curated.entries])
    rows = np.asarray(curation.draw(config.batch_size, curated, cumulative, jax.random.key(0)))
    probability = np.asarray(weights / weights.sum())[curated.unit_of_row] / units[1][curated.unit_of_row]
    counts = np.bincount(rows, minlength=len(s))
    expected = config.batch_size * probability
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi2 - (len(s) - 1)) < 5 * np.sqrt(2 * (len(s) - 1))
    uniform = np.asarray(curation.draw(config.batch_size, curated, None, jax.random.key(1)))
    probability = 1 / 12 / units[1][curated.unit_of_row]
    expected = config.batch_size * probability
    chi2 = ((np.bincount(uniform, minlength=len(s)) - expected) ** 2 / expected).sum()
    assert abs(chi2 - (len(s) - 1)) < 5 * np.sqrt(2 * (len(s) - 1))


def test_weights_are_uniform_when_q_is_the_reference():
    _, reference, _, s, a, units = small_problem()
    curated = curation.curate(np.arange(12), units)
    policy = GaussianPolicy((16,), 2)
    log_prob = gaussian_log_prob(*policy.apply(reference, s), a)
    log_ratio = objectives.unit_means(log_prob - log_prob, curated.unit_of_row, curated.lengths)
    weights = objectives.importance_weights(ImportanceConfig(), log_ratio)
    np.testing.assert_allclose(weights, 1.0, rtol=1e-6)
    assert objectives.effective_sample_size(weights) == pytest.approx(1.0)


def test_weights_prefer_what_q_prefers_and_are_clipped():
    config = ImportanceConfig(None, temperature=2.0, relative=False, low=0.2, high=1.8)
    weights = objectives.importance_weights(config, jnp.array([-9.0, -0.1, 0.0, 0.1, 9.0]))
    np.testing.assert_allclose(weights, [0.2, np.exp(-0.2), 1.0, np.exp(0.2), 1.8], rtol=1e-6)
    assert (np.diff(weights) > 0).all()


def test_padding_changes_no_temperature():
    """Also where it would overflow: its log-ratio of 0 is far above all others."""
    log_ratio = jnp.linspace(-1.001, -0.999, 20)
    alone = objectives.temperature_for(0.5, log_ratio)
    counts = jnp.array([1.0] * 20 + [0.0])
    padded = objectives.temperature_for(0.5, jnp.append(log_ratio, 0.0), counts)
    assert float(alone) > 500 and float(padded) == pytest.approx(float(alone), rel=1e-4)


def test_effective_sample_size():
    assert objectives.effective_sample_size(jnp.array([1.0, 0, 0, 0])) == pytest.approx(0.25)
    assert objectives.effective_sample_size(jnp.full(7, 3.0)) == pytest.approx(1.0)


def test_log_prob_against_numpy():
    rng = np.random.default_rng(0)
    mean, log_std, a = rng.standard_normal((5, 3)), rng.standard_normal(3), rng.standard_normal((5, 3))
    density = np.exp(-0.5 * ((a - mean) / np.exp(log_std)) ** 2) / (np.exp(log_std) * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(gaussian_log_prob(mean, log_std, a), np.log(density).sum(1), rtol=1e-5)
    log_prob = gaussian_log_prob(mean, log_std, a)
    loss = objectives.loss(lambda params, batch: log_prob, None, None)
    assert float(loss) == pytest.approx(-np.log(density).sum(1).mean(), rel=1e-5)


def test_rows_beyond_the_last_sequence_count_for_nothing():
    weights = objectives.row_weights(jnp.array([0.25, 0.75]), jnp.array([0, 1, 1, 2]), jnp.array([1, 2]))
    np.testing.assert_allclose(weights, [0.125, 0.1875, 0.1875, 0.0])


def test_toy_bandit():
    """The paper's two slot machines: SFT stops at 2/3, iterated iw-SFT goes 2/3, 4/5, 8/9, 16/17, ... to 1.

    Right pays always, left half of the time; D+ holds the pulls that paid: right twice as often as left.
    """
    paid = np.array([0, 1, 1])  # left, right, right
    counts = np.bincount(paid, minlength=2) / 3
    assert counts[1] == pytest.approx(2 / 3)
    log_q, log_ref = np.log(counts), np.log([0.5, 0.5])
    config = ImportanceConfig(None, temperature=1.0, relative=False)
    for k in range(2, 6):
        weights = np.asarray(objectives.importance_weights(config, jnp.asarray(log_q - log_ref)))[paid]
        counts = np.bincount(paid, weights, minlength=2) / weights.sum()
        assert counts[1] == pytest.approx(2**k / (2**k + 1), rel=1e-5)
        log_q = np.log(counts)


def test_bound_and_gap_against_their_definition():
    """log E[p/pi_ref] = bound + gap; the gap is the divergence of w from p/pi_ref, never negative, zero where equal."""
    rng = np.random.default_rng(3)
    log_ratio, counts = rng.normal(0.0, 2.0, 9), np.array([1.0, 3, 0, 2, 1, 1, 0, 4, 2])
    share = counts / counts.sum()
    total = np.log((share * np.exp(log_ratio)).sum())
    for weights in (np.ones(9), rng.random(9), np.exp(0.3 * log_ratio), np.exp(log_ratio), np.eye(9)[1]):
        bound, gap = objectives.bound_and_gap(jnp.asarray(weights), jnp.asarray(log_ratio), jnp.asarray(counts))
        w, r = weights / (share * weights).sum(), np.exp(log_ratio - total)
        divergence = sum(s * x * np.log(x / y) for s, x, y in zip(share, w, r, strict=True) if s * x > 0)
        assert float(gap) == pytest.approx(divergence, abs=1e-4) and float(gap) > -1e-5
        assert float(bound + gap) == pytest.approx(total, abs=1e-4)
    assert float(objectives.bound_and_gap(jnp.exp(log_ratio), jnp.asarray(log_ratio), counts)[1]) == pytest.approx(
        0.0, abs=1e-5
    )
    # It is the paper's gap with q and p of the same mass on the curated set: E[w (r/w - 1 - log(r/w))].
    w = np.exp(0.3 * log_ratio) / (share * np.exp(0.3 * log_ratio)).sum()
    r = np.exp(log_ratio - total)
    papers = (share * w * (r / w - 1 - np.log(r / w))).sum()
    assert float(objectives.bound_and_gap(jnp.asarray(w), jnp.asarray(log_ratio), counts)[1]) == pytest.approx(
        papers, abs=1e-4
    )
