"""Scores as published, for the column beside ours.

D4RL normalised scores on medium-replay-v2: BC to IQL are the columns of Kostrikov et al. 2022 (IQL) as Qin &
Springenberg 2025 reprint them, SFT, SFT(Q) and iw-SFT(Q) are theirs (no spread given), ReBRAC is Tarasov et al. 2023.
All of them on D4RL's own data, with mujoco-py. The scores stand with their methods; here is their order.
"""

from __future__ import annotations

from iwsft_control.configs.card import Published
from iwsft_control.envs.tasks import MEDIUM_REPLAY
from iwsft_control.methods import registry

PUBLISHED_TASKS = MEDIUM_REPLAY
ORDER = ("BC", "BC 10%", "SFT", "SFT(Q)", "iw-SFT(Q)", "DT", "AWAC", "OneStep", "TD3+BC", "CQL", "IQL", "ReBRAC")


def published() -> dict[str, tuple[float, float, float]]:
    """Every published column: its label and scores on :data:`PUBLISHED_TASKS`."""
    own = [m.published for m in registry.cards().values() if m.published is not None]
    found = {column.label: column.scores for column in own}
    return {label: found[label] for label in sorted(found, key=lambda x: ORDER.index(x) if x in ORDER else len(ORDER))}


def published_as(method: str, quality: str | None) -> Published | None:
    """The published column that means what a row here means (the paper's quality is the return)."""
    column = registry.cards()[method].published if method in registry.cards() else None
    return column if column is not None and column.quality == quality else None
