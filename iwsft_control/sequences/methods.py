r"""SFT and iw-SFT of a language model: the objectives of :mod:`iwsft_control.learning.objectives`, a token for a row.

For a batch of B answers of T_i tokens each, N = sum_i T_i, with log rho_t = log q - log pi_ref of token t:

    bc                  L = -(1/N) sum_i sum_t log pi(y_t | x, y_<t)           on the mixed-quality corpus: pi_ref
    sft                 the same on D+, the right ones among pi_ref's own answers; from bc, as all that follow
    iw-sft              L = -(1/N) sum_i w_i sum_t log pi,   w_i = clip(exp(mean_t log rho_t), 0, 16)
    iw-sft-token        L = -(1/N) sum_i sum_t w_t log pi,   w_t = clip(exp(log rho_t), 0.2, 1.8)
    iw-sft-sum          L = -(1/N) sum_i w_i sum_t log pi,   w_i = clip(exp(sum_t log rho_t), 0, 16)
    iw-sft-normalised   w_i = exp(10 mean_t log rho_t), divided by its mean over the batch
    sft-q, iw-sft-q     sft and iw-sft where an answer of D+ is drawn in proportion to its quality (nested strata)

``iw-sft`` and ``iw-sft-token`` are the two forms of the authors' released language code (Qin & Springenberg 2025), with
its settings; q is the current policy and carries no gradient. The language code has no self-normalised form:
``iw-sft-normalised`` has the temperature, the normalisation and the lag of q (0.9) of their control code.
``iw-sft-sum`` is the bound's own weight q(y|x) / pi_ref(y|x), which the mean over tokens raises to the power 1 / T_i.

The quality of ``-q`` is the verifier's (``steps``: once for a right verdict, once more for each of
``step_strata`` that the share of right steps reaches) or a learned Q (``q``: strata of the mean over an answer's
prefixes, see :mod:`.critic`).
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from iwsft_control.base.bounds import NOT_NEGATIVE, PERCENTILE, POSITIVE, SHARE
from iwsft_control.base.errors import require
from iwsft_control.datasets.transitions import Demonstrations
from iwsft_control.learning import curation, objectives
from iwsft_control.learning.defaults import as_it_is, fresh, uniform
from iwsft_control.learning.gradient import descend
from iwsft_control.learning.method import Inputs, Method, Prepared
from iwsft_control.learning.objectives import ImportanceConfig
from iwsft_control.sequences.model import Layout, ModelConfig, Transformer, layout, log_prob

CALL_STEPS = 50  # of a compiled call, between two entries of the log
SHOWN = 1024  # answers of D+ whose weights the log describes


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Hyper-parameters of training, the same for all methods."""

    batch_size: Annotated[int, POSITIVE] = 64
    """Answers of a step."""
    bc_steps: Annotated[int, POSITIVE] = 1000
    """Gradient steps of pre-training (bc), which is pi_ref."""
    bc_learning_rate: Annotated[float, POSITIVE] = 4e-3
    """After a warm-up of 100 steps it decays to zero (cosine)."""
    fine_tune_steps: Annotated[int, POSITIVE] = 300
    """Gradient steps of every other method, from the run's own bc."""
    fine_tune_learning_rate: Annotated[float, POSITIVE] = 3e-4
    """Constant."""


@dataclasses.dataclass(frozen=True)
class CurationConfig:
    """What fine-tuning sees."""

    samples: Annotated[int, POSITIVE] = 8192
    """Problems that pi_ref answers once each; D+ are the right answers."""
    step_strata: Annotated[tuple[float, ...], SHARE] = (0.75, 1.0)
    """--qualities steps: an answer counts once more for each of these shares of right steps that it reaches."""
    q_strata: Annotated[tuple[float, ...], PERCENTILE] = (0.0, 50.0, 75.0)
    """--qualities q: an answer counts once for each of these percentiles of D+'s learned Q that it exceeds."""

    def problem(self, option: str) -> str | None:
        """What no single field tells."""
        return None if self.step_strata and self.q_strata else f"--{option}'s strata must not be empty."


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """The learned Q of prefixes, for --qualities q."""

    steps: Annotated[int, POSITIVE] = 300
    learning_rate: Annotated[float, POSITIVE] = 1e-3


@dataclasses.dataclass(frozen=True)
class WeightsConfig:
    """What may be changed of the importance weights."""

    temperature: Annotated[float | None, NOT_NEGATIVE] = None
    """Factor on the log-ratio; by default the authors': 1, of iw-sft-normalised 10."""


@dataclasses.dataclass(frozen=True)
class SequenceConfig:
    """Everything but task and seed that decides a run's numbers; its ``steps`` are those of bc."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    curation: CurationConfig = dataclasses.field(default_factory=CurationConfig)
    critic: CriticConfig = dataclasses.field(default_factory=CriticConfig)
    weights: WeightsConfig = dataclasses.field(default_factory=WeightsConfig)

    average_decay = 0.0  # the last parameters are evaluated

    @property
    def steps(self) -> int:
        """Gradient steps of the method."""
        return self.policy.bc_steps

    @property
    def batch_size(self) -> int:
        """Answers of a step."""
        return self.policy.batch_size


class FineTuningConfig(SequenceConfig):
    """The same of the methods that start from bc."""

    @property
    def steps(self) -> int:
        return self.policy.fine_tune_steps


class Form(NamedTuple):
    """A form of importance weights: of which log-ratio they are, with the settings of the code that it comes from."""

    of: Literal["mean", "token", "sum"]
    importance: ImportanceConfig


LANGUAGE = ImportanceConfig(None, temperature=1.0, relative=False, low=0.0, high=16.0, lag=0.0, refresh_every=1)
FORMS = {
    "iw-sft": Form("mean", LANGUAGE),
    "iw-sft-token": Form("token", dataclasses.replace(LANGUAGE, low=0.2, high=1.8)),
    "iw-sft-sum": Form("sum", LANGUAGE),
    "iw-sft-normalised": Form("mean", ImportanceConfig(None, temperature=10.0, lag=0.9, refresh_every=1)),
}
FORMS["iw-sft-q"] = FORMS["iw-sft"]
CURATIONS = {
    "bc": "everything",
    "sft": "correct",
    "iw-sft": "correct",
    "iw-sft-token": "correct",
    "iw-sft-sum": "correct",
    "iw-sft-normalised": "correct",
    "sft-q": "graded",
    "iw-sft-q": "graded",
}


def form_of(name: str, config: SequenceConfig) -> Form | None:
    """How a method weighs; None where it does not."""
    form, temperature = FORMS.get(name), config.weights.temperature
    if form is None or temperature is None:
        return form
    return form._replace(importance=dataclasses.replace(form.importance, temperature=temperature))


# --- the weights ------------------------------------------------------------------------------------------------------


def weigh(form: Form | None, log_ratio: jax.Array, of: Layout) -> jax.Array:
    """The importance weights, w_i (B,) or those of single tokens w_t (B R,).

    Args:
        log_ratio: log q - log pi_ref of every token, (B R,).
        of: which of these are real, and whose.
    """
    if form is None:
        return jnp.ones(of.lengths.shape)
    if form.of == "token":
        return objectives.importance_weights(form.importance, log_ratio)
    means = objectives.unit_means(log_ratio, of.unit_of_row, of.lengths)
    return objectives.importance_weights(form.importance, means * of.lengths if form.of == "sum" else means)


def coefficients(form: Form | None, log_ratio: jax.Array, of: Layout) -> jax.Array:
    """The factor of every token's log pi in the loss (B R,): w_i / N or w_t / N, zero for padding."""
    weights = weigh(form, log_ratio, of)
    if weights.shape == of.lengths.shape:
        return objectives.token_weights(weights, of.unit_of_row, of.lengths)
    return weights * objectives.token_weights(jnp.ones(of.lengths.shape), of.unit_of_row, of.lengths)


def describe(form: Form, log_ratio: jax.Array, of: Layout) -> dict[str, jax.Array]:
    """The weights in figures, for the log."""
    weights = weigh(form, log_ratio, of)
    if form.of == "token":
        real = (of.unit_of_row < len(of.lengths)).astype(jnp.float32)
        return objectives.weight_figures(form.importance, weights, log_ratio, real)
    means = objectives.unit_means(log_ratio, of.unit_of_row, of.lengths)
    return objectives.weight_figures(form.importance, weights, means, jnp.ones_like(weights))


# --- what a method samples from ---------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """Prompts (N, P), answers (N, R) and log pi_ref of the answers' tokens (N, R)."""

    observations: Any
    actions: Any
    log_reference: Any


class Own(NamedTuple):
    """What is a seed's own: (1, ...), in the loop without the 1."""

    entries: (
        Any  # (M,) rows of the curated answers, as often as they are drawn; padded, so that all seeds are one shape
    )
    size: Any  # () M without padding
    start: Any  # bc's parameters


def prepare_bc(config: SequenceConfig, inputs: Inputs) -> Prepared:
    """The corpus."""
    return Prepared(Demonstrations(inputs.data.observations, inputs.data.actions))


def curate(kind: str, config: CurationConfig, quality: str | None, data: Any, scores: np.ndarray | None) -> np.ndarray:
    """The multiset of answers that fine-tuning draws from: rows of ``data``, as often as they are drawn.

    Args:
        kind: "correct" or "graded".
        quality: "steps" or "q" where it is graded.
        scores: of every answer (N,): its share of right steps, or its mean learned Q.

    Raises:
        UserError: pi_ref gave no right answer.
    """
    right = np.flatnonzero(data.returns)
    require(
        len(right) > 0,
        f"none of pi_ref's {len(data.rewards):,} answers is right, so the curated set is empty; "
        "pre-train longer (--policy.bc-steps) or let it answer more (--curation.samples).",
    )
    if kind == "correct":
        return right
    assert scores is not None
    if quality == "steps":
        return np.concatenate([right, *(right[scores[right] >= share] for share in config.step_strata)])
    return right[curation.nested_strata(scores[right], config.q_strata)]


def prepare(kind: str, config: SequenceConfig, inputs: Inputs) -> Prepared:
    """pi_ref's answers, which of them are curated, and pi_ref."""
    data, samples, bc = inputs.data, inputs.artefacts["samples"].arrays, inputs.artefacts["bc"].arrays
    scores = None
    if inputs.quality is not None:
        scores = samples["steps_right"] if inputs.quality == "steps" else inputs.artefacts["critic"].arrays["q"]
    entries = curate(kind, config.curation, inputs.quality, data, scores)
    times = 1 + max(len(config.curation.step_strata), len(config.curation.q_strata))
    padded = np.pad(entries, (0, times * len(data.rewards) - len(entries))).astype(np.int32)
    own = Own(padded, np.int32(len(entries)), bc["params"])
    shared = Answers(*map(jnp.asarray, (data.observations, data.actions, samples["log_reference"])))
    thinks = samples["thinks"][entries]
    found = {
        "curated": {"entries": len(entries), "answers": len(np.unique(entries))},
        "curated_think_share": thinks.mean(),
    }
    return Prepared(shared, jax.tree.map(lambda x: jnp.asarray(x)[None], own), [found])


def sample(config: SequenceConfig, data: Prepared, key: jax.Array) -> Answers:
    """A batch of curated answers, each as likely as it stands among the entries."""
    place = jax.random.randint(key, (config.batch_size,), 0, data.own.size)
    return data.shared.rows(data.own.entries[place])


# --- training ---------------------------------------------------------------------------------------------------------


class State(NamedTuple):
    """Parameters, the lagging q (where q is not the policy itself, else ()) and the optimiser's state."""

    policy: Any
    lagged: Any
    optimiser: Any


def optimiser(config: SequenceConfig) -> optax.GradientTransformation:
    """Adam: warm-up and cosine for bc, a constant rate for fine-tuning."""
    policy = config.policy
    if isinstance(config, FineTuningConfig):
        return optax.adam(policy.fine_tune_learning_rate)
    warm_up = min(100, config.steps // 2)
    return optax.adam(optax.warmup_cosine_decay_schedule(0.0, policy.bc_learning_rate, warm_up, config.steps))


def create(config: SequenceConfig, prompt_length: int, answer_length: int, key: jax.Array) -> State:
    """Fresh parameters from ``key``."""
    params = Transformer(config.model).init(key, jnp.zeros((1, prompt_length + answer_length), jnp.int32))
    return State(params, (), optimiser(config).init(params))


def from_bc(name: str, config: SequenceConfig, state: State, data: Prepared) -> State:
    """Training begins at bc's parameters; so does a q that lags, and pi_ref stays there."""
    form, start = form_of(name, config), data.own.start
    return State(start, start if form is not None and form.importance.lag > 0 else (), state.optimiser)


def _q(state: State) -> Any:
    return state.policy if state.lagged == () else state.lagged


def refresh(name: str, config: SequenceConfig, state: State, data: Prepared) -> tuple[Prepared, dict[str, jax.Array]]:
    """The weights of some curated answers by the present q, for the log: training computes its own in every batch."""
    form = form_of(name, config)
    assert form is not None
    # Evenly spread: repeated entries stand after the single ones, and training draws them as often as they stand there.
    batch = data.shared.rows(data.own.entries[jnp.arange(SHOWN) * data.own.size // SHOWN])
    log_ratio = log_prob(config.model, _q(state), batch) - batch.log_reference.reshape(-1)
    return data, describe(form, log_ratio, layout(batch.actions))


def update(
    name: str, config: SequenceConfig, state: State, batch: Any, key: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """One gradient step on the loss above; a q that lags follows."""
    form, of = form_of(name, config), layout(batch.actions)
    seam = partial(log_prob, config.model)
    log_ratio = jnp.zeros(batch.actions.size)
    if form is not None:
        log_ratio = seam(_q(state), batch) - batch.log_reference.reshape(-1)
    factors = coefficients(form, log_ratio, of)
    loss = partial(objectives.sequence_loss, seam)
    policy, opt, value = descend(loss, optimiser(config), state.policy, state.optimiser, batch, factors)
    lagged = state.lagged
    if form is not None and lagged != ():
        lagged = optax.incremental_update(policy, lagged, 1 - form.importance.lag)
    return State(policy, lagged, opt), {"loss": value}


def record(name: str, config: SequenceConfig) -> dict[str, Any]:
    """The settings that a method's own work depends on."""
    policy = dataclasses.asdict(config.policy)
    if name == "bc":
        return {
            "model": dataclasses.asdict(config.model),
            "policy": {k: v for k, v in policy.items() if not k.startswith("fine_tune")},
        }
    found = {
        "model": dataclasses.asdict(config.model),
        "policy": policy,
        "curation": {"samples": config.curation.samples},
    }
    form = form_of(name, config)
    if form is not None:
        relative = form.importance.relative
        names = ["temperature", "lag"] if relative else ["temperature", "low", "high", "lag"]
        found["importance"] = {"of": "relative" if relative else form.of}
        found["importance"] |= {name: getattr(form.importance, name) for name in names}
    return found


# --- the records ------------------------------------------------------------------------------------------------------


def _method(name: str) -> Method:
    if name == "bc":
        return Method(
            name=name,
            config=SequenceConfig,
            prepare=prepare_bc,
            create=create,
            sample=uniform,
            update=partial(update, name),
            random_update=False,
            warm_start=fresh,
            call_steps=lambda config: CALL_STEPS,
            option=None,
        )
    return Method(
        name=name,
        config=FineTuningConfig,
        prepare=partial(prepare, CURATIONS[name]),
        create=create,
        sample=sample,
        update=partial(update, name),
        random_update=False,
        warm_start=partial(from_bc, name),
        refresh=partial(refresh, name) if name in FORMS else as_it_is,
        call_steps=lambda config: CALL_STEPS,
        # One stream for all: methods of one seed see the same batches of one curated set, so that differences that are
        # paired by seed are those of the objectives.
        stream=0,
        option=None,
        by_quality=CURATIONS[name] == "graded",
        record=partial(record, name),
    )


METHODS = {name: _method(name) for name in CURATIONS}
