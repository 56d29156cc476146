"""``python -m iwsft_control.push``: data sets and policies on the Hugging Face Hub; :mod:`.hub` does it."""

from __future__ import annotations

from iwsft_control import hub
from iwsft_control.base import console
from iwsft_control.hub import Push, main


def cli() -> None:
    """The command line."""
    console.command(lambda: Push, main, "python -m iwsft_control.push", hub.__doc__)


if __name__ == "__main__":
    cli()
