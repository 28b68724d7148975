"""Choosing a student's parameter by k-fold cross-validation on train; nothing is written.

This is for tasks whose tune split is too small to tell two values apart. ``validation`` is not used, and
``tune`` only where ``distill.select`` keeps each student's best step on it.
"""

import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from kdcache.data.splits import assign_folds
from kdcache.errors import TrainingDiverged
from kdcache.project import Project
from kdcache.students.arms import DistillParams, resolve_arm
from kdcache.students.grid import Grid
from kdcache.students.train_grid import train_grid


def select(
    projects: Mapping[str, Project], task_name: str, arm: str, num_folds: int
) -> dict[str, list[float]]:
    """Train one student per value and fold, on the other folds, and score it on its fold.

    The cached targets of a row may come from a teacher that saw other rows of its fold, so
    the scores serve to choose among values, not to report.

    Args:
        projects: value → the project with that value.
        task_name: the task.
        arm: the arm.
        num_folds: ≥ 2.

    Returns:
        value → first metric of each fold. All values share folds and seed, so that scores of
        one fold are paired. A value with which a student diverges is left out.

    Raises:
        As ``distill``.
        TrainingDiverged: no value is left.
    """
    scores: dict[str, list[float]] = {}
    for value, project in projects.items():
        with project.alone(Path(project.paths.runs) / "select" / f"{task_name}-{arm}"):
            try:
                scores[value] = _score(project, task_name, arm, num_folds, value)
            except TrainingDiverged as error:
                print(f"{error} It is left out.", file=sys.stderr)
    if not scores:
        raise TrainingDiverged(
            f"{task_name} {arm}: a student diverged with each of {', '.join(projects)}. Try others."
        )
    return scores


def _score(project: Project, task_name: str, arm: str, num_folds: int, value: str) -> list[float]:
    """Train a student per fold with one value, in this process: only it knows the folds."""
    project = replace(project, raw={**project.raw, "engine": "local"})
    resolve_arm(project.section("distill", DistillParams), arm)
    grid = Grid(project, task_name, ["select", arm, num_folds])
    grid.params = replace(grid.params, log_with=())  # a fold is no run of its own
    train, seed = grid.splits["train"], grid.params.seeds[0]
    folds = assign_folds(train.labels.tolist(), train.table["group"].to_pylist(), num_folds, seed)
    kept = {"unlabelled", *(["tune"] if grid.params.select == "tune" else [])}
    others = {split: part for split, part in grid.splits.items() if split in kept}
    made = grid.scratch / f"{num_folds}-folds"
    scores = []
    for fold in range(num_folds):
        print(f"{task_name} {arm}, {value}: fold {fold + 1} of {num_folds}", flush=True)
        held_out = folds == fold
        parts = {
            "train": train.take(np.flatnonzero(~held_out)),
            "validation": train.take(np.flatnonzero(held_out)),
        }
        grid.use(others | parts)
        (result,) = train_grid(grid, [arm], [seed], made / str(fold))
        if "diverged" in result:
            shutil.rmtree(grid.scratch)
            raise TrainingDiverged(f"{task_name} {arm}, {value}: a student diverged.")
        scores.append(result["validation"][grid.task.metrics[0]])
    shutil.rmtree(grid.scratch)
    return scores


def rank(scores: Mapping[str, Sequence[float]]) -> list[tuple[str, float, float | None]]:
    """Rank values: (value, mean, gap to the best in its standard errors), the best first.

    The gap is the mean of the folds' differences, over their standard deviation divided by
    √folds; None for the best. Below 2, the folds do not tell the two apart.

    >>> rank({"low": [0.5, 0.5], "high": [1.0, 0.75]})
    [('high', 0.875, None), ('low', 0.5, 3.0)]
    """
    best = max(scores, key=lambda value: statistics.fmean(scores[value]))
    ranked = []
    for value in sorted(scores, key=lambda value: -statistics.fmean(scores[value])):
        gaps = [b - v for b, v in zip(scores[best], scores[value], strict=True)]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5
        gap = statistics.fmean(gaps) / error if error else float("inf") if any(gaps) else 0.0
        ranked.append((value, statistics.fmean(scores[value]), None if value == best else gap))
    return ranked
