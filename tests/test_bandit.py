"""The paper's two slot machines, through the objective code that trains policies; and weights that are relative."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import bandit
from iwsft_control.base.errors import UserError
from iwsft_control.learning import objectives


@pytest.fixture(scope="module")
def paths():
    return bandit.paths(bandit.BanditConfig())


def test_the_exact_path_is_the_papers(paths):
    expected = [2**k / (2**k + 1) for k in range(1, 7)]
    assert paths["exact"] == pytest.approx(expected, abs=1e-4)
    assert paths["relative to their mean"] == pytest.approx(expected, abs=1e-4)  # a constant factor moves no maximiser


def test_a_finite_record_goes_the_same_way(paths):
    (sampled,) = (values for name, values in paths.items() if name.startswith("from "))
    paid = bandit.record(300, 0)
    odds = (paid == 1).mean() / (paid == 0).mean()
    expected = [odds**k / (1 + odds**k) for k in range(1, 7)]
    assert sampled == pytest.approx(expected, abs=1e-3)


def test_what_bends_the_path(paths):
    clipped, lagged, targeted = (
        paths[n] for n in ("clipped to [0.2, 1.2]", "q lags by 0.9", "effective sample size 0.8")
    )
    assert max(clipped) < 0.93  # odds of 2 times at most 1.2 / 0.2 = 12
    assert np.all(np.diff(lagged[1:]) > 0) and lagged[-1] < paths["exact"][-1]
    assert targeted[1:] == pytest.approx([targeted[1]] * 5, abs=1e-3)  # a constant spread of weights: a constant policy


def test_the_picture_and_the_table(tmp_path, capsys):
    bandit.main(bandit.BanditConfig(rounds=3, out=tmp_path))
    printed = capsys.readouterr().out
    assert "0.6667" in printed and "0.8000" in printed and "8/9" in printed
    assert (tmp_path / "bandit.svg").is_file()
    with pytest.raises(UserError, match="--rounds must be positive, not 0"):
        bandit.main(bandit.BanditConfig(rounds=0, out=tmp_path))


def test_relative_weights_average_one_and_forget_a_common_factor():
    log_ratio = jnp.asarray(np.random.default_rng(0).normal(2.0, 1.0, 50))
    weights = objectives.relative_weights(3.0, log_ratio)
    assert float(weights.mean()) == pytest.approx(1.0, rel=1e-5)
    np.testing.assert_allclose(objectives.relative_weights(3.0, log_ratio + 7.0), weights, rtol=1e-4)
    above = objectives.relative_weights(3.0, jnp.array([0.1, 0.2, 0.3]))
    assert above[2] > 1 > above[0]  # more than the average gets more than one


@pytest.mark.parametrize("target", [0.05, 0.14, 0.5, 0.9])
def test_the_temperature_meets_its_effective_sample_size(target):
    log_ratio = jnp.asarray(np.random.default_rng(1).normal(0.4, 0.05, 200))
    temperature = objectives.temperature_for(target, log_ratio)
    weights = objectives.relative_weights(temperature, log_ratio)
    assert float(objectives.effective_sample_size(weights)) == pytest.approx(target, abs=1e-3)


def test_the_maximiser_does_not_depend_on_a_common_factor():
    """Multiplying all densities by a constant changes no weight's share, so no policy."""
    paid = np.array([0, 1, 1])
    for factor in (0.1, 1.0, 50.0):
        config = dataclasses.replace(bandit.FREE, temperature=1.0)
        weigh = lambda r, f=factor, c=config: f * objectives.importance_weights(c, r)  # noqa: E731
        assert bandit.path(paid, weigh, 3)[-1] == pytest.approx(8 / 9, abs=1e-4)
