"""Which environment a data set declares. Nothing that a data set says makes this package import or call anything.

Environments come from Gymnasium's registry alone: the declared id is looked up there, and of the declaration only what
is plain data joins the registered specification (a time limit, keyword arguments that are numbers). The rest (another
entry point, a wrapper, a file's name) is code or a path of a stranger's, and is used only where the user trusts it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import hashlib
import math
import types
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, WrapperSpec

from iwsft_control.base import files
from iwsft_control.base.errors import UserError, require
from iwsft_control.envs.registration import MAX_EPISODE_STEPS

FIELDS = {f.name for f in dataclasses.fields(EnvSpec) if f.init}
OLD_FIELDS = {"autoreset", "apply_api_compatibility"}  # of Gymnasium before 1.0; Minari drops them too
# Wrappers that gym.make adds itself, or that change neither observations nor rewards nor where an episode ends.
NEUTRAL_WRAPPERS = {
    "TimeLimit", "OrderEnforcing", "PassiveEnvChecker", "HumanRendering", "RenderCollection", "RecordEpisodeStatistics"
}  # fmt: skip

MAX_DEPTH = 6  # of what a keyword argument holds
NO_MUJOCO = "not used"  # in a result, in the place of MuJoCo's version: the environment has other physics

_flattening = gym.wrappers.FlattenObservation
FLATTENING = WrapperSpec(_flattening.__name__, f"{_flattening.__module__}:{_flattening.__name__}", {})


def declared(text: Any, name: str, trust: bool = False) -> str | EnvSpec:
    """The environment that a data set declares.

    Args:
        text: Gymnasium's JSON of the specification, as the data set's metadata hold it.
        name: of the data set, for the sentence.
        trust: whether what the specification names may be imported and called.

    Returns:
        The id where the specification says no more than the registry does, else the whole specification.

    Raises:
        UserError: it is not a specification, its environment is not registered, or it asks for what would have to be
            imported. Then the sentence says what.
    """
    fields = _fields(text, name)
    env_id, kwargs, limit = fields["id"], fields["kwargs"], fields["max_episode_steps"]
    registered = gym.registry.get(env_id)
    own = () if registered is None else registered.additional_wrappers
    wrappers = [w for w in fields["additional_wrappers"] if not _is_neutral(w) and WrapperSpec(**w) not in own]
    limit = min([x for x in (limit, *map(_time_limit, fields["additional_wrappers"])) if x is not None], default=None)
    for wrapper in wrappers:
        require(
            wrapper["kwargs"] is not None,
            f"{name} declares the wrapper {wrapper['name']} ({wrapper['entry_point']}), which its metadata do not hold "
            "the arguments of: it cannot be made again; take it out of env_spec, or choose another data set.",
        )
    known: dict[str, Any] = {} if registered is None else registered.kwargs
    kwargs = {k: known[k] if k in known and _in_json(known[k]) == v else v for k, v in kwargs.items()}
    foreign = {k: v for k, v in kwargs.items() if not _is_plain(v) and not (k in known and known[k] is v)}
    imported = [] if registered is not None else [fields["entry_point"]]
    imported += [w["entry_point"] for w in wrappers if WrapperSpec(**w) != FLATTENING]  # Gymnasium's own
    if registered is None and fields["entry_point"] is None:
        raise UserError(
            f"{name} declares the environment {env_id}, which is not registered here; install the package it comes "
            "from, or choose another data set."
        )
    if not trust and (imported or foreign):
        what = [f"import and call {', '.join(imported)}"] if imported else []
        what += [f"pass {k}={v!r:.80} to {env_id}" for k, v in foreign.items()]
        raise UserError(
            f"{name} declares {'the environment ' + env_id if registered is None else 'more than ' + env_id}, and to "
            f"evaluate in it would {' and '.join(what)}; look at that first, and if you trust it give "
            "--trust-environment."
        )
    spec = copy.deepcopy(registered) or EnvSpec(env_id, entry_point=fields["entry_point"])
    spec.kwargs = {**known, **kwargs}
    spec.max_episode_steps = limit
    spec.additional_wrappers += tuple(WrapperSpec(**w) for w in wrappers)
    return env_id if spec == registered else spec


def id_of(environment: str | EnvSpec) -> str:
    """The id of an environment that is told by it or by its specification."""
    return environment if isinstance(environment, str) else environment.id


def spec_of(environment: str | EnvSpec) -> EnvSpec:
    """The specification likewise: of an id the registry's own, which nobody may change."""
    return gym.spec(environment) if isinstance(environment, str) else environment


def flattened(environment: str | EnvSpec) -> EnvSpec:
    """An environment whose dict observations are laid end to end, by Gymnasium's own wrapper."""
    spec = copy.deepcopy(spec_of(environment))
    spec.additional_wrappers += (FLATTENING,)
    return spec


def parts(space: gym.Space, name: str = "") -> dict[str, int]:
    """Names and widths of what a dict observation consists of, in the order in which Gymnasium flattens it."""
    if not isinstance(space, gym.spaces.Dict):
        return {name: gym.spaces.flatdim(space)}
    inner = (parts(each, f"{name}/{key}" if name else str(key)) for key, each in space.spaces.items())
    return {key: width for each in inner for key, width in each.items()}


def describe(environment: str | EnvSpec) -> Any:
    """An environment as JSON can hold it: the id, or everything of a specification that decides what is played."""
    if isinstance(environment, str):
        return environment
    wrappers = [dataclasses.asdict(w) for w in environment.additional_wrappers]
    found = (environment.id, environment.entry_point, environment.max_episode_steps, environment.kwargs, wrappers)
    return [plain(each) for each in found]


def plain(value: Any, depth: int = 0) -> Any:
    """What a specification that was registered in Python may hold, as JSON can hold it: the same in every process, and
    another for what does something else, as far as values tell."""
    if depth > MAX_DEPTH:
        return type(value).__qualname__
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value

    def inner(*values: Any) -> list[Any]:
        return [plain(each, depth + 1) for each in values]

    kind = f"{type(value).__module__}:{type(value).__qualname__}"
    if isinstance(value, float | np.generic):
        return inner(value.item())[0] if isinstance(value, np.generic) and value.item() is not value else repr(value)
    if isinstance(value, list | tuple):
        return inner(*value)
    if isinstance(value, set | frozenset):
        return [kind, sorted(inner(*value), key=repr)]
    if isinstance(value, dict):
        keys = (key if isinstance(key, str) else repr(inner(type(key), key)) for key in value)
        return dict(zip(keys, inner(*value.values()), strict=True))
    if isinstance(value, functools.partial):
        return [kind, *inner(value.func, value.args, value.keywords)]
    if isinstance(value, types.MethodType):
        return [kind, *inner(value.__self__, value.__func__)]
    if isinstance(value, types.FunctionType):
        return _function(value, inner)
    if callable(value) and hasattr(value, "__qualname__"):  # a class, or one of C's functions
        return f"{getattr(value, '__module__', None)}:{value.__qualname__}"
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        content = repr(inner(*array.ravel())) if array.dtype.hasobject else np.ascontiguousarray(array).tobytes()
        digest = hashlib.sha256(content if isinstance(content, bytes) else content.encode()).hexdigest()[:16]
        return f"array {array.shape} {array.dtype} {digest}"
    held = getattr(value, "__dict__", None)
    if held:
        return [kind, plain(dict(held), depth + 1)]
    told = repr(value)
    return kind if " at 0x" in told else [kind, told]


def _function(function: types.FunctionType, inner: Callable[..., list[Any]]) -> Any:
    """Its name; of one that is made anew each time also what it does and what it holds."""
    cells = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # empty
            cells.append(cell.cell_contents)
    held = [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    name = f"{function.__module__}:{function.__qualname__}"
    if not held and "<" not in function.__qualname__:
        return name
    return [name, hashlib.sha256(signature(function.__code__).encode()).hexdigest()[:16], inner(*held)]


def signature(code: types.CodeType) -> str:
    """What a piece of compiled code does, wherever its lines are."""
    constants = [
        signature(c) if isinstance(c, types.CodeType) else repr(sorted(map(repr, c)) if isinstance(c, frozenset) else c)
        for c in code.co_consts
    ]
    return repr((code.co_code.hex(), constants, code.co_names, code.co_varnames, code.co_freevars))


def reduced(environment: str | EnvSpec) -> str | EnvSpec:
    """The id of a specification that is the registered one; any other as it is."""
    if isinstance(environment, str):
        return environment
    try:
        return environment.id if gym.registry.get(environment.id) == environment else environment
    except ValueError:  # arrays among its arguments
        return environment


def in_words(environment: str | EnvSpec) -> str:
    """The id of an environment, and how it differs from the one that is registered under it."""
    if isinstance(environment, str):
        return environment
    limit = environment.max_episode_steps
    differs = [f"no time limit, so cut at {MAX_EPISODE_STEPS:,} steps" if limit is None else f"at most {limit:,} steps"]
    differs += [f"{k}={v!r:.40}" for k, v in environment.kwargs.items()]
    differs += [f"wrapper {w.name}" for w in environment.additional_wrappers]
    return f"{environment.id} ({', '.join(differs)}, as declared)"


def _fields(text: Any, name: str) -> dict[str, Any]:
    """The fields of a specification, each of its type; what is not said is Gymnasium's default.

    Raises:
        UserError: it is no specification.
    """

    def wrong(why: str) -> UserError:
        return UserError(f"{name} declares no usable environment: {why}; correct env_spec in its metadata.")

    if not isinstance(text, str):
        raise wrong("env_spec is not text")
    try:
        fields = files.parse_json(text)
    except ValueError as error:
        raise wrong(f"env_spec is not JSON ({error})") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("id"), str):
        raise wrong("env_spec has no id")
    unknown = sorted(set(fields) - FIELDS - OLD_FIELDS)
    if unknown:
        raise wrong(f"env_spec has unknown fields ({', '.join(unknown):.200})")
    if fields.get("apply_api_compatibility"):
        raise wrong("its environment has the interface of gym before 0.26")
    try:
        gym.envs.registration.parse_env_id(fields["id"])
    except gym.error.Error as error:
        raise wrong(f"{fields['id']!r:.80} is not an id of Gymnasium's") from error
    registered = gym.registry.get(fields["id"])
    found = {
        "id": fields["id"],
        "entry_point": fields.get("entry_point"),
        "max_episode_steps": fields.get("max_episode_steps", registered and registered.max_episode_steps),
        "kwargs": fields.get("kwargs", {}),
        "additional_wrappers": fields.get("additional_wrappers", []),
    }
    if not isinstance(found["entry_point"], str | None):
        raise wrong("entry_point is not text")
    if not _is_limit(found["max_episode_steps"]):
        raise wrong(f"max_episode_steps is {found['max_episode_steps']!r:.40}, not a positive number of steps")
    if not isinstance(found["kwargs"], dict):
        raise wrong("kwargs are not named")
    if not isinstance(found["additional_wrappers"], list) or not all(map(_is_wrapper, found["additional_wrappers"])):
        raise wrong("additional_wrappers are not wrappers")
    # Nothing is drawn here, and a mode may need what is not installed.
    found["kwargs"] = {k: v for k, v in found["kwargs"].items() if k != "render_mode"}
    return found


def _in_json(value: Any) -> Any:
    """A registered keyword argument as it comes back from a file: a tuple as a list."""
    return list(value) if isinstance(value, tuple) else value


def _is_limit(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)


def _is_plain(value: Any) -> bool:
    """Whether a keyword argument is only a number: text may name a file."""
    return isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))


def _is_wrapper(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"name", "entry_point", "kwargs"}
        and isinstance(value["name"], str)
        and isinstance(value["entry_point"], str)
        and isinstance(value["kwargs"], dict | None)
    )


def _is_neutral(wrapper: dict[str, Any]) -> bool:
    module, _, name = wrapper["entry_point"].partition(":")
    return module.split(".")[:2] == ["gymnasium", "wrappers"] and name in NEUTRAL_WRAPPERS


def _time_limit(wrapper: dict[str, Any]) -> int | None:
    """The steps of a TimeLimit among the wrappers."""
    steps = (wrapper["kwargs"] or {}).get("max_episode_steps") if _is_neutral(wrapper) else None
    return steps if _is_limit(steps) else None
