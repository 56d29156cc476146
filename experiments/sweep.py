"""Tasks x methods x seeds: ``python experiments/sweep.py`` is ``python -m iwsft_control.sweep``."""

from iwsft_control.sweep import cli

if __name__ == "__main__":
    cli()
