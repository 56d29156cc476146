"""The batched simulation equals Gymnasium's environments exactly; evaluation counts what it should."""

import gymnasium as gym
import mujoco
import numpy as np
import pytest

from iwsft_control.base.errors import RunError
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
        observations, rewards, terminated, truncated = batch.step(active, actions)
        theirs = [envs[i].step(a) for i, a in zip(active, actions, strict=True)]
        np.testing.assert_array_equal(observations, [t[0] for t in theirs])
        np.testing.assert_array_equal(rewards, [t[1] for t in theirs])
        np.testing.assert_array_equal(terminated, [t[2] for t in theirs])
        np.testing.assert_array_equal(truncated, [t[3] for t in theirs])
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
    for i in range(n):
        batch.set_state(i, qpos[i], qvel[i])
    actions = rng.uniform(-1, 1, (n, batch.action_dim))
    observations, rewards, terminated, _ = batch.step(np.arange(n), actions)
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


@pytest.mark.parametrize("shape", [(3, 1), (3,), (1, 6), (3, 7)])
def test_actions_of_another_shape_are_not_repeated_for_every_joint(shape):
    with pytest.raises(PolicyError, match=r"the actions at step 0 are of shape .*must be of shape \(3, 6\)"):
        evaluate(lambda observations: np.zeros(shape, np.float32), "d4rl/HalfCheetah-v2", 3, threads=1)


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


def test_only_so_many_episodes_are_in_memory_at_once(monkeypatch):
    """Ten thousand simulators would be ten gigabytes; the returns are those of all at once."""
    policy = linear_policy(D4RLBatch("d4rl/Hopper-v2", 1))
    whole = evaluate(policy, "d4rl/Hopper-v2", 60)
    sizes, told = [], []
    monkeypatch.setattr(evaluation, "TOGETHER", evaluation.LANE)
    monkeypatch.setattr(evaluation, "make_batch", lambda spec, n: sizes.append(n) or make_batch(spec, n))
    np.testing.assert_array_equal(whole, evaluate(policy, "d4rl/Hopper-v2", 60, on_lane=told.append))
    assert sizes == told == [25, 25, 10]


# --- starting inside an episode, recording, policies with a memory ---------------------------------------------------


@pytest.mark.parametrize("env_id", ["d4rl/Hopper-v2", "d4rl/HalfCheetah-v2", "d4rl/Walker2d-v2"])
def test_set_state_goes_on_where_an_episode_was(env_id):
    """An episode that is taken up in its middle goes on as it did; one taken up near its end ends at the same step."""
    batch = D4RLBatch(env_id, 1)
    recorder = evaluation.Recorder([0])
    evaluate(linear_policy(batch), env_id, 1, recorder=recorder)
    episode = recorder.recordings[0]
    length = len(episode.rewards)
    steps = min(20, length // 2)
    # No more steps, and not bit for bit: the contact solver's warm start is not part of a state, and contacts are
    # chaotic, so how far it is later depends on the processor.
    for start in (length // 2, length - steps):
        observation = batch.set_state(0, episode.qpos[start], episode.qvel[start], elapsed=start)
        np.testing.assert_allclose(observation, episode.observations[start], rtol=1e-12, atol=1e-12)
        for step in range(start, min(start + steps, length)):
            _, reward, terminated, truncated = batch.step(np.arange(1), episode.actions[step : step + 1])
            assert reward[0] == pytest.approx(episode.rewards[step], abs=1e-3)
            assert (terminated[0] or truncated[0]) == (step == length - 1)


def test_set_state_counts_the_steps_that_are_over():
    batch = D4RLBatch("d4rl/HalfCheetah-v2", 2)
    batch.reset([0, 1])
    qpos, qvel = batch.state(np.arange(2))
    batch.set_state(1, qpos[0], qvel[0], elapsed=998)
    still = np.zeros((2, 6))
    assert batch.step(np.arange(2), still)[3].tolist() == [False, False]
    assert batch.step(np.arange(2), still)[3].tolist() == [False, True]
    batch.reset_one(1, 5)
    assert not batch.step(np.arange(2), still)[3].any()


def test_real_rows_replayed_by_set_state(piece):
    """Every recorded D4RL row, set as a state, gives the recorded next observation and reward."""
    name, rows = piece
    env_id = {"hopper": "d4rl/Hopper-v2", "halfcheetah": "d4rl/HalfCheetah-v2", "walker2d": "d4rl/Walker2d-v2"}[name]
    unclipped = np.flatnonzero((np.abs(rows["infos/qvel"]) < 10).all(axis=1))[:300]
    chosen = np.arange(300) if name == "halfcheetah" else unclipped
    batch = D4RLBatch(env_id, len(chosen))
    observed = [batch.set_state(i, rows["infos/qpos"][r], rows["infos/qvel"][r]) for i, r in enumerate(chosen)]
    np.testing.assert_allclose(observed, rows["observations"][chosen], atol=1e-5)
    observations, rewards, *_ = batch.step(np.arange(len(chosen)), rows["actions"][chosen])
    assert np.abs(observations - rows["next_observations"][chosen]).max() < 1e-4
    assert np.abs(rewards - rows["rewards"][chosen]).max() < 1e-4


def test_a_recorder_keeps_the_chosen_episodes_and_changes_none():
    policy = linear_policy(D4RLBatch("d4rl/Hopper-v2", 1))
    recorder = evaluation.Recorder([1, 26])
    returns = evaluate(policy, "d4rl/Hopper-v2", 30, recorder=recorder)
    np.testing.assert_array_equal(returns, evaluate(policy, "d4rl/Hopper-v2", 30))
    evaluate(policy, "d4rl/Hopper-v2", 30, recorder=recorder)  # again: what was kept before is forgotten
    kept = recorder.recordings
    assert set(kept) == {1, 26}
    for i, episode in kept.items():
        assert episode.rewards.sum() == pytest.approx(returns[i])
        assert episode.reset_seed == evaluation.FIRST_RESET_SEED + i
        assert episode.terminated == (len(episode.rewards) < 1000)
        np.testing.assert_allclose(episode.qpos[:, 1:], episode.observations[:, :5])
        np.testing.assert_allclose(np.clip(episode.qvel, -10, 10), episode.observations[:, 5:])
        assert len(episode.observations) == len(episode.qpos) == len(episode.actions) + 1
        start = gym.make("d4rl/Hopper-v2").reset(seed=episode.reset_seed)[0]
        np.testing.assert_array_equal(episode.observations[0], start)


class Counting:
    """A policy with a memory: it counts each environment's steps, and acts by the count and at random."""

    def __init__(self):
        self.seen = []

    def initial(self, n):
        return {"steps": np.zeros(n, int)}

    def act(self, carry, observations, key):
        self.seen.append(carry["steps"].copy())
        noise = key.uniform(-0.5, 0.5, (len(observations), 3))
        return np.where(carry["steps"][:, None] % 2, 0.5, -0.5) + noise, {"steps": carry["steps"] + 1}


def test_a_policy_may_have_a_memory_and_act_at_random():
    """Its memory loses the rows of episodes that ended; its randomness does not depend on threads."""
    policy = Counting()
    returns = evaluate(policy, "d4rl/Hopper-v2", 10, threads=1)
    assert [len(set(row)) for row in policy.seen] == [1] * len(policy.seen)
    assert [row[0] for row in policy.seen] == list(range(len(policy.seen)))
    assert len(policy.seen[-1]) < 10
    many = evaluate(Counting(), "d4rl/Hopper-v2", 60, threads=2)
    np.testing.assert_array_equal(many, evaluate(Counting(), "d4rl/Hopper-v2", 60, threads=1))
    assert not np.array_equal(returns, evaluate(Counting(), "d4rl/Hopper-v2", 10, first_seed=7))


class Truncating(gym.Env):
    """Truncates itself after five steps, whatever its time limit."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(2), 1.0, False, self.steps == 5, {}


def test_an_environment_that_truncates_itself_has_ended():
    spec = gym.envs.registration.EnvSpec("Truncating-v0", entry_point=Truncating, max_episode_steps=50)
    returns = evaluate(lambda o: np.zeros((len(o), 1), np.float32), spec, 3)
    np.testing.assert_array_equal(returns, 5.0)


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_told(reward):
    """A score of NaN would name no cause."""

    class Broken(Truncating):
        def step(self, action):
            observation, _, *rest = super().step(action)
            return observation, reward if self.steps == 3 else 1.0, *rest

    spec = gym.envs.registration.EnvSpec("Broken-v0", entry_point=Broken, max_episode_steps=5)
    with pytest.raises(
        RunError, match=r"mine, reset seed 1000000 \+ 0: the environment's reward at step 2 is (nan|inf),"
    ):
        evaluate(lambda o: np.zeros((len(o), 1), np.float32), spec, 2, name="mine")
