"""Online fine-tuning: schedules, objectives, prefixes in the simulator, and a point that learns to reach its goal."""

import copy
import dataclasses
import json
import math
import os
import shutil
from functools import partial
from pathlib import Path

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments import online as comparison
from iwsft_control import finetune
from iwsft_control.base import bounds, snapshot
from iwsft_control.base.errors import UserError
from iwsft_control.benchmark import export, jobs, results, stages, store
from iwsft_control.benchmark import online as work
from iwsft_control.benchmark.perform import perform
from iwsft_control.configs.critic import CriticConfig
from iwsft_control.configs.online import PPOConfig, PrefixConfig
from iwsft_control.configs.supervised import PolicyConfig
from iwsft_control.datasets import minari_files
from iwsft_control.datasets.transitions import Demonstrations as Pairs
from iwsft_control.datasets.types import SimulatorStates
from iwsft_control.envs.batch import D4RLBatch, make_batch
from iwsft_control.learning import objectives as offline
from iwsft_control.learning.loop import DivergedError
from iwsft_control.networks.policies import GaussianPolicy, gaussian_log_prob, load_policy
from iwsft_control.online import learner, methods, objectives, prefixes, rollouts, schedules, training
from iwsft_control.online.learner import Setup
from iwsft_control.online.methods import METHODS
from iwsft_control.online.policy import Actor, OnlinePolicy, create, fit_spread, scale_std
from iwsft_control.report import online as report
from iwsft_control.report import runs as grouped
from iwsft_control.report import statistics
from tests.conftest import jitted, make_data, write_hopper

KEY = jax.random.key(0)


# --- schedules --------------------------------------------------------------------------------------------------------


def test_the_hint_probability_is_the_papers_cosine():
    assert schedules.hint_probability(0.0) == pytest.approx(0.95)
    assert schedules.hint_probability(0.3) == pytest.approx(0.5)
    assert schedules.hint_probability(0.15) == pytest.approx(0.05 + 0.45 * (1 + math.sqrt(0.5)))
    assert schedules.hint_probability(0.6 - 1e-9) == pytest.approx(0.05)
    assert schedules.hint_probability(0.6) == schedules.hint_probability(1.0) == 0.0


def test_hints_are_binomial_and_cut_where_the_pieces_end():
    rng = np.random.default_rng(0)
    drawn = np.bincount([schedules.hint_pieces(rng, 5, 0.7) for _ in range(20_000)], minlength=6)
    assert stats.chisquare(drawn, 20_000 * stats.binom.pmf(np.arange(6), 5, 0.7)).pvalue > 1e-3
    uniform = np.bincount([schedules.uniform_pieces(rng, 5) for _ in range(12_000)], minlength=6)
    assert stats.chisquare(uniform).pvalue > 1e-3
    assert [schedules.piece_steps(i, 5, 12) for i in range(6)] == [0, 2, 5, 7, 10, 12]


@pytest.mark.parametrize(("progress", "low"), [(0.0, 0.95), (0.5, 0.5), (1.0, 0.05)])
def test_prefix_rfts_lengths_are_uniform_from_a_cosine_to_the_highest(progress, low):
    rng = np.random.default_rng(0)
    drawn = np.array([schedules.prefix_steps(rng, 10_000, progress) for _ in range(2_000)]) / 10_000
    assert low - 1e-4 <= drawn.min() and drawn.max() <= 0.95
    assert drawn.mean() == pytest.approx((low + 0.95) / 2, abs=0.02)


# --- objectives -------------------------------------------------------------------------------------------------------


def test_gae_tells_truncation_from_termination():
    """Against the definition, a sum over each episode's later steps, in NumPy."""
    rng = np.random.default_rng(0)
    rewards, values, following = (rng.standard_normal((6, 2)) for _ in range(3))
    terminated, ended = np.zeros((2, 6, 2), bool)
    ended[[2, 5], 0] = ended[[3, 5], 1] = True
    terminated[2, 0] = terminated[5, 1] = True  # the others are truncated
    found = objectives.gae(rewards, values, following, terminated, ended, 0.9, 0.8)
    for b in range(2):
        for t in range(6):
            last = next(i for i in range(t, 6) if ended[i, b])
            deltas = rewards[:, b] + 0.9 * following[:, b] * ~terminated[:, b] - values[:, b]
            wanted = sum((0.9 * 0.8) ** (i - t) * deltas[i] for i in range(t, last + 1))
            assert found[t, b] == pytest.approx(wanted, abs=1e-5)


def test_group_advantages_are_against_those_without_a_prefix():
    """The reference's example; the "v2" estimator of Prefix-RFT's code would give the prefix -1/7."""
    outcomes = jnp.array([[1, 0, 0, 0, 0, 0, 0, 1.0]])
    hybrid = jnp.arange(8)[None] == 7
    own, prefix = objectives.group_advantages(outcomes, hybrid)
    np.testing.assert_allclose(own[0], [6 / 7, *[-1 / 7] * 6, 6 / 7], atol=1e-6)
    np.testing.assert_allclose(prefix[0], [0] * 7 + [6 / 7], atol=1e-6)
    assert float(own[0, :7].sum()) == pytest.approx(0, abs=1e-6)
    assert float(objectives.group_advantages(outcomes, hybrid, centred=False)[0][0, 7]) == 1.0
    drawn = jnp.asarray(np.random.default_rng(0).random((4, 8)))
    own, prefix = objectives.group_advantages(drawn, jnp.zeros((4, 8), bool), divide_by_std=True)
    np.testing.assert_allclose(own.sum(-1), 0, atol=1e-4)
    np.testing.assert_allclose(own.std(-1), 1, rtol=1e-3)
    assert not prefix.any()


@pytest.mark.parametrize("n", [1, 4, 5, 11, 20])
def test_the_steps_of_highest_entropy_are_kept(n):
    entropy, valid = np.random.default_rng(n).random(24), np.zeros(24, bool)
    valid[np.random.default_rng(n).permutation(24)[:n]] = True
    index, counts = objectives.highest_entropy(jnp.asarray(entropy), jnp.asarray(valid), 0.2, 7)
    kept = np.asarray(index)[np.asarray(counts)]
    assert len(kept) == n - math.floor(round(0.8 * n, 9)) and valid[kept].all()
    others = np.setdiff1d(np.flatnonzero(valid), kept)
    assert not len(others) or entropy[kept].min() > entropy[others].max()


def test_kl_and_entropy_are_the_gaussians():
    mean, log_std = np.array([0.3, -0.2]), np.array([-0.5, 0.1])
    other, other_log_std = np.array([0.0, 0.4]), np.array([0.2, -0.3])
    x = mean + np.exp(log_std) * np.random.default_rng(0).standard_normal((200_000, 2))
    own = stats.norm.logpdf(x, mean, np.exp(log_std)).sum(1)
    difference = own - stats.norm.logpdf(x, other, np.exp(other_log_std)).sum(1)
    assert float(objectives.gaussian_kl(mean, log_std, other, other_log_std)) == pytest.approx(
        difference.mean(), abs=0.02
    )
    assert float(objectives.gaussian_kl(mean, log_std, mean, log_std)) == pytest.approx(0, abs=1e-6)
    assert float(objectives.gaussian_entropy(jnp.asarray(log_std))) == pytest.approx(-own.mean(), abs=0.01)


def setup(name="bc-rl", sparse=False, hidden=(), action_dim=2, **ppo):
    small = {"groups": 2, "group_size": 4, "minibatch": 32, "critic_hidden": (8,), "critic_warmup": 0}
    return Setup(PPOConfig(**small | ppo), METHODS[name], hidden, action_dim, sparse, 0.2)


def some_rows(chosen, params, n=50, seed=0, prefix=False):
    rng = np.random.default_rng(seed)
    observations = rng.standard_normal((n, 3)).astype(np.float32)
    mean, log_std = chosen.policy.apply(params, observations)
    actions = np.asarray(mean) + np.exp(log_std) * rng.standard_normal((n, 2)).astype(np.float32)
    log_prob = gaussian_log_prob(mean, log_std, actions)
    advantages = rng.standard_normal(n).astype(np.float32)
    flags = np.full(n, prefix)
    return learner.Rows(observations, np.zeros((n, 0)), actions, log_prob, advantages, advantages, mean, log_std, flags)


def test_the_policy_gradient_is_the_score_functions():
    """Of a linear policy, in NumPy: A (a - mu)/sigma^2 (1 - mu^2) x, and A (z^2 - 1) of log sigma."""
    chosen = setup()
    start = GaussianPolicy((), 2).init(KEY, jnp.zeros((1, 3)))
    params = create(chosen.policy, 3, KEY, start)
    rows = some_rows(chosen, params)
    value = lambda p: learner.policy_terms(chosen, p, rows, jnp.ones(50))[0]  # noqa: E731
    gradient = jax.jit(jax.grad(value))(params)["params"]
    mean, std = np.asarray(rows.reference_mean), np.exp(np.asarray(rows.reference_log_std))
    z = (rows.actions - mean) / std
    score = rows.advantages[:, None] * z / std * (1 - mean**2)
    np.testing.assert_allclose(gradient["net"]["Dense_0"]["bias"], score.mean(0), atol=1e-5)
    np.testing.assert_allclose(gradient["net"]["Dense_0"]["kernel"], rows.observations.T @ score / 50, atol=1e-5)
    spread = (rows.advantages[:, None] * (z**2 - 1)).mean(0)
    np.testing.assert_allclose(gradient["log_std"], spread, atol=1e-5)


def test_the_ratio_of_a_prefix_is_not_clipped():
    chosen = setup("prefix-rft", kl_weight=0.0)
    params = create(chosen.policy, 3, KEY)
    for prefix, wanted in ((False, 1.2), (True, math.e)):
        rows = some_rows(chosen, params, prefix=prefix)
        rows = rows._replace(log_prob=rows.log_prob - 1, advantages=np.ones(50, np.float32))
        assert float(jitted(learner.policy_terms)(chosen, params, rows, jnp.ones(50))[0]) == pytest.approx(
            wanted, rel=1e-4
        )


def test_kl_and_likelihood_have_their_weights():
    """J = value - beta_kl KL + beta log-likelihood; a scratch policy has no KL."""
    params = create(OnlinePolicy((), 2), 3, KEY)
    moved = jax.tree.map(lambda x: x + 0.1, params)
    rows = some_rows(setup(), params)
    ones = jnp.ones(50)
    value, parts = jitted(learner.policy_terms)(setup(kl_weight=0.5), moved, rows, ones)
    assert float(parts["kl_to_reference"]) > 0
    assert float(value) == pytest.approx(float(parts["surrogate"] - 0.5 * parts["kl_to_reference"]), rel=1e-5)
    value, parts = jitted(learner.policy_terms)(setup("rl", kl_weight=0.5), moved, rows, ones)
    assert float(value) == float(parts["surrogate"])


def hinted(chosen, lengths, seed=0):
    """A batch of which only the prefixes are anything."""
    rng, g, t = np.random.default_rng(seed), len(lengths), max(max(lengths), 1)
    empty = dict.fromkeys(learner.Batch._fields)
    return learner.Batch(**empty | {
        "prefix_observations": jnp.asarray(rng.standard_normal((g, t, 3)), jnp.float32),
        "prefix_actions": jnp.asarray(np.tanh(rng.standard_normal((g, t, 2))), jnp.float32),
        "prefix_lengths": jnp.array(lengths),
    })  # fmt: skip


def test_with_full_length_ufts_gradient_is_bcs():
    """beta times that of BC's loss on the demonstration, for demonstrations of one step exactly, else by sampling."""
    chosen = setup("uft", likelihood_weight=0.3)
    params = create(chosen.policy, 3, KEY)

    def log_prob(params, pairs):
        mean, log_std = chosen.policy.apply(params, pairs.observations)
        return gaussian_log_prob(mean, log_std, pairs.actions)

    for lengths, size, tolerance in (((1,), 64, 1e-5), ((7,), 20_000, 0.05)):
        batch = hinted(chosen, lengths)
        found = jax.jit(jax.grad(lambda p, b=batch, n=size: learner.likelihood_term(chosen, p, b, KEY, n)[0]))(params)
        pairs = Pairs(batch.prefix_observations[0], batch.prefix_actions[0])
        wanted = jax.jit(jax.grad(lambda p, x=pairs: -0.3 * offline.loss(log_prob, p, x)))(params)
        jax.tree.map(lambda a, b, t=tolerance: np.testing.assert_allclose(a, b, atol=t), found, wanted)
    half, whole = hinted(chosen, (1, 0)), hinted(chosen, (1, 1))
    whole = whole._replace(prefix_observations=np.repeat(half.prefix_observations[:1], 2, 0))
    whole = whole._replace(prefix_actions=np.repeat(half.prefix_actions[:1], 2, 0))
    term = jax.jit(lambda b: learner.likelihood_term(chosen, params, b, KEY, 40_000)[1])
    ratio = [float(term(b)) for b in (half, whole)]
    assert ratio[0] / ratio[1] == pytest.approx(0.5, abs=0.02)  # a group without a prefix counts zero


# --- the policy -------------------------------------------------------------------------------------------------------


def test_the_policy_begins_as_bcs_and_its_spread_follows_the_data():
    net = OnlinePolicy((8,), 2)
    start = GaussianPolicy((8,), 2).init(KEY, jnp.zeros((1, 3)))
    start["params"]["log_std"] = jnp.array([-0.4, 0.2])
    params = create(net, 3, KEY, start)
    x = np.random.default_rng(0).standard_normal((2_000, 3)).astype(np.float32)
    wanted = GaussianPolicy((8,), 2).apply(start, x)
    mean, log_std = net.apply(params, x)
    np.testing.assert_array_equal(mean, wanted[0])
    np.testing.assert_allclose(log_std, np.broadcast_to(wanted[1], (2_000, 2)))
    narrow = x[:, 0] > 0
    noise = np.random.default_rng(1).standard_normal((2_000, 2)) * np.where(narrow, 0.1, 0.8)[:, None]
    fitted = fit_spread(net, 400, params, Pairs(jnp.asarray(x), jnp.asarray(mean + noise, jnp.float32)), KEY)
    again, log_std = net.apply(fitted, x)
    np.testing.assert_array_equal(again, mean)
    assert float(log_std[narrow].mean()) < float(log_std[~narrow].mean()) - 1
    in_numpy = Actor.of(fitted).mean_std(x)
    np.testing.assert_allclose(in_numpy[0], mean, atol=1e-5)
    np.testing.assert_allclose(in_numpy[1], np.exp(log_std), rtol=1e-4)
    np.testing.assert_allclose(Actor.of(scale_std(fitted, 0.3)).mean_std(x)[1], 0.3 * in_numpy[1], rtol=1e-4)


# --- prefixes in the simulator ----------------------------------------------------------------------------------------


def recorded(env_id, steps, seed=0):
    """States, actions and observations of an episode in Gymnasium."""
    env = gym.make(env_id)
    observation, _ = env.reset(seed=seed)
    rng, qpos, qvel, observations, actions = np.random.default_rng(seed), [], [], [observation], []
    for _ in range(steps):
        qpos.append(env.unwrapped.data.qpos.copy())
        qvel.append(env.unwrapped.data.qvel.copy())
        actions.append(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
        observation, _, terminated, truncated, _ = env.step(actions[-1])
        observations.append(observation)
        if terminated or truncated:
            break
    return np.array(qpos), np.array(qvel), np.array(observations), np.array(actions)


@pytest.mark.parametrize("env_id", ["d4rl/Hopper-v2", "d4rl/HalfCheetah-v2"])
def test_a_continuation_equals_the_recording(env_id):
    qpos, qvel, observations, actions = recorded(env_id, 40)
    batch, k = D4RLBatch(env_id, 1), len(actions) // 2
    start = batch.set_state(0, qpos[k].astype(np.float32), qvel[k].astype(np.float32), k)
    np.testing.assert_allclose(start, observations[k], atol=1e-6)
    for i, action in enumerate(actions[k : k + 5]):
        found, _, terminated, _ = batch.step(np.array([0]), action[None])
        assert not terminated[0] or k + i == len(actions) - 1
        np.testing.assert_allclose(found[0], observations[k + i + 1], atol=2e-5 if i == 0 else 1e-3)
    exact = batch.set_state(0, qpos[k], qvel[k], k)
    np.testing.assert_array_equal(exact, observations[k])
    np.testing.assert_allclose(batch.step(np.array([0]), actions[k][None])[0][0], observations[k + 1], atol=1e-6)


def test_the_horizon_counts_the_prefix():
    """A cheetah never falls: started at step 990, it has ten steps."""
    qpos, qvel, *_ = recorded("d4rl/HalfCheetah-v2", 5)
    batch, zeros = D4RLBatch("d4rl/HalfCheetah-v2", 2), np.zeros(1000)
    demonstrations = prefixes.Demonstrations(
        np.zeros((1000, 17), np.float32), np.zeros((1000, 6), np.float32), np.repeat(qpos[:1], 1000, 0),
        np.repeat(qvel[:1], 1000, 0), zeros, np.arange(1000), np.array([0, 1000]), 1.0,
    )  # fmt: skip
    starts = prefixes.Starts(np.array([0]), np.array([[990, 995]]), np.zeros((1, 2), bool))
    actor = Actor.of(create(OnlinePolicy((4,), 6), 17, KEY))
    played = rollouts.play(actor, batch, demonstrations, starts, (0, 0))
    assert played.lengths.tolist() == [10, 5] and not played.terminated.any() and played.steps == 15
    np.testing.assert_allclose(played.returns, played.rewards.sum(0), rtol=1e-5)
    assert not played.observations[10:].any() and not played.rewards[5:, 1].any()


def standing(lengths=(30, 60), terminal=(), clipped=(), terminations=()):
    """Data whose states are Hopper standing, but for some rows."""
    data, n = make_data(lengths), sum(lengths)
    qpos, qvel = np.zeros((n, 6), np.float32), np.zeros((n, 6), np.float32)
    qpos[:, 1] = 1.25
    qpos[list(terminal), 1] = 0.3
    qvel[list(clipped), 2] = -10.0
    ends = np.zeros(n, bool)
    ends[list(terminations)] = True
    return dataclasses.replace(data, terminations=ends, read_states=lambda: SimulatorStates(qpos, qvel))


def test_states_that_end_an_episode_at_once_are_no_starts():
    batch, config = D4RLBatch("d4rl/Hopper-v2", 1), PrefixConfig(percentile=0, margin=20)
    data = standing(terminal=(10, 11), clipped=(35,), terminations=(89,))
    found = prefixes.curate(config, data, batch)
    assert found.permitted[:30].tolist() == [*range(10), 9, 9, *range(12, 30)]
    assert found.permitted[30:].tolist() == [*range(5), 4, *range(6, 40), *[39] * 20]
    may = np.arange(30) == found.permitted[:30]
    assert not batch.terminal(found.qpos[:30][may].astype(float), found.qvel[:30][may].astype(float)).any()
    np.testing.assert_allclose(found.return_before[29], data.rewards[:29].sum(), rtol=1e-5)
    assert len(prefixes.curate(config, standing(terminal=(0,)), batch).lengths) == 1  # cannot begin at all
    with pytest.raises(UserError, match="begins where an episode can start"):
        prefixes.curate(config, standing(terminal=(0, 30)), batch)
    with pytest.raises(UserError, match="holds no simulator states"):
        prefixes.curate(config, make_data(), batch)
    batch.max_steps = 60
    assert len(prefixes.curate(config, standing(), batch).lengths) == 2
    batch.max_steps = 59
    with pytest.raises(UserError, match="holds an episode of 60 steps, and one of its environment ends after 59"):
        prefixes.curate(config, standing(), batch)


# --- a point on a line ------------------------------------------------------------------------------------------------


class Point:
    """A point that is moved; the reward is the higher the nearer it is to 1. It falls off at -2."""

    observation_dim, action_dim, max_steps = 1, 1, 24

    def __init__(self, n):
        self.x, self.elapsed = np.zeros(n), np.zeros(n, int)

    def set_state(self, i, qpos, qvel, elapsed=0):
        self.x[i], self.elapsed[i] = qpos[0], elapsed
        return np.array([self.x[i]])

    def step(self, active, actions):
        self.x[active] += 0.15 * np.clip(actions[:, 0], -1, 1)
        self.elapsed[active] += 1
        x = self.x[active]
        return x[:, None], np.maximum(1 - np.abs(x - 1), 0), self.terminal(x[:, None], x), self.elapsed[active] >= 24

    def terminal(self, qpos, qvel):
        return qpos[:, 0] < -2


def walks(episodes=6):
    """Demonstrations that go to 1 from around -1 and stay there."""
    x = np.minimum(np.linspace(-1, -0.8, episodes)[:, None] + 0.15 * np.arange(24), 1.0)
    rewards = np.maximum(1 - np.abs(np.roll(x, -1, axis=1) - 1), 0)
    rewards[:, -1] = 1
    before = np.cumsum(rewards, 1) - rewards
    flat = x.reshape(-1, 1).astype(np.float32)
    return prefixes.Demonstrations(
        flat, np.where(flat < 0.95, 1.0, 0.0).astype(np.float32), flat, 0 * flat, before.reshape(-1),
        np.tile(np.minimum(np.arange(24), 20), episodes), 24 * np.arange(episodes + 1), 8.0,
    )  # fmt: skip


def teach(name, budget=400, sparse=False, prefix=None, seed=0, evaluations=2, **options):
    prefix = prefix or PrefixConfig()
    chosen = setup(name, sparse, hidden=(8,), action_dim=1, **options.pop("ppo", {}))
    chosen = dataclasses.replace(chosen, entropy_share=prefix.entropy_share)
    batch, demonstrations = Point(8), walks()

    def evaluate(params):
        acting = Actor.of(params)
        for i in range(6):
            batch.set_state(i, demonstrations.qpos[24 * i], demonstrations.qvel[0])
        total, x = np.zeros(6), batch.x[:6, None]
        for _ in range(24):
            x, rewards, _, _ = batch.step(np.arange(6), acting.mean_std(x.astype(np.float32))[0])
            total += rewards
        return total.tolist()

    start = create(chosen.policy, 1, jax.random.key(seed))
    options = {"threads": 1, **options}
    return training.finetune(
        chosen, prefix, demonstrations, batch, start, seed, budget, evaluate, evaluations, **options
    )


# Two programs that do the same give the same bits where XLA compiles them in one way and does not optimise. To see it:
# XLA_FLAGS=--xla_backend_optimization_level=0 python -m pytest tests/test_online.py
SAME_BITS = os.environ["XLA_FLAGS"].split() == ["--xla_backend_optimization_level=0"]


def same(a, b, one_program=True):
    if one_program or SAME_BITS:
        jax.tree.map(np.testing.assert_array_equal, a.policy, b.policy)
        assert a.steps == b.steps and a.points == b.points
    else:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), a.policy, b.policy)
        assert a.steps == b.steps


FAST = {"policy_learning_rate": 0.02, "critic_learning_rate": 0.02, "target_kl": 0.5, "kl_weight": 0.0}


@pytest.mark.slow
def test_a_point_learns_to_reach_its_goal():
    found = teach("prefix-rft", 8_000, ppo=FAST)
    assert np.mean(found.points[-1]["returns"]) > 9  # the demonstrations' are 14 to 16, a standing point's 0
    assert found.steps >= 8_000 and found.log["step"][-1] == found.steps


@pytest.mark.slow
def test_hints_find_a_sparse_reward_that_exploring_does_not():
    """The methods' point: without a prefix no episode succeeds, so there is nothing to learn from."""
    alone, hinted = (teach(name, 8_000, True, ppo=FAST) for name in ("bc-rl", "uft"))
    assert max(alone.log["outcome"]) == 0 and np.mean(alone.points[-1]["returns"]) < 1
    assert max(hinted.log["outcome"]) > 0.9 and np.mean(hinted.points[-1]["returns"]) > 8


@pytest.mark.parametrize(
    ("name", "prefix", "sparse"),
    [
        ("uft", {"unhinted_share": 1.0}, False),
        pytest.param("uft", {"unhinted_share": 1.0}, True, marks=pytest.mark.slow),
        pytest.param("prefix-rft", {"low": 0.0, "high": 0.0}, False, marks=pytest.mark.slow),
        ("prefix-rft", {"low": 0.0, "high": 0.0}, True),
    ],
)
def test_without_a_prefix_all_are_ppo_bit_for_bit(name, prefix, sparse):
    plain, found = teach("bc-rl", sparse=sparse), teach(name, sparse=sparse, prefix=PrefixConfig(**prefix))
    same(plain, found, one_program=False)
    assert max(found.log["prefix_steps"]) == 0


def test_uft_without_the_likelihoods_weight_is_its_ablation():
    same(teach("uft-no-likelihood"), teach("uft", ppo={"likelihood_weight": 0.0}), one_program=False)


def test_from_scratch_differs_from_bc_rl_in_its_reference_alone():
    """Beside the parameters it starts from: without the weight of the KL they are one."""
    same(teach("rl"), teach("bc-rl", ppo={"kl_weight": 0.0}), one_program=False)
    assert {n: m for n, m in METHODS.items() if m.scratch} == {"rl": METHODS["bc-rl"]._replace(scratch=True)}
    assert METHODS["uft"]._replace(likelihood=False) == METHODS["uft-no-likelihood"]
    assert METHODS["uft-no-likelihood"]._replace(law="uniform") == METHODS["rl-uniform-resets"]
    assert METHODS["rl-uniform-resets"]._replace(law="none") == METHODS["bc-rl"]


def test_every_method_draws_the_same_demonstrations_and_its_own_prefixes():
    demonstrations, config = walks(), PrefixConfig(unhinted_share=0.0)
    found = {n: prefixes.draw(m, config, demonstrations, 0.1, 40, 4, (3, 5)) for n, m in METHODS.items()}
    for starts in found.values():
        np.testing.assert_array_equal(starts.demonstration, found["rl"].demonstration)
    assert not found["rl"].steps.any() and not found["bc-rl"].steps.any()
    for name in ("uft", "uft-no-likelihood", "rl-uniform-resets"):
        steps = found[name].steps
        assert (steps == steps[:, :1]).all() and not found[name].hybrid.any()  # one prefix for a group
        assert set(np.unique(steps)) <= {0, 5, 10, 14, 19, 20}  # pieces of 24 steps; the last start is 20
    np.testing.assert_array_equal(found["uft"].steps, found["uft-no-likelihood"].steps)
    hybrid = found["prefix-rft"]
    assert not hybrid.steps[:, :-1].any() and (hybrid.steps[:, -1] > 0).all() and hybrid.hybrid[:, -1].all()
    late = prefixes.draw(METHODS["uft"], config, demonstrations, 0.6, 40, 4, (3, 5))
    assert not late.steps.any()
    means = [
        prefixes.draw(METHODS["uft"], config, demonstrations, p, 400, 2, (0, 0)).steps.mean() for p in (0.1, 0.3, 0.5)
    ]
    assert means == sorted(means, reverse=True)


def test_seeds_reach_everything_and_repeat(monkeypatch):
    """Whatever draws gets numbers that no other seed and no other update has."""
    received = {}

    def spy(module, name, place):
        real = getattr(module, name)

        def spied(*arguments, **options):
            given = arguments[place]
            received.setdefault(name, []).append(
                given if isinstance(given, tuple) else tuple(jax.random.key_data(given).tolist())
            )
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, spied)

    for module, name, place in ((learner, "create", 4), (prefixes, "draw", 6), (rollouts, "play", 4)):
        spy(module, name, place)
    spy(learner, "update", 4)
    first, again, other = teach("prefix-rft"), teach("prefix-rft"), teach("prefix-rft", seed=1)
    same(first, again)
    assert first.log["prefix_steps"] != other.log["prefix_steps"] and first.log["outcome"] != other.log["outcome"]
    for name, given in received.items():
        counts = [1 if name == "create" else len(run.log["step"]) for run in (first, again, other)]
        once, twice = counts[0], counts[0] + counts[1]
        assert given[:once] == given[once:twice] and len(given) == sum(counts)
        assert len(set(given)) == counts[0] + counts[2] > 1, name


def test_other_seeds_are_other_actions_and_another_critic():
    begun = create(OnlinePolicy((8,), 1), 1, KEY)
    critics = [learner.create(setup("bc-rl", hidden=(8,)), begun, 1, 0, jax.random.key(s)).critic for s in (0, 1)]
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, critics), strict=True))
    actor = Actor.of(begun)
    starts = prefixes.Starts(np.array([0]), np.zeros((1, 2), int), np.zeros((1, 2), bool))
    first, again, other = (
        rollouts.play(actor, Point(2), walks(), starts, seed, 1).actions for seed in ((0, 0), (0, 0), (1, 0))
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_episodes_do_not_depend_on_threads():
    same(teach("uft"), teach("uft", threads=3))


def test_the_learners_parts_of_the_reward():
    """A sparse outcome is of the whole episode, its prefix included, and is paid at the end."""
    demonstrations = walks()
    starts = prefixes.Starts(np.array([0, 1]), np.array([[0] * 3 + [20], [0] * 3 + [18]]), np.zeros((2, 4), bool))
    actor = Actor.of(create(OnlinePolicy((8,), 1), 1, KEY))
    played = rollouts.play(actor, Point(8), demonstrations, starts, (0, 0), 1)
    made = training.learning_batch(setup("prefix-rft", True), demonstrations, starts, played, 24)
    totals = demonstrations.return_before[starts.rows(demonstrations)] + played.returns.reshape(2, 4)
    np.testing.assert_array_equal(made.outcomes, totals >= 8)
    assert made.rewards.sum(0).tolist() == made.outcomes.reshape(-1).tolist()
    assert made.prefix_lengths.tolist() == [20, 18] and made.terminated.all()
    np.testing.assert_array_equal(made.prefix_observations[1, :18, 0], demonstrations.observations[24:42, 0])
    assert made.features[0, 3, 0] == pytest.approx(4 / 24) and made.final_features[3, 0] == 0
    assert made.features[0, 3, 1] == pytest.approx(demonstrations.return_before[20] / 8)
    dense = training.learning_batch(setup("prefix-rft"), demonstrations, starts, played, 24)
    np.testing.assert_allclose(dense.rewards, played.rewards * 0.01, rtol=1e-5)
    np.testing.assert_allclose(dense.outcomes, totals / 1000, rtol=1e-5)
    np.testing.assert_array_equal(dense.terminated, played.terminated)


@pytest.mark.parametrize(("name", "sparse"), [("uft", False), ("prefix-rft", True)])
def test_a_killed_training_goes_on_bit_for_bit(name, sparse, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "SNAPSHOT_SECONDS", 0)
    whole = teach(name, 600, sparse)
    updates = []

    def die(number):
        updates.append(number)
        if len(updates) == 3:
            raise KeyboardInterrupt

    path = tmp_path / "x.unfinished"
    with pytest.raises(KeyboardInterrupt):
        teach(name, 600, sparse, snapshot=snapshot.Snapshot(path), on_update=die)
    told = []
    again = teach(name, 600, sparse, snapshot=snapshot.Snapshot(path), on_update=updates.append, progress=told.append)
    same(whole, again)
    assert updates[3] == 2 and len(updates) == 1 + len(whole.log["step"]) and sum(told) == 600
    assert again.log == whole.log


def test_a_training_that_diverges_is_stopped():
    with pytest.raises(UserError, match="not finite"):
        teach("bc-rl", 20_000, ppo={"policy_learning_rate": 1e30, "target_kl": 1e9, "critic_learning_rate": 1e30})


# --- the command ------------------------------------------------------------------------------------------------------


def config(tmp_path, **changes):
    return finetune.FinetuneConfig(
        **{
            "env": "hopper-medium-replay",
            "method": ("uft", "prefix-rft"),
            "quick": True,
            "steps": 300,
            "results": tmp_path / "results",
            "stages": tmp_path / "stages",
            "ppo": PPOConfig(groups=1, group_size=2, minibatch=64, critic_hidden=(8,), spread_steps=5),
            "policy": PolicyConfig(hidden=(8,), bc_steps=20, batch_size=16),
        }
        | changes
    )


def test_the_command_writes_results_with_simulator_steps(tmp_path, monkeypatch, capsys):
    finetune.main(config(tmp_path, reward="sparse"))
    paths = sorted((tmp_path / "results").rglob("*.json"))
    found = [results.read(path) for path in paths]
    assert [r.method for r in found] == ["prefix-rft", "uft"]
    for result in found:
        log, curve = result.diagnostics["training"], result.diagnostics["curve"]
        assert result.evaluation["simulator_steps"] == log["step"][-1] == curve["step"][-1] >= 300
        assert result.config["reward"] == "sparse" and result.config["policy"]["bc_steps"] == 20
        assert result.diagnostics["success_return"] > 0 and result.diagnostics["bc_start"]
    policy = load_policy(paths[0].with_suffix(".safetensors"))  # it says what every policy file says
    assert (policy.task, policy.method, policy.observation_dim) == (found[0].task, "prefix-rft", 11)
    assert (policy.score, policy.commit) == (found[0].normalised_score, found[0].git_commit)
    with pytest.raises(UserError, match="no place in an offline table"):
        grouped.find([tmp_path / "results"], quick=True)
    table = report.to_markdown(report.find(tmp_path / "results", quick=True))
    assert [line.split(" | ")[2] for line in table.splitlines()[2:]] == ["bc", "uft", "prefix-rft"]
    report.draw(report.find(tmp_path / "results", quick=True))
    with pytest.raises(UserError, match="no online results"):
        report.find(tmp_path / "results")
    with monkeypatch.context() as idle:
        idle.setattr(training, "finetune", None)  # nothing is done again
        finetune.main(config(tmp_path, reward="sparse"))
        assert "simulator steps" in capsys.readouterr().out

    real, tried = training.finetune, []

    def failing(setup, *rest, **options):
        tried.append(setup.method)
        if len(tried) == 1:
            raise DivergedError("it diverged")
        return real(setup, *rest, **options)

    before = paths[0].read_bytes()
    # Other reference scores are another result; a run that fails stops no other; a policy of one action has failed.
    monkeypatch.setattr(training, "finetune", failing)
    other = {"ref_min_score": 0.0, "ref_max_score": 100.0}
    with pytest.raises(SystemExit) as error:
        finetune.main(config(tmp_path, reward="sparse", **other))
    assert error.value.code == 1 and tried == [METHODS["uft"], METHODS["prefix-rft"]]
    (failure,) = (tmp_path / "results" / "failures").glob("*.json")
    assert json.loads(failure.read_text())["error"] == "it diverged"
    told = "hopper-medium-replay uft (sparse, 300 steps) seed 0: it diverged"
    assert grouped.find_failures([tmp_path / "results"]) == [told]
    with pytest.raises(UserError, match="have different reference scores"):  # of the run that did not fail
        report.find(tmp_path / "results", quick=True)
    made, other_left = (results.read(path).evaluation["ref_max_score"] for path in paths)
    assert made == 100.0 != other_left == found[1].evaluation["ref_max_score"]
    paths[0].write_bytes(before)
    assert report.find(tmp_path / "results", quick=True)  # a run that failed keeps no other from the table
    again = tmp_path / "results" / "again" / paths[0].name
    again.parent.mkdir()
    again.write_bytes(paths[0].read_bytes())
    with pytest.raises(UserError, match="two runs of prefix-rft with seed 0"):
        report.find(tmp_path / "results", quick=True)
    again.unlink()
    left = results.read(paths[1])
    start = left.diagnostics["bc_start"]
    for damaged in (
        {"bc_start": {k: v for k, v in start.items() if k != "success"}},
        {"bc_start": start | {"normalised_score": "x"}},
        {"curve": {k: [*v, *v] for k, v in left.diagnostics["curve"].items()}},  # its steps do not rise
    ):
        results.write(paths[1], dataclasses.replace(left, diagnostics=left.diagnostics | damaged))
        with pytest.raises(UserError, match="is no result of online training, or damaged"):
            report.find(tmp_path / "results", quick=True)
    results.write(paths[1], left)
    monkeypatch.setattr(work.policies, "constant_action", lambda policy, states: np.zeros(3))
    with pytest.raises(SystemExit):
        finetune.main(config(tmp_path, reward="sparse", method=("uft",), **other))
    assert "answers every state with one action" in json.loads(failure.read_text())["error"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ppo": PPOConfig(kl_weight=9.0)}, "holds runs of hopper-medium-replay .dense. with another --ppo; choose"),
        ({"start": "sft"}, "with another --start; choose another --out"),
        ({"start": "sft", "methods": ("rl",), "out": "new"}, "--start has no effect, since rl starts from no policy"),
        ({"seeds": (), "out": "new"}, "--seeds"),
        ({"rewards": (), "out": "new"}, "--rewards must be dense, sparse or both"),
        ({"methods": (), "out": "new"}, "--methods must name"),
    ],
)
def test_the_comparison_tells_mistakes_before_it_trains(tmp_path, monkeypatch, changes, sentence):
    committed = Path(__file__).parents[1] / "results/online/hopper-medium-replay"
    some = next(p for p in sorted(committed.glob("bc-rl-*.json")) if results.read(p).config["reward"] == "dense")
    (tmp_path / "there").mkdir()
    shutil.copy(some, tmp_path / "there")
    trained = []
    monkeypatch.setattr(finetune, "main", trained.append)
    out = tmp_path / changes.pop("out", "there")
    of = {"tasks": ("hopper-medium-replay",), "methods": ("bc-rl",), "rewards": ("dense", "sparse"), "seeds": (0,)}
    with pytest.raises(UserError, match=sentence):
        comparison.main(comparison.OnlineConfig(**of | changes, out=out))
    assert not trained


def test_differences_are_paired_by_seed(tmp_path):
    """Seeds far apart, a method always 5 above: the interval of the pairs is what tells it."""
    finetune.main(config(tmp_path, method=("uft",), reward="sparse"))
    (path,) = (tmp_path / "results").rglob("*.json")
    made = results.read(path)
    of_start = made.diagnostics["bc_start"]
    runs = {
        name: [
            dataclasses.replace(
                made,
                method=name,
                seed=seed,
                normalised_score=10.0 * seed + above,
                diagnostics=made.diagnostics | {"bc_start": of_start | {"normalised_score": 10.0 * seed - 1}},
            )
            for seed in seeds
        ]
        for name, above, seeds in (("bc-rl", 0.0, (0, 1, 2)), ("uft", 5.0, (0, 2, 3)))
    }
    panels = {report.Panel(task, "sparse", 300): runs for task in ("hopper-medium-replay", "walker2d-medium-replay")}
    header, _, *lines = report.differences_markdown(panels).splitlines()
    cells = {row[1].strip(): row[2:-1] for row in (line.split("|") for line in lines)}
    assert header.split("|")[-2].strip() == "mean over tasks, sparse"
    assert {c.strip() for c in cells["UFT, minus PPO from BC"]} == {"+5.0 [all equal]"}
    assert {c.strip() for c in cells["PPO from BC, minus BC"]} == {"+1.0 [all equal]"}
    assert list(cells) == ["PPO from BC, minus BC", "UFT, minus PPO from BC"]  # those that there are runs of
    runs["bc-rl"][0] = dataclasses.replace(runs["bc-rl"][0], normalised_score=3.0)
    corrected = report.differences_markdown(panels)
    expected = statistics.mean_interval(np.array([4.0, 1.0, 1.0]), 2)  # two comparisons
    assert f"| {expected.value:+.1f} [{expected.low:+.1f}, {expected.high:+.1f}] |" in corrected
    begun = {
        "config": made.config | {"start": "iw-sft-q"},
        "diagnostics": made.diagnostics | {"iw-sft-q_start": of_start},
    }
    others = [dataclasses.replace(run, **begun) for run in runs["bc-rl"]]
    elsewhere = report.differences_markdown({report.Panel("hopper-medium-replay", "sparse", 300): {"bc-rl": others}})
    assert "| PPO from iw-sft-q, minus iw-sft-q |" in elsewhere and "BC" not in elsewhere
    panels[report.Panel("hopper-medium-replay", "sparse", 40_000)] = runs  # never averaged with the other budget
    columns = [c.strip() for c in report.differences_markdown(panels).splitlines()[0].split("|")[2:-1]]
    assert columns[2:] == ["hopper-medium-replay, sparse, 40,000 steps", "mean over tasks, sparse, 300 steps"]
    named = [line.split(" | ")[1] for line in report.to_markdown(panels).splitlines()[2:]]
    assert set(named) == {"sparse, 300 steps", "sparse, 40,000 steps"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"env": None}, "say what to run"),
        ({"method": ("utf",)}, "did you mean uft"),
        ({"method": ()}, "one or more different methods"),
        ({"seeds": (-1,)}, "--seeds must lie"),
        ({"steps": 0}, "--steps must be positive"),
        ({"ref_min_score": 1.0}, "give both"),
        ({"ppo": PPOConfig(clip=0.0)}, "--ppo.clip must be positive"),
        ({"prefix": PrefixConfig(low=0.99)}, "--prefix.low must not be above"),
        ({"ppo": PPOConfig(group_size=1)}, "at least 2 for prefix-rft"),
        ({"ppo": PPOConfig(group_size=1), "method": ("uft",), "reward": "sparse"}, "an episode is held to its group"),
        ({"env": "hopper-medium-repay"}, "unknown task"),
        ({"ppo": PPOConfig(discount=1.0)}, r"--ppo.discount must lie in \[0, 1\)"),
    ],
)
def test_user_errors(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        finetune.main(config(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"ppo": PPOConfig(trace=0.5), "reward": "sparse"},
            "--ppo.trace has no effect on uft, prefix-rft with the rew",
        ),
        ({"ppo": PPOConfig(divide_by_std=True)}, "--ppo.divide-by-std has no effect on .* and the estimator gae;"),
        ({"prefix": PrefixConfig(pieces=3), "method": ("prefix-rft",)}, "--prefix.pieces has no effect on prefix-rft"),
        ({"policy": PolicyConfig(fine_tune_steps=9)}, "--policy.fine-tune-steps has no effect, since --start is bc;"),
        ({"policy": PolicyConfig(bc_steps=9), "method": ("rl",)}, "--policy.bc-steps has no effect, since rl starts"),
        ({"start": "sft", "method": ("rl",)}, "--start has no effect, since rl starts from no policy"),
    ],
)
def test_an_option_without_an_effect_is_refused_on_the_command_line(tmp_path, changes, sentence, monkeypatch):
    monkeypatch.setattr(finetune, "main", None)
    with pytest.raises(UserError, match=sentence):
        finetune.command(
            finetune.FinetuneConfig(**{"env": "hopper-medium-replay", "method": ("uft", "prefix-rft")} | changes)
        )
    trained = []
    monkeypatch.setattr(finetune, "main", trained.append)
    finetune.command(config(tmp_path))
    finetune.command(config(tmp_path, start="sft", policy=PolicyConfig(fine_tune_steps=9), method=("rl", "uft")))
    assert len(trained) == 2


CHANGED = {
    "ppo": {"discount": 0.5, "trace": 0.5, "critic_learning_rate": 0.1, "critic_hidden": (4,), "critic_warmup": 1,
            "divide_by_std": True, "centred": False, "likelihood_weight": 3.0, "kl_weight": 3.0},
    "prefix": {"pieces": 2, "unhinted_share": 0.9, "hinted_share": 0.1, "high": 0.4, "low": 0.3, "entropy_share": 0.9},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("group", "option"), [(group, option) for group, each in CHANGED.items() for option in each])
def test_the_settings_that_have_an_effect_are_those_that_change_what_is_learned(group, option):
    """Of the last use that is said to have none and the last that is said to have one, the training says so too.

    The last ones are those with prefixes, whose outcomes differ from the first update on.
    """
    uses = [
        methods.Use(m, e, r) for r in ("dense", "sparse") for e in ("gae", "group") for m in methods.METHODS.values()
    ]
    has_effect, value = methods.EFFECTS[f"{group}.{option}"], CHANGED[group][option]
    for expected in (False, True):
        use = next(use for use in reversed(uses) if has_effect(use) == expected)
        name = next(name for name, method in methods.METHODS.items() if method == use.method)
        common = {"estimator": use.estimator, "policy_learning_rate": 0.02, "target_kl": 0.5}
        runs = [
            teach(name, 900, use.reward == "sparse", PrefixConfig(**prefix), ppo=common | ppo)
            for ppo, prefix in (({}, {}), ({option: value}, {}) if group == "ppo" else ({}, {option: value}))
        ]
        pairs = zip(*(jax.tree.leaves(run.policy) for run in runs), strict=True)
        assert all((a == b).all() for a, b in pairs) != expected


def test_sft_learns_from_the_demonstrations():
    chosen = finetune.validate(finetune.FinetuneConfig("hopper-medium-replay", prefix=PrefixConfig(percentile=50)))
    assert chosen["curation"].filter_percentile == 50


def test_training_starts_from_what_another_method_learned(tmp_path):
    """From iw-SFT(Q), with its score as the start's, and its settings in the result."""
    write_hopper("my/hopper/small-v0")
    setup_of = config(tmp_path, start="iw-sft-q", method=("bc-rl",), env=None, dataset="my/hopper/small-v0")
    source = jobs.DataSource(None, "my/hopper/small-v0")
    data, kept = source.load(), store.Store(tmp_path / "stages")
    small = finetune.validate(setup_of).replace(critic=CriticConfig(steps=20, hidden=(8,), batch_size=16))
    stage = stages.method_stage("iw-sft-q", "q", (0,), small, source.task)
    made = perform(stage, data, kept)
    chosen = Setup(setup_of.ppo, METHODS["bc-rl"], (8,), 3, False, 0.0)
    params = work.starting_policy(chosen, setup_of, data, made, 0)
    rows = data.observations[:50]
    mean, _ = chosen.policy.apply(params, rows)
    start = jax.tree.map(lambda x: x[0], made.arrays["params"])
    wanted, _ = GaussianPolicy((8,), 3).apply(start, rows)
    np.testing.assert_allclose(mean, wanted, rtol=1e-5)
    offline = export.whole_configuration(stage)
    assert {"critic", "importance", "curation"} <= set(offline) and offline["policy"]["bc_steps"] == 20


def test_a_result_tells_an_environment_that_is_not_as_registered(tmp_path):
    shorter = copy.deepcopy(gym.spec("d4rl/Hopper-v2"))  # else of the registry
    shorter.max_episode_steps = 50
    data = dataclasses.replace(make_data(), environment=shorter)
    found = work._skeleton(config(tmp_path), data, "hopper", "uft", 0, {}).physics
    assert found == store.environment(data) and found["specification"]["max_episode_steps"] == 50


def test_other_environments_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(work, "make_batch", lambda *x: make_batch("Pendulum-v1", 1))
    with pytest.raises(UserError, match="cannot be put into a recorded state"):
        finetune.main(config(tmp_path))


def test_what_asks_for_trust_is_refused_without_an_option_that_is_not_there(tmp_path):
    write_hopper("my/hopper/other-v0")
    path = minari_files.minari_path("my/hopper/other-v0") / "data/metadata.json"
    metadata = json.loads(path.read_text())
    spec = json.loads(metadata["env_spec"]) | {"kwargs": {"xml_file": "mine.xml"}}
    path.write_text(json.dumps(metadata | {"env_spec": json.dumps(spec)}))
    with pytest.raises(UserError, match="my/hopper/other-v0 cannot be put into a recorded state") as error:
        finetune.main(config(tmp_path, env=None, dataset="my/hopper/other-v0"))
    assert "--trust" not in str(error.value)


@pytest.mark.parametrize("default", [PPOConfig(), PrefixConfig()])
def test_bounds_stand_with_every_number(default):
    for field in dataclasses.fields(default):
        number = getattr(default, field.name)
        numbers = number if isinstance(number, tuple) else (number,)
        if all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers):
            broken = tuple(-1 for _ in numbers) if isinstance(number, tuple) else -1
            with pytest.raises(UserError, match="--group"):
                bounds.check(dataclasses.replace(default, **{field.name: broken}), "group")
