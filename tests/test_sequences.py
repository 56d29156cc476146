"""Token sequences: the same objectives against NumPy, in any batch and packing; the task, decoding, and whole runs."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import sequences
from iwsft_control import table
from iwsft_control.base import bounds, console
from iwsft_control.base.errors import UserError
from iwsft_control.benchmark import results
from iwsft_control.datasets.transitions import Demonstrations, Table
from iwsft_control.learning import loop, objectives
from iwsft_control.learning.method import Prepared
from iwsft_control.learning.objectives import ImportanceConfig
from iwsft_control.report import formats
from iwsft_control.report import runs as grouped
from iwsft_control.report.runs import Row
from iwsft_control.sequences import critic, evaluation, generate, methods, model, runs, task
from iwsft_control.sequences.methods import FORMS, METHODS, Answers, FineTuningConfig, Own, PolicyConfig, SequenceConfig
from iwsft_control.sequences.model import ModelConfig, Transformer
from iwsft_control.sequences.task import BOS, DIRECT, EOS, NO, PAD, THINK, YES, Task, Traces

RESULTS = Path(__file__).parents[1] / "results" / "sequences"
MODEL = ModelConfig(width=16, layers=2, heads=2, context=16)
SMALL = Task(3)
CONFIG = FineTuningConfig(model=MODEL, policy=PolicyConfig(batch_size=8))


def some_params(seed=0, outputs=task.VOCABULARY, spread=3.0):
    """Parameters that are not near zero, so that log-probabilities differ."""
    params = jax.jit(Transformer(MODEL, outputs).init)(jax.random.key(seed), jnp.zeros((1, 4), jnp.int32))
    return jax.tree.map(lambda x: spread * x, params)


def forward(params, tokens, outputs=task.VOCABULARY):
    """The model's outputs (B, T, outputs) for whole sequences, without a cache."""
    return _forward(params, tokens, outputs)[0]


_forward = jax.jit(lambda params, tokens, outputs: Transformer(MODEL, outputs).apply(params, tokens), static_argnums=2)
log_prob = jax.jit(partial(model.log_prob, MODEL))


def some_batch(n=6, seed=0):
    """Answers of both modes: of 6 and of 3 tokens, padded."""
    traces = task.corpus(SMALL, 200)
    rows = np.random.default_rng(seed).choice(200, n, replace=False)
    batch = Demonstrations(jnp.asarray(traces.prompts[rows]), jnp.asarray(traces.answers[rows]))
    assert len(set(task.lengths(traces.answers[rows]))) == 2
    return batch


# --- the task ---------------------------------------------------------------------------------------------------------


def solve(prompt):
    """The chain and the verdict by the words of a problem alone."""
    text = task.in_words(prompt).split()
    digit, chain = int(text[0]), []
    for word in text[1:-1]:
        digit = (digit + int(word[1:]) if word[0] == "+" else digit * int(word[1:])) % 10
        chain.append(digit)
    return chain, YES if digit >= 5 else NO


def test_the_verifier_against_words():
    traces = task.corpus(Task(8), 300)
    found = task.verify(*traces)
    for i, (prompt, answer) in enumerate(zip(*traces, strict=True)):
        chain, right = solve(prompt)
        thinks = answer[0] == THINK
        assert found.thinks[i] == thinks
        assert found.reward[i] == (answer[9 if thinks else 1] == right)
        if thinks:
            digits = list(answer[1:9])
            before = [prompt[1], *digits[:-1]]
            follows = [task.apply(prompt[2 + k], before[k]) == digits[k] for k in range(8)]
            assert found.steps_right[i] == np.mean(follows)
            assert (digits == chain) >= all(follows)
    assert found.well_formed.all()


def test_what_is_not_well_formed_has_no_reward():
    prompt = np.array([[BOS, 4, task.OPERATION + 2, task.OPERATION + 3, task.ASK]], np.int32)  # 4 + 2 + 3 = 9: yes
    for answer, reward in (
        ([THINK, 6, 9, YES, EOS], 1.0),
        ([THINK, 6, 9, NO, EOS], 0.0),
        ([THINK, 1, 1, YES, EOS], 1.0),  # the reward asks for the verdict alone
        ([DIRECT, YES, EOS, PAD, PAD], 1.0),
        ([DIRECT, NO, EOS, PAD, PAD], 0.0),
        ([THINK, 6, YES, EOS, PAD], 0.0),  # a digit too few
        ([THINK, 6, 9, YES, 3], 0.0),  # no end
        ([THINK, 6, 9, 5, EOS], 0.0),  # no verdict
        ([DIRECT, YES, 6, EOS, PAD], 0.0),
        ([YES, EOS, PAD, PAD, PAD], 0.0),
    ):
        found = task.verify(prompt, np.array([answer], np.int32))
        assert found.reward[0] == reward, answer
    assert task.in_words(prompt[0]) == "4 +2 +3 ="


def test_the_corpus_is_of_the_quality_that_it_says():
    traces = task.corpus(Task(8), 40_000)
    found = task.verify(*traces)
    thinks = found.thinks
    assert thinks.mean() == pytest.approx(0.5, abs=0.01)
    assert found.reward[~thinks].mean() == pytest.approx(0.5, abs=0.015)
    assert found.steps_right[thinks].mean() == pytest.approx(0.955, abs=0.003)  # a slip hits the right digit in a tenth
    assert (found.steps_right[thinks] == 1).mean() == pytest.approx(0.955**8, abs=0.01)
    assert (task.chains(traces.prompts)[:, -1] >= 5).mean() == pytest.approx(0.5, abs=0.01)


def test_held_out_problems_are_in_no_training_data():
    """Also where the task has few problems."""
    of = Task(4)
    seen = task.corpus(of, 100_000).prompts
    asked = task.held_out(of, 1000, seen)
    curated = task.to_curate(of, 5000, 0, asked)
    rows = lambda prompts: set(map(bytes, prompts))  # noqa: E731
    assert not rows(asked) & rows(seen) and not rows(asked) & rows(curated)
    assert rows(curated) != rows(task.to_curate(of, 5000, 1, asked))
    np.testing.assert_array_equal(asked, task.held_out(of, 1000, seen))


# --- the model and the door -------------------------------------------------------------------------------------------


def test_the_model_of_the_reference_has_its_size():
    tokens = jax.ShapeDtypeStruct((1, 22), jnp.int32)
    params = jax.eval_shape(Transformer(ModelConfig(context=22)).init, jax.random.key(0), tokens)
    assert sum(x.size for x in jax.tree.leaves(params)) == 105_503


def test_log_prob_is_of_answers_alone_and_causal():
    params, batch = some_params(), some_batch()
    (n, p), (_, r) = batch.observations.shape, batch.actions.shape
    tokens = np.concatenate([batch.observations, batch.actions], axis=1)
    logits = forward(params, jnp.asarray(tokens))
    everything = np.asarray(jax.nn.log_softmax(logits), np.float64)
    expected = [[everything[i, p - 1 + t, tokens[i, p + t]] for t in range(r)] for i in range(n)]
    found = log_prob(params, batch)
    assert found.shape == (n * r,)  # prompts have no row, so no loss
    np.testing.assert_allclose(found.reshape(n, r), expected, atol=1e-5)
    floats = Demonstrations(*(jnp.asarray(x, jnp.float32) for x in batch))  # as the training loop's table holds them
    np.testing.assert_array_equal(log_prob(params, floats), found)
    later = batch.actions.at[:, 2:].set(3)
    changed = log_prob(params, batch._replace(actions=later)).reshape(n, r)
    np.testing.assert_allclose(changed[:, :2], found.reshape(n, r)[:, :2], atol=1e-5)
    assert np.abs(changed[:, 3:] - found.reshape(n, r)[:, 3:]).max() > 0.01


def uncached(params, prompts, length, key, greedy):
    """Answers by a forward pass over the whole sequence for every token."""
    known = prompts.shape[1]
    tokens, ended = np.pad(prompts, ((0, 0), (0, length)), constant_values=PAD), np.zeros(len(prompts), bool)
    for place, each in enumerate(jax.random.split(key, length), known):
        logits = forward(params, jnp.asarray(tokens))[:, place - 1]  # what stands later is not seen
        chosen = logits.argmax(axis=-1) if greedy else jax.random.categorical(each, logits)
        tokens[:, place] = np.where(ended, PAD, chosen)
        ended |= tokens[:, place] == EOS
    return tokens[:, known:]


@pytest.mark.parametrize("greedy", [True, False])
def test_decoding_with_a_cache_is_decoding_without_one(greedy):
    params = some_params(spread=1.0)
    params["params"]["head"]["bias"] = params["params"]["head"]["bias"].at[EOS].set(2.0)  # some answers end early
    prompts = np.asarray(some_batch(40).observations)
    key = jax.random.key(5)
    cached = generate.decode(MODEL, params, jnp.asarray(prompts), 6, key, greedy)
    np.testing.assert_array_equal(cached, uncached(params, prompts, 6, key, greedy))
    if not greedy:
        assert len(set(task.lengths(np.asarray(cached)))) > 1


def test_divergences_against_numpy():
    params, reference, batch = some_params(0), some_params(1), some_batch()
    p, r = batch.observations.shape[1], batch.actions.shape[1]
    tokens = jnp.concatenate([batch.observations, batch.actions], axis=1)

    def probabilities(each):
        logits = np.asarray(forward(each, tokens), np.float64)[:, p - 1 : p + r - 1]
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)

    ours, theirs = probabilities(params), probabilities(reference)
    each = (ours * np.log(ours / theirs)).sum(axis=-1)
    expected = [each[i, :n].sum() for i, n in enumerate(task.lengths(np.asarray(batch.actions)))]
    found = evaluation.divergences(MODEL, params, reference, *map(np.asarray, batch))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(evaluation.divergences(MODEL, params, params, *map(np.asarray, batch)), 0.0, atol=1e-6)


# --- the losses -------------------------------------------------------------------------------------------------------


def numpy_loss(name, log_pi, log_q, log_reference, lengths):
    """The losses of the module's head, answer by answer, from arrays (B, R) with padding at their ends."""
    means = [(log_q[i, :n] - log_reference[i, :n]).mean() for i, n in enumerate(lengths)]
    total = 0.0
    for i, n in enumerate(lengths):
        ratio = log_q[i, :n] - log_reference[i, :n]
        weight = {
            "sft": 1.0,
            "iw-sft": np.clip(np.exp(ratio.mean()), 0, 16),
            "iw-sft-sum": np.clip(np.exp(ratio.sum()), 0, 16),
            "iw-sft-token": np.clip(np.exp(ratio), 0.2, 1.8),
            "iw-sft-normalised": np.exp(10 * means[i]) / np.mean(np.exp(10 * np.array(means))),
        }[name]
        total -= (weight * log_pi[i, :n]).sum()
    return total / lengths.sum()


def the_loss(name, params, q, reference, batch):
    """The same through the code that trains."""
    of, form = model.layout(batch.actions), FORMS.get(name)
    log_ratio = log_prob(q, batch) - log_prob(reference, batch)
    factors = methods.coefficients(form, log_ratio, of)
    return objectives.sequence_loss(log_prob, params, batch, factors)


LOSSES = ("sft", "iw-sft", "iw-sft-sum", "iw-sft-token", "iw-sft-normalised")


@pytest.mark.parametrize("name", LOSSES)
def test_losses_against_numpy(name):
    batch = some_batch(6)
    policies = some_params(0, spread=2.0), some_params(1, spread=1.3), some_params(2, spread=1.2)
    arrays = [np.asarray(log_prob(p, batch), np.float64).reshape(6, -1) for p in policies]
    lengths = task.lengths(np.asarray(batch.actions))
    expected = numpy_loss(name, *arrays, lengths)
    assert float(the_loss(name, *policies, batch)) == pytest.approx(expected, rel=1e-4)
    if name != "sft":
        assert abs(expected / numpy_loss("sft", *arrays, lengths) - 1) > 0.01  # else this would show nothing


def assert_close(found, expected):
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * scale)


def one_by_one(batch):
    return [Demonstrations(*(x[i : i + 1] for x in batch)) for i in range(len(batch.actions))]


@pytest.mark.parametrize("name", ["iw-sft", *(pytest.param(n, marks=pytest.mark.slow) for n in LOSSES[2:4])])
def test_any_batch_is_weighted_right(name):
    """A batch of B answers, B batches of one (by their share of tokens), and more padding: one loss.

    The authors' language code multiplies weights (B, 1) with losses (B, T, 1), which is right for B = 1 alone: for
    B = T it weighs tokens by the weights of other answers, for other B it fails.
    """
    batch = some_batch(6)
    policies = some_params(0, spread=2.0), some_params(1, spread=1.3), some_params(2, spread=1.2)
    whole = float(the_loss(name, *policies, batch))
    lengths = task.lengths(np.asarray(batch.actions))
    ones = [float(the_loss(name, *policies, each)) for each in one_by_one(batch)]
    assert whole == pytest.approx((np.array(ones) * lengths).sum() / lengths.sum(), rel=1e-5)
    longer = batch._replace(actions=jnp.pad(batch.actions, ((0, 0), (0, 3)), constant_values=PAD))
    assert whole == pytest.approx(float(the_loss(name, *policies, longer)), rel=1e-5)


@pytest.mark.slow
def test_any_batch_has_one_gradient():
    batch = some_batch(6)
    params, q, reference = some_params(0, spread=2.0), some_params(1, spread=1.3), some_params(2, spread=1.2)
    gradient = jax.jit(jax.grad(lambda params, batch: the_loss("iw-sft", params, q, reference, batch)))
    lengths = task.lengths(np.asarray(batch.actions))
    ones = [gradient(params, each) for each in one_by_one(batch)]
    shares = lengths / lengths.sum()
    summed = jax.tree.map(lambda *g: sum(s * x for s, x in zip(shares, g, strict=True)), *ones)
    assert_close(gradient(params, batch), summed)


@pytest.mark.parametrize("name", [n if n == "iw-sft" else pytest.param(n, marks=pytest.mark.slow) for n in LOSSES])
def test_any_packing_is_weighted_right(name):
    """Padding left out and answers end to end, in another order: the same loss."""
    batch = some_batch(6)
    policies = some_params(0, spread=2.0), some_params(1, spread=1.3), some_params(2, spread=1.2)
    padded = [log_prob(p, batch) for p in policies]
    of = model.layout(batch.actions)
    order = [4, 0, 5, 2, 1, 3]
    rows = np.concatenate([np.flatnonzero(np.asarray(of.unit_of_row) == i) for i in order])
    lengths = of.lengths[jnp.asarray(order)]
    packed = model.Layout(jnp.asarray(np.repeat(np.arange(6), lengths)), lengths)
    factors = methods.coefficients(FORMS.get(name), (padded[1] - padded[2])[rows], packed)
    found = objectives.sequence_loss(lambda p, b: padded[0][rows], None, None, factors)
    assert float(found) == pytest.approx(float(the_loss(name, *policies, batch)), rel=1e-5)


def test_the_authors_broadcast_is_right_for_one_answer_alone():
    weights, losses = np.array([[1.0], [2.0], [3.0]]), np.arange(9.0).reshape(3, 3, 1)  # (B, 1), (B, T, 1), B = T
    right = sum(w * each.sum() for w, each in zip(weights[:, 0], losses, strict=True)) / 9
    assert (weights * losses).sum() / 9 != pytest.approx(right)
    assert (weights[:1] * losses[:1]).sum() / 3 == pytest.approx(losses[:1].sum() / 3 * weights[0, 0])
    of = model.Layout(jnp.repeat(jnp.arange(3), 3), jnp.full(3, 3))
    ours = objectives.token_weights(jnp.asarray(weights[:, 0]), *of)
    assert float((ours * losses.reshape(-1)).sum()) == pytest.approx(right)


@pytest.mark.parametrize("name", ["iw-sft", "iw-sft-token", "iw-sft-sum", "iw-sft-normalised"])
def test_the_first_step_is_that_of_sft(name):
    """All weights are one where q is pi_ref."""
    of = model.layout(some_batch().actions)
    same = jnp.zeros(of.unit_of_row.shape)
    plain = np.asarray(methods.coefficients(None, same, of))
    real = np.asarray(of.unit_of_row) < len(of.lengths)
    np.testing.assert_allclose(plain, np.where(real, 1 / real.sum(), 0.0), rtol=1e-6)
    np.testing.assert_allclose(methods.coefficients(FORMS[name], same, of), plain, rtol=1e-6)


def test_a_q_that_lags_follows_and_another_does_not_exist():
    params, batch = some_params(), some_batch()
    answers = Answers(*batch, jnp.zeros(batch.actions.shape))
    state = methods.State(params, params, methods.optimiser(CONFIG).init(params))
    after, _ = jax.jit(partial(methods.update, "iw-sft-normalised", CONFIG))(state, answers, jax.random.key(0))
    moved = jax.tree.map(lambda new, old: 0.9 * old + 0.1 * new, after.policy, params)
    assert_close(after.lagged, moved)
    start = Own((), (), params)
    assert methods.from_bc("iw-sft", CONFIG, state, Prepared((), start)).lagged == ()


@pytest.mark.slow
def test_the_bandit_is_the_sequence_of_length_one(monkeypatch):
    """Two machines, one token: T pays always, D half of the time. 2/3, 4/5, 8/9, through the code that fine-tunes."""
    free = ImportanceConfig(
        None, temperature=1.0, relative=False, high=1e6, lag=1.0
    )  # q is the policy of the round before
    monkeypatch.setitem(FORMS, "iw-sft", methods.Form("mean", free))
    config = FineTuningConfig(
        model=ModelConfig(width=8, layers=1, heads=1, context=2),
        policy=PolicyConfig(batch_size=3, fine_tune_steps=400, fine_tune_learning_rate=2e-2),
    )
    prompts, paid = np.full((3, 1), float(BOS)), np.array([[DIRECT], [THINK], [THINK]], float)
    record = Answers(*(jnp.asarray(x, jnp.float32) for x in (prompts, paid, np.full((3, 1), np.log(0.5)))))
    everything = lambda config, data, key: data.shared.rows(data.own.entries)  # noqa: E731
    params = Transformer(config.model).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    found = []
    for name in ("sft", "iw-sft", "iw-sft"):
        method = dataclasses.replace(METHODS[name], sample=everything, refresh=METHODS["sft"].refresh)
        own = Own(np.arange(3), np.int32(3), params)
        data = Prepared(record, jax.tree.map(lambda x: jnp.asarray(x)[None], own))
        trained = loop.train(method, config, data, (0,))
        params = jax.tree.map(lambda x: x[0], trained.policy)
        pulls = Demonstrations(record.observations[:1], jnp.array([[THINK]]))
        found.append(float(jnp.exp(model.log_prob(config.model, params, pulls))[0]))
    assert found == pytest.approx([2 / 3, 4 / 5, 8 / 9], abs=3e-3)


def test_the_log_describes_the_weights():
    batch = some_batch(8)
    log_ratio = jnp.asarray(np.random.default_rng(0).normal(0, 0.5, batch.actions.size))
    of = model.layout(batch.actions)
    real = np.asarray(of.unit_of_row) < 8
    w = np.clip(np.exp(np.asarray(log_ratio)[real]), 0.2, 1.8)
    found = methods.describe(FORMS["iw-sft-token"], log_ratio, of)
    assert float(found["effective_sample_size"]) == pytest.approx(w.sum() ** 2 / len(w) / (w**2).sum(), rel=1e-5)
    np.testing.assert_allclose(found["weight_quantiles"], np.quantile(w, objectives.QUANTILES), rtol=1e-4)
    assert float(found["share_at_high"]) == pytest.approx((w >= 1.8).mean(), rel=1e-5)
    relative = methods.describe(FORMS["iw-sft-normalised"], log_ratio, of)
    assert relative["weight_quantiles"].shape == (len(objectives.QUANTILES),)


# --- curation and the critic ------------------------------------------------------------------------------------------


def judged(rewards):
    return runs.as_dataset(SMALL, "test", Traces(*task.corpus(SMALL, len(rewards))), np.array(rewards, np.float32))


def test_curated_answers_stand_there_by_their_quality():
    data = judged([1, 0, 1, 1, 0])
    steps, q = np.array([0.0, 1.0, 0.75, 1.0, 1.0]), np.array([0.2, 0.9, 0.5, 0.8, 0.9])
    own = methods.CurationConfig()
    curate = lambda *how: sorted(methods.curate(how[0], own, how[1], data, how[2]))  # noqa: E731
    assert curate("correct", None, None) == [0, 2, 3]
    assert curate("graded", "steps", steps) == [0, 2, 2, 3, 3, 3]
    assert curate("graded", "q", q) == [0, 2, 2, 3, 3, 3]  # the upper half of three is two, their upper quarter one
    with pytest.raises(UserError, match=r"curated set is empty; pre-train longer \(--policy.bc-steps\)"):
        methods.curate("correct", own, None, judged([0, 0]), None)


def test_the_critics_loss_against_numpy():
    params, batch = some_params(outputs=1), some_batch()
    rewards = np.array([1, 0, 1, 1, 0, 1], np.float32)
    tokens = jnp.concatenate(list(batch), axis=1)
    logits = np.asarray(forward(params, tokens, 1)[:, batch.observations.shape[1] :, 0], np.float64)
    q = 1 / (1 + np.exp(-logits))
    lengths = task.lengths(np.asarray(batch.actions))
    each = [np.log(q[i, :n] if rewards[i] else 1 - q[i, :n]).sum() for i, n in enumerate(lengths)]
    found = critic.loss(CONFIG, params, critic.Judged(*batch, jnp.asarray(rewards)))
    assert float(found) == pytest.approx(-sum(each) / lengths.sum(), rel=1e-4)
    data = runs.as_dataset(SMALL, "test", Traces(*map(np.asarray, batch)), rewards)
    np.testing.assert_allclose(
        critic.scores(CONFIG, params, data), [q[i, :n].mean() for i, n in enumerate(lengths)], rtol=1e-4
    )


def test_bounds_stand_with_every_number():
    for config in (SequenceConfig(), evaluation.EvaluationConfig()):
        groups = [getattr(config, f.name) for f in dataclasses.fields(config)]
        groups = groups if isinstance(config, SequenceConfig) else [config]
        for value in groups:
            for field in dataclasses.fields(value):
                number = getattr(value, field.name)
                broken = tuple(-1 for _ in number) if isinstance(number, tuple) else -1
                with pytest.raises(UserError, match="not"):
                    bounds.check(dataclasses.replace(value, **{field.name: broken}), "group")


# --- whole runs -------------------------------------------------------------------------------------------------------


def small(tmp_path, **changes):
    defaults = {
        "model": ModelConfig(width=16, layers=1, heads=2, context=16),
        "policy": PolicyConfig(batch_size=32, bc_steps=150, bc_learning_rate=1e-2, fine_tune_steps=10),
        "curation": methods.CurationConfig(samples=300),
        "critic": methods.CriticConfig(steps=10),
        "evaluation": evaluation.EvaluationConfig(problems=60, samples=2),
        "task": "modchain-4",
        "methods": ("bc", "sft", "iw-sft"),
        "seeds": (0,),
        "out": tmp_path / "out",
        "stages": tmp_path / "stages",
    }
    return sequences.SequencesConfig(**defaults | changes)


@pytest.fixture(autouse=True)
def small_corpus(monkeypatch):
    monkeypatch.setattr(runs, "CORPUS", 2000)
    monkeypatch.setattr(generate, "BATCH", 128)
    monkeypatch.setattr(console, "cache_compiled_programs", lambda: None)


def test_a_whole_run_goes_on_where_it_was_and_makes_the_suites_table(tmp_path, monkeypatch, undrawn):
    config = small(tmp_path, methods=("sft", "iw-sft-q"), qualities=("q",))
    real, trained = loop.train, []

    def until_killed(method, *rest, **options):
        trained.append(method.name)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return real(method, *rest, **options)

    monkeypatch.setattr(loop, "train", until_killed)
    with pytest.raises(KeyboardInterrupt):
        sequences.main(config)
    assert trained == ["bc", "sft", "critic"]
    sequences.main(config)
    assert trained[3:] == ["critic", "iw-sft-q"]
    paths = sorted((tmp_path / "out" / "runs").rglob("*.json"))
    assert len(paths) == 2
    before = [path.read_bytes() for path in paths]
    del trained[:]
    paths[0].unlink()
    sequences.main(config)  # nothing is trained again, and what is lost is written as it was
    assert trained == [] and [path.read_bytes() for path in paths] == before
    run = results.read(paths[0])
    assert run.normalised_score == pytest.approx(100 * np.mean(run.episode_returns))
    assert run.normalised_score == pytest.approx(run.diagnostics["figures"]["pass_at_1"])
    assert len(run.episode_returns) == 60 and set(run.episode_returns) <= {0.0, 0.5, 1.0}
    details = (tmp_path / "out" / "details.md").read_text()
    assert "| modchain-4 | iw-sft-q (q) | 1 |" in details and "KL to pi_ref" in details
    out = tmp_path / "out" / "table"
    table.main(table.TableConfig((tmp_path / "out" / "runs",), out, baseline="sft", focus="iw-sft-q"))
    text = (out / "table.md").read_text()
    assert "## Pass@1 in percent" in text and "judged by the verifier of modchain-4, no physics" in text
    assert "published" not in text and "MuJoCo" not in text
    assert "| sft | 1 | 160 |" in text and "| iw-sft-q (q) | 1 | 160 + 10 |" in text


@pytest.mark.slow
def test_one_seed_repeats_and_two_differ(tmp_path):
    found = []
    for name in "ab":
        sequences.main(small(tmp_path / name, methods=("bc",), seeds=(0, 1)))
        found.append([results.read(p) for p in sorted((tmp_path / name / "out" / "runs").rglob("*.json"))])
    for first, second in zip(*found, strict=True):
        assert first == dataclasses.replace(second, seconds=first.seconds)
    assert found[0][0].episode_returns != found[0][1].episode_returns


def test_a_run_that_diverges_is_recorded(tmp_path):
    policy = PolicyConfig(batch_size=2, bc_steps=20, bc_learning_rate=1e30)
    with pytest.raises(SystemExit) as error:
        sequences.main(small(tmp_path, policy=policy, methods=("bc",)))
    assert error.value.code == 1
    (path,) = (tmp_path / "out" / "runs").rglob("*.json")
    assert path.parent.name == "failures" and "bc (seed 0) diverged by step 20" in path.read_text()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task": "modchain-5"}, "unknown task 'modchain-5': did you mean modchain-"),
        ({"task": "modchain-12"}, "sequences of 30 tokens, the model holds 16; say --model.context 30"),
        ({"methods": ("iw-sft", "iql")}, "unknown method 'iql' for token sequences: choose one of"),
        ({"methods": ("sft", "sft")}, "different methods"),
        ({"seeds": (-1,)}, "--seeds must lie between"),
        ({"qualities": ()}, "--qualities must be"),
        ({"model": ModelConfig(width=10, heads=4)}, "--model.width must be a multiple of --model.heads"),
        ({"policy": PolicyConfig(bc_learning_rate=-1.0)}, "--policy.bc-learning-rate must be positive"),
        ({"evaluation": evaluation.EvaluationConfig(problems=0)}, "--evaluation.problems must be positive"),
        # One step of training writes no well-formed answer.
        ({"policy": PolicyConfig(bc_steps=1, batch_size=2)}, "answers is right, so the curated set is empty"),
    ],
)
def test_bad_input_gets_one_sentence(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence.replace("(", r"\(")):
        sequences.main(small(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"weights": methods.WeightsConfig(temperature=3.0)}, "weights.temperature"),
        ({"critic": methods.CriticConfig(steps=11)}, "critic.steps"),
        ({"curation": methods.CurationConfig(q_strata=(50.0,))}, "curation.q-strata"),
        ({"policy": PolicyConfig(fine_tune_steps=5), "methods": ("bc",)}, "policy.fine-tune-steps"),
    ],
)
def test_an_option_without_effect_is_a_mistake(monkeypatch, changes, option):
    seen = []
    monkeypatch.setattr(sequences, "main", seen.append)
    with pytest.raises(UserError, match=f"--{option} has no effect on .*; leave it out"):
        sequences.command(sequences.SequencesConfig(**{"methods": ("sft",)} | changes))
    sequences.command(sequences.SequencesConfig(**changes | {"methods": ("sft", "iw-sft-q")}))
    assert len(seen) == 1


def test_results_that_were_evaluated_otherwise_stay(tmp_path):
    """They would have the same name."""
    sequences.main(small(tmp_path, methods=("bc",)))
    (path,) = (tmp_path / "out" / "runs").rglob("*.json")
    before = path.read_bytes()
    with pytest.raises(UserError, match="is of 60 problems and 2 samples; choose another --out"):
        sequences.main(small(tmp_path, methods=("bc",), evaluation=evaluation.EvaluationConfig(20, 1)))
    assert path.read_bytes() == before


def test_the_log_describes_the_set_that_is_drawn_from(monkeypatch):
    """Repeated entries stand at its end: those shown are as the whole set."""
    monkeypatch.setattr(methods, "SHOWN", 64)
    batch, shown = some_batch(100), []
    entries = np.concatenate([np.arange(100), np.repeat(np.arange(10), 30)])
    table = Table.of(Answers(batch.observations, batch.actions, np.zeros(batch.actions.shape, np.float32)))
    own = Own(jnp.asarray(np.pad(entries, (0, 112))), jnp.int32(400), some_params())
    real = table.rows
    monkeypatch.setattr(Table, "rows", lambda self, index: (shown.append(np.asarray(index)), real(index))[1])
    state = methods.State(some_params(), (), ())
    methods.refresh("iw-sft-q", CONFIG, state, Prepared(table, own))
    assert len(shown[0]) == 64 and np.mean(shown[0] < 10) == pytest.approx(310 / 400, abs=0.03)


def test_a_trial_makes_nothing_larger():
    evaluated = evaluation.EvaluationConfig(problems=10, samples=2)
    policy = PolicyConfig(bc_steps=20, fine_tune_steps=500, batch_size=8)
    shorter, fewer = runs.trial(SequenceConfig(policy=policy), evaluated)
    assert (fewer.problems, fewer.samples) == (10, 1)
    assert (shorter.policy.bc_steps, shorter.policy.fine_tune_steps, shorter.policy.batch_size) == (20, 20, 8)


@pytest.mark.skipif(not RESULTS.is_dir(), reason="results/ is not part of an installed package")
def test_the_committed_tables_are_those_of_the_committed_runs():
    found = grouped.find([RESULTS / "runs"])
    report = grouped.collect(found, Row("sft", None), Row("iw-sft", None))
    assert (RESULTS / "table.md").read_text() == formats.to_markdown(report)
    assert (RESULTS / "short.md").read_text() == formats.to_short_markdown(report)
    assert (RESULTS / "details.md").read_text() == sequences.details(found)
    assert len(found) == 100 and {run.seed for run in found.values()} == set(range(10))


@pytest.mark.skipif(not RESULTS.is_dir(), reason="results/ is not part of an installed package")
def test_the_committed_runs_are_of_todays_configurations(tmp_path):
    """Otherwise a run that is done would be done again, under another name."""
    bench = runs.Bench(
        task.parse("modchain-8"), SequenceConfig(), evaluation.EvaluationConfig(), False, tmp_path, lambda *_: None
    )
    found = grouped.find([RESULTS / "runs"]).values()
    assert {run.method for run in found} == set(METHODS)
    for run in found:
        assert bench.configuration(runs.Job(run.method, run.quality, run.seed)) == run.config


@pytest.mark.skipif(not RESULTS.is_dir(), reason="results/ is not part of an installed package")
def test_the_page_shows_the_committed_tables():
    page = (RESULTS.parents[1] / "docs" / "sequences.md").read_text()
    table_text = (RESULTS / "table.md").read_text().split("## Every method minus sft")[1].split("## ")[0]
    assert all(line in page for line in table_text.splitlines() if line.startswith("|"))
    for line in (RESULTS / "details.md").read_text().splitlines():
        if line.startswith("| modchain-8"):
            method, _, sampled, greedy, share = (cell.strip().split(" [")[0] for cell in line.split("|")[2:7])
            assert f"| {method} | {sampled} | {greedy} | {share} |" in page
