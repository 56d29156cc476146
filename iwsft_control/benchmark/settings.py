"""Settings of a run, and what they must be."""

from __future__ import annotations

import dataclasses
from typing import Any

from iwsft_control.base.errors import require
from iwsft_control.learning.curation import CurationConfig
from iwsft_control.learning.objectives import ImportanceConfig
from iwsft_control.methods import awac, cql, iql, rebrac, td3_bc
from iwsft_control.methods.critic import CriticConfig
from iwsft_control.methods.registry import BASELINES
from iwsft_control.methods.supervised import METHODS, PolicyConfig

NAMES = (*METHODS, *BASELINES)


QUICK_EPISODES = 5


QUICK_BASELINE_STEPS = 300


POSITIVE = (
    "steps",
    "batch_size",
    "policy_delay",
    "sampled_actions",
    "temperature",
    "max_weight",
)  # of critic and baselines


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything but data, method and seed that decides a run's numbers."""

    quick: bool = False
    """A trial of a few steps and 5 episodes, marked as such in its result; within a minute."""
    whole_trajectory: bool = False
    """iw-sft and iw-sft-q (--quality return) exactly as in the paper's released code; slow, for comparison."""
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    critic: CriticConfig = dataclasses.field(default_factory=CriticConfig)
    importance: ImportanceConfig = dataclasses.field(default_factory=ImportanceConfig)
    curation: CurationConfig = dataclasses.field(default_factory=CurationConfig)
    iql: iql.IQLConfig = dataclasses.field(default_factory=iql.IQLConfig)
    td3_bc: td3_bc.TD3BCConfig = dataclasses.field(default_factory=td3_bc.TD3BCConfig)
    awac: awac.AWACConfig = dataclasses.field(default_factory=awac.AWACConfig)
    cql: cql.CQLConfig = dataclasses.field(default_factory=cql.CQLConfig)
    rebrac: rebrac.ReBRACConfig = dataclasses.field(default_factory=rebrac.ReBRACConfig)


BASELINE_SETTINGS = {name: name.removesuffix("-tuned").replace("-", "_") for name in BASELINES}


def baseline_config(settings: Settings, method: str) -> Any:
    """The configuration of a baseline."""
    return getattr(settings, BASELINE_SETTINGS[method])


def by_quality(method: str) -> bool:
    """Whether a method curates by quality, be that by q or by return."""
    return method in METHODS and METHODS[method].curation == "quality"


def validate(settings: Settings) -> Settings:
    """The settings alone (of a command, which has others besides), with ``quick`` applied.

    Raises:
        UserError: a value that cannot be meant; the sentence names it and what would do.
    """
    settings = Settings(**{f.name: getattr(settings, f.name) for f in dataclasses.fields(Settings)})
    p, i = settings.policy, settings.importance
    positive: dict[str, float] = {
        "policy.bc-steps": p.bc_steps,
        "policy.fine-tune-steps": p.fine_tune_steps,
        "policy.batch-size": p.batch_size,
        "policy.bc-learning-rate": p.bc_learning_rate,
        "policy.fine-tune-learning-rate": p.fine_tune_learning_rate,
        "importance.refresh-every": i.refresh_every,
        "importance.high": i.high,
    }
    shares: dict[str, float] = {
        "policy.average-decay": p.average_decay,
        "importance.lag": i.lag,
    }
    widths = [*p.hidden]
    for name in dict.fromkeys(("critic", *BASELINE_SETTINGS.values())):
        config = getattr(settings, name)
        widths += config.hidden
        for field in dataclasses.fields(config):
            option, value = f"{name}.{field.name}".replace("_", "-"), getattr(config, field.name)
            if field.name in ("expectile", "discount", "target_rate", "average_decay"):
                shares[option] = value
            elif field.name.endswith("learning_rate") or field.name in POSITIVE:
                positive[option] = value
            elif field.name != "hidden":
                require(value >= 0, f"--{option} must not be negative, as {value} is.")
    for name, value in positive.items():
        require(value > 0, f"--{name} must be positive, not {value}.")
    for name, value in shares.items():
        require(0 <= value <= 1, f"--{name} must lie between 0 and 1, not {value}.")
    require(0 <= i.low <= i.high, "--importance.low must lie between 0 and --importance.high.")
    percentiles = (
        settings.curation.filter_percentile,
        *settings.curation.episode_strata,
        *settings.curation.transition_strata,
    )
    require(all(0 <= x < 100 for x in percentiles), "--curation percentiles must lie in [0, 100).")
    require(
        bool(settings.curation.episode_strata and settings.curation.transition_strata),
        "--curation strata must not be empty.",
    )
    require(all(w > 0 for w in widths), "hidden widths must be positive.")
    if not settings.quick:
        return settings
    return dataclasses.replace(
        settings,
        policy=dataclasses.replace(p, bc_steps=min(p.bc_steps, 500), fine_tune_steps=min(p.fine_tune_steps, 200)),
        critic=dataclasses.replace(settings.critic, steps=min(settings.critic.steps, 1000)),
        **{
            name: dataclasses.replace(config, steps=min(config.steps, QUICK_BASELINE_STEPS))
            for name in BASELINE_SETTINGS.values()
            for config in [getattr(settings, name)]
        },
    )
