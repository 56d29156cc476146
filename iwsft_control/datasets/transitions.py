"""Transitions: what critics, SAC and every method that learns from single transitions sample from.

They stay NumPy views of the data set until :class:`Table` packs them for the device: one copy of the data, not two.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iwsft_control.base.errors import require
from iwsft_control.datasets.types import Dataset

PASS_CHUNK = 4096  # rows of one forward pass that stay in cache


class Transitions(NamedTuple):
    """Transitions: (N, O), (N, A), (N,), (N, O), (N,) (1.0 where the next state is terminal)."""

    observations: Any
    actions: Any
    rewards: Any
    next_observations: Any
    terminations: Any


def transitions(data: Dataset) -> Transitions:
    """The data set, rewards as they are."""
    terminations = data.terminations.astype(np.float32)
    return Transitions(data.observations, data.actions, data.rewards, data.next_observations, terminations)


def reward_scale(data: Dataset) -> float:
    """1000 / (best - worst episode return), IQL's scaling for locomotion; 1 where all episodes are equal."""
    spread = float(np.ptp(data.returns))
    return 1000.0 / spread if spread > 0 else 1.0


def scaled_transitions(data: Dataset) -> Transitions:
    """The data set, rewards times :func:`reward_scale`."""
    return transitions(data)._replace(rewards=data.rewards * np.float32(reward_scale(data)))


class Demonstrations(NamedTuple):
    """Rows of states and actions: (N, O), (N, A)."""

    observations: Any
    actions: Any


def in_chunks(rows: Demonstrations) -> Demonstrations:
    """Rows (N, O), (N, A), padded with zeros, in cache-sized chunks for ``lax.map``: (C, PASS_CHUNK, O or A)."""
    padding = ((0, -rows.actions.shape[0] % PASS_CHUNK), (0, 0))
    return Demonstrations(*(jnp.pad(x, padding).reshape(-1, PASS_CHUNK, x.shape[1]) for x in rows))


class FollowedTransitions(NamedTuple):
    """:class:`Transitions` with the data's next action: (N, O), (N, A), (N,), (N, O), (N,), (N, A), (N,)."""

    observations: Any
    actions: Any
    rewards: Any
    next_observations: Any
    terminations: Any
    next_actions: Any
    has_next: Any  # 1.0 where the episode goes on in the data


def with_next_actions(rows: Transitions, data: Dataset) -> FollowedTransitions:
    """Transitions of a data set, each with the next action of its episode."""
    has_next = np.ones(len(data.rewards), np.float32)
    has_next[data.starts[1:] - 1] = 0.0
    following = np.roll(data.actions, -1, axis=0)
    return FollowedTransitions(*rows, next_actions=following, has_next=has_next)


@partial(jax.tree_util.register_dataclass, data_fields=("packed",), meta_fields=("kind", "shapes"))
@dataclasses.dataclass(frozen=True)
class Table:
    """Arrays of N rows each, side by side on the device: a row of a batch is one look-up, not one for every array."""

    packed: jax.Array  # (N, D) float32
    kind: Any  # the NamedTuple that the arrays come from
    shapes: tuple[tuple[int, ...], ...]  # of a row of each array

    @classmethod
    def of(cls, arrays: Any) -> Table:
        """A NamedTuple of float32 arrays (N, ...) as a table.

        Raises:
            UserError: their numbers of rows differ.
        """
        lengths = {name: len(x) for name, x in zip(arrays._fields, arrays, strict=True)}
        told = ", ".join(f"{name} {rows:,}" for name, rows in lengths.items())
        require(
            len(set(lengths.values())) == 1,
            f"the rows to sample from differ in number ({told}); pair them in prepare.",
        )
        columns = [np.asarray(x).reshape(len(x), -1) for x in arrays]
        packed = _aligned((len(columns[0]), sum(x.shape[1] for x in columns)))
        np.concatenate(columns, axis=1, out=packed)
        # Nobody else has the buffer, so that a CPU may use it as it is.
        return cls(jax.device_put(packed, may_alias=True), type(arrays), tuple(x.shape[1:] for x in arrays))

    def __len__(self) -> int:
        return self.packed.shape[0]

    def rows(self, index: jax.Array) -> Any:
        """The rows ``index`` (B,) as the NamedTuple of arrays (B, ...)."""
        widths = [math.prod(shape) for shape in self.shapes]
        parts = jnp.split(self.packed[index], np.cumsum(widths)[:-1], axis=1)
        return self.kind(*(p.reshape(len(index), *shape) for p, shape in zip(parts, self.shapes, strict=True)))


def _aligned(shape: tuple[int, int]) -> np.ndarray:
    """An empty float32 array where JAX needs no copy of it on a CPU: it begins at a multiple of 64 bytes."""
    size = 4 * math.prod(shape)
    buffer = np.empty(size + 64, np.uint8)
    first = -buffer.ctypes.data % 64
    return buffer[first : first + size].view(np.float32).reshape(shape)
