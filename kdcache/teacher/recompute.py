"""Rows that the teacher computes again, to compare them with those of a cache; workers share them."""

import shutil
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from kdcache.cache.writer import name_part
from kdcache.data.task import Task
from kdcache.params import build
from kdcache.project import Project
from kdcache.spread import Engine, spread
from kdcache.store.parts import Arrays, Parts

if TYPE_CHECKING:
    from kdcache.teacher.extraction import Teacher

CHUNKS, LEAST = 16, 512  # of a split at most, and rows of each


class Chunk(NamedTuple):
    """Rows of a split: the unit that workers share."""

    split: str
    start: int
    stop: int

    def __str__(self) -> str:
        return name_part(self.split, self.start)


def recompute(
    project: Project, task: Task, dtype: str, tables: Mapping[str, pa.Table], train_rows: str
) -> dict[str, Arrays]:
    """Compute the teacher's logits of some rows, by the project's engine.

    Args:
        project: where the teacher lies.
        task: the task.
        dtype: of the computation.
        tables: split → the rows.
        train_rows: digest of all training rows.

    Returns:
        Split → float32 ``members`` of shape (rows, members, num_labels), the logits that a cache holds; one
        member without an ensemble. With folds also ``plain`` of shape (rows, num_labels), those of the
        teacher on all rows.

    Raises:
        ModelError, DataError: see ``open_teacher``.
        CacheError: what a worker stored is not seen here.
    """
    engine, held = Engine.of(project.raw), dict[str, Arrays]()
    chunks = [chunk for split, table in tables.items() for chunk in _cut(split, len(table))]
    if engine.here:
        spread(chunks, partial(open_recomputing, project, task, dtype, tables, train_rows, held.__setitem__))
    else:
        scratch = project.scratch(__name__, uuid.uuid4().hex)
        stored = Parts(scratch, f"{project.paths.cache}/{task.name}", project.paths.parts)
        try:
            opened = partial(open_recomputing, project, task, dtype, tables, train_rows, stored.store)
            spread(chunks, opened, engine, project.threads)
            held = {str(chunk): _read(stored, chunk) for chunk in chunks}
        finally:
            stored.remove()
            shutil.rmtree(scratch, ignore_errors=True)
    of_split = {split: [held[str(chunk)] for chunk in chunks if chunk.split == split] for split in tables}
    return {
        split: {name: np.concatenate([arrays[name] for arrays in some]) for name in some[0]}
        for split, some in of_split.items()
    }


def _cut(split: str, rows: int) -> list[Chunk]:
    """Cut rows into chunks, whatever the number of workers: each chunk loads each model once."""
    size = max(LEAST, -(-rows // CHUNKS))
    return [Chunk(split, start, min(start + size, rows)) for start in range(0, rows, size)]


def open_recomputing(
    project: Project, task: Task, dtype: str, tables: Mapping[str, pa.Table], train_rows: str,
    store: Callable[[str, Arrays], None],
) -> Callable[[Chunk], None]:  # fmt: skip
    """Open the teacher, and return what computes a chunk and stores it. Only who does that needs torch."""
    from kdcache.teacher.cache_teacher import CacheTeacherParams, open_teacher

    params = build(CacheTeacherParams, project.raw["cache_teacher"] | {"dtype": dtype}, "cache_teacher")
    teacher = open_teacher(project, task, params, tables, train_rows)
    return lambda chunk: store(str(chunk), _compute(teacher, chunk))


def _compute(teacher: "Teacher", chunk: Chunk) -> Arrays:
    rows = np.arange(chunk.start, chunk.stop)
    found = {"members": teacher.recompute(chunk.split, rows).swapaxes(0, 1)}
    if teacher.num_folds:
        found["plain"] = teacher.logits(chunk.split, None, rows).mean(axis=0)
    return found


def _read(stored: Parts, chunk: Chunk) -> Arrays:
    found = stored.read(str(chunk))
    if found is None:
        raise stored.unseen(chunk)
    return found
