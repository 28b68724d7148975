"""The stage ``distill``: cache + data + backbone → students, metrics, predictions and curves of a task."""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from kdcache.digests import file_digest
from kdcache.encoder.load import WEIGHTS
from kdcache.errors import TrainingDiverged
from kdcache.places import check_place, in_turn, link_tree, place
from kdcache.project import Paths, Project, write_json
from kdcache.students.arms import DistillParams, Name, resolve_arm
from kdcache.students.curves import mean_curves, still_rising, write_curves
from kdcache.students.grid import Grid
from kdcache.students.results import (
    PREDICTIONS,
    RESULT,
    Result,
    gather_predictions,
    read_result,
    sealed,
    summarise,
    trained_as,
)
from kdcache.students.train_grid import train_grid


def distill(project: Project, task_name: str) -> None:
    """Train every arm × seed of a task and write students, metrics, predictions and curves in place.

    An interrupted run goes on where it stopped, and ends with the same bytes. A student whose loss
    is no longer finite is left out and named in the metrics.

    Raises:
        ParamsError, DataError, ModelError, CacheError: one line each.
        TrainingDiverged: no student's loss stayed finite.
    """
    target = Path(project.paths.students) / task_name
    check_place(target, "students")
    with project.alone(target):
        grid = Grid(project, task_name, ["pipeline", project.paths.students])
        with grid.stored.leased():
            results = train_grid(grid, list(grid.specs), grid.params.seeds, grid.scratch / "students")
            _put_in_place(grid, results, target)
            grid.stored.remove()
        shutil.rmtree(grid.scratch, ignore_errors=True)


def _put_in_place(grid: Grid, results: Sequence[Result], target: Path) -> None:
    """Write what comes of all students beside them in the scratch folder, then move all of it."""
    paths, scratch, made = grid.project.paths, grid.scratch, grid.scratch / "students"
    finished = _finished(results)
    curves = mean_curves(finished)
    _warn_of_unfinished(grid, curves)
    _write_together(grid, results, made)
    grid.stored.require_lease()
    _place_together(scratch, paths, grid.task.name)  # first: without its students the command goes on
    place(made, target)


def explore(project: Project, task_name: str, arms: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Train some arms × seeds into runs/<task>/, beside the pipeline's own outputs.

    Metrics, predictions and curves go to ``Paths.explored``. They are of all students in runs/<task>/ that
    the same cache taught over the same backbone; an arm's seeds have the same settings.

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
    params = project.section("distill", DistillParams)
    for arm in arms:
        resolve_arm(params, arm)
    arms, seeds = list(dict.fromkeys(arms or params.arms)), list(dict.fromkeys(seeds or params.seeds))
    runs = Path(project.paths.runs) / task_name
    targets = [runs / f"{arm}-{seed}" for arm in arms for seed in seeds]
    for target in targets:
        check_place(target, "student")
    with project.alone(*targets):
        grid = Grid(project, task_name, ["explore", project.paths.runs, *arms, *seeds])
        made = grid.scratch / "students"
        with grid.stored.leased():
            results = train_grid(grid, arms, seeds, made)
            finished = _finished(results)
            _warn_of_unfinished(grid, mean_curves(finished))
            grid.stored.require_lease()
            # One process at a time: what it writes of all students must hold those that others put there.
            with in_turn(Path(project.paths.scratch), runs):
                for result in finished:
                    name = f"{result['arm']}-{result['seed']}"
                    os.utime(made / name / RESULT)  # an interrupted call made it before others ended
                    place(link_tree(made / name, grid.scratch / "to place" / name), runs / name)
                _write_together(grid, _with_earlier(grid, results, runs), runs)
                _place_together(grid.scratch, project.paths.explored, task_name)
            grid.stored.remove()
        shutil.rmtree(grid.scratch, ignore_errors=True)
    return summarise(results, grid.task, grid.splits, grid.manifest)


def _write_together(grid: Grid, results: Sequence[Result], students: Path) -> None:
    """Write metrics, curves and predictions of some students into scratch."""
    scratch, finished = grid.scratch, _finished(results)
    write_curves(mean_curves(finished), scratch / "curves.csv")
    predictions = gather_predictions(finished, grid.splits["validation"], students)
    pq.write_table(predictions, scratch / "predictions.parquet", write_page_checksum=True)
    summary = summarise(results, grid.task, grid.splits, grid.manifest)
    summary = sealed(summary, scratch / "curves.csv", scratch / "predictions.parquet")
    write_json(summary, scratch / "metrics.json")


def _place_together(scratch: Path, paths: Paths, task_name: str) -> None:
    place(scratch / "metrics.json", Path(paths.metrics) / f"{task_name}.json")
    place(scratch / "curves.csv", Path(paths.curves) / f"{task_name}.csv")
    place(scratch / "predictions.parquet", Path(paths.predictions) / f"{task_name}.parquet")


def _with_earlier(grid: Grid, new: Sequence[Result], runs: Path) -> list[Result]:
    """Put students of earlier calls beside the new ones; name those that are not comparable.

    An arm's students were trained as those of this call, or else as the newest that finished.
    """
    paths = sorted(runs.glob(f"[!.]*/{RESULT}"), key=lambda path: path.stat().st_mtime, reverse=True)
    in_runs = {
        path.parent.name: read_result(path.parent) if path.with_name(PREDICTIONS).is_file() else None
        for path in paths
    }
    taught_by = grid.manifest.digest, file_digest(grid.folder / WEIGHTS)

    def of_now(results: Iterable[Result | None]) -> list[Result]:
        return [one for one in results if one and (one.get("cache"), one.get("backbone")) == taught_by]

    finished, diverged = of_now(in_runs.values()), of_now(_diverged_before(grid))
    newest: dict[str, Any] = {}
    for result in [*(one for one in new if "diverged" not in one), *finished]:
        newest.setdefault(result["arm"], trained_as(result))
    kept: dict[Name, Result] = {}
    for result in [*new, *diverged, *finished]:
        if trained_as(result) == newest.get(result["arm"], trained_as(result)):
            kept.setdefault(_name(result), result)
    left = [
        name for name, result in in_runs.items()
        if result is None or "diverged" in kept.get(_name(result), {"diverged": {}})
    ]  # fmt: skip
    if left:
        print(
            f"distill: {grid.task.name}: left out of {grid.project.paths.explored.metrics}/, as they have "
            f"another cache, backbone or settings, or cannot be read: {', '.join(sorted(left))}",
            file=sys.stderr,
        )
    order = {arm: number for number, arm in enumerate(grid.params.arms)}
    return sorted(kept.values(), key=lambda one: (order.get(one["arm"], len(order)), *_name(one)))


def _diverged_before(grid: Grid) -> list[Result]:
    """Read which students diverged in earlier calls; they have no folder in runs/."""
    told = Path(grid.project.paths.explored.metrics) / f"{grid.task.name}.json"
    earlier = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else {}
    return list(earlier.get("diverged", []))


def _name(result: Result) -> Name:
    return result["arm"], result["seed"]


def _warn_of_unfinished(grid: Grid, curves: pd.DataFrame) -> None:
    """Name the arms that more steps may help, and what to raise."""
    if "tune" not in grid.splits:
        return
    rising = still_rising(curves, f"tune_{grid.task.metrics[0]}", len(grid.splits["tune"]))
    for arm, rise in rising.items():
        spec, own = grid.specs[arm], grid.params.arms[arm]
        section = f"distill.arms.{arm}" if own.steps or own.epochs else "distill"
        key, now = ("steps", spec.steps) if spec.epochs is None else ("epochs", spec.epochs)
        print(
            f"distill: {grid.task.name} {arm} is not done: it scores best on tune at the end of its "
            f"{grid.steps_of(spec)} steps, {100 * rise:.1f} points above all before. "
            f"Raise {section}.{key} (now {now}).",
            file=sys.stderr,
        )


def _finished(results: Sequence[Result]) -> list[Result]:
    finished = [result for result in results if "diverged" not in result]
    if not finished:
        names = ", ".join(f"{result['arm']}-{result['seed']}" for result in results)
        raise TrainingDiverged(
            f"distill: a student's loss must stay finite, got none among {names}. "
            "Lower the learning rate that is named above."
        )
    return finished
