"""The stage ``prepare``: a task's rows → ``data/<task>/``, task.json and a Parquet file per split.

``tune`` is cut from ``train`` here, before any training.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc

from kdcache.data.examples import read_examples
from kdcache.data.splits import build_table, hold_out, keep_rows, write_split
from kdcache.data.superglue import SUPERGLUE
from kdcache.data.superglue.hub import hub_layout
from kdcache.data.task import Example, Task, write_task
from kdcache.data.taskfile import own_tasks, read_task_file
from kdcache.errors import DataError, ParamsError, nearest
from kdcache.params import Count, Range, Seed
from kdcache.places import check_place
from kdcache.project import Project, place, require_task


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
        path: that folder, a dependency of the DVC stage. For ``hub`` it may be the hub id itself, which DVC
            cannot watch. With ``superglue`` and ``hub``, your own task files name files relative to
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
    check_place(Path(project.paths.data) / task_name, "data")
    task, examples = read_source(project, params, task_name)
    if "unlabelled" not in examples and isinstance(params.max_rows, MaxRows) and params.max_rows.unlabelled:
        examples["unlabelled"] = _without_labels(examples["train"], params)
    tables = {
        split: build_table(keep_rows(rows, params.max_rows_of(split), params.seed), task)
        for split, rows in examples.items()
    }
    if "tune" not in tables:
        tables |= _cut_tune(tables["train"], params)
    made = project.scratch(__name__, task_name)
    shutil.rmtree(made)
    made.mkdir()
    write_task(task, made)
    for split, table in tables.items():
        write_split(table, made / f"{split}.parquet")
    place(made, Path(project.paths.data) / task_name)
    print(f"{task_name}: " + ", ".join(f"{split} {len(t)} rows" for split, t in tables.items()))


def read_source(
    project: Project, params: PrepareParams, task_name: str
) -> tuple[Task, dict[str, list[Example]]]:
    """Read a task and all its rows, as its task file says.

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
    return read_examples(task_name, file, folder)


def _without_labels(train: list[Example], params: PrepareParams) -> list[Example]:
    """Take the rows that ``max_rows.train`` leaves over."""
    labelled = {e.example_id for e in keep_rows(train, params.max_rows_of("train"), params.seed)}
    rest = [replace(example, label=-1) for example in train if example.example_id not in labelled]
    if not rest:
        raise ParamsError(
            f"prepare.max_rows.unlabelled: prepare.max_rows.train leaves none of {len(train)} rows over "
            "for it. Lower prepare.max_rows.train, or name a file of unlabelled rows."
        )
    return rest


def _cut_tune(train: pa.Table, params: PrepareParams) -> dict[str, pa.Table]:
    if params.tune_fraction == 0:
        return {}
    labels, groups = train["label"].to_pylist(), train["group"].to_pylist()
    tune = pa.array(hold_out(labels, groups, params.tune_fraction, params.seed))
    return {"train": train.filter(pc.invert(tune)), "tune": train.filter(tune)}
