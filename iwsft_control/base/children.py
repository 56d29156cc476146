"""Processes that work for another, and the cores that there are for them."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, killed ones included."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def usable_cores() -> int:
    """Cores that this process may use: under Slurm or ``taskset`` fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_thread() -> None:
    """Let XLA compute with one thread in this process and in those that it starts.

    Processes that share a machine do more so: the products are small, and XLA's threads wait for one another by
    spinning (``experiments/bench/pool.py``). And results do not depend on the number of cores. Nothing changes where
    PJRT_NPROC says how many threads there are, or where JAX has begun already.
    """
    bridge = sys.modules.get("jax._src.xla_bridge")
    if not getattr(bridge, "backends_are_initialized", lambda: False)():
        os.environ.setdefault("PJRT_NPROC", "1")


def xla_threads() -> int:
    """Threads of XLA in this process: what PJRT_NPROC or NPROC says, or one a core."""
    for name in ("PJRT_NPROC", "NPROC"):  # as XLA reads them
        if os.environ.get(name, "").strip().isdecimal():
            return int(os.environ[name])
    return usable_cores()


def rounding() -> str:
    """What of :func:`xla_threads` results depend on, in words."""
    return "one thread" if xla_threads() == 1 else "several threads"
