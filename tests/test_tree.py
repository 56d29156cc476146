"""The theory of UFT in a tree, at heights where plain exploration takes seconds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import tree
from iwsft_control.base.errors import UserError

SMALL = tree.TreeConfig(heights=(4, 12, 20))


def median(name, height, seeds=8):
    return float(np.median(tree.measure(SMALL, name, height, seeds)))


def test_hints_take_the_exponent_away():
    plain, uft = median("rft", 12), median("uft-uniform", 12)
    assert plain > 2**12 / 4 and plain > 10 * uft
    high = median("uft-uniform", 20)
    assert 1_000 < high < 2**20 / 4  # the bound without hints
    assert 5 * median("uft-cosine", 20) < 2**20 / 4


def test_the_objectives_gradient_is_the_algorithms():
    """A - beta (log(pi / pi_ref) + 1) where the rollout was, beta / pi of the path's action where the hint was."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), 4)
    advantages, reference = rng.standard_normal((4, 3)), np.full((4, 3), 1 / 3)
    visited, hinted = np.array([0, 0, 1, 0], bool), np.array([1, 1, 0, 0], bool)
    found = jax.grad(tree.objective)(jnp.asarray(p), advantages, visited, hinted, reference, 0.1, True)
    wanted = np.zeros((4, 3))
    wanted[2] = advantages[2] - 0.1 * (np.log(p[2] * 3) + 1)
    wanted[:2, 0] = 0.1 / p[:2, 0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    without = jax.grad(tree.objective)(jnp.asarray(p), advantages, visited, hinted, reference, 0.1, False)
    np.testing.assert_allclose(without, np.where(hinted[:, None], 0, wanted), rtol=1e-4, atol=1e-6)


def test_probabilities_of_zero_break_nothing():
    """A logit that is a hundred lower has the probability 0 in float32; the objective must stay finite."""
    p = jnp.array([[1.0, 0.0]])
    on = np.array([True])
    gradient = jax.grad(tree.objective)(p, np.zeros((1, 2)), on, ~on, np.full((1, 2), 0.5), 1e-3, True)
    assert np.isfinite(gradient).all()


def test_slopes_are_those_of_known_laws():
    heights = np.array([2, 4, 8, 16, 32])
    assert tree.slopes(heights, 7.0 * heights**3, 2)[1] == pytest.approx(3)
    assert tree.slopes(heights, 0.25 * 2.0**heights, 2)[0] == pytest.approx(1)


def test_the_picture_is_drawn(tmp_path, capsys):
    tree.main(tree.TreeConfig(heights=(2, 3), seeds=2, hinted_updates=20, out=tmp_path))
    shown = capsys.readouterr().out
    assert (tmp_path / "tree.svg").is_file() and "UFT, cosine" in shown
    lines = (tmp_path / "tree.md").read_text().splitlines()
    assert len(lines) == 7 and {line.count("|") for line in lines} == {5}
    for changes in ({"heights": (2,)}, {"branching": 1}, {"step": 0.0}):
        with pytest.raises(UserError):
            tree.main(tree.TreeConfig(out=tmp_path, **changes))
