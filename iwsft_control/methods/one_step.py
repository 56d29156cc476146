"""OneStep: Brandfonbrener et al., "Offline RL Without Off-Policy Evaluation", NeurIPS 2021.

    Q       the Q-function of the data's own policy (:mod:`.sarsa`, a stage of its own)                     section 3
    V       mean_k min_i Q_i(s, a_k),  a_k ~ beta(s), ten of them; beta is the run's own BC policy
    policy  -E[min(exp(temperature (Q(s, a) - V(s))), 100) log pi(a|s)], from beta                          section 3

So the policy takes one step of improvement from the policy of the data: here the paper's exponentially weighted
imitation. Since Q and beta stand still while it learns, its weights are computed once for all rows.

Deviations: the paper chooses among three kinds of improvement and tunes each per data set with online returns; here it
is this one, with one temperature and rewards scaled as for IQL. BC's own network, three layers of 256 and a standard
deviation that does not depend on the state (two of 1,024; one that does), batches of 256 (512), learning rate 3e-4 with
cosine decay (1e-4, constant), 50,000 steps (100,000); V's actions are clipped to the action box. The exponential
average of the policy's parameters is evaluated, as for most methods here.
"""

from __future__ import annotations

import zlib
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from iwsft_control.configs.one_step import CARD, OneStepConfig
from iwsft_control.datasets.transitions import Demonstrations, Table, in_chunks
from iwsft_control.learning.gradient import adam, descend
from iwsft_control.learning.loop import over_seeds, seed_keys
from iwsft_control.learning.method import Inputs, Method, Prepared
from iwsft_control.networks.mlp import TwinCritic
from iwsft_control.networks.policies import GaussianPolicy, policy_log_prob


class Own(NamedTuple):
    """What is a seed's own: (S, ...), in the loop without S."""

    weights: Any  # (N,) of every row
    start: Any  # BC's parameters


class Weighted(NamedTuple):
    """A batch: rows and their weights (B,)."""

    rows: Demonstrations
    weights: Any


class OneStepState(NamedTuple):
    """The policy and its optimiser's state."""

    policy: Any
    optimiser: Any


def widths(params: Any) -> tuple[int, ...]:
    """Hidden widths of the parameters of an MLP (or of several, stacked)."""
    layers = params["params"]["net"]
    return tuple(layers[f"Dense_{i}"]["kernel"].shape[-1] for i in range(len(layers) - 1))


def advantages(critic: Any, behaviour: Any, rows: Demonstrations, samples: int, key: jax.Array) -> jax.Array:
    """Q(s, a) - V(s) of rows (N, O), (N, A): (N,), with V the mean Q of ``samples`` actions of the BC policy."""
    net, policy = TwinCritic(widths(critic)), GaussianPolicy(widths(behaviour), rows.actions.shape[1])
    chunks = in_chunks(rows)

    def of_chunk(chunk_and_key: tuple[Demonstrations, jax.Array]) -> jax.Array:
        chunk, key = chunk_and_key
        mean, log_std = policy.apply(behaviour, chunk.observations)

        def value(key: jax.Array) -> jax.Array:
            noise = jax.random.normal(key, mean.shape)
            actions = jnp.clip(mean + jnp.exp(log_std) * noise, -1.0, 1.0)
            return net.apply(critic, chunk.observations, actions).min(axis=0)

        v = jax.lax.map(value, jax.random.split(key, samples)).mean(axis=0)
        return net.apply(critic, chunk.observations, chunk.actions).min(axis=0) - v

    keys = jax.random.split(key, chunks.actions.shape[0])
    return jax.lax.map(of_chunk, (chunks, keys)).reshape(-1)[: rows.actions.shape[0]]


@partial(jax.jit, static_argnums=0)
def weights_of(
    config: OneStepConfig, rows: Demonstrations, critics: Any, behaviours: Any, keys: jax.Array
) -> jax.Array:
    """min(exp(temperature A), largest) of the rows (N, ...) for every seed: (S, N)."""

    def of_seed(critic: Any, behaviour: Any, key: jax.Array) -> jax.Array:
        advantage = advantages(critic, behaviour, rows, config.samples, key)
        return jnp.minimum(jnp.exp(config.temperature * advantage), config.max_weight)

    return over_seeds(of_seed, critics, behaviours, keys)


def prepare(config: OneStepConfig, inputs: Inputs) -> Prepared:
    """States and actions; for every seed the weight of every row, and BC's parameters."""
    shared = Demonstrations(inputs.data.observations, inputs.data.actions)
    critics, behaviours = (
        jax.tree.map(jnp.asarray, inputs.artefacts[name].arrays["params"]) for name in ("sarsa", "bc")
    )
    # A small number would give a key that the loop has: split(key)[i] is fold_in(key, i).
    own = zlib.crc32(b"advantages")
    keys = jax.vmap(lambda key: jax.random.fold_in(key, own))(seed_keys(METHOD, inputs.seeds))
    weights = weights_of(config, shared, critics, behaviours, keys)
    diagnostics = [{"weights": {"mean": float(w.mean()), "max": float(w.max())}} for w in np.asarray(weights)]
    return Prepared(shared, Own(weights, behaviours), diagnostics)


def create(config: OneStepConfig, observation_dim: int, action_dim: int, key: jax.Array) -> OneStepState:
    """Nothing yet: the policy begins as BC's (:func:`from_bc`)."""
    return OneStepState((), ())


def from_bc(config: OneStepConfig, state: OneStepState, data: Prepared) -> OneStepState:
    """The policy begins at BC's parameters."""
    return OneStepState(data.own.start, _optimiser(config).init(data.own.start))


def _optimiser(config: OneStepConfig) -> optax.GradientTransformation:
    return adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))


def sample(config: OneStepConfig, data: Prepared, key: jax.Array) -> Weighted:
    """Rows, drawn uniformly, with their weights."""
    table: Table = data.shared
    rows = jax.random.randint(key, (config.batch_size,), 0, len(table))
    return Weighted(table.rows(rows), data.own.weights[rows])


def policy_loss(policy: Any, batch: Weighted) -> jax.Array:
    """-E[w log pi(a|s)]."""
    net = GaussianPolicy(widths(policy), batch.rows.actions.shape[-1])
    return -(batch.weights * policy_log_prob(net, policy, batch.rows.observations, batch.rows.actions)).mean()


def update(
    config: OneStepConfig, state: OneStepState, batch: Weighted, key: jax.Array
) -> tuple[OneStepState, dict[str, jax.Array]]:
    """One step of the policy; nothing is random."""
    policy, optimiser, loss = descend(policy_loss, _optimiser(config), state.policy, state.optimiser, batch)
    return OneStepState(policy, optimiser), {"policy_loss": loss}


METHOD = Method(
    **vars(CARD),
    prepare=prepare,
    create=create,
    sample=sample,
    update=update,
    random_update=False,
    warm_start=from_bc,
)
