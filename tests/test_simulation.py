"""The batched simulation equals Gymnasium's environments exactly; evaluation counts what it should."""

import gymnasium as gym
import numpy as np
import pytest

from iwsft_control.envs import evaluation
from iwsft_control.envs.batch import D4RLBatch, GymnasiumBatch, make_batch
from iwsft_control.envs.evaluation import PolicyError, evaluate

ENV_IDS = ["d4rl/Hopper-v2", "d4rl/HalfCheetah-v2", "d4rl/Walker2d-v2"]


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_equals_gymnasium_step_by_step(env_id):
    n, rng = 6, np.random.default_rng(0)
    batch, envs = D4RLBatch(env_id, n), [gym.make(env_id) for _ in range(n)]
    seeds = list(range(10, 10 + n))
    np.testing.assert_array_equal(batch.reset(seeds), [e.reset(seed=s)[0] for e, s in zip(envs, seeds, strict=True)])
    active = np.arange(n)
    for _ in range(300):
        # Small actions keep a hopper up for longer; some leave the box, as a sampled action may.
        actions = rng.uniform(-1.1, 1.1, (len(active), batch.action_dim)).astype(np.float32) * rng.random()
        observations, rewards, terminated = batch.step(active, actions)
        theirs = [envs[i].step(a) for i, a in zip(active, actions, strict=True)]
        np.testing.assert_array_equal(observations, [t[0] for t in theirs])
        np.testing.assert_array_equal(rewards, [t[1] for t in theirs])
        np.testing.assert_array_equal(terminated, [t[2] for t in theirs])
        active = active[~terminated]
        if not len(active):
            break


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_same_states_same_step(env_id):
    """From wild states too (healthy or not): one step from the same state and action is the same."""
    n, rng = 20, np.random.default_rng(1)
    batch, env = D4RLBatch(env_id, n), gym.make(env_id).unwrapped
    batch.reset(list(range(n)))
    start = batch.state(np.arange(n))
    qpos = start[0] + rng.normal(0, 0.3, start[0].shape)
    qvel = start[1] + rng.normal(0, 5, start[1].shape)
    import mujoco

    for i in range(n):
        mujoco.mj_resetData(batch.model, batch.data[i])
        batch.data[i].qpos[:], batch.data[i].qvel[:] = qpos[i], qvel[i]
        mujoco.mj_forward(batch.model, batch.data[i])
    batch._x[:] = qpos[:, 0]
    actions = rng.uniform(-1, 1, (n, batch.action_dim))
    observations, rewards, terminated = batch.step(np.arange(n), actions)
    assert env_id == "d4rl/HalfCheetah-v2" or 0 < terminated.sum() < n
    for i in range(n):
        mujoco.mj_resetData(env.model, env.data)
        env.set_state(qpos[i], qvel[i])
        o, r, t, *_ = env.step(actions[i])
        np.testing.assert_array_equal(observations[i], o)
        assert (rewards[i], terminated[i]) == (r, t)


def linear_policy(batch, seed=0):
    weights = np.random.default_rng(seed).normal(0, 0.3, (batch.observation_dim, batch.action_dim)).astype(np.float32)
    return lambda o: np.tanh(o @ weights)


@pytest.mark.parametrize("env_id", ["d4rl/Hopper-v2", "d4rl/Walker2d-v2"])
def test_evaluation_equals_a_gymnasium_loop_whatever_the_threads(env_id):
    policy = linear_policy(D4RLBatch(env_id, 1))
    returns = evaluate(policy, env_id, 30, first_seed=5)
    np.testing.assert_array_equal(returns, evaluate(policy, env_id, 30, first_seed=5, threads=1))
    env = gym.make(env_id)
    for i in (0, 24, 29):
        total, (observation, _) = 0.0, env.reset(seed=5 + i)
        while True:
            # BLAS may round a batch of one differently; falls this early leave no time to diverge.
            observation, reward, terminated, truncated, _ = env.step(policy(observation[None].astype(np.float32))[0])
            total += reward
            if terminated or truncated:
                break
        assert returns[i] == pytest.approx(total, rel=1e-3)


def test_finished_episodes_are_not_stepped(monkeypatch):
    stepped = []
    original = D4RLBatch.step

    def step(self, active, actions):
        result = original(self, active, actions)
        stepped.append((active.copy(), result[2]))
        return result

    monkeypatch.setattr(D4RLBatch, "step", step)
    evaluate(lambda o: np.ones((len(o), 3), np.float32), "d4rl/Hopper-v2", 10, threads=1)
    finished: set[int] = set()
    for active, terminated in stepped:
        assert not finished & set(active.tolist())
        finished |= set(active[terminated].tolist())
    assert finished == set(range(10))


def test_time_limit(monkeypatch):
    lengths = []
    original = D4RLBatch.step
    monkeypatch.setattr(D4RLBatch, "step", lambda s, a, x: lengths.append(len(a)) or original(s, a, x))
    evaluate(lambda o: np.zeros((len(o), 6), np.float32), "d4rl/HalfCheetah-v2", 3, threads=1)
    assert lengths == [3] * 1000


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1.5])
def test_a_bad_action_is_an_error_that_names_policy_and_step(bad):
    calls = []

    def policy(observations):
        calls.append(1)
        actions = np.zeros((len(observations), 6), np.float32)
        if len(calls) == 4:
            actions[1, 2] = bad
        return actions

    with pytest.raises(PolicyError, match=r"my policy, reset seed 1000000 \+ 1: the action at step 3"):
        evaluate(policy, "d4rl/HalfCheetah-v2", 3, name="my policy", threads=1)


def test_any_gymnasium_environment():
    """Another environment goes through Gymnasium itself, with the same answer as a plain loop."""
    assert isinstance(make_batch("Swimmer-v5", 1), GymnasiumBatch)
    policy = linear_policy(make_batch("Swimmer-v5", 1))
    returns = evaluate(policy, "Swimmer-v5", 2, first_seed=3)
    env = gym.make("Swimmer-v5")
    total, (observation, _) = 0.0, env.reset(seed=3)
    for _ in range(1000):
        observation, reward, *_ = env.step(policy(observation[None].astype(np.float32))[0])
        total += reward
    assert returns[0] == pytest.approx(total, rel=0.05, abs=0.5)


def test_reset_seeds_are_fixed_and_matter():
    policy = linear_policy(D4RLBatch("d4rl/Hopper-v2", 1))
    returns = evaluate(policy, "d4rl/Hopper-v2", 10)
    assert len(set(returns)) == 10
    np.testing.assert_array_equal(returns, evaluate(policy, "d4rl/Hopper-v2", 10))
    assert evaluation.EPISODES == 100
