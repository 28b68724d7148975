"""metrics and curves of all tasks → reports/: results.md, results.svg, shares.svg."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from kdcache.errors import DataError
from kdcache.figures import draw_results, draw_shares
from kdcache.report import results_markdown
from kdcache.stages.workspace import Project, place, require


def report(project: Project) -> None:
    """Write the table and the figures.

    Raises:
        DataError: a task was not distilled yet.
    """
    tasks = [_read_metrics(project, task) for task in project.tasks]
    curves = {task: _read_curves(project, task) for task in project.tasks}
    made = project.scratch("report", project.tasks)
    shutil.rmtree(made)
    made.mkdir()
    (made / "results.md").write_text(results_markdown(tasks), encoding="utf-8")
    draw_results(tasks, made / "results.svg")
    draw_shares(curves, made / "shares.svg")
    place(made, Path(project.paths.reports))


def read_timings(project: Project) -> list[dict[str, Any]]:
    """Wall times of the stages as last run on this machine, in order of their names."""
    files = sorted(Path(project.paths.timings).glob("*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in files]


def _read_metrics(project: Project, task: str) -> dict[str, Any]:
    path = require(
        Path(project.paths.metrics) / f"{task}.json",
        "the metrics", f"dvc repro distill@{task}", DataError,
    )  # fmt: skip
    return json.loads(path.read_text(encoding="utf-8"))


def _read_curves(project: Project, task: str) -> pd.DataFrame:
    path = require(
        Path(project.paths.curves) / f"{task}.csv", "the curves", f"dvc repro distill@{task}", DataError
    )
    return pd.read_csv(path)
