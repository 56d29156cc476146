"""OneStep: SARSA against NumPy and a chain with a known value; weights; one step of improvement on a bandit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iwsft_control.configs.supervised import PolicyConfig, SupervisedConfig
from iwsft_control.datasets import transitions
from iwsft_control.datasets.transitions import Demonstrations
from iwsft_control.learning import loop
from iwsft_control.learning.method import Artefact
from iwsft_control.methods import one_step, registry, sarsa
from iwsft_control.networks import policies
from iwsft_control.networks.mlp import TwinCritic
from iwsft_control.networks.policies import GaussianPolicy
from tests.conftest import make_data, prepared
from tests.test_baselines import backups, twins

DATA = make_data((30, 5, 17, 40, 20, 8))
SARSA = sarsa.SarsaConfig(hidden=(16, 16), batch_size=32, steps=20)


def test_sarsa_backs_up_the_datas_next_action_and_leaves_out_what_it_does_not_know():
    batch = prepared(sarsa.METHOD, SARSA, DATA).shared
    state, other = (sarsa.create(SARSA, 11, 3, jax.random.key(s)) for s in (0, 1))
    loss = sarsa.critic_loss(SARSA, state.critic, other.critic, batch)
    ends = DATA.starts[1:] - 1
    known = np.ones(len(DATA.rewards), bool)
    known[ends[~DATA.terminations[ends]]] = False
    assert 0 < (~known).sum() < len(ends)
    following = np.concatenate([DATA.actions[1:], DATA.actions[:1]])
    next_q = twins(other.critic, batch.next_observations, following).min(axis=0)
    q = twins(state.critic, batch.observations, batch.actions)
    errors = sum((q[i] - backups(batch, next_q)) ** 2 for i in (0, 1))
    assert float(loss) == pytest.approx(errors[known].mean(), rel=1e-4)


def test_sarsa_learns_the_value_of_the_datas_policy():
    """Reward is the action, which is drawn anew each step with mean 0.2: Q = a + 0.2 gamma / (1 - gamma)."""
    rng, n = np.random.default_rng(0), 4000
    data = make_data((n,))
    actions = np.clip(rng.normal(0.2, 0.3, (n, 3)), -1, 1).astype(np.float32)
    ones = np.ones((n, 11), np.float32)
    data = dataclasses.replace(
        data, observations=ones, next_observations=ones, actions=actions, rewards=actions[:, 0].copy(),
        terminations=np.zeros(n, bool), starts=np.array([0, n]),
    )  # fmt: skip
    config = dataclasses.replace(SARSA, discount=0.8, steps=3000, batch_size=64, learning_rate=1e-3, target_rate=0.02)
    trained = loop.train(sarsa.METHOD, config, prepared(sarsa.METHOD, config, data), [0])
    critic = jax.tree.map(lambda x: x[0], trained.state.critic)
    q = twins(critic, ones[:500], actions[:500]).min(axis=0)
    expected = actions[:500, 0] + 0.8 / 0.2 * actions[:, 0].mean()
    assert np.abs(q - expected).mean() < 0.15


def test_advantages_are_q_minus_its_mean_over_bcs_actions(monkeypatch):
    monkeypatch.setattr(transitions, "PASS_CHUNK", 16)  # padding to the default takes most of the time
    critic = TwinCritic((8, 8)).init(jax.random.key(0), jnp.zeros((1, 11)), jnp.zeros((1, 3)))
    policy = GaussianPolicy((16,), 3).init(jax.random.key(1), jnp.zeros((1, 11)))
    rows = Demonstrations(jnp.asarray(DATA.observations), jnp.asarray(DATA.actions))
    found = np.asarray(one_step.advantages(critic, policy, rows, 2000, jax.random.key(2)))
    mean, log_std = GaussianPolicy((16,), 3).apply(policy, rows.observations)
    noise = np.random.default_rng(0).standard_normal((2000, *mean.shape))
    drawn = np.clip(np.asarray(mean) + np.exp(np.asarray(log_std)) * noise, -1, 1)
    repeated = np.broadcast_to(DATA.observations, (2000, *DATA.observations.shape))
    v = twins(critic, repeated, drawn).min(axis=0).mean(axis=0)
    expected = twins(critic, DATA.observations, DATA.actions).min(axis=0) - v
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_draws_of_the_advantage_share_no_key_with_training(monkeypatch):
    seen = []
    monkeypatch.setattr(one_step, "weights_of", lambda *arguments: seen.append(arguments[-1]) or jnp.ones((1, 3)))
    artefacts = {name: Artefact({"params": {}}, {}) for name in ("sarsa", "bc")}
    prepared(one_step.METHOD, one_step.OneStepConfig(), DATA, artefacts)
    (mine,) = seen
    others = jax.random.split(loop.seed_keys(one_step.METHOD, (0,))[0])
    assert mine.shape == (1,)
    assert not any((jax.random.key_data(mine[0]) == jax.random.key_data(other)).all() for other in others)


@pytest.mark.slow
def test_one_step_of_improvement_prefers_better_actions():
    """Actions uniform in the box, reward highest at 0.4: BC says 0, one weighted step from it goes towards 0.4."""
    rng, n = np.random.default_rng(0), 4096
    data = make_data((1,) * n)
    actions = rng.uniform(-0.999, 0.999, (n, 3)).astype(np.float32)
    rewards = (-3 * (actions - 0.4) ** 2).sum(axis=1).astype(np.float32)
    observations = rng.standard_normal((n, 11)).astype(np.float32)
    changes = {"observations": observations, "actions": actions, "rewards": rewards, "terminations": np.ones(n, bool)}
    data = dataclasses.replace(data, **changes)
    bc = registry.get("bc")
    cloning = SupervisedConfig(PolicyConfig(hidden=(16,), bc_steps=1500, batch_size=128, average_decay=0.99))
    artefacts = {"bc": Artefact({"params": loop.train(bc, cloning, prepared(bc, cloning, data), [0]).policy}, {})}
    critic = dataclasses.replace(SARSA, steps=2000, batch_size=128, learning_rate=1e-3, hidden=(32, 32))
    trained = loop.train(sarsa.METHOD, critic, prepared(sarsa.METHOD, critic, data), [0])
    artefacts["sarsa"] = Artefact(sarsa.values(critic, data, trained.state), {})
    config = one_step.OneStepConfig(steps=1500, batch_size=128, learning_rate=1e-3, temperature=0.05)
    inputs = prepared(one_step.METHOD, config, data, artefacts)
    tuned = loop.train(one_step.METHOD, config, inputs, [0]).policy
    before, after = (
        policies.make(policies.Exported(jax.tree.map(lambda x: x[0], p)))(data.observations[:200]).mean()
        for p in (artefacts["bc"].arrays["params"], tuned)
    )
    assert abs(before) < 0.1 and after > 0.2
    none = dataclasses.replace(config, temperature=0.0)
    weights = prepared(one_step.METHOD, none, data, artefacts).own.weights
    np.testing.assert_array_equal(weights, 1.0)
    assert inputs.own.weights.max() <= config.max_weight and inputs.diagnostics[0]["weights"]["max"] > 1
