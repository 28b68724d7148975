"""The students of a grid, trained by the project's engine."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kdcache.project import Project
from kdcache.spread import Engine, spread
from kdcache.students.arms import Name
from kdcache.students.grid import Grid, is_trained, made_folder
from kdcache.students.results import RESULT
from kdcache.students.workers import helpers


def train_grid(grid: Grid, arms: Sequence[str], seeds: Sequence[int], made: Path) -> list[dict[str, Any]]:
    """Train the students that are not there yet.

    Args:
        grid: of a task.
        arms: names of arms.
        seeds: one student each per arm.
        made: the folder, in the grid's scratch, that holds a folder per student.

    Returns:
        The results of all, arm by arm.
    """
    grid.check(arms, seeds)
    names = [(arm, seed) for arm in arms for seed in seeds]
    missing = [name for name in names if not is_trained(made, name)]
    passes = list(grid.passes(missing))
    work: list[Any] = [grid.project.raw, grid.task.name, list(grid.purpose), passes, str(made)]
    engine = Engine.of(grid.project.raw)
    steps = sum(grid.steps_of(grid.specs[arm]) for arm, _ in missing)
    with tqdm(total=steps, desc=f"{grid.task.name} students", unit="step", disable=not missing) as bar:
        if engine.engine == "ray":
            units = {", ".join(f"{arm}-{seed}" for arm, seed in some): some for some in passes}

            def after(unit: str) -> None:
                bar.update(sum(grid.steps_of(grid.specs[arm]) for arm, _ in units[unit]))

            spread(list(units), partial(open_trainer, units, *work), engine, grid.threads, after)
        else:
            with helpers(min(grid.processes, len(passes)) - 1, work, bar.update):
                grid.train_passes(passes, made, bar.update, wait=True)
    return [json.loads((made_folder(made, name) / RESULT).read_text(encoding="utf-8")) for name in names]


def open_trainer(
    units: Mapping[str, Sequence[Name]], raw: dict[str, Any], task_name: str, purpose: Sequence[Any],
    _passes: object, made: str,
) -> Callable[[str], None]:  # fmt: skip
    """Open a worker of a cluster, which trains the passes that it is handed; see ``train_grid``."""
    grid = Grid(Project.of(raw).only([task_name]), task_name, purpose)
    return lambda unit: grid.train_fitting(units[unit], Path(made), lambda count: None)
