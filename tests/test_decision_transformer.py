"""Decision Transformer: its data against NumPy, what sees what, what is asked for, its memory, its run from disk."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iwsft_control
from iwsft_control import load_policy, run
from iwsft_control.base import files
from iwsft_control.base import snapshot as snapshots
from iwsft_control.base.errors import UserError
from iwsft_control.benchmark import results, settings
from iwsft_control.datasets.transitions import Table
from iwsft_control.envs import evaluation, video
from iwsft_control.learning import loop
from iwsft_control.learning.method import Prepared
from iwsft_control.methods import decision_transformer as method
from iwsft_control.networks import decision_transformer, policies
from iwsft_control.networks.decision_transformer import ROWS, History
from tests.conftest import make_data, prepared
from tests.test_run import ID, config, small

SMALL = method.DecisionTransformerConfig(
    steps=20, batch_size=16, context=6, width=16, layers=2, heads=2, timesteps=30, learning_rate=1e-3
)
DATA = make_data((30, 5, 17, 40, 20, 8))
KEY = jax.random.key(3)
STILL = dataclasses.replace(SMALL, dropout=0.0)
FLAT = dataclasses.replace(SMALL, layers=1)


def history(n=4, length=6, seed=0, began=0):
    """Histories of n episodes, of which the first ``length - began`` steps are padding where began is positive."""
    rng = np.random.default_rng(seed)
    steps = np.tile(np.arange(length), (n, 1)) if not began else np.tile(np.arange(began - length, began), (n, 1))
    parts = [rng.standard_normal((n, length, *more)).astype(np.float32) for more in ((), (11,), (3,))]
    return History(*parts, np.maximum(steps, -1).astype(np.int32))


def params_of(own=SMALL, seed=0):
    return method.create(own, 11, 3, jax.random.key(seed)).policy


NET = method.network(STILL, 3)


@partial(jax.jit, static_argnames=("latest", "net"))
def answer(params, whole, latest=False, net=NET):
    """Actions of every step, nothing dropped."""
    return net.apply(params, whole, latest=latest)


def exported(own=SMALL, seed=0, data=DATA):
    return method.export(own, data, jax.tree.map(np.asarray, params_of(own, seed)))


# --- data ---------------------------------------------------------------------------------------------------------


def test_returns_to_go_and_timesteps_are_those_of_every_episode():
    found, steps = method.returns_to_go(DATA), method.timesteps(DATA)
    for first, end in zip(DATA.starts[:-1], DATA.starts[1:], strict=True):
        for row in range(first, end):
            assert found[row] == pytest.approx(np.float64(DATA.rewards[row:end]).sum(), abs=1e-9)
            assert steps[row] == row - first


def test_segments_are_rows_of_one_episode_drawn_by_its_length():
    own = dataclasses.replace(SMALL, batch_size=20_000)
    data = prepared(method.METHOD, own, DATA)
    batch = method.sample(own, Prepared(Table.of(data.shared)), KEY)
    rows = jax.tree.map(np.asarray, data.shared)
    episode = {tuple(o): i for i, o in enumerate(rows.observations)}
    first = np.array([episode[tuple(o)] for o in np.asarray(batch.history.observations[:, 0])])
    counts = np.bincount(DATA.episode_of[first], minlength=len(DATA.lengths)) / len(first)
    np.testing.assert_allclose(counts, DATA.lengths / DATA.lengths.sum(), atol=0.015)
    assert set(first) == set(range(len(DATA.rewards)))  # every row begins one
    ends = DATA.starts[1:][DATA.episode_of[first]]
    place = first[:, None] + np.arange(own.context)
    np.testing.assert_array_equal(batch.real, place < ends[:, None])
    real = np.asarray(batch.real, bool)
    for name in ("observations", "actions", "returns", "timesteps"):
        np.testing.assert_array_equal(np.asarray(getattr(batch.history, name))[real], getattr(rows, name)[place[real]])


def test_the_target_is_the_papers_the_best_episodes_or_the_options():
    best = DATA.returns.max()
    near = dataclasses.replace(DATA, rewards=DATA.rewards * np.float32(3000 / best))
    elsewhere = dataclasses.replace(near, environment="d4rl/Ant-v2")
    asked = dataclasses.replace(SMALL, target_return=-12.5)
    assert method.target_return(SMALL, near) == 3600
    assert method.target_return(SMALL, DATA) == best  # other rewards, or far from the task's: 3,600 was never seen
    assert method.target_return(SMALL, elsewhere) == elsewhere.returns.max()
    assert method.target_return(asked, DATA) == -12.5
    data = prepared(method.METHOD, asked, DATA, seeds=(0, 1))
    assert data.diagnostics == [{"target_return": -12.5}] * 2


# --- what sees what -----------------------------------------------------------------------------------------------


def test_later_tokens_change_no_earlier_action():
    params, whole = params_of(), history()
    answers = np.asarray(answer(params, whole))
    for step in range(6):
        for name in ("returns", "observations", "actions"):
            changed = np.array(getattr(whole, name))
            changed[:, step] += 1.0
            found = np.asarray(answer(params, whole._replace(**{name: changed})))
            np.testing.assert_allclose(found[:, :step], answers[:, :step], atol=1e-6)
            seen = step + (name == "actions")  # an action is not seen by the state that it answers
            np.testing.assert_allclose(found[:, step:seen], answers[:, step:seen], atol=1e-6)
            if seen < 6:
                assert (np.abs(found[:, seen:] - answers[:, seen:]).max(axis=(0, 2)) > 1e-4).all()


def test_padding_in_front_is_not_seen():
    params, padded = params_of(), history(began=4)
    short = History(*(x[:, 2:] for x in padded))
    found = answer(params, padded)
    np.testing.assert_allclose(found[:, 2:], answer(params, short), atol=1e-5)
    other = padded._replace(observations=padded.observations + (padded.timesteps < 0)[..., None])
    np.testing.assert_allclose(found[:, 2:], answer(params, other)[:, 2:], atol=1e-6)
    np.testing.assert_allclose(found[:, -1:], answer(params, padded, latest=True), atol=1e-6)


def test_the_loss_is_the_mean_over_the_steps_that_there_are():
    real = np.ones((4, 6), np.float32)
    real[0, 2:] = real[3, 5:] = 0
    params, whole = params_of(), history()
    loss_of = jax.jit(partial(method.policy_loss, STILL))
    loss = float(loss_of(params, method.Segments(whole, real), KEY))
    errors = (np.asarray(answer(params, whole)) - whole.actions) ** 2
    assert loss == pytest.approx(errors[real == 1].mean(), rel=1e-5)
    missing = (real == 0)[..., None]
    other = whole._replace(actions=whole.actions + missing, observations=whole.observations - 3 * missing)
    assert float(loss_of(params, method.Segments(other, real), KEY)) == pytest.approx(loss, rel=1e-5)


def test_dropout_is_for_learning_alone():
    net, params, whole = method.network(SMALL, 3), params_of(), history()
    drop = jax.jit(lambda key: net.apply(params, whole, rngs={"dropout": key}))
    assert np.abs(drop(jax.random.key(0)) - drop(jax.random.key(1))).max() > 1e-3
    np.testing.assert_array_equal(answer(params, whole, net=net), answer(params, whole))


def test_the_learning_rate_rises_in_the_first_tenth():
    own = dataclasses.replace(SMALL, steps=40, weight_decay=0.0)
    optimiser, params = method.optimiser(own), {"x": jnp.zeros(1)}
    state, moved = optimiser.init(params), []
    for _ in range(6):  # a constant gradient: Adam's step is the learning rate
        change, state = optimiser.update({"x": jnp.full(1, 0.1)}, state, params)
        moved.append(-float(change["x"][0]) / own.learning_rate)
    np.testing.assert_allclose(moved, [0.25, 0.5, 0.75, 1, 1, 1], rtol=1e-3)


# --- the memory ---------------------------------------------------------------------------------------------------


def play(policy, observations, rewards):
    """Actions (T, n, A) of n episodes: observations (T, n, O), rewards (T, n)."""
    carry, actions = policy.initial(observations.shape[1]), []
    for observed, reward in zip(observations, rewards, strict=True):
        action, carry = policy.act(carry, observed, np.random.default_rng(0))
        carry = policies.observe(policy, carry, reward)
        actions.append(action)
    return np.array(actions)


def episodes(steps=40, n=ROWS + 2):
    rng = np.random.default_rng(1)
    return rng.standard_normal((steps, n, 11)).astype(np.float32), rng.random((steps, n))


def test_the_policy_answers_the_last_steps_and_what_is_still_wanted():
    """Against the network on windows that are cut out of the whole episode; longer than timesteps are known."""
    own = dataclasses.replace(STILL, target_return=9.0, return_scale=10.0)
    observations, rewards = episodes()
    actions = play(policies.make(exported(own)), observations, rewards)
    mean, std = DATA.observations.mean(axis=0), DATA.observations.std(axis=0) + 1e-3
    wanted = (9.0 - np.concatenate([np.zeros_like(rewards[:1]), np.cumsum(rewards, axis=0)[:-1]])) / 10.0
    params = params_of(own)
    for last in (5, 6, 20, 29, 30, 39, 0, 1, 4):
        steps = np.arange(last - 5, last + 1)
        parts = wanted[steps], (observations[steps] - mean) / std, actions[steps]
        parts = [np.swapaxes(np.float32(x), 0, 1) for x in parts]
        window = History(*parts, np.tile(np.maximum(steps, -1), (ROWS + 2, 1)).astype(np.int32))
        np.testing.assert_allclose(actions[last], answer(params, window)[:, -1], atol=2e-5)


def test_episodes_of_a_batch_know_nothing_of_each_other():
    policy, (observations, rewards) = policies.make(exported()), episodes(12)
    together = play(policy, observations, rewards)
    for i in range(ROWS + 2):
        alone = play(policy, observations[:, i : i + 1], rewards[:, i : i + 1])
        np.testing.assert_allclose(together[:, i], alone[:, 0], atol=1e-6)
    # Each at its own time, and some of them over: the rows of the memory are all that there is.
    carry = policy.initial(4)
    for t in range(3):
        _, carry = policy.act(carry, observations[t, :4])
    late = jax.tree.map(lambda x: x[[1, 3]], carry)
    mixed = jax.tree.map(lambda x, y: np.concatenate([x, y]), late, policy.initial(1))
    found, _ = policy.act(mixed, observations[3, [1, 3, 5]])
    expected = policy.act(late, observations[3, [1, 3]])[0], policy.act(policy.initial(1), observations[3, [5]])[0]
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-6)


def test_acting_compiles_nothing_anew_as_episodes_end():
    policy, (observations, _) = policies.make(exported()), episodes(1)
    policy.act(policy.initial(1), observations[0, :1])
    programs = decision_transformer._latest_actions._cache_size()
    for n in (2, ROWS, ROWS + 2):
        policy.act(policy.initial(n), observations[0, :n])
    assert decision_transformer._latest_actions._cache_size() == programs


# --- learning -----------------------------------------------------------------------------------------------------


def train(own=FLAT, seeds=(0,), data=DATA, **options):
    return loop.train(method.METHOD, own, prepared(method.METHOD, own, data, seeds=seeds), seeds, **options)


@pytest.mark.slow
def test_what_is_asked_for_is_done():
    """Ten steps, each rewarded with its action; episodes are all low or all high: the target says which."""
    rng, n, length = np.random.default_rng(0), 300, 10
    level = np.repeat(rng.uniform(-0.8, 0.8, n), length)
    data = make_data((length,) * n)
    noise = 0.02 * rng.standard_normal((3, n * length))
    actions = np.stack([level, -level, 0 * level], axis=1) + noise.T
    data = dataclasses.replace(
        data, actions=np.float32(actions), rewards=np.float32(level), environment="d4rl/Ant-v2",
        observations=rng.standard_normal(data.observations.shape).astype(np.float32),
    )  # fmt: skip
    own = dataclasses.replace(FLAT, dropout=0.0, steps=200, batch_size=32, return_scale=5.0, learning_rate=3e-3)
    policy = jax.tree.map(lambda x: np.asarray(x[0]), train(own, data=data).policy)
    answers = {}
    for target in (-6.0, 6.0, None):
        asked = policies.make(method.export(dataclasses.replace(own, target_return=target), data, policy))
        observations = rng.standard_normal((length, 20, 11)).astype(np.float32)
        carry, earned = asked.initial(20), np.zeros(20)
        for observed in observations:
            action, carry = asked.act(carry, observed, rng)
            carry = asked.observe(carry, action[:, 0])
            earned += action[:, 0]
        answers[target] = earned.mean()
    assert answers[-6.0] == pytest.approx(-6, abs=1.5) and answers[6.0] == pytest.approx(6, abs=1.5)
    assert answers[None] > 6.0  # the best episode's return is about 8


@pytest.mark.slow
def test_a_killed_training_goes_on_bit_for_bit_and_seeds_are_one_program(tmp_path, monkeypatch):
    monkeypatch.setattr(method, "CALL_STEPS", 5)
    monkeypatch.setattr(snapshots, "SNAPSHOT_SECONDS", 0)
    path = tmp_path / "x.unfinished"

    def kill(step, average, last):
        if step == 15:
            raise KeyboardInterrupt

    whole = train(seeds=(3, 4), snapshot=snapshots.Snapshot(path))
    assert whole.logs[0]["step"] == [5, 10, 15, 20] and np.isfinite(whole.logs[0]["policy_loss"]).all()
    path.unlink()
    with pytest.raises(KeyboardInterrupt):
        train(seeds=(3, 4), snapshot=snapshots.Snapshot(path), checkpoint=kill)
    assert [row["step"] for row in files.read_metadata(path)["log"]] == [5, 10]
    resumed = train(seeds=(3, 4), snapshot=snapshots.Snapshot(path))
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    # Seed by seed: in what they answer, since keys' biases have no effect, and so a gradient of rounding alone.
    net = method.network(FLAT, 3)
    answers = [answer(jax.tree.map(lambda x, i=i: x[i], whole.policy), history(), net=net) for i in (0, 1)]
    for i, seed in enumerate((3, 4)):
        alone = answer(jax.tree.map(lambda x: x[0], train(seeds=(seed,)).policy), history(), net=net)
        np.testing.assert_allclose(answers[i], alone, atol=2e-4)
    assert np.abs(answers[0] - answers[1]).max() > 0.01


# --- runs ---------------------------------------------------------------------------------------------------------


def test_a_run_from_data_to_the_policys_file(tmp_path):
    small()
    run.main(config(tmp_path, method=("decision-transformer",), seeds=(4,), decision_transformer=SMALL))
    (path,) = (tmp_path / "results").rglob("*.json")
    result, policy = results.read(path), load_policy(path.with_suffix(".safetensors"))
    assert result.config == json.loads(json.dumps(dataclasses.asdict(SMALL)))
    best = iwsft_control.load(dataset=ID).returns.max()
    assert result.diagnostics["target_return"] == best and result.diagnostics["training"]["step"] == [20]
    assert "as decision-transformer acts, last parameters" in result.evaluation["policy"]
    assert (policy.kind, policy.method, policy.observation_dim) == ("decision-transformer", "decision-transformer", 11)
    for threads in (1, 3):  # a second time with the memory of new episodes
        again = evaluation.evaluate(policy, "d4rl/Hopper-v2", 5, threads=threads)
        np.testing.assert_array_equal(again, result.episode_returns)
    with pytest.raises(UserError, match=r"has a memory or is random: use its initial\(\) and act\(\)"):
        policy(np.zeros(11))
    with pytest.raises(UserError, match="takes observations of 11 numbers, these have 17"):
        iwsft_control.evaluate(policy, "d4rl/Walker2d-v2", episodes=1)


def test_rewards_reach_the_memory_in_evaluations_and_videos(monkeypatch):
    """A policy that acts by what it earned: without rewards all of its actions were one."""

    class Earner:
        def initial(self, n):
            return np.zeros(n)

        def act(self, carry, observations, key):
            return np.tanh(np.tile(carry[:, None], (1, 3)) / 9), carry

        def observe(self, carry, rewards):
            return carry + rewards

    recorder = evaluation.Recorder([0, 2])
    returns = evaluation.evaluate(Earner(), "d4rl/Hopper-v2", 3, recorder=recorder)
    for i in (0, 2):
        kept = recorder.recordings[i]
        earned = np.concatenate([[0.0], np.cumsum(kept.rewards)])
        assert earned[-1] == pytest.approx(returns[i])
        np.testing.assert_allclose(kept.actions[:, 0], np.tanh(earned[:-1] / 9), rtol=1e-12)
    monkeypatch.setattr(video, "_frame", lambda env: np.zeros((2, 2, 3), np.uint8))
    _, _, total = video.play(Earner(), "d4rl/Hopper-v2")
    assert total == pytest.approx(returns[0])
    plain = policies.as_policy(lambda observations: np.zeros((len(observations), 3)))
    assert policies.observe(plain, (), np.ones(2)) == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda params, layout: layout.pop("heads"),
        lambda params, layout: layout.update(heads=3),
        lambda params, layout: layout.update(context=0),
        lambda params, layout: layout.update(return_scale="x"),
        lambda params, layout: layout.update(target_return=float("nan")),
        lambda params, layout: params.pop("normalisation"),
        lambda params, layout: params["normalisation"].update(mean=np.zeros(4, "f4")),
        lambda params, layout: params["params"].pop("Dense_1"),
        lambda params, layout: params["params"]["head"].update(kernel=np.zeros((9, 3), "f4")),
    ],
)
def test_a_file_that_holds_no_such_policy_is_one_sentence(tmp_path, change):
    own = exported()
    params, layout = files.nest(files.flatten(own.params)), dict(own.layout)
    files.save_pytree(tmp_path / "a.safetensors", params, {"policy": {"kind": own.kind, "layout": layout}})
    load_policy(tmp_path / "a.safetensors")
    change(params, layout)
    files.save_pytree(tmp_path / "a.safetensors", params, {"policy": {"kind": own.kind, "layout": layout}})
    with pytest.raises(UserError, match="does not hold a policy"):
        load_policy(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"heads": 3}, r"--decision-transformer.width must be a multiple of --decision-transformer.heads"),
        ({"dropout": 1.0}, r"--decision-transformer.dropout must lie in \[0, 1\), not 1.0"),
        ({"target_return": float("inf")}, r"--decision-transformer.target-return must be a finite number"),
        ({"context": 0}, r"--decision-transformer.context must be positive"),
    ],
)
def test_options_that_cannot_be_meant(change, sentence):
    with pytest.raises(UserError, match=sentence):
        settings.validate(settings.make(decision_transformer=dataclasses.replace(SMALL, **change)))
