"""What a command costs before it does anything: processor seconds of fresh processes.

    python experiments/bench/startup.py

User and system time together, the least of several rounds, with the package's bytecode written before.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import Annotated

import shared
from rich.table import Table

from iwsft_control.base import bounds, console
from iwsft_control.base.bounds import POSITIVE

RUN = ("-m", "iwsft_control.run", "--env")
SWEEP, TABLE, FINETUNE, D4RL, PUSH, PULL, VIDEO = (
    ("-m", f"iwsft_control.{name}") for name in ("sweep", "table", "finetune", "d4rl", "push", "pull", "video")
)
COMMANDS: dict[str, tuple[str, ...]] = {
    "python -c pass": ("-c", "pass"),
    "import iwsft_control": ("-c", "import iwsft_control"),
    "iwsft --help": ("-m", "iwsft_control", "--help"),
    "iwsft --version": ("-m", "iwsft_control", "--version"),
    "iwsft rum": ("-m", "iwsft_control", "rum"),
    "iwsft run --help": ("-m", "iwsft_control", "run", "--help"),
    "python -m iwsft_control.run --help": ("-m", "iwsft_control.run", "--help"),
    "iwsft run --env hoper-medium-replay": (*RUN, "hoper-medium-replay"),
    "iwsft run ... --method iqll": (*RUN, "hopper-medium-replay", "--method", "iqll"),
    "iwsft run ... --iql.beta much": (*RUN, "hopper-medium-replay", "--method", "iql", "--iql.beta", "much"),
    "iwsft sweep --help": (*SWEEP, "--help"),
    "iwsft sweep --tasks hoper-medium-replay": (*SWEEP, "--tasks", "hoper-medium-replay"),
    "iwsft sweep --methods iqll": (*SWEEP, "--methods", "iqll"),
    "iwsft sweep --sedes 3": (*SWEEP, "--sedes", "3"),
    "iwsft table --help": (*TABLE, "--help"),
    "iwsft table --baseline iqll": (*TABLE, "--baseline", "iqll"),
    "iwsft table nowhere": (*TABLE, "nowhere"),
    "iwsft table --basline bc": (*TABLE, "--basline", "bc"),
    "iwsft finetune --help": (*FINETUNE, "--help"),
    "iwsft finetune --env hoper-medium-replay": (*FINETUNE, "--env", "hoper-medium-replay"),
    "iwsft finetune ... --method ufft": (*FINETUNE, "--env", "hopper-medium-replay", "--method", "ufft"),
    "iwsft finetune ... --ppo.clip -1": (*FINETUNE, "--env", "hopper-medium-replay", "--ppo.clip", "-1"),
    "iwsft finetune --sedes 3": (*FINETUNE, "--sedes", "3"),
    "iwsft d4rl --help": (*D4RL, "--help"),
    "iwsft d4rl download hoper-medium-replay": (*D4RL, "download", "hoper-medium-replay"),
    "iwsft push nowhere.safetensors hf://ORG/NAME": (*PUSH, "nowhere.safetensors", "hf://ORG/NAME"),
    "iwsft pull hf://ORG/mine.safetensors": (*PULL, "hf://ORG/mine.safetensors"),
    "iwsft video hoper-medium-replay": (*VIDEO, "hoper-medium-replay"),
}


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What to measure."""

    rounds: Annotated[int, POSITIVE] = 5


def processor_seconds(arguments: tuple[str, ...]) -> float:
    """User and system time of a process that runs Python with these arguments."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], capture_output=True)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def main(config: BenchConfig) -> None:
    """Measure each in turn, print the least."""
    bounds.check(config, "")
    shared.head()
    table = Table("command", "processor seconds")
    for name, arguments in COMMANDS.items():
        processor_seconds(arguments)  # writes bytecode
        table.add_row(name, f"{min(processor_seconds(arguments) for _ in range(config.rounds)):.2f}")
    console.console.print(table)


if __name__ == "__main__":
    console.command(lambda: BenchConfig, main, "python experiments/bench/startup.py", __doc__)
