"""The six methods of supervised fine-tuning: bc, filtered-bc, sft, iw-sft, sft-q, iw-sft-q.

Their losses stand on one page, :mod:`iwsft_control.learning.objectives`, beside the paper's equations (Qin &
Springenberg 2025, arXiv 2507.12856); which data they draw, in :mod:`iwsft_control.learning.curation`. Here is what each
of the six makes of these: what it curates, whether it starts from BC, whether it is weighted.

Deviations from the released code (``--preset released`` is that code): strata are 75/85/95 of the transitions instead
of 90/95/98 of the episodes; single transitions are drawn from the curated set instead of whole trajectories; a unit
counts by its length; 5,000 steps at 3e-4; weights relative to their mean over the whole curated set, at the temperature
of a given effective sample size, refreshed every 100 steps; the exponential average of the parameters is evaluated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from iwsft_control.configs.card import Card
from iwsft_control.configs.curation import CurationConfig
from iwsft_control.configs.supervised import CARDS, KINDS, Kind, SupervisedConfig
from iwsft_control.datasets.transitions import Demonstrations, in_chunks
from iwsft_control.datasets.types import Dataset
from iwsft_control.learning import curation, objectives
from iwsft_control.learning.curation import Curated, Values
from iwsft_control.learning.defaults import as_it_is, call_steps, fresh
from iwsft_control.learning.gradient import descend
from iwsft_control.learning.loop import over_seeds
from iwsft_control.learning.method import Inputs, Method, Prepared
from iwsft_control.methods import released
from iwsft_control.networks.policies import GaussianPolicy, policy_log_prob


class Own(NamedTuple):
    """What is a seed's own: (S, ...), in the loop without S."""

    curated: Curated
    start: Any = ()  # BC's parameters, for methods that fine-tune; they are also pi_ref
    reference: Any = ()  # log pi_ref of all curated rows (R,), for weighted methods
    held_out: Any = ()  # rows that are not curated (4,096,), for weighted methods
    cumulative: Any = ()  # running sum of the entries' weights (M,), for weighted methods


class Choice(NamedTuple):
    """What a method curates."""

    curated: Curated
    scores: np.ndarray | None  # quality of every unit (U,); None where all data count
    units: curation.Units  # what the data are cut into


class PolicyState(NamedTuple):
    """Parameters, the lagging q (of weighted methods, else ()) and the optimiser's state."""

    policy: Any
    lagged: Any
    optimiser: Any


def log_prob(config: SupervisedConfig, params: Any, batch: Demonstrations) -> jax.Array:
    """log pi(a|s) of the rows of a batch, (B,): the door through which the objectives see the policy."""
    policy = GaussianPolicy(config.policy.hidden, batch.actions.shape[-1])
    return policy_log_prob(policy, params, batch.observations, batch.actions)


@partial(jax.jit, static_argnums=0)
def log_probs(config: SupervisedConfig, params: Any, rows: Demonstrations) -> jax.Array:
    """:func:`log_prob` of any number of rows (R,), in cache-sized chunks, one pass."""
    found = jax.lax.map(lambda chunk: log_prob(config, params, chunk), in_chunks(rows))
    return found.reshape(-1)[: rows.actions.shape[0]]


def curate(
    config: CurationConfig,
    kind: Kind,
    quality: str | None,
    data: Dataset,
    values: Values | None,
    whole: bool = False,
) -> Choice:
    """The multiset of units that a method samples from, and the scores behind it.

    Args:
        quality: "q" or "return", for kinds that curate by quality.
        values: the learned Q and V of every transition, (N,) each, for quality "q".
        whole: whether all data are whole episodes too, for bc.
    """
    transitions, episodes = curation.segment_units(data, 1), curation.episode_units(data)
    if kind.curation == "everything":
        units = episodes if whole else transitions
        return Choice(curation.curate(curation.everything(len(units[0])), units), None, units)
    scores, units = curation.episode_returns(data), episodes
    if kind.curation == "quality":
        if quality == "q":
            assert values is not None
            q, v = values
            if config.q_unit == "episode":
                scores = curation.mean_values(q, episodes)
            else:
                steps = 1 if config.q_unit == "transition" else config.segment_steps
                units = curation.segment_units(data, steps)
                scores = curation.mean_values(q - v, units)
        lengths = units[1] if config.strata_of == "transitions" else None
        return Choice(curation.curate(curation.nested_strata(scores, config.strata, lengths), units), scores, units)
    best = curation.above(scores, config.filter_percentile)
    if kind.curation == "filtered":  # transitions of the best episodes, uniformly: long episodes count by their length
        rows = np.flatnonzero(np.isin(data.episode_of, best))
        return Choice(curation.curate(rows, transitions), scores, transitions)
    return Choice(curation.curate(best, episodes), scores, episodes)


def prepare(kind: Kind, config: SupervisedConfig, inputs: Inputs) -> Prepared:
    """States and actions; for every seed the curated set, BC's parameters and log pi_ref."""
    data, artefacts = inputs.data, inputs.artefacts
    values: list[Values | None] = [None]
    if "critic" in artefacts:  # every seed has its own critic, so its own curated set
        values = list(zip(artefacts["critic"].arrays["q"], artefacts["critic"].arrays["v"], strict=True))
    whole = config.preset == "released"
    found = [curate(config.curation, kind, inputs.quality, data, each, whole) for each in values]
    if len(found) == 1:  # one set that all seeds share
        found *= len(inputs.seeds)
    diagnostics = [{} if each.scores is None else _diagnose(each.curated, each.scores) for each in found]
    curated = [each.curated for each in found]
    if config.policy.length_weighted and not kind.importance_weighted:
        curated = [curation.by_transition(each) for each in curated]
    shared = Demonstrations(data.observations, data.actions)
    own = Own(jax.tree.map(jnp.asarray, curation.stack(curated)))
    if kind.fine_tunes:
        own = own._replace(start=jax.tree.map(jnp.asarray, artefacts["bc"].arrays["params"]))
    if kind.importance_weighted:
        held_out = [curation.next_best(c.scores, c.units, c.curated) for c in found if c.scores is not None]
        own = own._replace(reference=_reference(config, own, shared), held_out=jnp.asarray(np.stack(held_out)))
    return Prepared(shared, own, diagnostics)


def _diagnose(curated: Curated, scores: np.ndarray) -> dict[str, Any]:
    sizes = {k: int(getattr(curated, k).size) for k in ("entries", "starts", "rows")}
    return {"curated": sizes, "scores": curation.summary(scores)}


@partial(jax.jit, static_argnums=0)
def _reference(config: SupervisedConfig, own: Own, shared: Demonstrations) -> jax.Array:
    def of_seed(start: Any, curated: Curated) -> jax.Array:
        return log_probs(config, start, Demonstrations(*(x[curated.rows] for x in shared)))

    return over_seeds(of_seed, own.start, own.curated)


def create(config: SupervisedConfig, observation_dim: int, action_dim: int, key: jax.Array) -> PolicyState:
    """Fresh parameters from ``key``."""
    params = GaussianPolicy(config.policy.hidden, action_dim).init(key, jnp.zeros((1, observation_dim)))
    return PolicyState(params, (), optimiser(config).init(params))


def optimiser(config: SupervisedConfig) -> optax.GradientTransformation:
    """Adam, its learning rate along half a cosine to zero."""
    return optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))


def from_bc(kind: Kind, config: SupervisedConfig, state: PolicyState, data: Prepared) -> PolicyState:
    """Training begins at BC's parameters; so does q, and pi_ref stays there."""
    return PolicyState(data.own.start, data.own.start if kind.importance_weighted else (), state.optimiser)


def refresh(config: SupervisedConfig, state: PolicyState, data: Prepared) -> tuple[Prepared, dict[str, jax.Array]]:
    """The importance weights of the curated set by the present q, as running sums to draw by; and their figures."""
    own, curated = data.own, data.own.curated
    rows, lengths = data.shared.rows(curated.rows), curated.lengths

    def log_ratio_of(params: Any) -> jax.Array:
        return objectives.unit_means(log_probs(config, params, rows) - own.reference, curated.unit_of_row, lengths)

    place = jnp.arange(curated.entries.shape[0])
    counts = jnp.zeros(lengths.shape).at[curated.entries].add(place < curated.size)
    log_ratio = log_ratio_of(state.lagged)
    temperature = objectives.temperature_of(config.importance, log_ratio, counts)
    weights = objectives.importance_weights(config.importance, log_ratio, counts, temperature)
    sizes = lengths if config.policy.length_weighted else jnp.ones_like(lengths)
    per_entry = jnp.where(place < curated.size, (weights * sizes)[curated.entries], 0.0)
    of_policy = log_ratio_of(state.policy) if config.importance.lag else log_ratio
    bound, gap = objectives.bound_and_gap(weights, lengths * of_policy, counts)
    report = objectives.weight_figures(config.importance, weights, log_ratio, counts)
    report |= {"temperature": temperature, "bound": bound, "gap": gap}
    likelihood = of_policy + objectives.unit_means(own.reference, curated.unit_of_row, lengths)
    report["log_likelihood"] = (counts * lengths * likelihood).sum() / (counts * lengths).sum()
    report["held_out_log_likelihood"] = log_probs(config, state.policy, data.shared.rows(own.held_out)).mean()
    return data._replace(own=own._replace(cumulative=jnp.cumsum(per_entry))), report


def draw(config: SupervisedConfig, data: Prepared, key: jax.Array) -> jax.Array:
    """Which rows a batch is of, (B,): of the curated units, in proportion to their weights where there are any."""
    own = data.own
    cumulative = None if isinstance(own.cumulative, tuple) else own.cumulative
    return curation.draw(config.policy.batch_size, own.curated, cumulative, key)


def sample(config: SupervisedConfig, data: Prepared, key: jax.Array) -> Demonstrations:
    """The rows of a batch."""
    return data.shared.rows(draw(config, data, key))


def update(
    config: SupervisedConfig, state: PolicyState, batch: Demonstrations, key: jax.Array
) -> tuple[PolicyState, dict[str, jax.Array]]:
    """One gradient step on -mean log pi(a|s); q follows."""
    return descended(partial(objectives.loss, partial(log_prob, config)), config, state, batch)


def descended(
    loss: Callable[[Any, Any], jax.Array], config: SupervisedConfig, state: PolicyState, batch: Any
) -> tuple[PolicyState, dict[str, jax.Array]]:
    """One gradient step on a loss of (parameters, batch); q, where there is one, follows."""
    policy, moments, value = descend(loss, optimiser(config), state.policy, state.optimiser, batch)
    lagged = state.lagged
    if lagged != ():
        lagged = optax.incremental_update(policy, lagged, 1 - config.importance.lag)
    return PolicyState(policy, lagged, moments), {"loss": value}


# --- the released code's whole trajectories ---------------------------------------------------------------------------


def _recipe(kind: Kind, config: SupervisedConfig) -> released.Recipe:
    return released.recipe(kind.fine_tunes, kind.importance_weighted, config.steps)


def _released_sample(kind: Kind, config: SupervisedConfig, data: Prepared, key: jax.Array) -> released.Trajectories:
    return released.sample(_recipe(kind, config).trajectories, data, key)


def _released_start(kind: Kind, config: SupervisedConfig, state: PolicyState, data: Prepared) -> PolicyState:
    start = data.own.start if kind.fine_tunes else state.policy
    lagged = start if kind.importance_weighted else ()
    return PolicyState(start, lagged, _recipe(kind, config).optimiser.init(start))


def _released_update(
    kind: Kind, config: SupervisedConfig, state: PolicyState, batch: released.Trajectories, key: jax.Array
) -> tuple[PolicyState, dict[str, jax.Array]]:
    return released.update(partial(log_prob, config), _recipe(kind, config), state, batch)


# --- the records -----------------------------------------------------------------------------------------------------


def trial(config: Any) -> Any:
    """A configuration for a trial of seconds."""
    p = config.policy
    shorter = dataclasses.replace(p, bc_steps=min(p.bc_steps, 500), fine_tune_steps=min(p.fine_tune_steps, 200))
    return dataclasses.replace(config, policy=shorter)


def _method(card: Card) -> Method:
    kind = KINDS[card.name]
    method = Method(
        **vars(card),
        prepare=partial(prepare, kind),
        create=create,
        sample=sample,
        update=update,
        random_update=False,
        warm_start=partial(from_bc, kind) if kind.fine_tunes else fresh,
        refresh=refresh if kind.importance_weighted else as_it_is,
        call_steps=(lambda c: c.importance.refresh_every) if kind.importance_weighted else call_steps,
        quick=trial,
    )
    if kind.curation == "filtered":  # the released code has no such method
        return method
    whole = dataclasses.replace(
        method,
        sample=partial(_released_sample, kind),
        update=partial(_released_update, kind),
        warm_start=partial(_released_start, kind),
        refresh=as_it_is,
        call_steps=lambda config: 1,
    )
    return dataclasses.replace(method, variant=lambda config: whole if config.preset == "released" else None)


METHODS = tuple(map(_method, CARDS))
