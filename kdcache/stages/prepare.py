"""source → data/<task>/: task.json, <split>.parquet; ``tune`` is cut from ``train`` before any training."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc

from kdcache.errors import DataError, ParamsError
from kdcache.params import Count, NonNegativeInt, Range
from kdcache.stages.workspace import Project, place, require_task
from kdcache.tasks.find import find_source
from kdcache.tasks.hub import read_hub
from kdcache.tasks.official import SAMPLE, read_official
from kdcache.tasks.schema import Example, write_task
from kdcache.tasks.source import Source
from kdcache.tasks.splits import assign_folds, build_table, keep_rows, write_split

SAMPLE_PATH = "kdcache/sample"  # tasks.official.SAMPLE in a project, where DVC can watch it


@dataclass(frozen=True)
class PrepareParams:
    """Section ``prepare``.

    Args:
        source: ``sample`` (shipped with kdcache), ``superglue`` (a folder of yours in the
            official JSONL layout) or ``hub`` (the hub's Parquet layout).
        path: that folder; a dependency of the DVC stage. For ``hub`` also the hub id itself,
            which the command line reads, but DVC cannot watch.
        max_rows: keep at most this many rows of each split, chosen by id, the answers of a
            question together; null keeps all.
        tune_fraction: share of train set aside for choices (learning rate, epoch); 0 … 0.5.
        seed: of both.
    """

    source: Literal["sample", "superglue", "hub"]
    path: str
    max_rows: Count | None
    tune_fraction: Annotated[float, Range(0, 0.5)]
    seed: NonNegativeInt


def prepare(project: Project, task_name: str) -> None:
    """Read, check and render a task's rows, cut ``tune``, and write the task and a file per split.

    Raises:
        ParamsError: unknown task, or a source that does not fit its path.
        DataError: see ``tasks.official`` and ``tasks.hub``. Nothing half-written stays.
    """
    params = project.section("prepare", PrepareParams)
    require_task(project, task_name)
    source = find_source(task_name)
    examples = _read(params, source)
    kept = {name: keep_rows(rows, params.max_rows, params.seed) for name, rows in examples.items()}
    tables = {name: build_table(rows, source.task) for name, rows in kept.items()}
    tables |= _cut_tune(tables["train"], params)
    made = project.scratch("prepare", task_name)
    shutil.rmtree(made)
    made.mkdir()
    write_task(source.task, made)
    for split, table in tables.items():
        write_split(table, made / f"{split}.parquet")
    place(made, Path(project.paths.data) / task_name)
    print(f"{task_name}: " + ", ".join(f"{split} {len(t)} rows" for split, t in tables.items()))


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


def _cut_tune(train: pa.Table, params: PrepareParams) -> dict[str, pa.Table]:
    if params.tune_fraction == 0:
        return {}
    labels, groups = train["label"].to_pylist(), train["group"].to_pylist()
    folds = assign_folds(labels, groups, round(1 / params.tune_fraction), params.seed)
    tune = pa.array(folds == 0)
    return {"train": train.filter(pc.invert(tune)), "tune": train.filter(tune)}
