"""Decision Transformer's network, and the policy with a memory that acts by it (Chen et al. 2021).

Every step is three tokens: return-to-go, state, action. The action is read from the state's token, which sees the
return that is asked for and everything before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from iwsft_control.networks.transformer import EVERY, block

TOKENS = 3  # of a step
ROWS = 5  # episodes of one compiled call: a program for every number of episodes would have to be compiled


class History(NamedTuple):
    """The last K steps of B episodes, the latest at the end: what a :class:`DecisionTransformer` reads."""

    returns: Any
    """Return-to-go before each step, divided by the return's scale, (B, K)."""
    observations: Any
    """Normalised, (B, K, O)."""
    actions: Any
    """(B, K, A)."""
    timesteps: Any
    """Steps since the episode began, (B, K) integers; negative for padding in front."""


class DecisionTransformer(nn.Module):
    """Histories to actions (B, K, A) in (-1, 1): of every step, or (B, 1, A) of the latest alone.

    Drops out what ``dropout`` says where it is given random numbers of that name.
    """

    action_dim: int
    timesteps: int
    width: int
    layers: int
    heads: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, history: History, latest: bool = False) -> jax.Array:
        dropout = self.dropout if self.has_rng("dropout") else 0.0
        batch, length = history.timesteps.shape
        place = jnp.clip(history.timesteps, 0, self.timesteps - 1)
        time = nn.Embed(self.timesteps, self.width, embedding_init=nn.initializers.normal(1.0), name="time")(place)
        tokens = [
            nn.Dense(self.width, name="return")(history.returns[..., None]) + time,
            nn.Dense(self.width, name="observation")(history.observations) + time,
            nn.Dense(self.width, name="action")(history.actions) + time,
        ]
        x = jnp.stack(tokens, axis=2).reshape(batch, TOKENS * length, self.width)
        x = nn.Dropout(dropout)(nn.LayerNorm()(x), deterministic=False)
        first = TOKENS * (history.timesteps < 0).sum(axis=1)
        states = slice(TOKENS * length - 2, TOKENS * length - 1) if latest else slice(1, None, TOKENS)
        for layer in range(self.layers):
            asked = states if layer == self.layers - 1 else EVERY  # nobody reads the other tokens after that
            x, _ = block(x, self.heads, nn.relu, dropout=dropout, first=first, asked=asked)
        return jnp.tanh(nn.Dense(self.action_dim, name="head")(nn.LayerNorm()(x)))


def network(params: Any, heads: int, dropout: float = 0.0) -> DecisionTransformer:
    """The network that has these parameters.

    Raises:
        KeyError, TypeError, ValueError: none has, with so many heads.
    """
    own = params["params"]
    timesteps, width = np.shape(own["time"]["embedding"])
    observation_dim, (_, action_dim) = np.shape(own["observation"]["kernel"])[0], np.shape(own["head"]["kernel"])
    layers = sum(name.startswith("Attention_") for name in own)
    if heads < 1 or width % heads or not layers:
        raise ValueError(f"no network has {layers} layers of width {width} and {heads} heads")
    net = DecisionTransformer(action_dim, timesteps, width, layers, heads, dropout)
    like = jax.eval_shape(net.init, jax.random.key(0), empty(1, 1, observation_dim, action_dim))
    shapes = (jax.tree.map(np.shape, x) for x in (params, like))
    if next(shapes) != next(shapes):
        raise ValueError("its arrays do not fit together")
    return net


def empty(n: int, length: int, observation_dim: int, action_dim: int) -> History:
    """The history of n episodes that have not begun: padding alone."""
    returns, observations, actions = (
        np.zeros((n, length, *more), np.float32) for more in ((), (observation_dim,), (action_dim,))
    )
    return History(returns, observations, actions, np.full((n, length), -1, np.int32))


@partial(jax.jit, static_argnums=0)
def _latest_actions(net: DecisionTransformer, params: Any, history: History) -> jax.Array:
    return net.apply(params, history, latest=True)[:, 0]


class Memory(NamedTuple):
    """What n episodes remember: (n, ...)."""

    history: History
    wanted: np.ndarray  # (n,) the return that is still to come, divided by its scale


class DecisionTransformerPolicy:
    """Acts so that the target return comes true: what was earned is taken from it after every step.

    Args:
        params: "params" as of :class:`DecisionTransformer`, and "normalisation" with the observations' "mean" and
            "std", (O,) each.
        layout: "heads", "context" (K), "return_scale" and "target_return", the return that is asked for.

    Raises:
        KeyError, TypeError, ValueError: that is no Decision Transformer.
    """

    def __init__(self, params: Any, layout: Mapping[str, Any]):
        weights = {"params": params["params"]}
        self._net = network(weights, int(layout["heads"]))
        self._params = jax.device_put(weights)
        self._mean, self._std = (np.asarray(params["normalisation"][name], np.float32) for name in ("mean", "std"))
        observation_dim = len(weights["params"]["observation"]["kernel"])
        if not self._mean.shape == self._std.shape == (observation_dim,):
            raise ValueError("its normalisation does not fit")
        self._context, self._scale = int(layout["context"]), float(layout["return_scale"])
        self._target = float(layout["target_return"])
        if self._context < 1 or not self._scale > 0 or not np.isfinite(self._target):
            raise ValueError("its layout is none")

    def initial(self, n: int) -> Memory:
        wanted = np.full(n, self._target / self._scale, np.float32)
        return Memory(empty(n, self._context, len(self._mean), self._net.action_dim), wanted)

    def act(
        self, carry: Memory, observations: np.ndarray, key: np.random.Generator | None = None
    ) -> tuple[np.ndarray, Memory]:
        old, n = carry.history, len(observations)
        normalised = ((observations - self._mean) / self._std).astype(np.float32)
        unknown = np.zeros((n, self._net.action_dim), np.float32)
        latest = History(carry.wanted, normalised, unknown, old.timesteps[:, -1] + 1)
        history = History(*(np.concatenate([x[:, 1:], y[:, None]], axis=1) for x, y in zip(old, latest, strict=True)))
        actions = np.empty_like(unknown)
        for i in range(0, n, ROWS):
            part = History(*(x[i : i + ROWS] for x in history))
            missing = ROWS - len(part.returns)
            if missing:
                part = History(*(np.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1)), mode="edge") for x in part))
            actions[i : i + ROWS] = _latest_actions(self._net, self._params, part)[: ROWS - missing]
        history.actions[:, -1] = actions
        return actions, Memory(history, carry.wanted)

    def observe(self, carry: Memory, rewards: np.ndarray) -> Memory:
        """The memory (K, ...) after the rewards (K,) of the step that was acted."""
        return carry._replace(wanted=(carry.wanted - rewards / self._scale).astype(np.float32))
