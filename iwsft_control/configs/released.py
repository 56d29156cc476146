"""Hyper-parameters of the paper's released control code (``--preset released``; ``methods/released.py``)."""

from __future__ import annotations

from iwsft_control.configs.curation import CurationConfig
from iwsft_control.configs.importance import ImportanceConfig

IMPORTANCE = ImportanceConfig(
    effective_sample_size=None, temperature=10.0, relative=False, low=0.0, high=1000.0, lag=0.9, refresh_every=1
)
CURATION = CurationConfig(strata=(90, 95, 98), strata_of="units")
BC_STEPS, FINE_TUNE_STEPS = 10_000, 2_000
BC_LEARNING_RATE, LEARNING_RATE = 1e-3, 4e-5
