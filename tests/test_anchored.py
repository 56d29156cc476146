"""iw-SFT(Q) held to BC: its loss against NumPy, and that the anchor holds."""

from functools import partial

import jax
import numpy as np
import pytest

from experiments import anchored, tuning
from iwsft_control.configs.curation import CurationConfig
from iwsft_control.configs.supervised import FineTuningConfig, PolicyConfig
from iwsft_control.learning import loop
from iwsft_control.learning.method import Artefact
from iwsft_control.methods import registry
from iwsft_control.networks.policies import GaussianPolicy
from iwsft_control.online.objectives import gaussian_kl
from tests.conftest import make_data, prepared

CONFIG = FineTuningConfig(
    policy=PolicyConfig(hidden=(8,), fine_tune_steps=200, fine_tune_learning_rate=0.01, batch_size=64),
    curation=CurationConfig(strata=(50,)),
)
POLICY = GaussianPolicy((8,), 3)
DATA = make_data()


def start(seed=0):
    return jax.jit(POLICY.init)(jax.random.key(seed), DATA.observations)


def distribution(params, observations):
    return [np.asarray(x, np.float64) for x in POLICY.apply(params, observations)]


def test_the_loss_is_the_cross_entropy_and_beta_times_the_divergence():
    params, reference = start(0), start(1)
    rows = anchored.Demonstrations(DATA.observations, DATA.actions)
    batch = anchored.Batch(rows, *POLICY.apply(reference, DATA.observations))
    (mean, log_std), (at, log_width) = (distribution(p, DATA.observations) for p in (params, reference))
    density = (-0.5 * ((DATA.actions - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)).sum(-1)
    var, width = np.exp(2 * log_std), np.exp(2 * log_width)
    divergence = 0.5 * (np.log(width / var) + (var + (mean - at) ** 2) / width - 1).sum(-1)
    for beta in (0.0, 0.7):
        expected = -density.mean() + beta * divergence.mean()
        found = jax.jit(partial(anchored.loss, beta, CONFIG))(params, batch)
        assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_the_stronger_the_anchor_the_nearer_to_bc():
    bc = Artefact({"params": jax.tree.map(lambda x: np.asarray(x)[None], start())}, {})
    apart = []
    for method in (registry.get("iw-sft-q"), anchored.method(1.0), anchored.method(10.0)):
        own = prepared(method, CONFIG, DATA, {"bc": bc}, "return")
        policy = loop.train(method, CONFIG, own, (0,)).state.policy
        own, bcs = (POLICY.apply(p, DATA.observations) for p in (jax.tree.map(lambda x: x[0], policy), start()))
        apart.append(float(gaussian_kl(*own, *bcs).mean()))
    assert apart[0] > 2 * apart[1] > 4 * apart[2] > 0
    assert {m.name for m in anchored.METHODS} == {row["methods"][0] for row in tuning.ANCHOR.values() if row}
