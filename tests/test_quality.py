"""Scores, curation and the learned Q-function."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iwsft_control.datasets import transitions
from iwsft_control.learning import curation, loop
from iwsft_control.methods import critic
from iwsft_control.networks.mlp import ValueFunction
from tests.conftest import jitted, make_data, prepared


def test_above_keeps_the_best():
    scores = np.random.default_rng(0).standard_normal(200)
    best = curation.above(scores, 90)
    assert len(best) == 20
    assert scores[best].min() > np.delete(scores, best).max()


def test_ties_do_not_change_the_size():
    np.testing.assert_array_equal(curation.above(np.zeros(10), 70), [0, 1, 2])


def test_at_least_one_unit():
    np.testing.assert_array_equal(curation.above(np.array([1.0, 3.0, 2.0]), 98), [1])


def test_percentiles_of_transitions():
    """The best units that hold the share, to half of the last or the next one; of equal lengths as of units."""
    rng = np.random.default_rng(0)
    scores, lengths = rng.standard_normal(300), rng.integers(1, 1001, 300)
    for percentile in (0, 50, 90, 98):
        best = curation.above(scores, percentile, lengths)
        order = np.argsort(-scores)
        assert best.tolist() == sorted(order[: len(best)])
        beyond = lengths[best].sum() - lengths.sum() * (100 - percentile) / 100
        following = lengths[order[len(best)]] if len(best) < 300 else 0
        assert -following / 2 <= beyond <= lengths[order[len(best) - 1]] / 2
        np.testing.assert_array_equal(
            curation.above(scores, percentile, np.full(300, 7)), curation.above(scores, percentile)
        )
    assert curation.above(scores, 99.999, lengths).tolist() == [scores.argmax()]
    counts = np.bincount(curation.nested_strata(np.arange(4.0), (40, 90), np.array([10, 10, 50, 30])), minlength=4)
    assert counts.tolist() == [0, 0, 1, 2]  # the best hold 30 of 100, with half of the next 55


@pytest.mark.parametrize("percentile", [-1, 100])
def test_percentiles_outside(percentile):
    with pytest.raises(ValueError, match="percentile"):
        curation.above(np.zeros(3), percentile)


def test_nested_strata_are_the_papers():
    """Top 2% of returns count three times, top 5% twice, top 10% once, the rest never."""
    scores = np.arange(1000.0)
    counts = np.bincount(curation.nested_strata(scores, (90, 95, 98)), minlength=1000)
    np.testing.assert_array_equal(counts, np.repeat([0, 1, 2, 3], [900, 50, 30, 20]))


def test_curated_rows_are_the_units_rows():
    data = make_data((3, 2, 4))
    curated = curation.curate(np.array([2, 0, 2]), curation.episode_units(data))
    np.testing.assert_array_equal(curated.starts, [0, 5])
    np.testing.assert_array_equal(curated.lengths, [3, 4])
    np.testing.assert_array_equal(curated.entries, [1, 0, 1])
    np.testing.assert_array_equal(curated.rows, [0, 1, 2, 5, 6, 7, 8])
    np.testing.assert_array_equal(curated.unit_of_row, [0, 0, 0, 1, 1, 1, 1])


def numpy_mlp(layers, x, index=...):
    for i in range(len(layers)):
        x = x @ np.asarray(layers[f"Dense_{i}"]["kernel"])[index] + np.asarray(layers[f"Dense_{i}"]["bias"])[index]
        x = np.maximum(x, 0) if i < len(layers) - 1 else x
    return x[:, 0]


def test_critic_losses_against_numpy():
    config = critic.CriticConfig(hidden=(8, 8))
    data = make_data()
    batch = transitions.scaled_transitions(dataclasses.replace(data, terminations=np.arange(92) % 5 == 0))
    state = critic.create(config, 11, 3, jax.random.key(0))
    target = critic.create(config, 11, 3, jax.random.key(1)).critic
    o, a, r, o2, d = (np.asarray(x, np.float64) for x in batch)
    q, qt = (
        [numpy_mlp(p["params"]["net"], np.concatenate([o, a], 1), i) for i in range(2)] for p in (state.critic, target)
    )
    v, v2 = (numpy_mlp(state.value["params"]["net"], x) for x in (o, o2))
    u = np.minimum(*qt) - v
    expected = np.mean(np.where(u < 0, 0.3, 0.7) * u**2)
    assert float(jitted(critic.value_loss)(config, state.value, target, batch)) == pytest.approx(expected, rel=1e-4)
    backup = r + 0.99 * (1 - d) * v2
    expected = np.mean((backup - q[0]) ** 2) + np.mean((backup - q[1]) ** 2)
    assert float(jitted(critic.critic_loss)(config, state.critic, state.value, batch)) == pytest.approx(
        expected, rel=1e-4
    )
    values = critic.values_of(config, state._replace(target=target), data.observations, data.actions)
    np.testing.assert_allclose(values[0] - values[1], u, rtol=1e-3, atol=1e-5)
    means = [np.minimum(*qt)[a:b].mean() for a, b in zip(data.starts[:-1], data.starts[1:], strict=True)]
    np.testing.assert_allclose(
        curation.mean_values(values[0], curation.episode_units(data)), means, rtol=1e-3, atol=1e-5
    )


def test_expectile_of_a_known_distribution():
    """The minimiser of the expectile loss of {0, 1} at 0.7 is 0.7; at 0.5 it is the mean."""
    values = jnp.linspace(0, 1, 1001)
    for tau, expected in ((0.5, 0.5), (0.7, 0.7), (0.9, 0.9)):
        losses = critic.expectile_loss(0.0 - values, tau) + critic.expectile_loss(1.0 - values, tau)
        assert float(values[jnp.argmin(losses)]) == pytest.approx(expected, abs=1e-3)


def test_terminal_states_stop_the_bootstrap_and_truncated_ones_do_not():
    """One state that loops for ever with reward 1: V = 1/(1 - gamma) where truncated, 1 where it is terminal."""
    config = critic.CriticConfig(hidden=(32,), discount=0.8, learning_rate=3e-3, target_rate=0.05, expectile=0.5)
    one = jnp.ones((64, 2))
    learn = jax.jit(lambda state, data: jax.lax.scan(lambda s, _: critic.update(config, s, data), state, None, 3000)[0])
    for terminal, expected in ((0.0, 5.0), (1.0, 1.0)):
        data = transitions.Transitions(one, one, jnp.ones(64), one, jnp.full(64, terminal))
        state = learn(critic.create(config, 2, 2, jax.random.key(0)), data)
        value = ValueFunction(config.hidden).apply(state.value, one[:1])
        assert float(value[0]) == pytest.approx(expected, rel=0.05)


def test_target_is_polyak_averaged():
    config = critic.CriticConfig(hidden=(8,))
    state = critic.create(config, 11, 3, jax.random.key(0))
    new, _ = jitted(critic.update)(config, state, transitions.scaled_transitions(make_data()))
    leaves = zip(*(jax.tree.leaves(x) for x in (state.target, new.critic, new.target)), strict=True)
    for old, online, target in leaves:
        np.testing.assert_allclose(target, 0.995 * old + 0.005 * online, rtol=1e-5, atol=1e-7)


def test_reward_scale():
    data = make_data()
    returns = [data.rewards[a:b].sum() for a, b in zip(data.starts[:-1], data.starts[1:], strict=True)]
    assert transitions.reward_scale(data) == pytest.approx(1000 / (max(returns) - min(returns)), rel=1e-5)
    assert transitions.reward_scale(make_data((5,))) == 1.0


@pytest.mark.slow
def test_learned_advantage_finds_the_better_action():
    """A one-step bandit in which the reward is the first action: its rank is the advantage's rank."""
    data = make_data((1,) * 400)
    data = dataclasses.replace(data, rewards=data.actions[:, 0].copy(), terminations=np.ones(400, bool))
    config = critic.CriticConfig(steps=1000, hidden=(32, 32), batch_size=64, learning_rate=2e-3, target_rate=0.05)
    # The same state everywhere, so that only the action matters.
    data = dataclasses.replace(data, observations=np.ones_like(data.observations))
    trained = loop.train(critic.METHOD, config, prepared(critic.METHOD, config, data), [0])
    values = critic.values(config, data, trained.state)
    scores = values["q"][0] - values["v"][0]
    order = lambda x: np.argsort(np.argsort(x))  # noqa: E731
    assert np.corrcoef(order(scores), order(data.actions[:, 0]))[0, 1] > 0.95
