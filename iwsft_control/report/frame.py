"""Result files as a pandas table, for analyses that the tables here do not make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from iwsft_control.base.errors import UserError
from iwsft_control.benchmark.results import RunResult
from iwsft_control.report.runs import find

if TYPE_CHECKING:
    import pandas


def load_results(*folders: str | Path, quick: bool = False) -> pandas.DataFrame:
    """One row for every result file: what was run on what, the score, and every episode's return.

    Args:
        folders: of result files, at any depth, or single files; by default results/sweep.
        quick: read trials (--quick) instead of runs.

    Returns:
        Columns task, dataset, method, quality, seed, score and standard_error (normalised, over the run's episodes),
        episode_returns (a list), seconds (all stages together), environment, mujoco, device, commit and path,
        in the order of task, method, quality and seed.

    Raises:
        UserError: pandas is missing, a folder does not exist or holds no result, a file is none,
            one is a trial (--quick) or, with ``quick``, none.
    """
    try:
        import pandas
    except ImportError as error:
        raise UserError("pandas is not installed; pip install pandas.") from error
    places = [Path(folder) for folder in folders or ("results/sweep",)]
    rows = [_row(path, run) for path, run in find(places, quick).items()]
    return pandas.DataFrame(rows).sort_values(["task", "method", "quality", "seed"], ignore_index=True)


def _row(path: Path, run: RunResult) -> dict[str, object]:
    return {
        "task": run.task,
        "dataset": run.dataset["id"],
        "method": run.method,
        "quality": run.quality,
        "seed": run.seed,
        "score": run.normalised_score,
        "standard_error": run.standard_error,
        "episode_returns": run.episode_returns,
        "seconds": sum(run.seconds.values()),
        "environment": run.physics["environment"],
        "mujoco": run.physics["mujoco"],
        "device": run.device,
        "commit": run.git_commit,
        "path": str(path),
    }
