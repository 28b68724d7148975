"""cache + data + backbone → models/students/<task>/<arm>-<seed>/, metrics/, predictions/, curves/."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kdcache.errors import TrainingDiverged
from kdcache.project import Project, place, write_json
from kdcache.students.grid import PREDICTIONS, Grid
from kdcache.students.results import mean_curves


def distill(project: Project, task_name: str) -> None:
    """Train every arm × seed of a task and write students, metrics, predictions and curves in place.

    Interrupted, the next run goes on where it stopped, and ends with the same bytes. A student
    whose loss is no longer finite is left out and named in the metrics.

    Raises:
        ParamsError, DataError, ModelError, CacheError: one line each.
        TrainingDiverged: no student's loss stayed finite.
    """
    grid = Grid(project, task_name)
    made = grid.scratch / "students"
    results = grid.train(list(grid.params.arms), list(grid.params.seeds), made)
    finished = _finished(results)
    write_json(grid.summarise(results), grid.scratch / "metrics.json")
    mean_curves(finished).to_csv(grid.scratch / "curves.csv", index=False, lineterminator="\n")
    _gather_predictions(grid, finished, made, grid.scratch / "predictions.parquet")
    paths = project.paths
    place(made, Path(paths.students) / task_name)
    place(grid.scratch / "metrics.json", Path(paths.metrics) / f"{task_name}.json")
    place(grid.scratch / "curves.csv", Path(paths.curves) / f"{task_name}.csv")
    place(grid.scratch / "predictions.parquet", Path(paths.predictions) / f"{task_name}.parquet")
    shutil.rmtree(grid.scratch)


def explore(project: Project, task_name: str, arms: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Train some arms × seeds into runs/<task>/, beside the pipeline's own outputs.

    Args:
        project: the project.
        task_name: the task.
        arms: names of arms; empty takes all of params.yaml.
        seeds: empty takes all of params.yaml.

    Returns:
        The same summary as metrics/<task>.json, of these students.

    Raises:
        As ``distill``.
    """
    grid = Grid(project, task_name)
    for arm in arms:
        grid.params.arm(arm)
    made = grid.scratch / "students"
    results = grid.train(list(arms or grid.params.arms), list(seeds or grid.params.seeds), made)
    for result in _finished(results):
        name = f"{result['arm']}-{result['seed']}"
        place(made / name, Path(project.paths.runs) / task_name / name)
    shutil.rmtree(grid.scratch)
    return grid.summarise(results)


def _finished(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    finished = [result for result in results if "diverged" not in result]
    if not finished:
        names = ", ".join(f"{result['arm']}-{result['seed']}" for result in results)
        raise TrainingDiverged(
            f"distill: a student's loss must stay finite, got none among {names}. "
            "Lower the learning rate that is named above."
        )
    return finished


def _gather_predictions(grid: Grid, results: Sequence[Mapping[str, Any]], made: Path, path: Path) -> None:
    """One row per arm, seed and validation row: what paired statistics need."""
    tables = []
    for result in results:
        table = pq.read_table(made / f"{result['arm']}-{result['seed']}" / PREDICTIONS)
        tables.append(_marked(table, result["arm"], result["seed"]))
    rows = grid.splits["validation"]
    plain = rows.targets.logits_plain
    teachers = [("teacher_cached", 0, rows.targets.logits)]
    teachers += [] if plain is None else [("teacher", 0, plain)]
    teachers += [("teacher_member", m, logits) for m, logits in enumerate(rows.targets.members)]
    for name, seed, logits in teachers:
        table = rows.table.select(["example_id", "label", "group"])
        table = table.append_column("logits", pa.array(list(logits), pa.list_(pa.float32())))
        tables.append(_marked(table, name, seed))
    pq.write_table(pa.concat_tables(tables), path, write_page_checksum=True)


def _marked(table: pa.Table, arm: str, seed: int) -> pa.Table:
    table = table.append_column("arm", pa.array([arm] * len(table), pa.string()))
    return table.append_column("seed", pa.array([seed] * len(table), pa.int64()))
