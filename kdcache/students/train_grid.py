"""The students of a grid, trained by the project's engine."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kdcache.project import Project
from kdcache.spread import Engine, spread
from kdcache.store.parts import require_same_build
from kdcache.students.arms import Name
from kdcache.students.grid import Grid, made_folder
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
    missing = [name for name in names if not grid.is_trained(made, name)]
    grid.project.taken_up.extend(f"{arm}-{seed}" for arm, seed in names if (arm, seed) not in missing)
    steps = sum(grid.steps_of(grid.specs[arm]) for arm, _ in missing)
    title = f"{grid.task.name} students"
    with tqdm(total=steps, desc=title, unit="step", disable=not missing) as bar:
        _train(grid, list(grid.passes(missing)), made, bar.update)
    if unseen := [name for name in names if not grid.is_trained(made, name)]:
        raise grid.stored.unseen("{}-{}".format(*unseen[0]))
    results = {name: _result(made, name) for name in names}
    for name, result in results.items():
        if name not in missing and "diverged" in result:  # in an earlier run, of which this is the rest
            grid.say_diverged(name, **result["diverged"])
    return list(results.values())


def _train(
    grid: Grid, passes: Sequence[list[Name]], made: Path, after_steps: Callable[[int], object]
) -> None:
    made_of: list[Any] = [grid.project.raw, grid.task.name, list(grid.purpose)]
    engine = Engine.of(grid.project.raw)
    if engine.engine == "local":
        with helpers(min(grid.processes, len(passes)) - 1, [*made_of, passes, str(made)], after_steps):
            grid.train_passes(passes, made, after_steps, wait=True)
        return
    units = {", ".join(f"{arm}-{seed}" for arm, seed in some): some for some in passes}

    def after(unit: str) -> None:
        after_steps(sum(grid.steps_of(grid.specs[arm]) for arm, _ in units[unit]))
        for name in units[unit]:  # what a worker says elsewhere is not seen here
            if grid.is_trained(made, name) and (diverged := _result(made, name).get("diverged")):
                grid.say_diverged(name, **diverged)

    spread(list(units), partial(open_trainer, units, str(made), *made_of), engine, grid.threads, after)


def open_trainer(
    units: Mapping[str, Sequence[Name]], made: str, raw: dict[str, Any], task_name: str,
    purpose: Sequence[Any],
) -> Callable[[str], None]:  # fmt: skip
    """Open a worker of a cluster, which trains the passes that it is handed; see ``train_grid``.

    Raises:
        DataError: this node has other files or packages than the first process.
    """
    grid, folder = Grid(Project.of(raw).only([task_name]), task_name, purpose), Path(made)
    files = "the data, the cache, the backbone"
    require_same_build(grid.scratch.name, folder.parent.name, task_name, files)

    def train(unit: str) -> None:
        grid.train_fitting(units[unit], folder, lambda count: None)
        for name in units[unit]:
            grid.store(folder, name)

    return train


def _result(made: Path, name: Name) -> dict[str, Any]:
    return dict(json.loads((made_folder(made, name) / RESULT).read_text(encoding="utf-8")))
