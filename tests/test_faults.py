"""Data that a stranger wrote: nothing of theirs is run, nothing is scored otherwise than they declare."""

import contextlib
import copy
import dataclasses
import functools
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import gymnasium as gym
import h5py
import mujoco
import numpy as np
import pytest
from gymnasium.envs.registration import WrapperSpec
from minari.serialization import serialize_space
from safetensors import SafetensorError
from safetensors.numpy import save_file

from experiments import fuzz, promises, sequences
from iwsft_control import load_policy, run, sweep, table
from iwsft_control.base import console, files, snapshot
from iwsft_control.base.errors import UserError
from iwsft_control.benchmark import checks, grid, results, settings, sources, stages, store
from iwsft_control.benchmark.perform import perform
from iwsft_control.benchmark.store import Store
from iwsft_control.configs.supervised import PolicyConfig
from iwsft_control.datasets import d4rl_files, hdf5, load, minari_files, packed
from iwsft_control.envs import evaluation, physics, specs, tasks
from iwsft_control.envs.batch import GymnasiumBatch, make_batch
from iwsft_control.reconstruction import pool, portraits
from iwsft_control.report import curves, online
from tests.conftest import make_data, make_episodes
from tests.test_report import make_run

ID = "test/car/small-v0"
SCORES = {"ref_min_score": -20.0, "ref_max_score": 3000.0}
HOPPER = tasks.parse_task("hopper-medium-replay")
CAR, PENDULUM = "MountainCarContinuous-v0", "Pendulum-v1"  # 2 observations and 1 action, 3 and 1


def write(env_id=CAR, **changes):
    """A small data set of an environment, with changed metadata; returns its episodes."""
    env = gym.make(env_id)
    dims = env.observation_space.shape[0], env.action_space.shape[0]
    episodes = make_episodes((30, 5, 17), observation_dim=dims[0], action_dim=dims[1], states=False)
    minari_files.write_minari(ID, episodes, env_id, SCORES)
    declare(**changes)
    return episodes


def declare(**changes):
    """Change the metadata of the data set; None takes a field out."""
    path = minari_files.minari_path(ID) / "data/metadata.json"
    metadata = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in metadata.items() if v is not None}), encoding="utf-8")


def spec(env_id=CAR, **changes):
    """Gymnasium's JSON of an environment, changed."""
    return json.dumps(json.loads(gym.spec(env_id).to_json()) | changes)


def in_file(change):
    """Change the HDF5 file of the data set."""
    with h5py.File(minari_files.minari_path(ID) / "data/main_data.hdf5", "a") as file:
        change(file)


def replace(path, values):
    def change(file):
        old = file[path][()]
        del file[path]
        file[path] = values(old) if callable(values) else values

    return change


# --- nothing of a data set is imported or called ---------------------------------------------------------------------

STRANGER = """
import gymnasium as gym
from pathlib import Path
Path(__file__).with_name("imported").touch()
class Env(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Box(-1, 1, (1,))
    def reset(self, **kwargs):
        return self.observation_space.low.copy(), {}
    def step(self, action):
        return self.observation_space.low.copy(), 3.0, False, False, {}
class Doubled(gym.RewardWrapper, gym.utils.RecordConstructorArgs):
    def __init__(self, env, factor=2.0):
        gym.utils.RecordConstructorArgs.__init__(self, factor=factor)
        super().__init__(env)
    def reward(self, reward):
        return 2 * reward
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """The path that appears when a module of a stranger is imported."""
    (tmp_path / "stranger_module.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "imported"
    sys.modules.pop("stranger_module", None)


DOUBLED = {"name": "Doubled", "entry_point": "stranger_module:Doubled", "kwargs": {"factor": 2.0}}


@pytest.mark.parametrize(
    ("declared", "imported"),
    [
        (spec(id="Stranger-v0", entry_point="stranger_module:Env"), "import and call stranger_module:Env"),
        (spec(additional_wrappers=[DOUBLED]), "import and call stranger_module:Doubled"),
        (spec(kwargs={"xml_file": "/etc/passwd"}), "pass xml_file='/etc/passwd' to Mount"),
        (spec(kwargs={"goal_velocity": [1, 2]}), "pass goal_velocity="),
        (spec(kwargs={"goal_velocity": float("nan")}), "pass goal_velocity=nan"),
        (
            spec(additional_wrappers=[DOUBLED | {"name": "TimeLimit", "entry_point": "stranger_module:TimeLimit"}]),
            "import and call stranger_module:TimeLimit",
        ),
    ],
)
@pytest.mark.parametrize("field", ["env_spec", "eval_env_spec"])
def test_what_would_be_imported_is_said_and_not_done(stranger, field, declared, imported):
    write(**{field: declared})
    with pytest.raises(UserError, match=imported) as error:
        checks.check_environment(load.load(None, ID))
    assert "--trust-environment" in str(error.value)
    assert not stranger.exists()


def test_the_entry_point_of_a_registered_environment_is_the_registrys(stranger):
    for kwargs in ({}, {"goal_velocity": 0.01}):
        data = write_and_load(env_spec=spec(entry_point="stranger_module:Env", kwargs=kwargs))
        checks.check_environment(data)
        assert not stranger.exists()
        assert (data.environment == CAR) == (not kwargs)
        if kwargs:
            assert make_batch(data.environment, 1)._envs[0].unwrapped.goal_velocity == 0.01


def write_and_load(trust=False, **changes):
    if not minari_files.minari_path(ID).exists():
        write()
    declare(**changes)
    return load.load(None, ID, trust_environment=trust)


def test_what_is_trusted_is_imported(stranger):
    data = write_and_load(
        trust=True,
        env_spec=spec(
            id="Stranger-v0", entry_point="stranger_module:Env", max_episode_steps=7, additional_wrappers=[DOUBLED]
        ),
    )
    returns = evaluation.evaluate(lambda o: np.zeros((len(o), 1)), data.environment, 2)
    assert stranger.exists()
    np.testing.assert_array_equal(returns, [42.0, 42.0])


def test_a_wrapper_that_cannot_be_made_again_is_named():
    lost = {"name": "Monitor", "entry_point": "somewhere.monitor:Monitor", "kwargs": None}
    for trust in (False, True):
        with pytest.raises(UserError, match=r"Monitor \(somewhere.monitor:Monitor\).*cannot be made again"):
            write_and_load(trust, env_spec=spec(additional_wrappers=[lost]))


def test_wrappers_that_change_nothing_are_not_foreign():
    env = gym.wrappers.RecordEpisodeStatistics(gym.make(CAR, max_episode_steps=50))
    assert env.spec.additional_wrappers
    environment = write_and_load(env_spec=env.spec.to_json()).environment
    assert (environment.id, environment.max_episode_steps, environment.additional_wrappers) == (CAR, 50, ())
    limit = WrapperSpec("TimeLimit", "gymnasium.wrappers.common:TimeLimit", {"max_episode_steps": 20})
    declared = spec(
        additional_wrappers=[{"name": limit.name, "entry_point": limit.entry_point, "kwargs": limit.kwargs}]
    )
    assert write_and_load(env_spec=declared).environment.max_episode_steps == 20


def test_specifications_of_earlier_versions_are_read():
    old = json.loads(spec()) | {"autoreset": False, "apply_api_compatibility": False}
    del old["additional_wrappers"], old["vector_entry_point"]
    assert write_and_load(env_spec=json.dumps(old)).environment == CAR
    assert write_and_load(env_spec=spec(kwargs={"render_mode": "rgb_array"})).environment == CAR


@pytest.mark.parametrize(
    ("declared", "sentence"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no id"),
        ('{"id": "x"}', "not registered here; install"),
        ('{"id": "a b"}', "not an id"),
        ('{"id": "module:Env-v0"}', "not registered here; install"),
        (3, "not text"),
        (spec(max_episode_steps=0), "max_episode_steps is 0"),
        (spec(max_episode_steps=True), "max_episode_steps is True"),
        (spec(kwargs=[]), "kwargs"),
        (spec(additional_wrappers=[3]), "additional_wrappers"),
        (spec(additional_wrappers=3), "additional_wrappers"),
        (spec(surprise=1), "unknown fields .surprise"),
        (spec(apply_api_compatibility=True), "before 0.26"),
        (spec(entry_point=3), "entry_point is not text"),
    ],
)
def test_specifications_that_are_none(declared, sentence):
    with pytest.raises(UserError, match=sentence):
        write_and_load(env_spec=declared)


def test_registered_keyword_arguments_are_not_foreign():
    gym.register("Named-v0", entry_point="nowhere:Env", kwargs={"kind": "dense", "ends": (0, 1)})
    try:
        own = gym.spec("Named-v0").to_json()
        assert specs.declared(own, "data") == "Named-v0"
        with pytest.raises(UserError, match="pass kind='sparse' to Named-v0"):
            specs.declared(own.replace("dense", "sparse"), "data")
    finally:
        del gym.registry["Named-v0"]


def test_keyword_arguments_that_the_environment_does_not_take():
    data = write_and_load(env_spec=spec(kwargs={"gravity": 3}))
    with pytest.raises(
        UserError, match=r"cannot be made .*gravity.*correct its name or arguments, or the data set's env_spec"
    ):
        checks.check_environment(data)


def test_an_edit_of_an_environments_code_is_another_evaluation(stranger):
    """Its reward decides the score: what is stored was taken for the new one's."""
    gym.register("Own-v0", entry_point="stranger_module:Env", max_episode_steps=7, kwargs={})
    try:
        data = dataclasses.replace(make_data(), environment="Own-v0")
        stage = stages.method_stage("bc", "q", (0,), settings.make(), "")

        def looked_up():
            sources.forget()
            return store.key(stage, data), store.environment(data)

        first, found = looked_up()
        assert looked_up() == (first, found)
        assert found["environment"] == "Own-v0" and found["mujoco"] == "not used" and len(found["code"]) == 12
        described = {"entry_point": "stranger_module:Env", "max_episode_steps": 7, "kwargs": {}, "wrappers": []}
        assert found["specification"] == described
        stranger.with_name("stranger_module.py").write_text(STRANGER.replace("3.0", "4.0"))
        edited, other = looked_up()
        assert edited != first and other["code"] != found["code"]
        stranger.with_name("stranger_module.py").write_text(STRANGER + "# a comment\n")
        assert looked_up()[0] == first
        gym.registry["Own-v0"].max_episode_steps = 8
        assert looked_up()[0] != first
    finally:
        del gym.registry["Own-v0"]


def test_results_tell_the_physics_of_other_environments():
    for env_id, version in ((CAR, "not used"), ("Swimmer-v5", mujoco.__version__)):
        found = physics.describe(env_id)
        assert (found["environment"], found["mujoco"], found["corrections"]) == (env_id, version, [])
        assert found["specification"]["max_episode_steps"] == gym.spec(env_id).max_episode_steps
        assert sources.environment_code(env_id) is None  # Gymnasium's, whose version is told
    ours = physics.describe("d4rl/Hopper-v2")
    assert set(ours) == {"environment", "mujoco", "corrections"} and ours["corrections"]
    shorter = copy.deepcopy(gym.spec("d4rl/Hopper-v2"))  # else of the registry
    shorter.max_episode_steps = 50
    assert physics.describe(shorter) == ours | {"specification": physics.describe(shorter)["specification"]}
    assert physics.describe(shorter)["specification"]["max_episode_steps"] == 50


def own_environment(entry_point, **kwargs):
    """What results and keys say of an environment that is registered so."""
    gym.register("Made-v0", entry_point=entry_point, kwargs=kwargs)
    try:
        data = dataclasses.replace(make_data(), environment="Made-v0")
        return json.dumps(store.environment(data))
    finally:
        del gym.registry["Made-v0"]


class Scale:
    """Something that an environment may be given a method of."""

    def __init__(self, factor):
        self.factor = factor

    def of(self, x):
        return self.factor * x


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (np.arange(5000.0), np.arange(5000.0), np.arange(5000.0) + (np.arange(5000) == 2500)),
        (Scale(1).of, Scale(1).of, Scale(2).of),
        (Scale(1), Scale(1), Scale(2)),
        (lambda x: 1 * x, lambda x: 1 * x, lambda x: 2 * x),
        ({3, 1, 2}, {2, 1, 3}, {1, 2}),
        ({1: "a"}, {1: "a"}, {"1": "a"}),
        ({(1, 2): math.inf}, {(1, 2): math.inf}, {(1, 2): -math.inf}),
        (np.array([Scale(1)]), np.array([Scale(1)]), np.array([Scale(2)])),
        (functools.partial(max, 1), functools.partial(max, 1), functools.partial(max, 2)),
        (np.float32, np.float32, np.float64),
        (str.upper, str.upper, str.lower),
        (np.random.default_rng(0), np.random.default_rng(0), np.random.RandomState(0)),
    ],
)
def test_what_an_environment_is_given_is_told(one, same, other):
    """The same in every process, and what differs differs."""
    inside = lambda **kwargs: gym.make(CAR).unwrapped  # noqa: E731
    told = own_environment(inside, given=one)
    assert told == own_environment(inside, given=same) != own_environment(inside, given=other)
    assert " at 0x" not in told


def test_environments_of_one_name_that_differ_are_told_apart():
    def factory(factor):
        return lambda **kwargs: gym.wrappers.TransformReward(gym.make(CAR).unwrapped, lambda r: factor * r)

    assert own_environment(factory(1.0)) == own_environment(factory(1.0)) != own_environment(factory(2.0))
    car = gym.envs.classic_control.Continuous_MountainCarEnv
    half = functools.partial(car, goal_velocity=0.5)
    assert own_environment(half) != own_environment(car)
    gym.register("Made-v0", entry_point=factory(1.0))
    try:
        other = copy.deepcopy(gym.spec("Made-v0"))
        assert specs.reduced(other) == "Made-v0"
        other.entry_point = factory(2.0)
        assert specs.reduced(other) is other
    finally:
        del gym.registry["Made-v0"]


def test_an_environment_of_an_installed_package_is_known_by_its_version(tmp_path, monkeypatch):
    """Not by hundreds of files: here one that is given a function of NumPy's."""
    site = tmp_path / "site-packages" / "installed_env"
    site.mkdir(parents=True)
    start = "def __init__(self, fn=None):\n        super().__init__()\n"
    text = f"from gymnasium.envs.classic_control import PendulumEnv\n\nclass Env(PendulumEnv):\n    {start}"
    (site / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(site.parent)
    codes = []
    try:
        for version in ("1.0", "1.0", "1.1"):
            monkeypatch.setattr(sources, "version", lambda name, v=version: v)
            sources.forget()
            codes.append(json.loads(own_environment("installed_env:Env", fn=np.sum))["code"])
        gym.register("Made-v0", entry_point="installed_env:Env")
        assert sources.environment_files("Made-v0") == ()
    finally:
        sys.modules.pop("installed_env", None)
        gym.registry.pop("Made-v0", None)
    assert codes[0] == codes[1] != codes[2]


def test_an_environment_of_a_console_is_known_by_its_functions():
    """It has no file: here classes whose module has none."""
    codes = []
    for factor in (1, 1, 2):
        scope = {"__name__": "consoled", "CarEnv": gym.envs.classic_control.Continuous_MountainCarEnv}
        sys.modules["consoled"] = types.ModuleType("consoled")
        step = "def step(self, a):\n        o, r, *x = super().step(a)\n        return o, {} * r, *x"
        text = f"class Own(CarEnv):\n    {step}"
        exec(text.format(factor), scope)
        try:
            codes.append(json.loads(own_environment(lambda scope=scope, **kwargs: scope["Own"]()))["code"])
        finally:
            del sys.modules["consoled"]
    assert codes[0] == codes[1] != codes[2]


def test_a_wrapped_environment_may_be_mujocos():
    class Inside(gym.Env):
        def __init__(self):
            self.inner = gym.make("Swimmer-v5")
            self.observation_space, self.action_space = self.inner.observation_space, self.inner.action_space

    assert json.loads(own_environment(lambda **kwargs: Inside()))["mujoco"] == mujoco.__version__


def test_faults_of_the_data_come_before_trust():
    write(env_spec=spec(id="Stranger-v0", entry_point="stranger_module:Env"))
    in_file(replace("episode_1/observations", lambda x: x[:-1]))
    with pytest.raises(UserError, match="episode 1 has 5 rewards and 5 observations"):
        load.load(None, ID)


# --- evaluated in what is declared -----------------------------------------------------------------------------------


def steps_of(environment):
    """Steps of an episode of an environment that ends by its time limit alone."""
    recorder, actions = evaluation.Recorder([0]), make_batch(environment, 1).action_dim
    evaluation.evaluate(lambda o: np.zeros((len(o), actions)), environment, 1, recorder=recorder)
    return len(recorder.recordings[0].rewards)


@pytest.mark.parametrize("env_id", [CAR, "d4rl/HalfCheetah-v2"])
def test_the_declared_time_limit_counts(env_id):
    write(env_id)
    assert steps_of(load.load(None, ID).environment) == gym.spec(env_id).max_episode_steps
    declare(env_spec=spec(env_id, max_episode_steps=50))
    assert steps_of(load.load(None, ID).environment) == 50
    declare(eval_env_spec=spec(env_id, max_episode_steps=30))
    assert steps_of(load.load(None, ID).environment) == 30


def test_keyword_arguments_reach_d4rls_environments():
    data = write_and_load_d4rl({"forward_reward_weight": 0.0, "ctrl_cost_weight": 0.0})
    returns = evaluation.evaluate(lambda o: np.zeros((len(o), 6)), data.environment, 1)
    assert returns == [0.0]


def write_and_load_d4rl(kwargs):
    write("d4rl/HalfCheetah-v2", env_spec=spec("d4rl/HalfCheetah-v2", kwargs=kwargs, max_episode_steps=20))
    return load.load(None, ID)


def test_a_result_tells_environments_apart():
    write()
    plain = load.load(None, ID).sha256
    declare(env_spec=spec(max_episode_steps=50))
    short = load.load(None, ID).sha256
    declare(env_spec=spec(max_episode_steps=60))
    assert len({plain, short, load.load(None, ID).sha256}) == 3


def test_a_run_says_what_is_not_as_registered(capsys):
    write(PENDULUM, action_space=box(-2, 2), env_spec=spec(PENDULUM, max_episode_steps=50, kwargs={"g": 9.0}))
    checks.describe(load.load(None, ID))
    said = capsys.readouterr().out
    assert "evaluated in Pendulum-v1 (at most 50 steps, g=9.0, as declared); actions scaled from [-2, 2]" in said


def test_states_that_are_not_one_for_each():
    minari_files.write_minari(ID, make_episodes((30, 5)), "d4rl/Hopper-v2", SCORES)
    in_file(replace("episode_1/infos/qpos", lambda x: x[:-1]))
    with pytest.raises(UserError, match="simulator's qpos has the shape"):
        load.load(None, ID).states()


def test_what_else_a_file_holds_is_no_episode():
    minari_files.write_minari(ID, make_episodes((30, 5)), "d4rl/Hopper-v2", SCORES)
    with h5py.File(minari_files.minari_path(ID) / "data/main_data.hdf5", "a") as file:
        file.create_group("notes")
    data = load.load(None, ID)
    assert len(data.states().qpos) == len(data.rewards) == 35


def test_what_a_killed_writer_left_is_in_nobodys_way():
    """In a container the next process often has the number of the one before."""
    folder = minari_files.minari_path(ID)
    (folder.with_name(f".{folder.name}.{os.getpid()}") / "data").mkdir(parents=True)
    minari_files.write_minari(ID, make_episodes((30, 5)), "d4rl/Hopper-v2", SCORES)
    assert len(load.load(None, ID).rewards) == 35


# --- the cache -------------------------------------------------------------------------------------------------------


def test_corrected_metadata_are_read():
    write(ref_min_score=None)
    with pytest.raises(UserError, match="no reference scores"):
        load.load(None, ID)
    assert load.load(None, ID, (0.0, 1.0)).environment == CAR
    declare(ref_min_score=-5.0, env_spec=spec(max_episode_steps=50))
    data = load.load(None, ID)
    assert data.ref_min_score == -5.0
    assert data.environment.max_episode_steps == 50


def test_a_cache_follows_every_file(tmp_path):
    write()
    digests = {minari_files.digest(ID)}
    for path in ("metadata.json", "main_data.hdf5", "0/more.arrow"):
        path = minari_files.minari_path(ID) / "data" / path
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as file:
            file.write(b" ")
        digests.add(minari_files.digest(ID))
    assert len(digests) == 4
    (minari_files.minari_path(ID) / "data/loop").symlink_to(tmp_path)
    with pytest.raises(UserError, match="neither a file nor a folder"):
        minari_files.digest(ID)


@pytest.mark.parametrize("place", [-1, 5000, 300])
def test_a_damaged_cache_is_made_again(home, place):
    write()
    first = load.load(None, ID)
    (cached,) = (home / "cache/iwsft_control/datasets").iterdir()
    whole, broken = files.load_arrays(cached), bytearray(cached.read_bytes())
    broken[min(place, len(broken) - 1)] ^= 1
    cached.write_bytes(broken)
    again = load.load(None, ID)
    for name in ("observations", "actions", "rewards", "next_observations", "terminations", "starts"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert first.sha256 == again.sha256
    for name, array in files.load_arrays(cached, sealed=True)[0].items():
        np.testing.assert_array_equal(array, whole[0][name])


def test_a_full_disk_stops_no_run(monkeypatch):
    def full(*arguments, **keywords):
        raise SafetensorError("I/O error: No space left on device")

    write()
    monkeypatch.setattr(files, "save_file", full)
    assert len(load.load(None, ID).rewards) == 52
    with pytest.raises(UserError, match=r"No space left on device.*free some space"):
        files.save_pytree(files.cache_home() / "x", {"a": np.zeros(3)})
    assert list(files.cache_home().iterdir()) == [files.cache_home() / "datasets"]


# --- actions ---------------------------------------------------------------------------------------------------------


def test_actions_are_scaled_by_the_declared_box():
    episodes = write(PENDULUM, action_space=serialize_space(gym.make(PENDULUM).action_space))
    data = load.load(None, ID)
    checks.check_environment(data)
    np.testing.assert_allclose(data.actions, episodes.actions / 2, rtol=1e-6)
    batch, env = make_batch(data.environment, 1), gym.make(PENDULUM)
    batch.reset([3])
    env.reset(seed=3)
    for action in (0.75, -1.0, 1.0):
        observation, reward, *_ = batch.step(np.array([0]), np.array([[action]]))
        expected, expected_reward, *_ = env.step(np.array([2 * action], np.float32))
        np.testing.assert_array_equal(observation[0], expected)
        assert reward[0] == expected_reward


def test_a_box_that_is_not_declared_is_the_environments():
    episodes = write(PENDULUM, action_space=None)
    np.testing.assert_allclose(load.load(None, ID).actions, episodes.actions / 2, rtol=1e-6)


def test_actions_in_the_unit_box_stay_bit_for_bit():
    episodes = write()
    assert load.load(None, ID).actions.tobytes() == episodes.actions.tobytes()
    seen = []
    batch = GymnasiumBatch(CAR, 1)
    batch._envs[0].step = lambda a: seen.append(a) or (np.zeros(2), 0.0, False, False, {})
    action = np.array([[np.float32(0.1)]])
    batch.step(np.array([0]), action)
    assert seen[0].dtype == np.float32 and seen[0] == action[0]


def box(low, high):
    return serialize_space(gym.spaces.Box(low, high, (1,), np.float32))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"action_space": box(-0.1, 0.1)}, "the action of row 0 is .*outside the declared .-0.1, 0.1"),
        ({"action_space": box(-np.inf, np.inf)}, "not bounded"),
        ({"action_space": box(-2, 2)}, "declares actions in .-2, 2., its environment Mount.* takes .-1, 1."),
        ({"action_space": json.dumps({"type": "Box", "shape": [1], "low": ["a"], "high": [1]})}, "are no numbers"),
        ({"action_space": json.dumps({"type": "Box", "shape": [2], "low": [0, 0], "high": [1, 1]})}, "declares 2"),
        ({"action_space": json.dumps({"type": "Box", "shape": [1], "low": [1], "high": [1]})}, "is empty"),
        ({"action_space": "{"}, "action_space is not JSON"),
        ({"action_space": "[]"}, "no space"),
        ({"action_space": json.dumps({"type": "Discrete", "n": 3, "start": 0})}, "actions of kind Discrete"),
    ],
)
def test_action_spaces_that_do_not_fit(change, sentence):
    write(**change)
    with pytest.raises(UserError, match=sentence):
        checks.check_environment(load.load(None, ID))


def test_data_of_another_environment_are_not_labelled_as_a_task():
    write()
    with pytest.raises(UserError, match=r"of MountainCarContinuous-v0, --env hopper-medium-replay of .*leave one out"):
        load.load(tasks.parse_task("hopper-medium-replay"), ID)


def test_actions_outside_the_unit_box_are_refused():
    write()
    in_file(replace("episode_1/actions", np.full((5, 1), 7.5, np.float32)))
    with pytest.raises(UserError, match=r"the action of row 30 is \[7.5\], outside the declared \[-1, 1\]"):
        load.load(None, ID)


# --- episodes --------------------------------------------------------------------------------------------------------


def test_columns_are_flattened():
    episodes = write()
    for e in range(3):
        for name in ("rewards", "terminations", "truncations"):
            in_file(replace(f"episode_{e}/{name}", lambda x: x[:, None]))
    data = load.load(None, ID)
    np.testing.assert_array_equal(data.rewards, episodes.rewards)
    np.testing.assert_array_equal(data.terminations, episodes.terminations)


def shift(file):
    """An observation too few in one episode, one too many in the next."""
    replace("episode_0/observations", lambda x: x[:-1])(file)
    replace("episode_1/observations", lambda x: np.concatenate([x, x[-1:]]))(file)


def early(file):
    file["episode_0/terminations"][5] = True


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (shift, "episode 0 has 30 rewards and 30 observations, which should be 31"),
        (replace("episode_1/truncations", lambda x: x[:3]), "episode 1 has 5 rewards and 3 truncations"),
        (replace("episode_1/actions", lambda x: x[:3]), "episode 1 has 5 rewards and 3 actions"),
        (replace("episode_2/terminations", np.full(17, np.nan)), "episode 2: its terminations are neither true nor"),
        (replace("episode_2/truncations", np.full(17, 2)), "episode 2: its truncations are neither true nor"),
        (early, "episode 0 goes on after its termination at step 5 of 30"),
        (replace("episode_0/rewards", lambda x: x.astype(np.complex64)), "episode_0: rewards is no array of numbers"),
        (replace("episode_0/rewards", lambda x: x.astype("S8")), "episode_0: rewards is no array of numbers"),
        (replace("episode_0/rewards", 1.0), "episode 0: its rewards have the shape"),
        (replace("episode_0/rewards", lambda x: np.stack([x, x], 1)), "episode 0: its rewards have the shape"),
        (replace("episode_0/rewards", np.full(30, 1e300)), "episode 0: rewards hold a NaN or infinity"),
        (replace("episode_0/observations", np.zeros((31, 1))), "episode 1: its observations have 2 dimensions"),
        (replace("episode_0/observations", np.zeros(31)), "episode 0: its observations are no vectors"),
        (lambda f: f["episode_0"].move("rewards", "reward"), "episode_0 holds no rewards"),
        (lambda f: f.__delitem__("episode_2"), "declares 3 episodes, and its file holds 2"),
        (lambda f: f.copy("episode_2", "episode_3"), "declares 3 episodes, and its file holds 4"),
    ],
)
def test_episodes_that_are_not_whole(change, sentence):
    write()
    in_file(change)
    with pytest.raises(UserError, match=sentence):
        load.load(None, ID)


@pytest.mark.parametrize("total", [0, -1, 2, 10**12, "3", 3.0, True, None])
def test_a_number_of_episodes_that_is_not_the_files(total):
    write(total_episodes=total)
    with pytest.raises(UserError, match=r"declares \S+ episodes"):
        load.load(None, ID)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("ref_max_score", "abc", "not two finite numbers"),
        ("ref_max_score", float("nan"), "not two finite numbers"),
        ("ref_max_score", float("inf"), "not two finite numbers"),
        ("ref_max_score", -20.0, "the lower one first"),
        ("ref_max_score", [1], "not two finite numbers"),
        ("ref_max_score", 10**400, "not two finite numbers"),
        ("env_spec", None, "declares no environment"),
        ("data_format", "csv", "format csv, which is not supported"),
        ("observation_space", "{", "observation_space is not JSON"),
        ("observation_space", 3, "observation_space is not JSON"),
        ("observation_space", "3", "no space"),
        (
            "observation_space",
            serialize_space(gym.spaces.Dict(observation=gym.spaces.Box(-1, 1, (2,)), goal=gym.spaces.Box(-1, 1, (2,)))),
            "has dict observations .observation, goal.; give --flatten-observations",
        ),
        ("observation_space", serialize_space(gym.spaces.Box(-1, 1, (2, 2))), "of shape .2, 2., which are not"),
    ],
)
def test_metadata_that_are_none(field, value, sentence):
    write(**{field: value})
    with pytest.raises(UserError, match=sentence):
        load.load(None, ID)


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b"[]", b"{", b"\xff\xfe", b'{"total_episodes": ' + b"9" * 5000 + b"}"]
)
def test_metadata_that_are_no_json(text):
    write()
    (minari_files.minari_path(ID) / "data/metadata.json").write_bytes(text)
    with pytest.raises(UserError, match=r"metadata.json (cannot be read|holds no metadata)"):
        load.load(None, ID)


@pytest.mark.parametrize("given", [(5.0, 5.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_reference_scores_that_are_given(given):
    write()
    with pytest.raises(UserError, match="not two finite numbers"):
        load.load(None, ID, given)


def test_arrow_without_pyarrow_says_what_to_install(monkeypatch):
    write(data_format="arrow")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.dataset", None)
    with pytest.raises(UserError, match=r"pip install 'minari\[arrow\]'"):
        load.load(None, ID)


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
@pytest.mark.filterwarnings("ignore")  # of Minari, that nobody is named as its author
def test_arrow_is_read_as_minari_writes_it(kind):
    pytest.importorskip("pyarrow")
    import minari
    from minari.data_collector.episode_buffer import EpisodeBuffer

    def make(shift):
        episodes = make_episodes((30, 5), observation_dim=2, action_dim=1, states=False)
        bounds, buffers = zip(episodes.starts[:-1], episodes.starts[1:], strict=True), []
        for e, (a, b) in enumerate(bounds):
            columns = {n: list(getattr(episodes, n)[a:b]) for n in ("rewards", "terminations", "truncations")}
            states = episodes.observations[a + e : b + e + 1]
            buffers.append(EpisodeBuffer(id=e, observations=states, actions=shift * episodes.actions[a:b], **columns))
        env = gym.make(CAR)
        minari.create_dataset_from_buffers(
            ID, buffers, env=env, data_format=kind, observation_space=gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        )
        declare(**SCORES)
        return episodes

    episodes = make(1.0)
    data = load.load(None, ID)
    np.testing.assert_array_equal(data.actions, episodes.actions)
    np.testing.assert_array_equal(data.rewards, episodes.rewards)
    np.testing.assert_array_equal(data.terminations, episodes.terminations)
    np.testing.assert_array_equal(data.observations[:30], episodes.observations[:30])
    minari.delete_dataset(ID)
    make(0.5)  # the same sizes: only the rows differ
    again = load.load(None, ID)
    np.testing.assert_array_equal(again.actions, 0.5 * episodes.actions)
    assert again.sha256 != data.sha256


# --- files that read others, or declare more than they hold ----------------------------------------------------------


def secret(folder):
    with h5py.File(folder / "secret.h5", "w") as file:
        file["s"] = np.arange(30.0)
    (folder / "secret.bin").write_bytes(np.arange(30, dtype=np.float32).tobytes())


def external_link(file, folder):
    file["episode_0/rewards"] = h5py.ExternalLink(str(folder / "secret.h5"), "s")


def soft_link(file, folder):
    file["episode_0/rewards"] = h5py.SoftLink("/episode_0/actions")


def external_storage(file, folder):
    file["episode_0"].create_dataset("rewards", (30,), "f4", external=[(str(folder / "secret.bin"), 0, 120)])


def virtual(file, folder):
    layout = h5py.VirtualLayout((30,), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "s", (30,))
    file["episode_0"].create_virtual_dataset("rewards", layout)


def unwritten(file, folder):
    file["episode_0"].create_dataset("rewards", (30,), "f4")


def half_written(file, folder):
    file["episode_0"].create_dataset("rewards", (30,), "f4", chunks=(10,))[:10] = 1


def bomb(file, folder):
    file["episode_0"].create_dataset("rewards", (10**12,), "f4", chunks=(1 << 16,), compression="gzip")


def group(file, folder):
    file["episode_0"].create_group("rewards")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (external_link, "link to elsewhere"),
        (soft_link, "link to elsewhere"),
        (external_storage, "keeps its values in another file"),
        (virtual, "keeps its values in another file"),
        (unwritten, "never written as a whole"),
        (half_written, "never written as a whole"),
        (bomb, "declares 4,000,.* bytes, more than .* IWSFT_MAX_BYTES"),
        (group, "no array of numbers"),
    ],
)
def test_hdf5_that_is_not_its_own(tmp_path, make, sentence):
    secret(tmp_path)
    write()

    def change(file):
        del file["episode_0/rewards"]
        make(file, tmp_path)

    in_file(change)
    with pytest.raises(UserError, match=sentence):
        load.load(None, ID)


def test_an_episode_that_is_elsewhere(tmp_path):
    write()
    (tmp_path / "other.hdf5").write_bytes((minari_files.minari_path(ID) / "data/main_data.hdf5").read_bytes())

    def change(file):
        del file["episode_1"]
        file["episode_1"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "episode_1")

    in_file(change)
    with pytest.raises(UserError, match="episode_1 is a link to elsewhere"):
        load.load(None, ID)


def test_the_bound_can_be_raised_and_lowered(monkeypatch):
    write()
    monkeypatch.setenv("IWSFT_MAX_BYTES", "100")
    with pytest.raises(UserError, match="IWSFT_MAX_BYTES higher"):
        load.load(None, ID)
    monkeypatch.setenv("IWSFT_MAX_BYTES", "many")
    with pytest.raises(UserError, match="must be a number of bytes"):
        load.load(None, ID)
    monkeypatch.setenv("IWSFT_MAX_BYTES", str(hdf5.MAX_BYTES))
    assert len(load.load(None, ID).rewards) == 52


@pytest.mark.parametrize("name", ["../x/y-v0", "/etc/x-v0", "test/../../x-v0"])
def test_ids_stay_in_the_root(name):
    with pytest.raises(UserError, match="no data set"):
        load.load(None, name)
    with pytest.raises(UserError, match="no id of a data set"):
        minari_files.minari_path(name)


# --- D4RL's own files ------------------------------------------------------------------------------------------------


def legacy(path, **changes):
    """A file of D4RL's layout and Hopper's shape, 12 rows, with changed arrays."""
    rng = np.random.default_rng(0)
    arrays = {
        "observations": rng.standard_normal((12, 11)),
        "next_observations": rng.standard_normal((12, 11)),
        "actions": rng.uniform(-1, 1, (12, 3)),
        "rewards": rng.random(12),
        "terminals": np.arange(12) % 4 == 3,
        "timeouts": np.zeros(12, bool),
        "infos/qpos": rng.standard_normal((12, 6)),
        "infos/qvel": rng.standard_normal((12, 6)),
    } | changes
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


def test_legacy_columns_are_flattened(tmp_path):
    plain = d4rl_files.read_legacy(legacy(tmp_path / "a.hdf5"))
    columns = {"rewards": plain.rewards[:, None], "terminals": plain.terminations[:, None].astype(np.float32)}
    again = d4rl_files.read_legacy(legacy(tmp_path / "b.hdf5", **columns))
    for name in ("rewards", "terminations", "truncations", "starts"):
        np.testing.assert_array_equal(getattr(again, name), getattr(plain, name))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rewards": np.zeros((12, 2))}, "the shape of rewards is"),
        ({"observations": np.zeros(12)}, "the shape of observations is"),
        ({"terminals": np.full(12, np.nan)}, "terminals are neither true nor false"),
        ({"timeouts": np.full(12, 3)}, "timeouts are neither true nor false"),
        ({"actions": np.zeros((12, 3), complex)}, "actions is no array of numbers"),
        ({"next_observations": np.zeros((12, 9))}, "shapes of its observations disagree"),
        ({"infos/qpos": np.zeros((12, 9))}, "another task's file"),
    ],
)
def test_legacy_files_that_are_none(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        d4rl_files.read_legacy(legacy(tmp_path / "x.hdf5", **changes))


def test_legacy_and_packed_files_are_not_followed_either(tmp_path):
    secret(tmp_path)
    path = legacy(tmp_path / "x.hdf5")
    packed.pack(tmp_path / "p.hdf5", make_episodes(), {})
    for name, read in ((path, d4rl_files.read_legacy), (tmp_path / "p.hdf5", packed.unpack)):
        with h5py.File(name, "a") as file:
            del file["rewards"]
            file["rewards"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "s")
        with pytest.raises(UserError, match=r"link to elsewhere|lacks rewards"):
            read(name)


# --- what was made: stages and policies ------------------------------------------------------------------------------


def test_a_policy_that_is_damaged_is_not_played(tmp_path):
    layer = {"kernel": np.ones((2, 1), np.float32), "bias": np.zeros(1, np.float32)}
    path = tmp_path / "p.safetensors"
    files.save_pytree(path, {"params": {"net": {"Dense_0": layer}}}, {"policy": {"kind": "tanh-mlp"}})
    before, whole, refused = load_policy(path)(np.ones(2)), path.read_bytes(), 0
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 1
        path.write_bytes(broken)
        try:
            assert load_policy(path)(np.ones(2)) == before  # only where a name of safetensors' own was hit
        except UserError:
            refused += 1
    assert refused > 0.9 * len(whole)


def test_a_policy_of_an_earlier_version_has_no_checksum(tmp_path):
    def old(kernel, bias):
        arrays = {"params/net/Dense_0/kernel": np.ones(kernel, np.float32), "params/net/Dense_0/bias": np.zeros(bias)}
        save_file(arrays, tmp_path / "p.safetensors", metadata={"json": "{}"})
        return load_policy(tmp_path / "p.safetensors")

    assert old((2, 1), (1,))(np.zeros(2)) == 0
    with pytest.raises(UserError, match="does not hold a policy"):
        old((2, 1), (2,))
    with pytest.raises(UserError, match="no checksum"):
        files.load_arrays(tmp_path / "p.safetensors", sealed=True)


def test_a_checksum_cannot_be_damaged_away(tmp_path):
    """Another name for the metadata, or for the checksum in them, makes no file of an earlier version of a new one."""
    path = tmp_path / "p.safetensors"
    files.save_pytree(path, {"a": np.arange(4.0)}, {"b": 1})
    whole = path.read_bytes()
    for old, new in ((b'"sealed"', b'"sealer"'), (b"sha256", b"sha257"), (b"__metadata__", b"__metadato__")):
        assert whole.count(old) == 1
        path.write_bytes(whole.replace(old, new)[:-1] + b"\x41")
        with pytest.raises(UserError, match="is damaged"):
            files.load_arrays(path)
        assert files.read_metadata(path) == {}


def test_a_stage_with_a_flipped_bit_is_made_again_and_what_needs_it_stays(tmp_path):
    data, kept = make_data(), Store(tmp_path)
    policy = PolicyConfig(hidden=(8,), bc_steps=4, fine_tune_steps=2, batch_size=8)
    stage = stages.method_stage("sft", "q", (0,), settings.make(quick=True, policy=policy), "")
    made = perform(stage, data, kept)
    (path,) = tmp_path.glob("bc-*.safetensors")
    whole = path.read_bytes()
    for place in (-1, -100, 300):
        broken = bytearray(whole)
        broken[place] ^= 1
        path.write_bytes(broken)
        assert not kept.has(stages.dependencies(stage)["bc"], data)
        again = perform(stage, data, kept)
        assert again.record == made.record
        assert kept.inputs(stage, data)["bc"].record["returns"]


# --- result files and tables -----------------------------------------------------------------------------------------


def test_no_file_holds_a_number_that_is_not_finite(tmp_path):
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="not finite"):
            files.write_json(tmp_path / "x.json", {"score": value})
    assert list(tmp_path.glob("*.json")) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"episode_returns": [10**400]}, "finite"),
        ({"normalised_score": [1.0]}, "normalised_score should be float"),
        ({"normalised_score": float("nan")}, "normalised_score should be float"),
        ({"seed": True}, "seed should be int"),
        ({"dataset": {"id": None}}, "id of dataset should be str"),
        ({"dataset": {"transitions": "many"}}, "transitions of dataset should be int"),
        ({"physics": {"mujoco": 4}}, "mujoco of physics should be str"),
        ({"evaluation": {"ref_min_score": [0]}}, "ref_min_score of evaluation should be float"),
        ({"evaluation": {"ref_min_score": 100.0}}, "ref_min_score is not below"),
        ({"diagnostics": {"training": []}}, "training of diagnostics should be dict"),
        ({"diagnostics": {"training": {"step": []}}}, "no steps"),
        ({"diagnostics": {"training": {"step": [1, 2], "loss": [1]}}}, "not one loss for each step"),
        ({"diagnostics": {"training": {"step": [1], "loss": ["x"]}}}, "loss that is no finite number"),
        ({"diagnostics": {"training": {"step": [None], "loss": [1.0]}}}, "step that is no finite number"),
        ({"diagnostics": {"critic": {"step": [1], "loss": [[1], [2]]}}}, "not one loss"),
        ({"versions": {"jax": None}}, "jax of versions should be str"),
    ],
)
def test_result_files_are_typed_as_deep_as_tables_read(tmp_path, change, sentence):
    value = dataclasses.asdict(make_run())
    for name, inner in change.items():
        value[name] = value[name] | inner if isinstance(inner, dict) else inner
    (tmp_path / "x.json").write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(UserError, match=sentence):
        results.read(tmp_path / "x.json")


DEEP = "[" * 100_000
NO_JSON = ("", "{", DEEP, "\ud800".encode("utf-8", "surrogatepass"))
POINTS = {"step": [500, 1000], "normalised_score": [1.0, 2.0], "standard_error": [0.1, 0.1]}
CURVE = {"task": "t", "method": "m", "seed": 1, "config": {}, "dataset": {}, "episodes": 2, **POINTS}
ENTRY = {"file": "a.hdf5", "sha256": "0", "bytes": 1}
PORTRAIT = pool.Candidate("hopper", 3, 1.0, "0", portraits.portrait(make_episodes((30,)), None))


def portrait(**changes):
    return dataclasses.asdict(PORTRAIT) | changes


def inner(**changes):
    return portrait(portrait=dataclasses.asdict(PORTRAIT.portrait) | changes)


@pytest.mark.parametrize(
    ("name", "read", "wrong"),
    [
        (
            "hopper-medium-replay.json",
            lambda path: pool.chosen(path.parent, HOPPER),
            (*NO_JSON, [], {}, "seed3-u1", {"chosen": 3}, {"chosen": ["seed3-u1"]}),
        ),
        (
            "hopper-seed3-u1.json",
            lambda path: pool.read(path.parent, "hopper"),
            (*NO_JSON, 3, [], portrait(seed="3"), portrait(portrait=[]), portrait(more=1), inner(mean=None))
            + (inner(length_quantiles=[1.0]), inner(length_quantiles=["1"] * 6), inner(length_quantiles=3)),
        ),
        ("manifest.json", packed.read_manifest, (*NO_JSON, [], {"a": 1}, {"a": ENTRY | {"file": 3}}, {"a": {}})),
        (
            "curve.json",
            lambda path: curves.read(path.parent),
            (*NO_JSON, [], {}, CURVE | {"seed": None}, CURVE | {"step": []}, CURVE | {"step": [1]})
            + (CURVE | {"step": 3}, CURVE | {"normalised_score": [1.0, "2"]}, CURVE | {"averaged_score": [1.0]}),
        ),
        ("result.json", results.read, (*NO_JSON, [], {}, 3)),
    ],
)
def test_damaged_json_of_our_own_is_one_sentence(tmp_path, name, read, wrong):
    """Whatever the suite has written as JSON and reads back, with the file and what to do about it in the sentence."""
    path = tmp_path / name
    for value in wrong:
        raw = value.encode() if isinstance(value, str) else value
        path.write_bytes(raw if isinstance(raw, bytes) else json.dumps(raw).encode())
        with pytest.raises(UserError) as error:
            read(path)
        text = str(error.value)
        assert name in text and re.search(r"; (run|collect|delete|install) .*\.$", text) and "\n" not in text, text


def test_json_of_our_own_that_is_whole_is_read(tmp_path):
    pool.write(tmp_path / "pool", PORTRAIT)
    assert pool.read(tmp_path / "pool", "hopper") == [PORTRAIT]
    files.write_json(tmp_path / "hopper-medium-replay.json", {"chosen": "seed3-u1", "accepted": False})
    assert pool.chosen(tmp_path, HOPPER) == PORTRAIT
    for chosen, sentence in ((None, "names no chosen candidate; run"), ("seed4-u1", "holds no portrait of seed4-u1")):
        files.write_json(tmp_path / "hopper-medium-replay.json", {"chosen": chosen})
        with pytest.raises(UserError, match=sentence):
            pool.chosen(tmp_path, HOPPER)
    files.write_json(tmp_path / "curves/a.json", CURVE)
    assert curves.read(tmp_path / "curves") == [[CURVE]]
    files.write_json(tmp_path / "manifest.json", {"a": ENTRY})
    assert packed.read_manifest(tmp_path / "manifest.json") == {"a": ENTRY}
    assert packed.read_manifest(tmp_path / "none.json") == {}


@pytest.mark.parametrize("lost", ["start", "reward", "steps", "curve"])
def test_online_results_are_looked_at_before_they_are_drawn(tmp_path, lost):
    curve = {"step": [1], "normalised_score": [1.0], "success": [0.0]}
    run = make_run(method="uft", config={"start": "bc", "reward": "dense", "steps": 9})
    diagnostics = run.diagnostics | {"curve": curve, "success": 0.0}
    run = dataclasses.replace(run, diagnostics=diagnostics, evaluation=run.evaluation | {"simulator_steps": 9})
    results.write(tmp_path / "a.json", run)
    assert len(online.find(tmp_path)) == 1
    for values in (run.config, run.diagnostics):
        values.pop(lost, None)
    results.write(tmp_path / "a.json", run)
    with pytest.raises(UserError, match="is no result of online training, or damaged"):
        online.find(tmp_path)


def test_runs_without_the_figures_of_a_language_model_are_refused():
    with pytest.raises(UserError, match=r"x\.json lacks figures"):
        sequences.details({Path("x.json"): make_run()})


HOSTILE = "x</p><script>alert(1)</script>\n\\input{/etc/passwd}|[a](b) $x_1 é"


def hostile_table(tmp_path, **changes):
    for seed in range(2):
        for method, quality in (("bc", None), ("iw-sft-q", "q")):
            run = dataclasses.replace(make_run(method=method, quality=quality, seed=seed), **changes)
            results.write(tmp_path / f"runs/{method}-{seed}.json", run)
    (tmp_path / "runs/failures").mkdir()
    (tmp_path / "runs/failures/a.json").write_text("{", encoding="utf-8")
    (tmp_path / "runs/failures/b.json").write_text('{"method": 3}', encoding="utf-8")
    table.main(table.TableConfig((tmp_path / "runs",), tmp_path / "out"))
    return {p.name: p.read_text(encoding="utf-8") for p in (tmp_path / "out").iterdir() if p.is_file()}


def test_what_result_files_say_is_text_in_every_table(tmp_path):
    dataset = make_run().dataset | {"id": f"t/{HOSTILE}-v0"}
    texts = hostile_table(tmp_path, device=HOSTILE, git_commit=HOSTILE, dataset=dataset, task=HOSTILE)
    assert "<script" not in texts["table.md"] and "<script" not in texts["report.html"]
    assert "](b)" not in texts["table.md"]
    tex = texts["table.tex"].splitlines()
    assert not any("\\input" in line for line in tex if not line.startswith("%"))
    assert any("\\input" in line for line in tex)  # it stays a comment
    header = next(line for line in texts["table.md"].splitlines() if line.startswith("| method"))
    assert header.replace("\\|", "").count("|") == 5  # four columns, none of published scores
    assert "Failed, and not in any mean: a.json, whose record is damaged." in texts["table.md"]
    assert "b.json, whose record is damaged" in texts["table.md"]


def test_a_configuration_without_steps_is_tabled(tmp_path, undrawn):
    texts = hostile_table(tmp_path, config={"policy": {"bc_steps": "many"}})
    assert "| bc | 2 | - |" in texts["table.md"]


@pytest.mark.slow
def test_files_are_utf8_whatever_the_locale(tmp_path):
    results.write(tmp_path / "runs/a.json", make_run(device="Prozessor für Ähnliches"))
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "iwsft_control.table", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    answer = subprocess.run([*command, "--focus", "bc"], env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "Prozessor für Ähnliches" in (tmp_path / "out/table.md").read_text(encoding="utf-8")


def test_an_error_is_one_line_that_a_terminal_does_not_obey():
    assert console.printable("a\nb\x1b[31mé") == "a b [31mé"


def test_a_training_goes_on_where_no_snapshot_can_be_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "SNAPSHOT_SECONDS", 0)
    (tmp_path / "file").touch()
    snapshot.Snapshot(tmp_path / "file" / "x.unfinished").save({"a": np.zeros(1)}, {})


@pytest.mark.parametrize("trusted", [False, True])
def test_the_command_asks_for_trust(tmp_path, stranger, one_process, monkeypatch, capsys, trusted):
    write(env_spec=spec(id="Stranger-v0", entry_point="stranger_module:Env", max_episode_steps=3))
    small = ["--quick", "--method", "bc", "--policy.hidden", "8", "--policy.bc-steps", "20"]
    folders = ["--results", str(tmp_path / "results"), "--stages", str(tmp_path / "stages")]
    trust = ["--trust-environment"] * trusted
    monkeypatch.setattr(sys, "argv", ["run", "--dataset", ID, *small, *folders, *trust])
    with contextlib.nullcontext() if trusted else pytest.raises(SystemExit) as error:
        run.cli()
    assert stranger.exists() == trusted
    assert trusted or (error.value.code == 2 and capsys.readouterr().err.count("\n") == 1)
    assert len(list((tmp_path / "results").rglob("*.json"))) == trusted


def test_a_source_carries_trust_to_the_workers():
    plan = sweep.Plan(tasks=("hopper-medium-replay",), methods=("bc",), seeds=(0,), trust_environment=True)
    assert all(job.source.trust_environment for job in grid.plan_jobs(plan, settings.make()))


# --- damage at random ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="bounds a process by what /proc says of it")
def test_a_slice_of_the_fuzzer(tmp_path, capsys):
    """Every reader, a few of the inputs of ``python experiments/fuzz.py``."""
    targets = tuple(name for name in fuzz.TARGETS if name != "arrow" or importlib.util.find_spec("pyarrow"))
    config = fuzz.FuzzConfig(inputs=40, seed=0, targets=targets, faults=tmp_path / "faults")
    assert fuzz.main(config) == 0, capsys.readouterr().out
    assert not (tmp_path / "faults").exists()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (promises.Kills(commands=("swep",)), "unknown command 'swep': did you mean sweep"),
        (promises.Kills(commands=("run", "run")), "--commands must name one or more different commands"),
        (promises.Kills(kills=0), "--kills must be positive"),
        (promises.Soak(rounds=0), "--rounds must be positive"),
        (promises.Constant(steps=0), "--steps must be positive"),
    ],
)
def test_promises_that_cannot_be_measured_are_refused(config, sentence):
    with pytest.raises(UserError, match=sentence):
        promises.main(config)


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_the_fuzzer_knows_a_file_that_nothing_has_changed(name, tmp_path, monkeypatch):
    if name == "arrow":
        pytest.importorskip("pyarrow")
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")  # which readers of data sets set
    target = fuzz.TARGETS[name]
    changed = target.make(tmp_path)
    assert fuzz.attempt(target, tmp_path, changed, target.read(tmp_path, changed)) == "equal"


def test_the_fuzzer_finds_a_reader_that_believes_damage(tmp_path, monkeypatch):
    """A reader without its checksum, and one with an error of its own: both are faults."""
    monkeypatch.setattr(files, "_seal", lambda arrays, record: "0" * 64)
    (path,) = fuzz.make_policies(tmp_path)
    target, whole = fuzz.TARGETS["policies"], path.read_bytes()
    original = target.read(tmp_path, [path])
    assert fuzz.attempt(target, tmp_path, [path], original) == "equal"
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 64]))
    assert fuzz.attempt(target, tmp_path, [path], original) == "other values were accepted under a checksum"
    broken = dataclasses.replace(target, read=lambda folder, changed: {}["x"])
    assert "KeyError" in fuzz.attempt(broken, tmp_path, [path], original)
    path.write_bytes(whole[:100])
    assert fuzz.attempt(target, tmp_path, [path], original) == "refused"
