"""Policies: their densities, how they are squashed, how they act."""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from iwsft_control.base import files
from iwsft_control.base.errors import UserError, near, require
from iwsft_control.networks.mlp import MLP, numpy_mlp

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0  # of the offline policies: iw-SFT's released code
SAC_LOG_STD_MIN, SAC_LOG_STD_MAX = -20.0, 2.0  # of SAC's policy: rlkit
CONSTANT = 1e-6  # how far actions of [-1, 1] may lie apart by rounding


class GaussianPolicy(nn.Module):
    """pi(a|s) = N(tanh(f(s)), diag(exp(2 log_std))) with a state-independent log_std, as in iw-SFT's released code.

    A plain Normal: the tanh bounds the mean only, so the density needs no Jacobian.
    """

    hidden: Sequence[int]
    action_dim: int

    @nn.compact
    def __call__(self, observations: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Observations (..., O) to means (..., A) in (-1, 1) and clamped log standard deviations (A,)."""
        mean = jnp.tanh(MLP(self.hidden, self.action_dim, name="net")(observations))
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,))
        return mean, jnp.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)


class DeterministicPolicy(nn.Module):
    """a = tanh(f(s)): observations (..., O) to actions (..., A) in (-1, 1)."""

    hidden: Sequence[int]
    action_dim: int

    @nn.compact
    def __call__(self, observations: jax.Array) -> jax.Array:
        return jnp.tanh(MLP(self.hidden, self.action_dim, name="net")(observations))


def gaussian_log_prob(mean: jax.Array, log_std: jax.Array, actions: jax.Array) -> jax.Array:
    """Log density of a diagonal Gaussian, summed over action dimensions: (..., A) -> (...)."""
    z = (actions - mean) * jnp.exp(-log_std)
    return jnp.sum(-0.5 * z**2 - log_std - 0.5 * jnp.log(2 * jnp.pi), axis=-1)


def policy_log_prob(policy: GaussianPolicy, params: Any, observations: jax.Array, actions: jax.Array) -> jax.Array:
    """log pi(a|s): observations (..., O), actions (..., A) -> (...)."""
    mean, log_std = policy.apply(params, observations)
    return gaussian_log_prob(mean, log_std, actions)


class TanhGaussianPolicy(nn.Module):
    """SAC's policy: a = tanh(u), u ~ N(mu(s), diag(sigma(s)^2)) (Haarnoja et al. 2018)."""

    hidden: Sequence[int]
    action_dim: int

    @nn.compact
    def __call__(self, observations: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Observations (..., O) to the mean (..., A) and log standard deviation (..., A) of u."""
        mean, log_std = jnp.split(MLP(self.hidden, 2 * self.action_dim, name="net")(observations), 2, axis=-1)
        return mean, jnp.clip(log_std, SAC_LOG_STD_MIN, SAC_LOG_STD_MAX)


def squash(mean: jax.Array, log_std: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Actions a = tanh(mean + std noise) (..., A) and log pi(a|s) (...), the Jacobian of tanh in its stable form."""
    u = mean + jnp.exp(log_std) * noise
    log_jacobian = 2 * (jnp.log(2.0) - u - jax.nn.softplus(-2 * u))
    return jnp.tanh(u), gaussian_log_prob(mean, log_std, u) - log_jacobian.sum(-1)


# --- policies that act ---------------------------------------------------------------------------------------------
# In NumPy: the batches of a rollout are too small and too varied for a device call.


class Policy(Protocol):
    """Something that acts on a batch of environments, possibly with a memory and at random."""

    def initial(self, n: int) -> Any:
        """The memory of n environments at the start of their episodes: a pytree of arrays (n, ...); () for none."""
        ...

    def act(self, carry: Any, observations: np.ndarray, key: np.random.Generator) -> tuple[np.ndarray, Any]:
        """Observations (K, O) float32 to actions (K, A) in [-1, 1] and the memory (K, ...) after them.

        Args:
            carry: memory of the K environments; rows are left out as episodes end.
            key: source of randomness of these environments alone.
        """
        ...


def observe(policy: Policy, carry: Any, rewards: np.ndarray) -> Any:
    """The memory (K, ...) after a step that was rewarded with (K,): a policy's own ``observe(carry, rewards)``.

    A policy that does not care for rewards has no such method; its memory stays as it is.
    """
    own = getattr(policy, "observe", None)
    return own(carry, rewards) if own is not None else carry


@dataclasses.dataclass(frozen=True)
class TanhMLP:
    """a = tanh(f(s)): what a :class:`DeterministicPolicy` does, and a :class:`GaussianPolicy` by its mean."""

    layers: Mapping[str, Any]

    def initial(self, n: int) -> Any:
        return ()

    def act(
        self, carry: Any, observations: np.ndarray, key: np.random.Generator | None = None
    ) -> tuple[np.ndarray, Any]:
        return self(observations), carry

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        """Observations (K, O) or (O,) to actions (K, A) or (A,)."""
        return np.tanh(numpy_mlp(self.layers, observations))


def numpy_mean_std(layers: Mapping[str, Any], observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """mu(s), sigma(s) of a :class:`TanhGaussianPolicy` whose MLP has these NumPy layers: (..., O) -> (..., A) twice."""
    mean, log_std = np.split(numpy_mlp(layers, observations), 2, axis=-1)
    return mean, np.exp(np.clip(log_std, SAC_LOG_STD_MIN, SAC_LOG_STD_MAX))


@dataclasses.dataclass(frozen=True)
class SampledTanhGaussian:
    """a = tanh(u), u ~ N(mu(s), diag(sigma(s)^2)): a :class:`TanhGaussianPolicy` that samples, as SAC explores."""

    layers: Mapping[str, Any]

    def initial(self, n: int) -> Any:
        return ()

    def act(self, carry: Any, observations: np.ndarray, key: np.random.Generator) -> tuple[np.ndarray, Any]:
        mean, std = numpy_mean_std(self.layers, observations)
        return np.tanh(mean + std * key.standard_normal(mean.shape, np.float32)).astype(np.float32), carry


@dataclasses.dataclass(frozen=True)
class FunctionPolicy:
    """A plain function from observations (K, O) to actions (K, A) as a :class:`Policy`; it must be thread-safe."""

    function: Callable[[np.ndarray], np.ndarray]

    def initial(self, n: int) -> Any:
        return ()

    def act(self, carry: Any, observations: np.ndarray, key: np.random.Generator) -> tuple[np.ndarray, Any]:
        return self.function(observations), carry


def as_policy(policy: Policy | Callable[[np.ndarray], np.ndarray]) -> Policy:
    """A policy as it is, a plain function as a :class:`FunctionPolicy`.

    Raises:
        UserError: it is neither.
    """
    whole = all(callable(getattr(policy, name, None)) for name in ("initial", "act"))
    require(
        not isinstance(policy, type) and (whole or callable(policy)),
        f"a {type(policy).__name__} does not act; give a policy (of a run, run.policy), an object with initial(n) and "
        "act(carry, observations, key), or a function from observations to actions.",
    )
    return policy if whole else FunctionPolicy(policy)  # type: ignore[arg-type, return-value]


def constant_action(policy: Policy, observations: np.ndarray) -> np.ndarray | None:
    """The one action (A,) with which a policy begins whatever it observes, (N, O), N > 1; None where actions differ."""
    actions, _ = policy.act(policy.initial(len(observations)), observations, np.random.default_rng(0))
    return actions[0] if (np.ptp(actions, axis=0) <= CONSTANT).all() else None


class Exported(NamedTuple):
    """A trained policy as it is kept: arrays, and what tells how they act."""

    params: Any
    kind: str = "tanh-mlp"
    layout: Mapping[str, Any] = MappingProxyType({})  # further facts that JSON can hold


def _layers(params: Any) -> Mapping[str, Any]:
    """The layers of a network, Dense_0 and so on, each with a kernel (I, O) and a bias (O,) that fit together.

    Raises:
        KeyError, IndexError, TypeError, ValueError: they are not there, or do not fit.
    """
    layers = jax.tree.map(np.asarray, params["params"]["net"])
    width = None
    for i in range(len(layers)):
        kernel, bias = layers[f"Dense_{i}"]["kernel"], layers[f"Dense_{i}"]["bias"]
        if kernel.ndim != 2 or bias.shape != kernel.shape[1:] or width not in (None, kernel.shape[0]):
            raise ValueError(f"layer {i} does not fit")
        width = kernel.shape[1]
    return layers


def _decision_transformer(params: Any, layout: Mapping[str, Any]) -> Policy:
    # By its name: the stages of other methods do not depend on its code.
    module = importlib.import_module("iwsft_control.networks.decision_transformer")
    return module.DecisionTransformerPolicy(params, layout)


# How each kind of policy is made of its parameters and layout. A method with a kind of its own adds it here.
KINDS: dict[str, Callable[[Any, Mapping[str, Any]], Policy]] = {
    "tanh-mlp": lambda params, layout: TanhMLP(_layers(params)),
    "sampled-tanh-gaussian": lambda params, layout: SampledTanhGaussian(_layers(params)),
    "decision-transformer": _decision_transformer,
}


def make(exported: Exported) -> Policy:
    """The policy that acts by exported parameters.

    Raises:
        UserError: no such kind of policy.
    """
    if exported.kind not in KINDS:
        raise UserError(f"unknown kind of policy {exported.kind!r}: {near(exported.kind, list(KINDS))}")
    return KINDS[exported.kind](exported.params, exported.layout)


@dataclasses.dataclass(frozen=True)
class TrainedPolicy:
    """A policy from a file, and what is known of it. It acts in [-1, 1]; an environment's other box wants scaling.

    What a file of an earlier version does not tell is None.
    """

    acting: Policy
    """What acts; its kind is in ``kind``."""
    kind: str
    task: str | None = None
    """The task, or the data set's id where there was none."""
    method: str | None = None
    seed: int | None = None
    dataset: str | None = None
    """Id of the data that it was trained on."""
    score: float | None = None
    """Mean normalised score over the evaluation episodes of its run."""
    commit: str | None = None
    """Git commit of the code that trained it."""
    observation_dim: int | None = None

    def initial(self, n: int) -> Any:
        return self.acting.initial(n)

    def act(self, carry: Any, observations: np.ndarray, key: np.random.Generator) -> tuple[np.ndarray, Any]:
        self._check(observations)
        return self.acting.act(carry, observations, key)

    def observe(self, carry: Any, rewards: np.ndarray) -> Any:
        """The memory after the rewards (K,) of a step; as it was where the policy does not care for rewards."""
        return observe(self.acting, carry, rewards)

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        """Observations (K, O) or (O,) to actions (K, A) or (A,) in [-1, 1].

        Raises:
            UserError: observations of another size, or a policy with a memory or random actions.
        """
        if not callable(self.acting):
            raise UserError(f"a policy of kind {self.kind} has a memory or is random: use its initial() and act().")
        self._check(observations)
        return self.acting(np.asarray(observations))

    def _check(self, observations: np.ndarray) -> None:
        given, wanted = np.shape(observations)[-1:], self.observation_dim
        if wanted is not None and given != (wanted,):
            raise UserError(
                f"the policy of {self.method} for {self.task} takes observations of {wanted} numbers, these have "
                f"{given[0] if given else 'none'}; give those of its own environment."
            )


SHIPPED = Path(__file__).parent / "shipped"  # a policy per task: iw-SFT(Q) by learned Q, seed 10 (results/ablation)


def load_policy(path: str | Path) -> TrainedPolicy:
    """The policy of a run, from the safetensors file beside its result, or one that comes with the package.

    Args:
        path: the file, or the task of a policy that comes with the package: ``"hopper-medium-replay"``.

    Raises:
        UserError: no such file, it is damaged, or it is not a policy of this project.
    """
    named = isinstance(path, str | os.PathLike)
    require(named, f"a policy is loaded from a file, or by the name of a task, not from {path!r:.60}.")
    path = Path(path)
    own = SHIPPED / f"{path}.safetensors"
    if not path.is_file() and own.is_file():  # a folder of results has a task's name, too
        path = own
    if not path.exists():
        known = ", ".join(sorted(each.stem for each in SHIPPED.glob("*.safetensors")))
        raise UserError(
            f"{path} does not exist; check the path. Of these tasks a policy comes with the package: {known}."
        )
    if path.exists() and path.suffix != ".safetensors":
        raise UserError(f"{path} is no policy; give the .safetensors file beside a result.")
    arrays, record = files.load_arrays(path)
    try:
        params, described = files.nest(arrays), record.get("policy", {})
        kind = described.get("kind", "tanh-mlp")  # files of version 0.1.0 name none
        acting = make(Exported(params, kind, described.get("layout", {})))
        facts = {name: record.get(name) for name in ("task", "method", "seed", "dataset", "score", "commit")}
        layers = getattr(acting, "layers", None)
        width = record.get("observation_dim") or (layers["Dense_0"]["kernel"].shape[0] if layers else None)
        return TrainedPolicy(acting, kind, **facts, observation_dim=width)
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # other arrays than a policy's
        raise UserError(f"{path} does not hold a policy; give the .safetensors file beside a result.") from error
