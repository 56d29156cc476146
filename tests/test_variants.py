"""What was tried: advantage weights inside of episodes, parts of episodes by their Q, PyTorch's initialisation."""

from functools import partial

import jax
import numpy as np
import pytest

from experiments import advantage, parts, td3_bc_pytorch, tuning
from iwsft_control.configs.curation import CurationConfig
from iwsft_control.configs.supervised import FineTuningConfig, PolicyConfig
from iwsft_control.datasets.transitions import Table
from iwsft_control.learning.method import Artefact
from iwsft_control.methods.one_step import Weighted
from iwsft_control.methods.td3_bc import TD3BCConfig
from iwsft_control.networks.policies import GaussianPolicy
from tests.conftest import make_data, prepared

DATA = make_data()
N = len(DATA.rewards)
CONFIG = FineTuningConfig(policy=PolicyConfig(hidden=(8,), batch_size=16), curation=CurationConfig(strata=(50,)))
POLICY = GaussianPolicy((8,), 3)
START = jax.jit(POLICY.init)(jax.random.key(0), DATA.observations)
Q, V = np.random.default_rng(0).normal(scale=2.0, size=(2, 1, N)).astype(np.float32)


def artefacts(q, v):
    bc = Artefact({"params": jax.tree.map(lambda x: np.asarray(x)[None], START)}, {})
    return {"bc": bc, "critic": Artefact({"q": q, "v": v}, {})}


def named(knobs):
    return {row["methods"][0] for row in knobs.values() if row}


def test_rows_of_curated_episodes_count_by_their_advantage():
    method = advantage.method("iw-sft-q", 3.0)
    batch, own, _ = prepared(method, CONFIG, DATA, artefacts(Q, V), "q")
    expected = np.minimum(np.exp(3.0 * (Q - V).astype(np.float64)), 100.0)
    np.testing.assert_allclose(own.advantage_weights, expected, rtol=1e-4)
    mean, log_std = (np.asarray(x, np.float64) for x in POLICY.apply(START, DATA.observations))
    density = (-0.5 * ((DATA.actions - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)).sum(-1)
    found = jax.jit(partial(advantage.loss, CONFIG))(START, Weighted(batch, own.advantage_weights[0]))
    assert float(found) == pytest.approx(-(expected[0] * density).mean(), rel=1e-4)
    assert {m.name for m in advantage.METHODS} == named(tuning.BY_ADVANTAGE)


def test_a_batch_takes_the_weights_of_its_rows():
    method = advantage.method("sft-q", 1.0)
    own = prepared(method, CONFIG, DATA, artefacts(Q, V), "q")
    of_seed = own._replace(own=jax.tree.map(lambda x: x[0], own.own), shared=Table.of(own.shared))
    batch = method.sample(CONFIG, of_seed, jax.random.key(1))
    rows = [int(np.flatnonzero((DATA.observations == o).all(axis=1))[0]) for o in np.asarray(batch.rows.observations)]
    np.testing.assert_array_equal(batch.weights, own.own.advantage_weights[0][np.array(rows)])


@pytest.mark.parametrize("unit", ["segment", "transition"])
def test_parts_are_ranked_by_q_and_not_by_the_advantage(unit):
    config = FineTuningConfig(CONFIG.policy, curation=CurationConfig(q_unit=unit, segment_steps=5, strata=(80,)))
    q = np.arange(N, dtype=np.float32)[None]  # the later the better, and no action better than another
    curated = prepared(parts.method("sft-q"), config, DATA, artefacts(q, q), "q").own.curated
    starts = np.asarray(curated.starts[0])[np.asarray(curated.entries[0])][: int(curated.size[0])]
    assert starts.min() > 0.75 * N
    assert {m.name for m in parts.METHODS} == named(tuning.IN_PARTS)


def test_pytorchs_initialisation_is_uniform_within_one_over_the_root_of_the_inputs():
    state = jax.jit(partial(td3_bc_pytorch.create, TD3BCConfig(), 11, 3))(jax.random.key(0))
    for params, first in ((state.policy, 11), (state.critic, 14)):
        for name, inputs in (("Dense_0", first), ("Dense_1", 256), ("Dense_2", 256)):
            for values in params["params"]["net"][name].values():
                drawn = np.asarray(values) * inputs**0.5
                assert np.abs(drawn).max() <= 1
                if drawn.size > 100:
                    assert drawn.std() == pytest.approx(3**-0.5, abs=0.06) and abs(drawn.mean()) < 0.15
    np.testing.assert_array_equal(*(jax.tree.leaves(x)[0] for x in (state.critic, state.target)))
    assert not np.array_equal(*np.asarray(state.critic["params"]["net"]["Dense_1"]["kernel"]))  # the two differ
