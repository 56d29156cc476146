"""``iwsft``: all commands under one name."""

from __future__ import annotations

import importlib
import os
import sys

import iwsft_control
from iwsft_control.base.errors import near

COMMANDS = {
    "run": "train methods on a data set and score them",
    "sweep": "tasks x methods x seeds",
    "finetune": "go on from an offline policy in the simulator (UFT, Prefix-RFT, PPO)",
    "table": "result files to tables and figures",
    "video": "a video of a trained policy",
    "push": "a data set or a policy to the Hugging Face Hub",
    "pull": "a data set or a policy from it",
    "collect": "reconstruct D4RL's locomotion data",
    "accept": "which candidate for a reconstruction behaves like D4RL's data",
    "d4rl": "bring D4RL's own data into the local Minari root",
}


def main() -> None:
    """Hand over to the sub-command; it has a --help of its own."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        lines = [f"  {command:<8} {what}" for command, what in COMMANDS.items()]
        print(
            "usage: iwsft COMMAND [OPTIONS]",
            *lines,
            "iwsft COMMAND --help tells its options, iwsft --version the version.",
            sep="\n",
        )
        return
    if name == "--version":
        print(f"iwsft_control {iwsft_control.__version__}")
        return
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}: {near(name, list(COMMANDS))}", file=sys.stderr)
        sys.exit(2)
    # What a user names, of a method or an environment, may lie in this folder, as for python -m; after all packages.
    sys.path.append(os.getcwd())
    sys.argv = [f"iwsft {name}", *sys.argv[2:]]
    importlib.import_module(f"iwsft_control.{name}").cli()


if __name__ == "__main__":
    main()
