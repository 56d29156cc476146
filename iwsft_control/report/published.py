"""Scores as published, for the column beside ours."""

from __future__ import annotations

# D4RL normalised scores on medium-replay-v2, as published: BC to IQL are the columns of Kostrikov et al. 2022 (IQL) as
# Qin & Springenberg 2025 reprint them, SFT, SFT(Q) and iw-SFT(Q) are theirs (no spread given), ReBRAC is Tarasov et
# al. 2023. All of them on D4RL's own data, with mujoco-py.
PUBLISHED_TASKS = ("hopper-medium-replay", "halfcheetah-medium-replay", "walker2d-medium-replay")


PUBLISHED = {
    "BC": (18.1, 36.6, 26.0),
    "BC 10%": (75.9, 40.6, 62.5),
    "SFT": (79.0, 35.1, 58.8),
    "SFT(Q)": (84.9, 39.3, 66.2),
    "iw-SFT(Q)": (85.0, 40.9, 75.8),
    "DT": (82.7, 36.6, 66.6),
    "AWAC": (37.2, 40.5, 27.0),
    "OneStep": (97.5, 38.1, 49.5),
    "TD3+BC": (60.9, 44.6, 81.8),
    "CQL": (95.0, 45.5, 77.2),
    "IQL": (94.7, 44.2, 73.9),
    "ReBRAC": (98.1, 51.0, 77.3),
}


# The rows here that mean what a published column means (the paper's quality is the return).
PUBLISHED_AS = {
    ("bc", None): "BC",
    ("filtered-bc", None): "BC 10%",
    ("sft", None): "SFT",
    ("sft-q", "return"): "SFT(Q)",
    ("iw-sft-q", "return"): "iw-SFT(Q)",
    ("iql", None): "IQL",
    ("td3-bc", None): "TD3+BC",
    ("awac", None): "AWAC",
    ("cql", None): "CQL",
    ("rebrac-tuned", None): "ReBRAC",  # its published scores are tuned per task
}
