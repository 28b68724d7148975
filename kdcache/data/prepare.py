"""The stage ``prepare``: a task's rows → ``data/<task>/``, task.json and a Parquet file per split.

``tune`` is cut from ``train`` here, before any training.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa

from kdcache.data.example_rows import ExampleRows
from kdcache.data.examples import cut_off, read_examples
from kdcache.data.ids import name_some
from kdcache.data.splits import GROUP_ROWS, build_table, choose_rows, write_split
from kdcache.data.superglue import SUPERGLUE
from kdcache.data.superglue.hub import hub_layout
from kdcache.data.task import Task, write_task
from kdcache.data.taskfile import own_tasks, read_task_file
from kdcache.errors import DataError, ParamsError, nearest
from kdcache.params import Count, Range, Seed
from kdcache.places import check_place, place
from kdcache.project import Project, require_task


@dataclass(frozen=True)
class MaxRows:
    """How many rows of each split to keep; None keeps all.

    If a task has no split ``unlabelled``, it is made of rows that ``train`` leaves over, without their
    labels: few labels and much text, whatever the size of the data set.
    """

    train: Count | None = None
    tune: Count | None = None
    validation: Count | None = None
    test: Count | None = None
    unlabelled: Count | None = None


@dataclass(frozen=True)
class PrepareParams:
    """Section ``prepare``.

    Args:
        source: ``superglue`` (``path`` is a folder in the official layout of SuperGLUE), ``hub`` (a folder
            in the layout of SuperGLUE on the hub) or ``files`` (every task has a task file of your own, and
            ``path`` is the folder that its file names are relative to).
        path: that folder, a dependency of the DVC stage. For ``hub`` it may be the hub id itself, but not
            for ``dvc repro``. With ``superglue`` and ``hub``, your own task files name files relative to
            themselves.
        max_rows: keep at most this many rows of each split, chosen by id; the answers of a question stay
            together. Null keeps all; a mapping sets it per split: ``{train: 500, unlabelled: 1000}``.
        tune_fraction: share of train set aside for choices such as the learning rate and the epoch, 0 … 0.5.
            It does not apply to a task file that names a tune split.
        seed: of ``max_rows`` and ``tune_fraction``.
    """

    source: Literal["superglue", "hub", "files"]
    path: str
    max_rows: Count | MaxRows | None
    tune_fraction: Annotated[float, Range(0, 0.5)]
    seed: Seed

    def max_rows_of(self, split: str) -> int | None:
        """Return how many rows of a split to keep; None keeps all."""
        return getattr(self.max_rows, split, None) if isinstance(self.max_rows, MaxRows) else self.max_rows


def prepare(project: Project, task_name: str) -> None:
    """Read, check and render a task's rows, cut ``tune``, and write the task and a file per split.

    Raises:
        ParamsError: an unknown task, or a bad task file.
        DataError: see ``examples.read_examples``. What was in place stays as it was.
    """
    params = project.section("prepare", PrepareParams)
    require_task(project, task_name)
    target = Path(project.paths.data) / task_name
    check_place(target, "data")
    scratch = Path(project.paths.scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    task, examples = read_source(project, params, task_name, scratch)
    if "unlabelled" not in examples and isinstance(params.max_rows, MaxRows) and params.max_rows.unlabelled:
        examples["unlabelled"] = _left_over(examples["train"], params)
    examples = {split: rows.where(_chosen(rows, split, params)) for split, rows in examples.items()}
    if "tune" not in examples and params.tune_fraction:
        examples |= cut_off(examples["train"], "tune", params.tune_fraction, params.seed)
    with project.alone(target):
        made = project.scratch(__name__, task_name, project.paths.data, goes_on=False)
        shutil.rmtree(made)
        made.mkdir()
        write_task(task, made)
        for split, rows in examples.items():
            write_split(_tables(rows, task), made / f"{split}.parquet")
        place(made, target)
    print(f"{task_name}: " + ", ".join(f"{split} {len(rows)} rows" for split, rows in examples.items()))
    path = Path(project.paths.tasks) / f"{task_name}.toml"
    if path.is_file() and all(own.samefile(path) for own in project.task_files if own.stem == task_name):
        _tell_of_unwatched(project, params, path)


def read_source(
    project: Project, params: PrepareParams, task_name: str, scratch: Path | None = None
) -> tuple[Task, dict[str, ExampleRows]]:
    """Read a task and all its rows, as its task file says.

    Args:
        project: the project.
        params: where the rows are.
        task_name: the task.
        scratch: a folder for many rows, see ``on_disk``; None holds them.

    Raises:
        As ``prepare``.
    """
    own = own_tasks(Path(project.paths.tasks), project.task_files)
    path = (SUPERGLUE | own).get(task_name)
    if params.source == "files" and task_name not in own:
        raise ParamsError(
            f"prepare.source: it must be superglue or hub for a task without a task file, got "
            f"files for {task_name}. Write {project.paths.tasks}/{task_name}.toml, or change the source."
        )
    if path is None:
        known = [*SUPERGLUE, *own]
        raise ParamsError(f"task: it must be a known task, got {task_name!r}. {nearest(task_name, known)}")
    file, folder = read_task_file(path), Path(params.path)
    if task_name in own:
        folder = folder if params.source == "files" else path.parent
    elif params.source == "hub":
        file, folder = hub_layout(task_name, file, params.path)
    elif not folder.is_dir():
        raise DataError(
            f"prepare.path: it must be a folder in the official SuperGLUE layout, got {params.path} "
            "(no such folder). Set prepare.path to where the data lies."
        )
    return read_examples(task_name, file, folder, scratch)


def _tell_of_unwatched(project: Project, params: PrepareParams, path: Path) -> None:
    """Name files of a task file that DVC does not watch."""
    file, folder = read_task_file(path), Path(params.path) if params.source == "files" else path.parent
    watched = [project.paths.tasks, params.path]
    names = [] if file.hub else [*file.files.values(), *file.label_files.values()]
    outside = [
        name for name in names
        if not any(Path(os.path.abspath(folder / name)).is_relative_to(os.path.abspath(w)) for w in watched)
    ]  # fmt: skip
    if outside:
        print(
            f"{path}: dvc repro does not see changes of {name_some(outside)}, outside "
            f"{' and '.join(watched)}. If one changes, run: kdcache prepare --task {path.stem}",
            file=sys.stderr,
        )


def _chosen(rows: ExampleRows, split: str, params: PrepareParams) -> np.ndarray:
    parts = zip(rows.column("unit"), rows.column("example_id"), strict=True)
    units = (unit or own for several, ids in parts for unit, own in zip(several, ids, strict=True))
    return choose_rows(units, len(rows), params.max_rows_of(split), params.seed)


def _left_over(train: ExampleRows, params: PrepareParams) -> ExampleRows:
    """Take the rows that ``max_rows.train`` leaves over, without their labels."""
    left = np.invert(_chosen(train, "train", params))
    if not left.any():
        raise ParamsError(
            f"prepare.max_rows.unlabelled: prepare.max_rows.train leaves none of {len(train)} rows over "
            "for it. Lower prepare.max_rows.train, or name a file of unlabelled rows."
        )
    return train.where(left).without_labels()


def _tables(rows: ExampleRows, task: Task) -> Iterator[pa.Table]:
    """Yield the rows as they are written, a row group at a time."""
    rest = iter(rows)
    yield build_table(list(islice(rest, GROUP_ROWS)), task)  # max_rows may leave none
    while some := list(islice(rest, GROUP_ROWS)):
        yield build_table(some, task)
