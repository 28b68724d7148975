"""source → data/<task>/: task.json, <split>.parquet; ``tune`` is cut from ``train`` before any training."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc

from kdcache.data.find import find_source, own_tasks
from kdcache.data.hub import read_hub
from kdcache.data.official import SAMPLE, read_official
from kdcache.data.own import read_own
from kdcache.data.source import Source
from kdcache.data.splits import build_table, hold_out, keep_rows, write_split
from kdcache.data.task import Example, Task, write_task
from kdcache.errors import DataError, ParamsError
from kdcache.params import Count, NonNegativeInt, Range
from kdcache.project import Project, place, require_task

SAMPLE_PATH = "kdcache/sample"  # tasks.official.SAMPLE in a project, where DVC can watch it


@dataclass(frozen=True)
class MaxRows:
    """How many rows of each split to keep; None keeps all.

    A task without rows of the split ``unlabelled`` gets as many as asked for out of those that ``train``
    leaves over, their labels taken away: few labels and much text, whatever the data set's size.
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
        source: ``sample`` (shipped with kdcache), ``superglue`` (a folder of yours in the
            official JSONL layout), ``hub`` (the hub's Parquet layout) or ``files`` (every task
            has a task file, and ``path`` is where the files that it names lie).
        path: that folder; a dependency of the DVC stage. For ``hub`` also the hub id itself,
            which the command line reads, but DVC cannot watch. Under the other sources, a task
            file names files beside itself.
        max_rows: keep at most this many rows of each split, chosen by id, the answers of a
            question together; null keeps all, a mapping goes by split: ``{train: 500, unlabelled: 1000}``.
        tune_fraction: share of train set aside for choices (learning rate, epoch); 0 … 0.5. A
            task file that names a tune split keeps that instead.
        seed: of both.
    """

    source: Literal["sample", "superglue", "hub", "files"]
    path: str
    max_rows: Count | MaxRows | None
    tune_fraction: Annotated[float, Range(0, 0.5)]
    seed: NonNegativeInt

    def max_rows_of(self, split: str) -> int | None:
        """How many rows of a split to keep; None keeps all."""
        return getattr(self.max_rows, split, None) if isinstance(self.max_rows, MaxRows) else self.max_rows


def prepare(project: Project, task_name: str) -> None:
    """Read, check and render a task's rows, cut ``tune``, and write the task and a file per split.

    Raises:
        ParamsError: unknown task, or a source that does not fit its path.
        DataError: see ``data.official``, ``data.hub`` and ``data.own``. Nothing half-written
            stays.
    """
    params = project.section("prepare", PrepareParams)
    require_task(project, task_name)
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
    """Read a task and all its rows: as its task file says if it has one, else from SuperGLUE's layouts.

    Raises:
        As ``prepare``.
    """
    own = own_tasks(Path(project.paths.tasks), project.task_files)
    if task_name in own:
        path = own[task_name]
        return read_own(path, Path(params.path) if params.source == "files" else path.parent)
    if params.source == "files":
        raise ParamsError(
            f"prepare.source: it must be sample, superglue or hub for a task without a task file, got "
            f"files for {task_name}. Write {project.paths.tasks}/{task_name}.toml, or change the source."
        )
    source = find_source(task_name)
    return source.task, _read(params, source)


def _read(params: PrepareParams, source: Source) -> dict[str, list[Example]]:
    if (params.source == "sample") != (params.path == SAMPLE_PATH):
        raise ParamsError(
            f"prepare.path: it must be {SAMPLE_PATH} with prepare.source sample and your own folder "
            f"with superglue or hub, got {params.path} with {params.source}. Set both."
        )
    if params.source == "sample":
        return read_official(SAMPLE, source)
    if params.source == "hub":
        return read_hub(params.path, source)
    folder = Path(params.path)
    if not folder.is_dir():
        raise DataError(
            f"prepare.path: it must be a folder in the official SuperGLUE layout, got {params.path} "
            "(no such folder). Set prepare.path to where the data lies."
        )
    return read_official(folder, source)


def _without_labels(train: list[Example], params: PrepareParams) -> list[Example]:
    """The rows that ``max_rows.train`` leaves over."""
    labelled = {e.example_id for e in keep_rows(train, params.max_rows_of("train"), params.seed)}
    rest = [replace(example, label=-1) for example in train if example.example_id not in labelled]
    if not rest:
        raise ParamsError(
            f"prepare.max_rows.unlabelled: prepare.max_rows.train must leave rows over for it, got none of "
            f"{len(train)}. Lower prepare.max_rows.train, or name a file of unlabelled rows."
        )
    return rest


def _cut_tune(train: pa.Table, params: PrepareParams) -> dict[str, pa.Table]:
    if params.tune_fraction == 0:
        return {}
    labels, groups = train["label"].to_pylist(), train["group"].to_pylist()
    tune = pa.array(hold_out(labels, groups, params.tune_fraction, params.seed))
    return {"train": train.filter(pc.invert(tune)), "tune": train.filter(tune)}
