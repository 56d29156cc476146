"""Result files to tables and figures: ``python experiments/table.py`` is ``python -m iwsft_control.table``."""

from iwsft_control.table import cli

if __name__ == "__main__":
    cli()
