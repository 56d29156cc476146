"""Data sets of arrays in Python: their identity is their content's, and nothing stands for what it is not."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest

import iwsft_control as iwsft
from iwsft_control.base.errors import UserError, in_python
from iwsft_control.configs.supervised import PolicyConfig
from tests.test_run import ID, small

TINY = PolicyConfig(hidden=(8,), bc_steps=20, batch_size=16)
NAMES = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations")
OWN = "mine/hopper/relabelled-v0"


@pytest.fixture
def data():
    small()
    return iwsft.load(dataset=ID)


def arrays(data, **changes):
    return {name: np.array(getattr(data, name)) for name in NAMES} | changes


def made(data, id=OWN, environment="d4rl/Hopper-v2", reference_scores=None, **changes):
    return iwsft.from_arrays(id, **arrays(data, **changes), environment=environment, reference_scores=reference_scores)


@pytest.mark.parametrize(
    "source", [{"dataset": ID}, {"task": "hopper-medium-replay"}, {"task": "walker2d-medium-replay"}]
)
def test_the_same_arrays_are_the_same_data(source):
    small()
    data = iwsft.load(**source)
    again = made(data, environment=data.environment)
    assert again.sha256 == data.sha256
    for name in (*NAMES, "starts", "returns"):
        np.testing.assert_array_equal(getattr(again, name), getattr(data, name))
    assert data.truncations.any() and (data.truncations | data.terminations).sum() == len(data.returns)


def test_other_arrays_are_other_data(data):
    assert (
        len({made(data).sha256, *(made(data, **{n: getattr(data, n) * 0}).sha256 for n in ("actions", "rewards"))}) == 3
    )
    later = np.array(data.next_observations)
    later[data.starts[1] - 1] += 1  # the final state of an episode, that is in no row of observations
    assert made(data, next_observations=later).sha256 != made(data).sha256


def test_changed_data_do_not_pass_for_those_that_were_loaded(data, tmp_path):
    """Their sha256 is the key of what is stored: training gave the old data's policy, and the old data's name."""
    with pytest.raises(ValueError, match="read-only"):
        data.rewards[0] = 1
    for changes in ({"actions": -data.actions}, {"rewards": data.rewards * 2}, {"rewards": np.array(data.rewards)}):
        changed = dataclasses.replace(data, **changes)
        assert changed.changed == tuple(changes)
        with pytest.raises(UserError, match=rf"the {next(iter(changes))} of {ID} are not those .* from_arrays"):
            iwsft.train("bc", changed, quick=True, quiet=True, policy=TINY, store=tmp_path)
    assert not dataclasses.replace(data, task="other").changed


def test_arrays_of_ones_own_are_trained_on_and_named(data, tmp_path):
    mine = made(data, actions=-data.actions)
    runs = [
        iwsft.train("bc", each, quick=True, quiet=True, policy=TINY, store=tmp_path, results=tmp_path / "out")[0]
        for each in (data, mine)
    ]
    described = runs[1].result.dataset
    assert described["sha256"] == mine.sha256 != data.sha256 and described["origin"] == "arrays"
    assert runs[1].result.task == described["id"] == runs[1].policy.dataset == OWN
    assert len(list((tmp_path / "out").rglob("*.json"))) == 2
    states = data.observations[:5]
    assert (runs[0].policy(states) != runs[1].policy(states)).any()


def test_what_is_given_is_copied(data):
    rewards = np.array(data.rewards)
    mine = made(data, rewards=rewards)
    rewards[:] = 7
    assert (mine.rewards == data.rewards).all() and mine.sha256 == data.sha256


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"id": "../mine"}, "is no id of a data set"),
        ({"rewards": np.zeros(3)}, r"observations and 3 rewards"),
        ({"actions": np.zeros(5)}, r"actions are of shape \(5,\); give \(N, D\)"),
        ({"rewards": np.array(["a"])}, "rewards are no numbers"),
        ({"terminations": np.full(5, 2)}, "terminations are neither true nor false"),
        ({"next_observations": np.zeros((5, 3))}, "next_observations of"),
        ({"environment": "Nowhere-v0"}, "the environment Nowhere-v0 cannot be made"),
        ({"environment": "hoper"}, "unknown task 'hoper'"),
        ({"environment": "Hopper-v5"}, r"no reference scores .* give reference_scores=\(low, high\)"),
        ({"reference_scores": (3, 1)}, r"two finite numbers, the lower one first: \(3, 1\)"),
        ({"reference_scores": 5}, r"two finite numbers"),
        ({"reference_scores": (0, 10**400)}, r"two finite numbers"),
        ({"environment": None}, "environment must be a task, a Gymnasium id or its specification, not None"),
        ({"id": "hopper-medium-replay"}, "hopper-medium-replay is a task, and these are other data"),
        ({"rewards": [[1], [1, 2]]}, "rewards are no array"),
        ({"truncations": [[0], [0, 1]]}, "truncations are no array"),
        ({"actions": np.zeros((5, 0))}, r"actions are of shape \(5, 0\); give \(N, D\)"),
    ],
)
def test_arrays_that_are_no_data_set(data, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        made(data, **changes)


def test_arrays_whose_episodes_or_values_cannot_be(data):
    with pytest.raises(UserError, match=rf"no episode ends at row {data.starts[1] - 1}.*mark .* in truncations"):
        made(data, truncations=np.zeros(len(data.rewards)), terminations=np.zeros(len(data.rewards)))
    rewards = np.array(data.rewards)
    rewards[9] = np.nan
    with pytest.raises(UserError, match=r"rewards hold a NaN or infinity \(row 9\)"):
        made(data, rewards=rewards)
    rewards[9] = 1e38
    with pytest.raises(UserError, match=r"rewards hold a number that float32 cannot hold \(row 9\)"):
        made(data, rewards=np.array(rewards, float) * 10)
    with pytest.raises(UserError, match="have 11 and 2 columns, those of its environment d4rl/Hopper-v2 11 and 3"):
        made(data, actions=data.actions[:, :2])
    with pytest.raises(UserError, match=r"the action of row 0 lies outside \[-1, 1\]; scale"):
        made(data, actions=data.actions + 3)
    with pytest.raises(UserError, match="has no transitions"):
        made(data, **{name: getattr(data, name)[:0] for name in NAMES})


def test_one_transition_and_specifications_are_enough(data):
    one = made(data, **{name: getattr(data, name)[:1] for name in NAMES})
    assert one.starts.tolist() == [0, 1]
    scores = np.array([1, 3], np.float32)
    by_id = made(data, environment="Hopper-v5", reference_scores=scores)
    by_spec = made(data, environment=gym.spec("Hopper-v5"), reference_scores=(1, 3))
    by_module = made(data, environment="gymnasium.envs.mujoco:Hopper-v5", reference_scores=(1, 3))
    assert by_id.sha256 == by_spec.sha256 == by_module.sha256
    assert by_id.environment == by_spec.environment == by_module.environment == "Hopper-v5"


def test_actions_are_in_the_unit_box_whatever_the_environments():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(41, 3)).astype(np.float32)
    mine = iwsft.from_arrays(
        "mine/pendulum-v0",
        states[:-1],
        rng.uniform(-1, 1, (40, 1)),
        rng.normal(size=40),
        states[1:],
        np.zeros(40),
        np.arange(40) == 19,
        environment="Pendulum-v1",
        reference_scores=(-1200, -150),
    )
    assert mine.action_box is not None and mine.action_box.text() == "[-2, 2]"
    assert mine.starts.tolist() == [0, 20, 40] and not mine.changed
    returns = iwsft.evaluate(lambda o: np.full((len(o), 1), 0.5), mine, episodes=2)
    env = gym.make("Pendulum-v1")
    env.reset(seed=1_000_000)
    assert returns[0] == pytest.approx(sum(float(env.step(np.array([1.0], np.float32))[1]) for _ in range(200)))


@pytest.mark.parametrize(
    ("command_line", "python"),
    [
        ("--policy.fine-tune-steps must be positive, not 0.", "policy.fine_tune_steps must be positive, not 0."),
        ("if you trust it give --trust-environment.", "if you trust it give trust_environment=True."),
        (
            "give them with --ref-min-score and --ref-max-score.",
            "give reference_scores=(low, high).",
        ),
        (
            "run 'python -m iwsft_control.collect --env x' first; --seeds",
            "run 'python -m iwsft_control.collect --env x' first; seeds",
        ),
        ("cannot write into /run--one/--two.", "cannot write into /run--one/--two."),
        ("'x' has --env and --environment", "'x' has task and environment"),
    ],
)
def test_errors_name_what_python_has(command_line, python):
    assert in_python(command_line) == python
