"""The baselines: every loss against NumPy, what they do with terminal and truncated transitions, that they learn."""

import dataclasses
import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from iwsft_control.base import files
from iwsft_control.base import snapshot as snapshots
from iwsft_control.base.errors import RunError
from iwsft_control.datasets import transitions
from iwsft_control.learning import defaults, loop
from iwsft_control.methods import awac, cql, iql, rebrac, registry, td3_bc
from iwsft_control.methods import critic as critics
from iwsft_control.networks import policies
from iwsft_control.networks.mlp import TwinCritic
from iwsft_control.networks.policies import (
    DeterministicPolicy,
    GaussianPolicy,
    TanhGaussianPolicy,
    policy_log_prob,
)
from tests.conftest import jitted, make_data, prepared

SMALL = {"hidden": (16, 16), "batch_size": 32, "steps": 20}
CONFIGS = {
    "iql": iql.IQLConfig(**SMALL),
    "td3-bc": td3_bc.TD3BCConfig(**SMALL),
    "awac": awac.AWACConfig(**SMALL),
    "cql": cql.CQLConfig(**SMALL, sampled_actions=3, cloning_steps=10),
    "rebrac": rebrac.ReBRACConfig(**SMALL),
}
DATA = make_data((30, 5, 17, 40, 20, 8))
KEY = jax.random.key(3)
METHODS = {name: registry.get(name) for name in CONFIGS}
UPDATES = {name: jitted(METHODS[name].update) for name in CONFIGS}


@cache
def start(name, seed=0):
    """A batch of all rows and a state whose targets differ from what they follow."""
    config, method = CONFIGS[name], METHODS[name]
    state = method.create(config, 11, 3, jax.random.key(seed))
    other = method.create(config, 11, 3, jax.random.key(seed + 1))
    if name == "iql":
        state = state._replace(critic=state.critic._replace(target=other.critic.critic))
    else:
        state = state._replace(target=other.critic)
    if name in ("td3-bc", "rebrac"):
        state = state._replace(policy_target=other.policy)
    return config, state, jax.tree.map(np.asarray, prepared(method, config, DATA).shared)


# --- NumPy, float64, written from the papers' equations ----------------------------------------------------------


def dense(layers, x, twin=None, norm=False):
    """An MLP with ReLU, and layer normalisation after it."""
    pick = (lambda a: np.float64(a)) if twin is None else (lambda a: np.float64(a[twin]))
    count = sum(name.startswith("Dense") for name in layers)
    for i in range(count):
        x = x @ pick(layers[f"Dense_{i}"]["kernel"]) + pick(layers[f"Dense_{i}"]["bias"])
        if i < count - 1:
            x = np.maximum(x, 0)
            if norm:
                parameters = layers[f"LayerNorm_{i}"]
                x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
                x = x * pick(parameters["scale"]) + pick(parameters["bias"])
    return x


def net(params):
    return params["params"]["net"]


def twins(params, observations, actions, norm=False):
    x = np.concatenate([np.float64(observations), np.float64(actions)], axis=-1)
    return np.stack([dense(net(params), x, i, norm)[..., 0] for i in (0, 1)])


def normal_log_prob(x, mean, log_std):
    return (-0.5 * ((x - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)).sum(-1)


def gaussian(params, observations):
    return np.tanh(dense(net(params), np.float64(observations))), np.float64(params["params"]["log_std"])


def squared_errors(q, backup):
    return sum(np.mean((q[i] - backup) ** 2) for i in (0, 1))


def backups(batch, next_value, discount=0.99):
    return np.array(
        [
            r if done else r + discount * v
            for r, done, v in zip(np.float64(batch.rewards), batch.terminations, next_value, strict=True)
        ]
    )


def smoothed(config, actions, key):
    noise = config.noise * np.float64(jax.random.normal(key, actions.shape))
    return np.clip(actions + np.clip(noise, -config.noise_clip, config.noise_clip), -1, 1)


@pytest.mark.parametrize("largest", [100.0, 0.5])
def test_iql_policy_loss_is_equation_7(largest):
    config, state, batch = start("iql")
    config = dataclasses.replace(config, max_weight=largest)
    loss = jitted(iql.policy_loss)(config, state.policy, state.critic.value, state.critic.target, batch)
    q = twins(state.critic.target, batch.observations, batch.actions).min(axis=0)
    v = dense(net(state.critic.value), np.float64(batch.observations))[:, 0]
    weight = np.minimum(np.exp(3.0 * (q - v)), largest)
    assert weight.std() > 0 and (weight == largest).any()
    expected = -np.mean(weight * normal_log_prob(batch.actions, *gaussian(state.policy, batch.observations)))
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_iql_without_beta_is_behaviour_cloning():
    config, state, batch = start("iql")
    arguments = (state.policy, state.critic.value, state.critic.target, batch)
    log_prob = normal_log_prob(batch.actions, *gaussian(state.policy, batch.observations))
    cloning = jitted(iql.policy_loss)(dataclasses.replace(config, beta=0.0), *arguments)
    assert float(cloning) == pytest.approx(-log_prob.mean(), rel=1e-4)


def test_iql_learns_the_critics_that_the_quality_critic_learns():
    config, state, batch = start("iql")
    new, _ = UPDATES["iql"](config, state, batch, KEY)
    alone, _ = jitted(critics.update)(config, state.critic, batch)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), new.critic, alone)


def test_td3_bc_losses_are_equations_3_and_5():
    config, state, batch = start("td3-bc")
    next_actions = smoothed(config, np.tanh(dense(net(state.policy_target), np.float64(batch.next_observations))), KEY)
    next_q = twins(state.target, batch.next_observations, next_actions).min(axis=0)
    expected = squared_errors(twins(state.critic, batch.observations, batch.actions), backups(batch, next_q))
    assert float(jitted(td3_bc.critic_loss)(config, state.critic, state, batch, KEY)) == pytest.approx(
        expected, rel=1e-4
    )

    actions = np.tanh(dense(net(state.policy), np.float64(batch.observations)))
    q = twins(state.critic, batch.observations, actions)[0]
    expected = -2.5 / np.abs(q).mean() * q.mean() + ((actions - batch.actions) ** 2).mean()
    assert float(jitted(td3_bc.policy_loss)(config, state.policy, state.critic, batch)) == pytest.approx(
        expected, rel=1e-4
    )


def test_td3_bc_sees_normalised_observations_and_acts_on_raw_ones():
    config, state, batch = start("td3-bc")
    stacked = np.concatenate([batch.observations])
    np.testing.assert_allclose(stacked.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(stacked.std(axis=0), 1, rtol=2e-3)
    acts = policies.make(td3_bc.export(config, DATA, state.policy))(DATA.observations)
    expected = np.tanh(dense(net(state.policy), np.float64(batch.observations)))
    np.testing.assert_allclose(acts, expected, atol=1e-4)


def test_awac_losses_are_equations_3_and_13():
    config, state, batch = start("awac")
    noise = jax.random.normal(KEY, batch.actions.shape)
    mean, log_std = gaussian(state.policy, batch.next_observations)
    next_actions = np.clip(mean + np.exp(log_std) * np.float64(noise), -1, 1)
    next_q = twins(state.target, batch.next_observations, next_actions).min(axis=0)
    expected = squared_errors(twins(state.critic, batch.observations, batch.actions), backups(batch, next_q))
    assert float(jitted(awac.critic_loss)(config, state.critic, state, batch, noise)) == pytest.approx(
        expected, rel=1e-4
    )

    mean, log_std = gaussian(state.policy, batch.observations)
    v = twins(state.critic, batch.observations, np.clip(mean + np.exp(log_std) * np.float64(noise), -1, 1)).min(axis=0)
    advantage = twins(state.critic, batch.observations, batch.actions).min(axis=0) - v
    for temperature, largest in ((1.0, 100.0), (0.1, 1.5)):
        settings = dataclasses.replace(config, temperature=temperature, max_weight=largest)
        weight = np.minimum(np.exp(advantage / temperature), largest)
        expected = -np.mean(weight * normal_log_prob(batch.actions, mean, log_std))
        loss = jitted(awac.policy_loss)(settings, state.policy, state.critic, batch, noise)
        assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_rebrac_losses_are_equations_3_and_4():
    config, state, batch = start("rebrac")
    q_of = partial(twins, norm=True)
    next_actions = smoothed(config, np.tanh(dense(net(state.policy_target), np.float64(batch.next_observations))), KEY)
    penalty = np.zeros(len(DATA.rewards))
    for first, last in zip(DATA.starts[:-1], DATA.starts[1:], strict=True):
        for row in range(first, last - 1):
            penalty[row] = sum((next_actions[row] - DATA.actions[row + 1]) ** 2)
    assert penalty.max() > 0.1
    next_q = q_of(state.target, batch.next_observations, next_actions).min(axis=0) - 0.1 * penalty
    expected = squared_errors(q_of(state.critic, batch.observations, batch.actions), backups(batch, next_q))
    assert float(jitted(rebrac.critic_loss)(config, state.critic, state, batch, KEY)) == pytest.approx(
        expected, rel=1e-4
    )

    actions = np.tanh(dense(net(state.policy), np.float64(batch.observations)))
    q = q_of(state.critic, batch.observations, actions).min(axis=0)
    expected = np.mean(0.05 * ((actions - batch.actions) ** 2).sum(axis=-1) - q / np.abs(q).mean())
    assert float(jitted(rebrac.policy_loss)(config, state.policy, state.critic, batch)) == pytest.approx(
        expected, rel=1e-4
    )


def squashed(params, observations):
    mean, log_std = np.split(dense(net(params), np.float64(observations)), 2, axis=-1)
    return mean, np.clip(log_std, -20, 2)


def tanh_log_prob(u, mean, log_std):
    return normal_log_prob(u, mean, log_std) + 2 * (np.logaddexp(u, -u) - np.log(2)).sum(-1)  # 1 - tanh^2 = cosh^-2


def cql_noise(config, key, rows):
    parts = jax.random.split(key, 4)
    normal = jax.random.normal(parts[0], (2, rows, 3))
    more = jax.random.normal(parts[1], (2, config.sampled_actions, rows, 3))
    uniform = jax.random.uniform(parts[2], more[0].shape, minval=-1, maxval=1)
    return cql.Noise(normal[0], normal[1], uniform, *more, jax.random.uniform(parts[3], (2, rows)))


def test_cql_losses_are_equation_4_with_importance_sampling():
    config, state, batch = start("cql")
    noise = cql_noise(config, KEY, len(DATA.rewards))
    drawn = {}
    for name, observations in (("current", batch.observations), ("following", batch.next_observations)):
        mean, log_std = squashed(state.policy, observations)
        u = mean + np.exp(log_std) * np.float64(getattr(noise, name))
        drawn[name] = np.tanh(u), tanh_log_prob(u, mean, log_std)
    q_data, gap = twins(state.critic, batch.observations, batch.actions), 0.0
    for i in (0, 1):
        exponents = []
        for k in range(config.sampled_actions):
            of = lambda actions: twins(state.critic, batch.observations, actions)[i]  # noqa: B023, E731
            exponents += [of(noise.uniform[k]) - np.log(0.5**3)]
            exponents += [of(drawn[name][0][k]) - drawn[name][1][k] for name in drawn]
        gap += np.mean(np.log(np.sum(np.exp(exponents), axis=0)) - q_data[i])
    mean, log_std = squashed(state.policy, batch.next_observations)
    next_actions = np.tanh(mean + np.exp(log_std) * np.float64(noise.next_policy))
    next_q = twins(state.target, batch.next_observations, next_actions).min(axis=0)  # no entropy in the backup
    loss, term = jitted(cql.critic_loss)(config, state.critic, state, batch, noise)
    assert float(term) == pytest.approx(gap, rel=1e-4)
    assert float(loss) == pytest.approx(squared_errors(q_data, backups(batch, next_q)) + 5 * gap, rel=1e-4)


def test_cql_policy_clones_first_and_then_follows_q():
    config, state, batch = start("cql")
    state = state._replace(log_temperature=jnp.float32(-0.7))
    noise = cql_noise(config, KEY, len(DATA.rewards))
    mean, log_std = squashed(state.policy, batch.observations)
    u = mean + np.exp(log_std) * np.float64(noise.policy)
    entropy_part = np.exp(-0.7) * tanh_log_prob(u, mean, log_std)
    cloning, log_prob = jitted(cql.policy_loss)(config, state.policy, state._replace(step=9), batch, noise)
    data_log_prob = tanh_log_prob(np.arctanh(np.float64(batch.actions)), mean, log_std)
    assert float(cloning) == pytest.approx(np.mean(entropy_part - data_log_prob), rel=1e-4)
    np.testing.assert_allclose(log_prob, tanh_log_prob(u, mean, log_std), rtol=1e-3, atol=1e-3)
    following, _ = jitted(cql.policy_loss)(config, state.policy, state._replace(step=10), batch, noise)
    q = twins(state.critic, batch.observations, np.tanh(u)).min(axis=0)
    assert float(following) == pytest.approx(np.mean(entropy_part - q), rel=1e-4)


def test_the_conservative_term_estimates_the_log_integral():
    """With many samples: log of the integral of exp Q over the action box, plus log 3n, minus Q of the data."""
    config = dataclasses.replace(CONFIGS["cql"], sampled_actions=20_000)
    state = cql.create(config, 2, 1, jax.random.key(0))
    observations, actions = jnp.array([[0.3, -1.0]]), jnp.array([[0.2]])
    scaled = dict(net(state.critic))
    scaled["Dense_2"] = jax.tree.map(lambda x: 5.0 * x, scaled["Dense_2"])
    critic = {"params": {"net": scaled}}
    batch = transitions.Transitions(observations, actions, jnp.zeros(1), 2 * observations, jnp.zeros(1))
    keys = jax.random.split(KEY, 3)
    shape = (config.sampled_actions, 1, 1)
    uniform = jax.random.uniform(keys[0], shape, minval=-1, maxval=1)
    drawn = (jax.random.normal(k, shape) for k in keys[1:])
    noise = cql.Noise(jnp.zeros((1, 1)), jnp.zeros((1, 1)), uniform, *drawn, jnp.zeros((2, 1)))
    q = jnp.asarray(twins(critic, observations, actions))
    term = jitted(cql.conservative_term)(config, critic, state.policy, batch, q, noise)
    grid = np.linspace(-1, 1, 2001)[:, None]
    values = twins(critic, np.repeat(observations, 2001, axis=0), grid)
    integral = np.log(np.trapezoid(np.exp(values), grid[:, 0], axis=1))
    assert values.std() > 0.1
    expected = (integral - np.asarray(q)[:, 0]).sum() + 2 * np.log(3 * config.sampled_actions)
    assert float(term) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("count", [1, 3])
def test_the_gradient_from_a_few_actions_is_that_of_all_on_average(count):
    """The random number that chooses them runs through [0, 1) evenly: the mean of all gradients is the exact one."""
    config, state, batch = start("cql")
    noise = cql_noise(config, KEY, len(DATA.rewards))
    sharper = dict(net(state.critic))
    sharper["Dense_2"] = jax.tree.map(lambda x: 20.0 * x, sharper["Dense_2"])  # so that weights are far from even
    critic = {"params": {"net": sharper}}

    def term(critic, gradient_actions, chosen):
        q = TwinCritic(config.hidden).apply(critic, batch.observations, batch.actions)
        changed = dataclasses.replace(config, gradient_actions=gradient_actions)
        return cql.conservative_term(changed, critic, state.policy, batch, q, noise._replace(chosen=chosen))

    grid, shape = 400, noise.chosen.shape
    levels = (noise.chosen + jnp.arange(grid)[:, None, None] / grid) % 1.0
    value, exact = jax.jit(jax.value_and_grad(term), static_argnums=1)(critic, 0, noise.chosen)
    found = jax.jit(jax.vmap(lambda u: jax.value_and_grad(term)(critic, count, u)))(levels)
    assert levels.shape == (grid, *shape)
    np.testing.assert_allclose(found[0], value, rtol=1e-4)  # the value is that of all actions
    for estimates, all_of in zip(jax.tree.leaves(found[1]), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(estimates.mean(axis=0), all_of, atol=1e-5 + 0.02 * float(jnp.abs(all_of).max()))
    assert float(found[1]["params"]["net"]["Dense_0"]["kernel"].std(axis=0).max()) > 0  # one alone is an estimate


def test_actions_are_chosen_by_their_weights():
    exponents = jnp.log(jnp.array([[0.1], [0.0], [0.6], [0.3]]))
    levels = jnp.linspace(0, 1, 1000, endpoint=False)
    index = cql.choose(jnp.repeat(exponents, 1000, axis=1), levels, 2)
    assert index.shape == (2, 1000)
    np.testing.assert_allclose(
        np.bincount(np.asarray(index).ravel(), minlength=4) / 2000, [0.1, 0, 0.6, 0.3], atol=2e-3
    )


def test_the_conservative_term_lowers_q_away_from_the_data():
    config, state, batch = start("cql")
    noise = cql_noise(config, KEY, len(DATA.rewards))

    def term(critic):
        q = TwinCritic(config.hidden).apply(critic, batch.observations, batch.actions)
        return cql.conservative_term(config, critic, state.policy, batch, q, noise)

    moved = jax.tree.map(lambda p, g: p - 0.01 * g, state.critic, jax.jit(jax.grad(term))(state.critic))
    for i in (0, 1):
        before, after = (
            twins(c, batch.observations, batch.actions)[i].mean()
            - twins(c, batch.observations, noise.uniform[0])[i].mean()
            for c in (state.critic, moved)
        )
        assert after > before


def test_squashed_actions_have_the_density_of_their_noise():
    mean, log_std = jnp.array([[0.3, -0.5]]), jnp.array([[-0.2, 0.4]])
    noise = jax.random.normal(KEY, (7, 1, 2))
    actions, log_prob = policies.squash(mean, log_std, noise)
    u = np.float64(mean) + np.exp(np.float64(log_std)) * np.float64(noise)
    np.testing.assert_allclose(actions, np.tanh(u), rtol=1e-5)
    np.testing.assert_allclose(log_prob, tanh_log_prob(u, np.float64(mean), np.float64(log_std)), rtol=1e-4)


# --- terminal states, truncations, targets ------------------------------------------------------------------------


def test_only_terminal_states_are_marked():
    assert DATA.terminations.any()
    ends = np.zeros(len(DATA.rewards), bool)
    ends[DATA.starts[1:] - 1] = True
    assert (ends & ~DATA.terminations).any()  # truncated episodes
    for name, method in METHODS.items():
        terminations = prepared(method, CONFIGS[name], DATA).shared.terminations
        np.testing.assert_array_equal(terminations, DATA.terminations.astype(np.float32))


@pytest.mark.parametrize("name", CONFIGS)
def test_values_flow_through_truncations_and_not_through_terminal_states(name):
    """The critics' update sees the state after a truncation, and nothing of what comes after a terminal state."""
    config, state, batch = start(name)
    elsewhere = batch._replace(next_observations=batch.next_observations + 1.0)
    backup = partial(cql.critic_loss, dataclasses.replace(config, alpha=0.0) if name == "cql" else config)
    gradient = jax.jit(jax.grad(lambda critic, rows, noise: backup(critic, state, rows, noise)[0]))

    def critic_after(rows):
        rows = jax.tree.map(lambda x: x[np.array(rows)], rows_of)
        state_after, _ = UPDATES[name](config, state, rows, KEY)
        return state_after.critic.critic if name == "iql" else state_after.critic

    ends = DATA.starts[1:] - 1
    for which, untouched in ((ends[DATA.terminations[ends]], True), (ends[~DATA.terminations[ends]], False)):
        found = []
        for rows_of in (batch, elsewhere):
            if name == "cql":  # its conservative term draws actions at s' as well: the backup alone is meant
                rows = jax.tree.map(lambda x, which=which: x[which], rows_of)
                found.append(gradient(state.critic, rows, cql_noise(config, KEY, len(which))))
            else:
                found.append(critic_after(which))
        pairs = zip(*(jax.tree.leaves(x) for x in found), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs) == untouched


@pytest.mark.parametrize("name", CONFIGS)
def test_targets_follow_at_their_rate(name):
    config, state, batch = start(name)
    parts = (lambda s: s.critic) if name == "iql" else (lambda s: s)
    for step in range(2):
        new, info = UPDATES[name](config, state, batch, KEY)
        delayed = name in ("td3-bc", "rebrac") and step == 0
        rate = 0.0 if delayed else config.target_rate
        followed = [("target", "critic")] if name == "iql" else [("target", "critic"), ("policy_target", "policy")]
        for target, source in followed if name in ("iql", "td3-bc", "rebrac") else followed[:1]:
            arrays = getattr(parts(new), target), getattr(parts(state), target), getattr(parts(new), source)
            for now, before, other in zip(*map(jax.tree.leaves, arrays), strict=True):
                np.testing.assert_allclose(now, (1 - rate) * before + rate * other, rtol=1e-5, atol=1e-7)
        pairs = zip(*map(jax.tree.leaves, (new.policy, state.policy)), strict=True)
        moved = [not np.array_equal(a, b) for a, b in pairs]
        assert any(moved) != delayed
        assert np.isnan(info["policy_loss"]) == delayed
        state = new


def test_rebrac_knows_the_next_action_of_every_transition_that_has_one():
    batch = prepared(rebrac.METHOD, CONFIGS["rebrac"], DATA).shared
    for first, last in zip(DATA.starts[:-1], DATA.starts[1:], strict=True):
        np.testing.assert_array_equal(batch.next_actions[first : last - 1], DATA.actions[first + 1 : last])
        assert np.all(batch.has_next[first : last - 1] == 1) and batch.has_next[last - 1] == 0


def test_cql_acts_by_its_mean():
    config, state, _ = start("cql")
    mean, _ = TanhGaussianPolicy(config.hidden, 3).apply(state.policy, DATA.observations)
    acts = policies.make(cql.export(config, DATA, state.policy))(DATA.observations)
    np.testing.assert_allclose(acts, np.tanh(mean), atol=1e-5)


# --- what moves whom -----------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=(0, 3))
def descended(config, params, grad, rate=None):
    """Parameters after the first step of Adam."""
    optimiser = optax.adam(rate or config.learning_rate)
    change, _ = optimiser.update(grad, optimiser.init(params))
    return optax.apply_updates(params, change)


def same(one, other):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), one, other)


@pytest.mark.parametrize("name", ["td3-bc", "rebrac"])
def test_lambda_has_no_gradient_and_the_policy_climbs_the_new_critics(name):
    config, state, batch = start(name)
    critic_net, policy_net = TwinCritic(config.hidden, name == "rebrac"), DeterministicPolicy(config.hidden, 3)
    new, _ = UPDATES[name](config, state._replace(step=jnp.int32(1)), batch, KEY)
    actions = policy_net.apply(state.policy, batch.observations)
    q = twins(new.critic, batch.observations, actions, name == "rebrac")
    scale = 2.5 / np.abs(q[0]).mean() if name == "td3-bc" else 1 / np.abs(q.min(axis=0)).mean()

    def loss(policy):
        a = policy_net.apply(policy, batch.observations)
        q = critic_net.apply(new.critic, batch.observations, a)
        if name == "td3-bc":
            return -scale * q[0].mean() + ((a - batch.actions) ** 2).mean()
        return (config.beta_policy * ((a - batch.actions) ** 2).sum(-1) - scale * q.min(axis=0)).mean()

    same(new.policy, descended(config, state.policy, jax.jit(jax.grad(loss))(state.policy)))


def test_awac_weights_have_no_gradient_and_are_those_of_the_new_critics():
    config, state, batch = start("awac")
    new, _ = UPDATES["awac"](config, state, batch, KEY)
    noise = jax.random.normal(KEY, (2, *batch.actions.shape))[1]
    mean, log_std = gaussian(state.policy, batch.observations)
    drawn = np.clip(mean + np.exp(log_std) * np.float64(noise), -1, 1)
    q, v = (twins(new.critic, batch.observations, a).min(axis=0) for a in (batch.actions, drawn))
    weight = np.minimum(np.exp(q - v), 100.0).astype(np.float32)
    policy_net = GaussianPolicy(config.hidden, 3)
    cloning = lambda p: -(weight * policy_log_prob(policy_net, p, batch.observations, batch.actions)).mean()  # noqa: E731
    grad = jax.jit(jax.grad(cloning))
    same(new.policy, descended(config, state.policy, grad(state.policy)))


def test_iql_weighs_by_the_advantages_of_the_value_loss_and_its_rate_decays_to_zero():
    config, state, batch = start("iql")
    new, _ = UPDATES["iql"](config, state, batch, KEY)
    grad = jax.jit(jax.grad(partial(iql.policy_loss, config)))
    expected = grad(state.policy, state.critic.value, state.critic.target, batch)
    same(new.policy, descended(config, state.policy, expected, config.policy_learning_rate))
    at_the_end = jax.tree.map(
        lambda x: jnp.full_like(x, config.steps) if jnp.issubdtype(x.dtype, jnp.integer) else x, state.optimiser
    )
    last, _ = UPDATES["iql"](config, state._replace(optimiser=at_the_end), batch, KEY)
    same(last.policy, state.policy)


@pytest.mark.parametrize(("offset", "rises"), [(-5.0, True), (0.0, False)])
def test_cql_temperature_rises_for_a_narrow_policy_and_falls_for_a_wide_one(offset, rises):
    """Towards an entropy of -A."""
    config, state, batch = start("cql")
    layers = dict(net(state.policy))
    last = layers["Dense_2"]
    layers["Dense_2"] = {"kernel": 0 * last["kernel"], "bias": jnp.array([0.0] * 3 + [offset] * 3)}
    new, _ = UPDATES["cql"](config, state._replace(policy={"params": {"net": layers}}), batch, KEY)
    assert (new.log_temperature > state.log_temperature) == rises


# --- the loop ------------------------------------------------------------------------------------------------------


def train(name, seeds=(0,), config=None, data=DATA, decay=0.9, **options):
    config = dataclasses.replace(config or CONFIGS[name], average_decay=decay)
    method = METHODS[name]
    return loop.train(method, config, prepared(method, config, data, seeds=seeds), seeds, **options)


@pytest.mark.parametrize(  # the loop is the same for all: without random updates, and with
    "name", [n if n in ("iql", "td3-bc") else pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS]
)
def test_training_repeats_bit_for_bit_and_seeds_differ(name):
    _, first, logs = train(name)
    again, other = train(name).policy, train(name, (1,)).policy
    for a, b, c in zip(*map(jax.tree.leaves, (first, again, other)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all() and not np.array_equal(a, c)
    assert logs[0]["step"] == [20]
    assert all(np.isfinite(v).all() for v in logs[0].values())


@pytest.mark.parametrize(
    ("name", "damaged"),
    [  # the loop is the same for all; IQL has a schedule, TD3+BC's policy moves every other step
        *(pytest.param(n, False, marks=() if n == "td3-bc" else pytest.mark.slow) for n in CONFIGS),
        ("iql", True),
    ],
)
def test_a_killed_training_goes_on_where_it_was(name, damaged, tmp_path, monkeypatch):
    monkeypatch.setattr(defaults, "CALL_STEPS", 5)
    monkeypatch.setattr(snapshots, "SNAPSHOT_SECONDS", 0)
    path, told = tmp_path / "x.unfinished", []

    def run(checkpoint=None):
        told.clear()
        snapshot = snapshots.Snapshot(path)
        options = {"progress": lambda done, values: told.append(done), "checkpoint": checkpoint, "snapshot": snapshot}
        trained = train(name, (0, 1), decay=CONFIGS[name].average_decay, **options)
        return trained.policy, trained.logs, snapshot

    def kill(step, average, last):
        if step == 15:
            raise KeyboardInterrupt

    whole, logs, _ = run()
    path.unlink()
    with pytest.raises(KeyboardInterrupt):
        run(kill)
    record = files.read_metadata(path)
    assert [row["step"] for row in record["log"]] == [5, 10]
    if damaged:
        path.write_bytes(path.read_bytes()[:-1])
    resumed, logs_again, snapshot = run()
    assert told == ([0, 5, 5, 5, 5] if damaged else [10, 5, 5])
    assert logs_again == logs
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    assert snapshot.seconds > (0 if damaged else record["seconds"])
    snapshot.remove()
    assert not path.exists()


def test_the_policy_that_is_evaluated_is_the_exponential_average(monkeypatch):
    config, kept = CONFIGS["td3-bc"], {}

    def trained(steps, decay):
        short = dataclasses.replace(config, steps=steps)
        return train("td3-bc", config=short, decay=decay, checkpoint=keep).policy

    def keep(step, average, last):
        kept[step] = average, last

    monkeypatch.setattr(defaults, "CALL_STEPS", 1)
    last = trained(2, 0.0)
    first = kept[1][1]
    average = trained(2, 0.75)
    assert list(kept) == [1, 2]
    jax.tree.map(np.testing.assert_array_equal, kept[2], (average, last))
    # The policy does not move in the first step, so all of them start where `first` is.
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(c, 0.75 * a + 0.25 * b, rtol=1e-5, atol=1e-7), first, last, average
    )
    jax.tree.map(np.testing.assert_array_equal, first, trained(2, 1.0))


def test_a_log_holds_none_where_the_policy_did_not_move():
    config = dataclasses.replace(CONFIGS["td3-bc"], steps=defaults.CALL_STEPS + 1)
    _, _, (log,) = train("td3-bc", config=config)
    assert log["policy_loss"][0] is not None and log["policy_loss"][1] is None
    json.dumps(log, allow_nan=False)


def test_a_training_that_diverges_stops_and_says_where():
    """Rewards that grow past float32: no policy of such a run may be scored."""
    broken = dataclasses.replace(DATA, rewards=np.full_like(DATA.rewards, 3e38))
    with pytest.raises(
        loop.DivergedError, match=r"td3-bc \(seed 7\) diverged by step 20: .* in the first steps"
    ) as error:
        train("td3-bc", (7,), data=broken)
    assert isinstance(error.value, RunError)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(  # the loop is the same for all: one with a schedule, one whose policy moves every other step
    "name", [n if n in ("iql", "td3-bc") else pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS]
)
def test_a_vmap_over_seeds_is_the_seeds_one_by_one(name):
    _, together, logs = train(name, (3, 4))
    assert len(logs) == 2
    for i, seed in enumerate((3, 4)):
        alone = train(name, (seed,)).policy
        for a, b in zip(*map(jax.tree.leaves, (together, alone)), strict=True):
            np.testing.assert_allclose(a[i], b[0], rtol=2e-3, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_baseline_prefers_better_actions_to_frequent_ones(name):
    """One-step episodes, actions uniform in the box, reward highest at 0.4: cloning the data would answer 0."""
    rng, n = np.random.default_rng(0), 4096
    data = make_data((1,) * n)
    actions = rng.uniform(-0.999, 0.999, (n, 3)).astype(np.float32)
    data = dataclasses.replace(
        data,
        observations=rng.standard_normal((n, 11)).astype(np.float32),
        actions=actions,
        rewards=(-3 * (actions - 0.4) ** 2).sum(axis=1).astype(np.float32),
        terminations=np.ones(n, bool),
    )
    changes = {
        "cql": {"steps": 1500, "alpha": 0.1, "learning_rate": 1e-3, "policy_learning_rate": 1e-3},
        "rebrac": {"beta_policy": 0.3},
    }.get(name, {})
    usual = {"hidden": (32, 32), "batch_size": 64, "steps": 2000, "learning_rate": 1e-3}
    config = dataclasses.replace(CONFIGS[name], **usual | changes)
    trained = train(name, config=config, data=data, decay=0.99).policy
    own = jax.tree.map(lambda x: np.asarray(x[0]), trained)
    answers = policies.make(METHODS[name].export(config, data, own))(data.observations[:200])
    np.testing.assert_allclose(answers.mean(axis=0), 0.4, atol=0.25)
