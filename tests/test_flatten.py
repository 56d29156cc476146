"""Dict observations, a goal beside the state: flattened alike in data and environment, as Gymnasium does it."""

import json
from collections import OrderedDict

import gymnasium as gym
import h5py
import numpy as np
import pytest
from gymnasium.wrappers import FlattenObservation
from minari.serialization import serialize_space

import iwsft_control as iwsft
from iwsft_control import run, sweep
from iwsft_control.base.errors import UserError
from iwsft_control.benchmark import checks, grid, results, settings
from iwsft_control.datasets import load, minari_files
from iwsft_control.envs import evaluation, specs
from iwsft_control.envs.batch import make_batch
from tests.conftest import make_episodes
from tests.test_run import POLICY

ID, ENV = "test/maze/small-v0", "SmallMaze-v0"
SCORES = {"ref_min_score": -100.0, "ref_max_score": 0.0}
LENGTHS = (12, 5, 20)


def space(*names, kind=dict):
    """A goal-conditioned space; its parts differ in width, shape and type."""
    boxes = {
        "observation": gym.spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
        "desired_goal": gym.spaces.Box(-np.inf, np.inf, (3,), np.float32),
        "achieved_goal": gym.spaces.Box(-np.inf, np.inf, (1,), np.float64),
    }
    return gym.spaces.Dict(kind((name, boxes[name]) for name in names or boxes))


class Maze(gym.Env):
    """Observations whose every value tells its part and place."""

    def __init__(self, ordered=False, render_mode=None):
        names = ("observation", "achieved_goal", "desired_goal") if ordered else ()
        self.observation_space = space(*names, kind=OrderedDict if ordered else dict)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.t = 0.0

    def seen(self):
        return {
            "observation": self.t + np.arange(4.0).reshape(2, 2) / 10,
            "desired_goal": np.array([100, 101, 102], np.float32),
            "achieved_goal": np.array([-self.t]),
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0.0
        return self.seen(), {}

    def step(self, action):
        self.t += 1.0
        return self.seen(), -1.0, False, False, {}


@pytest.fixture(autouse=True)
def registered():
    gym.register(ENV, entry_point="tests.test_flatten:Maze", max_episode_steps=7)
    gym.register("Ordered-v0", entry_point="tests.test_flatten:Maze", max_episode_steps=7, kwargs={"ordered": True})
    yield
    del gym.registry[ENV], gym.registry["Ordered-v0"]


def write(env_id=ENV, ordered=False):
    """A data set of the maze in Minari's layout; returns the dict observations of every episode."""
    episodes = make_episodes(LENGTHS, observation_dim=2, action_dim=2, states=False)
    minari_files.write_minari(ID, episodes, "MountainCarContinuous-v0", SCORES)
    env = Maze(ordered)
    spec = json.dumps({"id": env_id, "max_episode_steps": 7})
    declare(observation_space=serialize_space(env.observation_space), env_spec=spec)
    seen = []
    with h5py.File(minari_files.minari_path(ID) / "data/main_data.hdf5", "a") as file:
        for e, length in enumerate(LENGTHS):
            states = [env.reset()[0], *(env.step(None)[0] for _ in range(length))]
            del file[f"episode_{e}/observations"]
            for name in env.observation_space.spaces:
                file[f"episode_{e}/observations/{name}"] = np.array([s[name] for s in states])
            seen.append(states)
    return seen


def declare(**changes):
    path = minari_files.minari_path(ID) / "data/metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_flattening_is_offered_and_not_done_unasked():
    write()
    for _ in range(2):  # neither before nor after the cache holds the flattened arrays
        with pytest.raises(
            UserError, match=r"\(achieved_goal, desired_goal, observation\); give --flatten-observations"
        ):
            load.load(None, ID)
        load.load(None, ID, flatten_observations=True)


@pytest.mark.parametrize("ordered", [False, True])
def test_data_and_environment_are_flattened_as_gymnasium_does(ordered):
    env_id = "Ordered-v0" if ordered else ENV
    seen = write(env_id, ordered)
    data = iwsft.load(dataset=ID, flatten_observations=True)
    declared = Maze(ordered).observation_space
    flat = [np.array([gym.spaces.flatten(declared, s) for s in states], np.float32) for states in seen]
    np.testing.assert_array_equal(data.observations, np.concatenate([x[:-1] for x in flat]))
    np.testing.assert_array_equal(data.next_observations, np.concatenate([x[1:] for x in flat]))
    assert data.observation_parts == {"achieved_goal": 1, "desired_goal": 3, "observation": 4}
    checks.check_environment(data)
    batch, env = make_batch(data.environment, 1), FlattenObservation(gym.make(env_id))
    np.testing.assert_array_equal(batch.reset([3])[0], env.reset(seed=3)[0])
    step = batch.step(np.array([0]), np.zeros((1, 2)))[0][0]
    np.testing.assert_array_equal(step, env.step(np.zeros(2, np.float32))[0])
    np.testing.assert_allclose(step, data.next_observations[0])  # the same state, on either way
    np.testing.assert_array_equal(evaluation.evaluate(lambda o: o[:, :2] * 0, data.environment, 2), [-7.0, -7.0])


def test_an_environment_with_another_order_is_refused():
    """The widths would agree: observation and desired_goal changed places."""
    write("Ordered-v0")
    with pytest.raises(UserError, match="or in another order"):
        checks.check_environment(load.load(None, ID, flatten_observations=True))


def test_a_run_on_dict_observations(tmp_path):
    write()
    options = {"dataset": ID, "method": ("bc",), "quick": True, "policy": POLICY, "results": tmp_path / "results"}
    with pytest.raises(UserError, match="--flatten-observations"):
        run.main(run.RunConfig(**options))
    run.main(run.RunConfig(**options, flatten_observations=True))
    result = results.read(next((tmp_path / "results").rglob("*.json")))
    assert result.episode_returns == [-7.0] * 5
    policy = iwsft.load_policy(next((tmp_path / "results").rglob("*.safetensors")))
    assert policy(FlattenObservation(gym.make(ENV)).reset()[0]).shape == (2,)


def test_a_sweep_hands_the_option_on():
    plan = sweep.Plan(tasks=("hopper-medium-replay",), methods=("bc",), seeds=(0,), flatten_observations=True)
    assert all(job.source.flatten_observations for job in grid.plan_jobs(plan, settings.make()))


def test_vectors_stay_as_they_are():
    episodes = make_episodes(observation_dim=2, action_dim=1, states=False)
    minari_files.write_minari(ID, episodes, "MountainCarContinuous-v0", SCORES)
    plain, asked = load.load(None, ID), load.load(None, ID, flatten_observations=True)
    assert plain.sha256 == asked.sha256 and asked.environment == "MountainCarContinuous-v0"


def test_an_environment_that_was_flattened_when_it_was_recorded_needs_no_trust():
    spec = FlattenObservation(gym.make(ENV)).spec.to_json()
    environment = specs.declared(spec.replace("tests.test_flatten:Maze", "elsewhere:Maze"), "data")
    assert environment == specs.flattened(ENV)


DEEP = '{"type": "Dict", "subspaces": {"a": ' * 50 + "3" + "}}" * 50


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s["subspaces"].update(extra={"type": "Discrete", "n": 3, "start": 0}), "extra is no box"),
        (lambda s: s["subspaces"]["desired_goal"].update(shape=[2]), "2 values for each of 13 states are declared"),
        (lambda s: s["subspaces"]["desired_goal"].update(shape=[-2]), "desired_goal is no box"),
        (lambda s: s["subspaces"].update(more={"type": "Box", "shape": [1]}), "holds no observations/more"),
        (lambda s: s.update(subspaces={}), "of kind Dict"),
        (lambda s: s.update(subspaces=3), "of kind Dict"),
        (lambda s: s["subspaces"].update(deep=json.loads(DEEP)), "a/a.* is no box"),
    ],
)
def test_dicts_that_are_not_what_they_declare(change, sentence):
    write()
    declared = json.loads(serialize_space(Maze().observation_space))
    change(declared)
    declare(observation_space=json.dumps(declared))
    with pytest.raises(UserError, match=sentence):
        load.load(None, ID, flatten_observations=True)


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
@pytest.mark.filterwarnings("ignore")  # of Minari, that nobody is named as its author
def test_dict_observations_in_arrow(kind):
    pytest.importorskip("pyarrow")
    import minari
    from minari.data_collector.episode_buffer import EpisodeBuffer

    env, episodes = Maze(), make_episodes(LENGTHS, observation_dim=2, action_dim=2, states=False)
    buffers, flat = [], []
    for e, (a, b) in enumerate(zip(episodes.starts[:-1], episodes.starts[1:], strict=True)):
        states = [env.reset()[0], *(env.step(None)[0] for _ in range(b - a))]
        columns = {n: list(getattr(episodes, n)[a:b]) for n in ("rewards", "terminations", "truncations")}
        observed = {name: np.array([s[name] for s in states]) for name in env.observation_space.spaces}
        buffers.append(EpisodeBuffer(id=e, observations=observed, actions=episodes.actions[a:b], **columns))
        flat += [gym.spaces.flatten(env.observation_space, s) for s in states[:-1]]
    minari.create_dataset_from_buffers(
        ID, buffers, env=gym.make(ENV), data_format=kind, observation_space=env.observation_space
    )
    declare(**SCORES, env_spec=json.dumps({"id": ENV}))
    data = load.load(None, ID, flatten_observations=True)
    np.testing.assert_array_equal(data.observations, np.array(flat, np.float32))
