"""``python -m iwsft_control.d4rl``: bring D4RL's own locomotion data into the local Minari root.

``download TASK`` fetches the official file (resumable, size and sha256 verified) and imports it; ``import FILE``
imports one that was fetched by other means. The result is ``D4RL/hopper/medium-replay-v2`` and the like.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from iwsft_control.base import console, files
from iwsft_control.base.errors import require
from iwsft_control.datasets import facts
from iwsft_control.envs import tasks


@dataclasses.dataclass(frozen=True)
class Download:
    """Fetch D4RL's official file of a task and import it."""

    task: Annotated[str, tyro.conf.Positional]
    """For instance hopper-medium-replay."""
    folder: Path | None = None
    """Where the file is kept. Default: ~/.cache/iwsft_control/d4rl."""


@dataclasses.dataclass(frozen=True)
class Import:
    """Import an official D4RL file that was fetched by other means."""

    file: Annotated[Path, tyro.conf.Positional]
    """For instance hopper_medium_replay-v2.hdf5."""
    task: str | None = None
    """Which task it is, where the file's name does not say."""


Command = (
    Annotated[Download, tyro.conf.subcommand("download", prefix_name=False)]
    | Annotated[Import, tyro.conf.subcommand("import", prefix_name=False)]
)


def main(config: Download | Import) -> None:
    """Download or import one data set."""
    if isinstance(config, Import):
        require(config.file.is_file(), f"{config.file} does not exist or is no file; check the path.")
    name = config.task if config.task is not None else Path(getattr(config, "file", "")).stem
    task = tasks.parse_task(name)
    from iwsft_control.datasets import d4rl_files, minari_files  # here: help and a mistake need none of HDF5 and Minari

    official, expected = d4rl_files.official_files()[d4rl_files.file_name(task)], None
    if task.level == "medium-replay":
        expected = facts.D4RL_MEDIUM_REPLAY.get(task.environment.name)
    target = minari_files.minari_path(task.d4rl_id)
    require(not target.exists(), f"{task.d4rl_id} is already in {target}; delete that folder to import it again.")
    if isinstance(config, Import):
        path = config.file
    else:
        folder = config.folder or files.cache_home() / "d4rl"
        console.writable(folder)
        path = folder / d4rl_files.file_name(task)
        with console.progress_bar() as bar:
            line = bar.add_task(path.name, total=official.size)
            d4rl_files.download(d4rl_files.BASE_URL + path.name, path, official, lambda n: bar.advance(line, n))
    written = d4rl_files.import_file(path, task, official, expected)
    console.console.print(f"imported: {task.d4rl_id} in {written}; runs of {task.name} use it from now on.")


def cli() -> None:
    """The command line."""
    console.command(lambda: Command, main, "python -m iwsft_control.d4rl", __doc__)


if __name__ == "__main__":
    cli()
