"""Claims about training that hold for every method."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iwsft_control.base.errors import UserError
from iwsft_control.benchmark import perform, settings
from iwsft_control.benchmark.stages import Stage
from iwsft_control.benchmark.store import Store
from iwsft_control.configs.curation import CurationConfig
from iwsft_control.configs.supervised import KINDS, PolicyConfig
from iwsft_control.datasets import load, packed
from iwsft_control.datasets.transitions import Demonstrations, Table
from iwsft_control.learning import curation, loop, objectives
from iwsft_control.learning.method import Artefact, Prepared
from iwsft_control.learning.objectives import ImportanceConfig
from iwsft_control.methods import critic, registry, released, supervised, td3_bc
from iwsft_control.networks import policies
from iwsft_control.networks.policies import Exported, GaussianPolicy, policy_log_prob
from tests.conftest import make_data, prepared

POLICY = PolicyConfig(hidden=(16, 16), batch_size=32, bc_steps=30, fine_tune_steps=20)
IMPORTANCE = ImportanceConfig(refresh_every=5)
DATA = make_data((30, 5, 17, 40, 20, 8, 33, 12, 25, 50))
N = len(DATA.rewards)


def bc(seeds=(0,), policy=POLICY):
    config = supervised.SupervisedConfig(policy)
    method = registry.get("bc")
    return loop.train(method, config, prepared(method, config, DATA, seeds=seeds), seeds).policy


def inputs_of(name, seeds, source, start, values=None):
    """The artefacts of BC and, for quality q, of a critic whose values are random but fixed."""
    if values is None:
        values = np.random.default_rng(0).standard_normal(N)[None].repeat(len(seeds), axis=0)
    found = {"bc": Artefact({"params": start}, {})} if KINDS[name].fine_tunes else {}
    if KINDS[name].curation == "quality" and source == "q":
        found["critic"] = Artefact({"q": values, "v": np.zeros_like(values)}, {})
    return found


def train(name, seeds=(0,), source="q", policy=POLICY, importance=IMPORTANCE, start=None, **options):
    """Policy parameters (S, ...) and logs."""
    method = registry.get(name)
    unit = options.pop("q_unit", "transition" if source == "q" else "episode")
    curated = CurationConfig(q_unit=unit, **options.pop("curation", {}))
    config = method.config(policy, importance, curated, options.pop("preset", ""))
    method = method.variant(config) or method
    if start is None and KINDS[name].fine_tunes:
        start = bc(seeds, policy)
    artefacts = inputs_of(name, seeds, source, start, options.pop("values", None))
    quality = source if method.by_quality else None
    trained = loop.train(method, config, prepared(method, config, DATA, artefacts, quality, seeds), seeds, **options)
    return trained.policy, trained.logs


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("source", ["q", pytest.param("return", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", KINDS)
def test_every_method_changes_every_parameter_and_repeats_bit_for_bit(method, source):
    start = bc()
    first, log = train(method, source=source, start=start)
    again, _ = train(method, source=source, start=start)
    for a, b, s in zip(leaves(first), leaves(again), leaves(start), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()
        assert not np.array_equal(a, s) or method == "bc"
    assert np.isfinite(log[0]["loss"]).all()
    assert ("effective_sample_size" in log[0]) == KINDS[method].importance_weighted


def test_two_seeds_differ_from_the_first_step_of_bc():
    config = dataclasses.replace(POLICY, bc_steps=1)
    one, two = bc((0,), config), bc((1,), config)
    kernels = [x["params"]["net"]["net"]["Dense_0"]["kernel"] if "net" in x["params"]["net"] else x for x in (one, two)]
    assert not np.array_equal(leaves(kernels[0])[0], leaves(kernels[1])[0])
    # And the batches differ, not only the initialisation: the same start, two seeds.
    start = bc((0,))
    assert not np.array_equal(
        leaves(train("sft", (0,), start=start)[0])[0], leaves(train("sft", (1,), start=start)[0])[0]
    )


def test_a_vmap_over_seeds_is_the_seeds_one_by_one():
    together, logs = train("iw-sft-q", (3, 4))
    assert len(logs) == 2
    for i, seed in enumerate((3, 4)):
        alone, _ = train("iw-sft-q", (seed,))
        for a, b in zip(leaves(together), leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b[0], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("method", [pytest.param("sft-q", marks=pytest.mark.slow), "iw-sft-q"])
def test_a_vmap_over_seeds_with_sets_of_several_sizes(method):
    """Each seed has its own critic, so its own episodes, of other lengths: padding changes nothing."""
    values = np.stack([np.random.default_rng(s).standard_normal(N) for s in (0, 3)])
    more = {"curation": {"strata": (70, 85), "strata_of": "units"}}
    sets = [
        supervised.curate(CurationConfig(strata=(70, 85), strata_of="units"), KINDS[method], "q", DATA, (v, v))[0]
        for v in values
    ]
    assert len(sets[0].rows) != len(sets[1].rows)
    start = bc((3, 4))
    together, logs = train(method, (3, 4), start=start, values=values, **more)
    for i, seed in enumerate((3, 4)):
        own = jax.tree.map(lambda x, i=i: x[i : i + 1], start)
        alone, log = train(method, (seed,), start=own, values=values[i : i + 1], **more)
        for a, b in zip(leaves(together), leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b[0], rtol=2e-3, atol=2e-4)
        assert logs[i]["loss"] == pytest.approx(log[0]["loss"], rel=1e-3)


def test_first_weights_are_uniform_because_q_starts_as_the_reference():
    _, log = train("iw-sft-q", importance=dataclasses.replace(IMPORTANCE, effective_sample_size=None))
    assert log[0]["effective_sample_size"][0] == pytest.approx(1.0)
    assert log[0]["mean_log_ratio"][0] == pytest.approx(0.0, abs=1e-6)
    quantiles = np.array(log[0]["weight_quantiles"])
    assert quantiles.shape == (len(log[0]["step"]), len(objectives.QUANTILES))
    np.testing.assert_allclose(quantiles[0], 1.0, rtol=1e-4)
    assert (np.diff(quantiles, axis=1) >= -1e-6).all()
    assert quantiles[-1, 0] < 1 < quantiles[-1, -1]  # relative to their mean


@pytest.mark.parametrize("target", [0.14, pytest.param(0.6, marks=pytest.mark.slow)])
def test_the_effective_sample_size_stays_at_its_target(target):
    """On data of the committed size, with BC's own policy as pi_ref, for the whole run."""
    data = load.load(None, next(iter(packed.embedded_manifest())))
    policy = dataclasses.replace(POLICY, bc_steps=200, fine_tune_steps=300)
    importance = dataclasses.replace(IMPORTANCE, effective_sample_size=target, refresh_every=50)
    config = supervised.SupervisedConfig(policy)
    start = loop.train(registry.get("bc"), config, prepared(registry.get("bc"), config, data), (0,)).policy
    method = registry.get("iw-sft-q")
    tuning = method.config(policy, importance)
    found = prepared(method, tuning, data, {"bc": Artefact({"params": start}, {})}, "return", (0,))
    log = loop.train(method, tuning, found, (0,)).logs[0]
    sizes = log["effective_sample_size"]
    assert sizes[0] == pytest.approx(1.0, abs=0.02)  # q is pi_ref: nothing to tell units apart
    np.testing.assert_allclose(sizes[1:], target, atol=0.05)
    assert (np.array(log["gap"]) >= -1e-3).all()
    assert log["gap"][-1] > 0 and log["bound"][-1] > log["bound"][0]  # training ascends the bound
    assert log["log_likelihood"][-1] > log["log_likelihood"][0]
    assert log["held_out_log_likelihood"][-1] > log["held_out_log_likelihood"][0]  # far from the end of BC, all rise


def test_likelihoods_in_the_log_are_those_of_the_rows():
    """Curated rows count as often as their unit stands in the set; held-out rows once."""
    start = bc()
    config = registry.get("iw-sft-q").config(POLICY, IMPORTANCE, CurationConfig(strata=(60, 80), strata_of="units"))
    artefacts = inputs_of("iw-sft-q", (0,), "return", start)
    found = prepared(registry.get("iw-sft-q"), config, DATA, artefacts, "return", (0,))
    own = jax.tree.map(lambda x: x[0], found.own)
    state = supervised.PolicyState(own.start, own.start, ())
    _, report = supervised.refresh(config, state, Prepared(Table.of(found.shared), own))
    density = np.asarray(supervised.log_probs(config, own.start, found.shared))
    order = np.argsort(-DATA.returns, kind="stable")
    times = np.isin(DATA.episode_of, order[: round(0.4 * len(order))]).astype(int)
    times += np.isin(DATA.episode_of, order[: round(0.2 * len(order))])
    assert float(report["log_likelihood"]) == pytest.approx(np.average(density, weights=times), rel=1e-4)
    assert not times[own.held_out].any()
    assert float(report["held_out_log_likelihood"]) == pytest.approx(density[own.held_out].mean(), rel=1e-4)


def test_a_unit_whose_likelihood_rises_more_than_the_average_weighs_more_than_one():
    config = ImportanceConfig(effective_sample_size=None, temperature=2.0)
    ratios = jnp.array([0.5, 0.6, 0.7, 0.0])  # the last is padding
    counts = jnp.array([3.0, 2.0, 1.0, 0.0])
    weights = np.asarray(objectives.importance_weights(config, ratios, counts))
    assert weights[0] < 1 < weights[1] < weights[2]
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1.0, rel=1e-5)
    for common in (-3.0, 4.0):  # all densities times a constant
        np.testing.assert_allclose(
            objectives.importance_weights(config, ratios + common, counts)[:3], weights[:3], rtol=1e-4
        )


def test_weights_are_refreshed_as_often_as_configured():
    _, log = train("iw-sft-q")
    assert log[0]["step"] == [5, 10, 15, 20]


def test_without_a_temperature_iw_sft_draws_uniformly():
    """Temperature 0 makes every weight one: what remains is sft, up to how the draw is made."""
    importance = dataclasses.replace(IMPORTANCE, effective_sample_size=None, temperature=0.0)
    _, log = train("iw-sft", importance=importance)
    assert log[0]["effective_sample_size"] == pytest.approx([1.0] * 4)


def learn(name, observations, actions, rows, policy, start=None):
    """Parameters of a method on given rows of given data."""
    method = registry.get(name)
    config = method.config(policy, IMPORTANCE)
    curated = curation.curate(rows, (np.arange(len(actions)), np.ones(len(actions), int)))
    shared = Demonstrations(jnp.asarray(observations), jnp.asarray(actions))
    own = supervised.Own(jax.tree.map(jnp.asarray, curation.stack([curated])), () if start is None else start)
    if KINDS[name].importance_weighted:
        reference = supervised._reference(config, own, shared)
        own = own._replace(reference=reference, held_out=jnp.zeros((1, 1), jnp.int32))
    return loop.train(method, config, Prepared(shared, own), (0,)).policy


def act(params, observations):
    return policies.make(Exported(jax.tree.map(lambda x: x[0], params)))(observations)


def test_bc_learns_a_linear_expert():
    rng = np.random.default_rng(0)
    o = rng.standard_normal((4000, 3)).astype(np.float32)
    a = np.tanh(o @ rng.standard_normal((3, 2)) * 0.5).astype(np.float32)
    params = learn("bc", o, a, np.arange(4000), PolicyConfig(hidden=(32, 32), bc_steps=1500, average_decay=0.99))
    assert np.abs(act(params, o) - a).mean() < 0.03


def test_fine_tuning_follows_the_curated_data():
    """Two kinds of transitions, the curated ones say +0.5: BC is in between, iw-sft-q goes there."""
    rng = np.random.default_rng(0)
    o = rng.standard_normal((2000, 3)).astype(np.float32)
    a = np.where(np.arange(2000)[:, None] % 2, 0.5, -0.5).astype(np.float32) * np.ones((1, 2), np.float32)
    config = PolicyConfig(
        hidden=(32,),
        batch_size=64,
        bc_steps=1000,
        fine_tune_steps=1000,
        fine_tune_learning_rate=1e-2,
        average_decay=0.99,
    )
    start = learn("bc", o, a, np.arange(2000), config)
    assert abs(act(start, o).mean()) < 0.1
    assert act(learn("iw-sft-q", o, a, np.arange(1, 2000, 2), config, start), o).mean() > 0.4


def test_average_is_the_exponential_average():
    """With decay 0 the average is the last parameters; with decay 1 it never leaves the start."""
    start = bc()
    still, _ = train("sft", policy=dataclasses.replace(POLICY, average_decay=1.0), start=start)
    for a, b in zip(leaves(still), leaves(start), strict=True):
        np.testing.assert_array_equal(a, b)


def test_critics_repeat_and_seeds_differ():
    config = critic.CriticConfig(steps=20, hidden=(16,), batch_size=32)
    data = prepared(critic.METHOD, config, DATA)
    one, again = (loop.train(critic.METHOD, config, data, (0,)).state for _ in range(2))
    other, _, log = loop.train(critic.METHOD, config, data, (1,))
    for a, b in zip(leaves(one), leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(leaves(one), leaves(other), strict=True))
    assert log[0]["step"] == [20]
    assert np.isfinite(log[0]["critic_loss"]).all()


def test_log_probs_in_chunks():
    policy = GaussianPolicy((16,), 3)
    rng = np.random.default_rng(0)
    o, a = rng.standard_normal((5000, 11)).astype(np.float32), rng.uniform(-1, 1, (5000, 3)).astype(np.float32)
    params = policy.init(jax.random.key(0), o)
    whole = policy_log_prob(policy, params, o, a)
    config = supervised.SupervisedConfig(PolicyConfig(hidden=(16,)))
    chunked = supervised.log_probs(config, params, Demonstrations(o, a))
    np.testing.assert_allclose(chunked, whole, rtol=1e-5, atol=1e-5)


def test_numpy_policy_is_the_flax_policy():
    policy = GaussianPolicy((16, 16), 3)
    o = np.random.default_rng(0).standard_normal((50, 11)).astype(np.float32)
    params = policy.init(jax.random.key(0), o)
    acting = policies.make(Exported(params))
    np.testing.assert_allclose(acting(o), policy.apply(params, o)[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(acting(o[0]), policy.apply(params, o[0])[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "method", ["bc", *(pytest.param(m, marks=pytest.mark.slow) for m in ("sft", "sft-q", "iw-sft")), "iw-sft-q"]
)
def test_whole_trajectories(method):
    """The released loop: a step equals one on all sampled trajectories at once, weights start uniform."""
    kind = KINDS[method]
    start = bc() if kind.fine_tunes else None
    options = {"source": "return", "preset": "released", "start": start}
    options["policy"] = dataclasses.replace(POLICY, bc_steps=3, fine_tune_steps=3, length_weighted=False)
    params, log = train(method, **options)
    again, _ = train(method, **options)
    for a, b in zip(leaves(params), leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert log[0]["step"] == [1, 2, 3]
    assert ("effective_sample_size" in log[0]) == kind.importance_weighted
    # The first step's loss, by hand on the same draw of episodes.
    curated, _, _ = supervised.curate(CurationConfig(), kind, "return", DATA, None, whole=True)
    create_key, loop_key = jax.random.split(loop.seed_keys(registry.get(method), (0,))[0])
    key = jax.random.split(jax.random.fold_in(loop_key, 0), 1)[0]
    count = released.TRAJECTORIES if kind.fine_tunes else released.BC_TRAJECTORIES
    entry = np.asarray(jax.random.randint(key, (count,), 0, len(curated.entries)))
    first, length = (np.asarray(x)[curated.entries[entry]] for x in (curated.starts, curated.lengths))
    config = supervised.SupervisedConfig(POLICY)
    rows = Demonstrations(DATA.observations, DATA.actions)
    fresh = supervised.create(config, DATA.observations.shape[1], DATA.actions.shape[1], create_key).policy
    before = jax.tree.map(lambda x: x[0], start) if kind.fine_tunes else fresh
    log_prob = np.asarray(supervised.log_probs(config, before, rows))
    means = [log_prob[f : f + n].mean() for f, n in zip(first, length, strict=True)]
    expected = -np.mean(means) / (count if kind.importance_weighted else 1)  # weights are 1/B each, or one
    assert log[0]["loss"][0] == pytest.approx(expected, rel=1e-4)


def test_length_weighting_draws_every_row_of_the_set_alike():
    """By transition, entries repeat with their unit; weighted by length, the draw of units gives the same law."""
    curated = curation.curate(np.array([0, 2, 2, 1]), (np.array([0, 3, 9]), np.array([3, 1, 5])))
    flat = curation.by_transition(curated)
    rows = np.asarray(flat.starts)[flat.entries]
    np.testing.assert_array_equal(np.bincount(rows, minlength=14), [1, 1, 1, 1, *5 * [0], *5 * [2]])
    cumulative = jnp.cumsum(jnp.asarray(curated.lengths)[curated.entries].astype(jnp.float32))
    drawn = np.bincount(np.asarray(curation.draw(140_000, curated, cumulative, jax.random.key(0))), minlength=14)
    np.testing.assert_allclose(drawn / 10_000, np.bincount(rows, minlength=14), atol=0.06)


def test_segments_tile_the_data():
    """Every transition is in one segment, none crosses an episode's end, and only the last of an episode is shorter."""
    for steps in (1, 7, 1000):
        first, lengths = curation.segment_units(DATA, steps)
        np.testing.assert_array_equal(first[1:], first[:-1] + lengths[:-1])
        assert (first[0], first[-1] + lengths[-1]) == (0, len(DATA.rewards))
        assert set(DATA.starts[:-1]) <= set(first) and lengths.max() <= steps
        assert set(first + lengths) - set(DATA.starts) <= set((first + lengths)[lengths == steps])
        values = np.arange(len(DATA.rewards), dtype=np.float32)
        np.testing.assert_allclose(curation.mean_values(values, (first, lengths)), first + (lengths - 1) / 2)


def test_what_is_held_out_is_the_next_best_and_not_curated():
    scores, units = curation.episode_returns(DATA), curation.episode_units(DATA)
    order = np.argsort(-scores, kind="stable")
    curated = curation.curate(np.concatenate([order[:2], order[:1]]), units)
    rows = curation.next_best(scores, units, curated)
    assert len(rows) == curation.HELD_OUT_ROWS
    assert set(DATA.episode_of[rows]) == set(order[2:4])
    every = np.isin(DATA.episode_of, order[2:4])
    assert set(rows) == set(np.flatnonzero(every))
    whole = curation.curate(np.arange(len(scores)), units)
    assert set(curation.next_best(scores, units, whole)) == set(range(len(DATA.rewards)))


def test_units_of_each_method():
    n, best = len(DATA.rewards), int(DATA.lengths[np.argmax(DATA.returns)])
    q = np.where(DATA.episode_of == 3, 1.0, 0.0) + np.arange(n) / n  # episode 3 has the highest mean
    values = (q, np.zeros(n))

    def sizes(method, source="q", **changes):
        curated, _, _ = supervised.curate(CurationConfig(**changes), KINDS[method], source, DATA, values)
        return len(curated.entries), int(np.asarray(curated.lengths).max())

    assert sizes("bc") == (n, 1)
    assert sizes("filtered-bc") == (best, 1)  # the best of ten episodes, by transition
    assert sizes("sft") == sizes("iw-sft") == (1, best)
    papers = {"strata": (90, 95, 98), "strata_of": "units"}
    assert sizes("sft-q", "return", **papers) == sizes("iw-sft-q", "return", **papers) == (3, best)  # once per stratum
    assert sizes("sft-q", **papers) == sizes("iw-sft-q", **papers) == (3, 40)
    wide = {"strata": (60, 85, 95)}  # the best three by return have 50, 40 and 33 of the 240 transitions
    assert sizes("sft-q", "return", **wide) == sizes("iw-sft-q", "return", **wide) == (2 + 1 + 1, best)
    assert sizes("sft-q", "return", **wide, strata_of="units") == (4 + 2 + 1, best)
    strata = {"strata": (70, 85, 95)}
    assert sizes("sft-q", q_unit="transition", **strata)[0] == round(0.3 * n) + round(0.15 * n) + round(0.05 * n)
    parts = sum(-(-int(length) // 7) for length in DATA.lengths)
    taken = sum(round(share * parts) for share in (0.3, 0.15, 0.05))
    assert sizes("sft-q", q_unit="segment", segment_steps=7, strata_of="units", **strata) == (taken, 7)
    _, scores, _ = supervised.curate(CurationConfig(), KINDS["sft-q"], "return", DATA, None)
    np.testing.assert_array_equal(scores, curation.episode_returns(DATA))


def test_a_policy_that_has_died_is_not_scored(tmp_path):
    """Adam's first steps of 1.0 saturate the tanh everywhere: one action for all states, and finite."""
    dying = td3_bc.TD3BCConfig(steps=200, hidden=(16,), batch_size=16, learning_rate=1.0)
    stage = Stage("td3-bc", None, (0,), settings.make(td3_bc=dying))
    evaluated = []
    with pytest.raises(perform.DeadPolicyError) as error:
        perform.perform(
            stage,
            DATA,
            Store(tmp_path),
            report=lambda what, steps: evaluated.append(what) or (lambda done, values: None),
        )
    sentence = str(error.value)
    assert sentence.startswith("td3-bc (seed 0) ended at step 200 in a policy that answers every state with one action")
    assert "Last good values " in sentence and "smaller learning rate" in sentence
    assert evaluated == ["td3-bc"] and not list(tmp_path.glob("*.safetensors"))


def test_since_when_a_policy_is_dead_and_when_it_may_be_constant(monkeypatch):
    """The last call in which actions differed; data of one action may lead to a policy of one action."""
    stage = Stage("bc", None, (0, 1), settings.make())
    constant = {"params": {"net": {"Dense_0": {"kernel": np.zeros((2, 11, 3)), "bias": np.zeros((2, 3))}}}}
    alive = {"params": {"net": {"Dense_0": {"kernel": np.ones((2, 11, 3)), "bias": np.zeros((2, 3))}}}}
    half = jax.tree.map(lambda a, b: np.stack([a[0], b[1]]), alive, constant)
    logs = [{"step": [10, 20, 30], "loss": [0.5, 0.25, 0.125]}] * 2

    def watch(data, *seen):
        watching = perform._Watch(stage, registry.get("bc").export, data)
        for step, params in zip((10, 20, 30)[3 - len(seen) :], seen, strict=True):
            watching(step, params, params)
        watching.require_life(loop.Trained(None, seen[-1], logs))

    with pytest.raises(perform.DeadPolicyError, match=r"bc \(seed 1\) .* Last good values after step 20: loss 0.25"):
        watch(DATA, half, alive, half)
    with pytest.raises(perform.DeadPolicyError, match="Last good values none: it was so at step 10 already"):
        watch(DATA, half, half, half)
    with pytest.raises(perform.DeadPolicyError, match="Last good values none: it was so at step 30 already"):
        perform._Watch(stage, registry.get("bc").export, DATA).require_life(loop.Trained(None, half, logs))  # resumed
    watch(DATA, half, half, alive)
    watch(dataclasses.replace(DATA, actions=np.ones_like(DATA.actions)), half, half, half)


def test_rows_of_different_numbers_are_one_sentence():
    """As a method of one's own may give them."""
    with pytest.raises(UserError, match=r"differ in number \(observations 3, actions 4\)"):
        Table.of(Demonstrations(jnp.zeros((3, 2)), jnp.zeros((4, 1))))
