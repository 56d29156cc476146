"""Offline RL baselines, each one file: configuration, losses beside their equations, one update.

Every module offers the same four functions, which :func:`iwsft_control.training.train_baselines` puts into its loop:

    prepare(config, data)                     the data set as arrays (N, ...), the rows of which make a batch
    create(config, O, A, key)                 fresh state
    update(config, state, batch, key)         one gradient step: the new state and scalars for the log
    policy(config, data, parameters)          the policy's as parameters of :func:`iwsft_control.networks.greedy`

A state has a field ``policy``, the parameters that act; their exponential average (``average_decay``; with 0 the
last parameters) is evaluated.

Only true terminal states stop a bootstrap: a truncated episode goes on in the value of its last state, which the data
hold (D4RL's loader, which the papers used, drops that transition instead).
"""

from __future__ import annotations

from iwsft_control.methods import awac, cql, iql, rebrac, td3_bc

BASELINES = {"iql": iql, "td3-bc": td3_bc, "awac": awac, "cql": cql, "rebrac": rebrac, "rebrac-tuned": rebrac}
