"""The stages of a run: BC, the critic and the methods, each for a group of seeds.

A stage is a pure function of the data, its settings, its seeds and what the stages that it depends on have made. Stages
that methods share (BC, the critic) are therefore done once: :mod:`.perform` does them, :mod:`.store` keeps what they
made.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from iwsft_control.benchmark.settings import Settings
from iwsft_control.methods import registry


@dataclasses.dataclass(frozen=True)
class Stage:
    """One piece of work: a method (or the critic) for seeds that are trained in one program."""

    method: str
    quality: str | None
    """q or return for a method that curates by quality, else None."""
    seeds: tuple[int, ...]
    settings: Settings

    @property
    def name(self) -> str:
        return self.method if self.quality is None else f"{self.method} by {self.quality}"

    @property
    def config(self) -> Any:
        """The method's configuration."""
        return self.settings.of(registry.card(self.method))


def method_stage(method: str, quality: str, seeds: tuple[int, ...], settings: Settings, task: str) -> Stage:
    """The stage that ends in the results of ``method`` on a task.

    Args:
        quality: q or return; counts where the method curates by quality.

    Raises:
        UserError: the method has no settings for the task.
    """
    stage = Stage(method, quality if registry.card(method).by_quality else None, seeds, settings)
    for each in (*dependencies(stage).values(), stage):
        found = registry.get(each.method)
        settings = settings.with_config(found, found.for_task(settings.of(found), task))
    return dataclasses.replace(stage, settings=settings)


def dependencies(stage: Stage) -> dict[str, Stage]:
    """The stages whose artefacts a stage starts from: {"bc": ..., "critic": ...}, each only where it is needed."""
    found = {}
    for name in registry.card(stage.method).dependencies(stage.quality):
        quality = (stage.quality or "q") if registry.card(name).by_quality else None
        found[name] = dataclasses.replace(stage, method=name, quality=quality)
    return found


def configuration(stage: Stage) -> dict[str, Any]:
    """The settings that a stage's own work depends on (not those of the stages it depends on)."""
    return {"quick": stage.settings.quick} | registry.card(stage.method).record(stage.config)
