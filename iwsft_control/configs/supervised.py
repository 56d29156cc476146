"""Hyper-parameters of supervised fine-tuning (Qin & Springenberg 2025), and what each of its six methods is."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

from iwsft_control.base.bounds import POSITIVE, SHARE
from iwsft_control.configs import released
from iwsft_control.configs.card import Card, Published
from iwsft_control.configs.curation import CurationConfig
from iwsft_control.configs.importance import ImportanceConfig

Preset = Literal["", "released"]


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Hyper-parameters of policy training, the same for all methods and tasks."""

    hidden: Annotated[tuple[int, ...], POSITIVE] = (256, 256, 256)
    batch_size: Annotated[int, POSITIVE] = 256
    bc_steps: Annotated[int, POSITIVE] = 20_000
    """Gradient steps of bc and filtered-bc."""
    bc_learning_rate: Annotated[float, POSITIVE] = 1e-3
    fine_tune_steps: Annotated[int, POSITIVE] = 5_000
    """Gradient steps of sft, iw-sft, sft-q and iw-sft-q, from the run's own BC policy."""
    fine_tune_learning_rate: Annotated[float, POSITIVE] = 3e-4
    length_weighted: bool = True
    """A unit counts by its length, as in log p(tau) = sum_t log pi; otherwise by the mean over t (released code)."""
    average_decay: Annotated[float, SHARE] = 0.999
    """The policy that is evaluated is the exponential average of the parameters, for all of these methods alike."""


class Kind(NamedTuple):
    """One of the six methods."""

    curation: str  # "everything", "filtered" (transitions of the best episodes), "binary" (those episodes), "quality"
    fine_tunes: bool = False  # starts from BC's parameters instead of from scratch
    importance_weighted: bool = False


KINDS = {
    "bc": Kind("everything"),
    "filtered-bc": Kind("filtered"),
    "sft": Kind("binary", fine_tunes=True),
    "iw-sft": Kind("binary", fine_tunes=True, importance_weighted=True),
    "sft-q": Kind("quality", fine_tunes=True),
    "iw-sft-q": Kind("quality", fine_tunes=True, importance_weighted=True),
}


@dataclasses.dataclass(frozen=True)
class SupervisedConfig:
    """The groups of hyper-parameters that the six methods share; of bc and filtered-bc, which start from scratch."""

    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    importance: ImportanceConfig = dataclasses.field(default_factory=ImportanceConfig)
    curation: CurationConfig = dataclasses.field(default_factory=CurationConfig)
    preset: Preset = ""
    """"released": whole trajectories, as in :mod:`~iwsft_control.methods.released`."""

    @property
    def steps(self) -> int:
        """Gradient steps of the method."""
        return self.policy.bc_steps

    @property
    def learning_rate(self) -> float:
        """Decays to zero over all steps (cosine)."""
        return self.policy.bc_learning_rate

    @property
    def average_decay(self) -> float:
        """Of the exponential average of the parameters that is evaluated."""
        return self.policy.average_decay


class FineTuningConfig(SupervisedConfig):
    """The same of the methods that start from BC."""

    @property
    def steps(self) -> int:
        return self.policy.fine_tune_steps

    @property
    def learning_rate(self) -> float:
        return self.policy.fine_tune_learning_rate


BY_Q = {"curation": {"q_unit", "segment_steps"}}  # settings that have no effect where the return is what scores


def record(kind: Kind, config: SupervisedConfig) -> dict[str, Any]:
    """The settings that a method's own work depends on."""
    fine_tuning = ("fine_tune_steps", "fine_tune_learning_rate", "length_weighted")
    cloning = ("bc_steps", "bc_learning_rate")
    left_out = cloning if kind.fine_tunes else fine_tuning
    found: dict[str, Any] = {
        "policy": {k: v for k, v in dataclasses.asdict(config.policy).items() if k not in left_out}
    }
    if kind.curation != "everything":
        by_quality = kind.curation == "quality"
        curation = dataclasses.asdict(config.curation)
        found["curation"] = {k: v for k, v in curation.items() if (k != "filter_percentile") == by_quality}
    if kind.importance_weighted:
        found["importance"] = dataclasses.asdict(config.importance)
    return found | {"preset": config.preset}


def as_released(policy: PolicyConfig) -> dict[str, Any]:
    """The groups of options of ``--preset released``, but for the network's width."""
    return {
        "policy": dataclasses.replace(
            policy,
            bc_steps=released.BC_STEPS,
            bc_learning_rate=released.BC_LEARNING_RATE,
            fine_tune_steps=released.FINE_TUNE_STEPS,
            fine_tune_learning_rate=released.LEARNING_RATE,
            length_weighted=False,
            average_decay=0.0,
        ),
        "importance": released.IMPORTANCE,
        "curation": released.CURATION,
        "preset": "released",
    }


def _card(name: str, stream: int, published: Published | None = None) -> Card:
    kind = KINDS[name]
    return Card(
        name=name,
        config=FineTuningConfig if kind.fine_tunes else SupervisedConfig,
        option=None,
        by_quality=kind.curation == "quality",
        dependencies=lambda quality: ("bc",) * kind.fine_tunes + ("critic",) * (quality == "q"),
        record=partial(record, kind),
        stream=stream,
        seconds=lambda config: 4.0 if not config.preset else 1000.0 if kind.fine_tunes else 400.0,
        published=published,
    )


CARDS = (
    _card("bc", 0, Published("BC", (18.1, 36.6, 26.0))),
    _card("filtered-bc", 2, Published("BC 10%", (75.9, 40.6, 62.5))),
    _card("sft", 3, Published("SFT", (79.0, 35.1, 58.8))),
    _card("iw-sft", 4),
    _card("sft-q", 5, Published("SFT(Q)", (84.9, 39.3, 66.2), "return")),
    _card("iw-sft-q", 6, Published("iw-SFT(Q)", (85.0, 40.9, 75.8), "return")),
)
