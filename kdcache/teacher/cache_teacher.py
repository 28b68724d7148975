"""Stage cache_teacher: the teacher's logits and features of every prepared row, written as a cache."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.manifest import read_identity_of
from kdcache.cache.schema import TOLERANCE
from kdcache.cache.teacher_pooling import check_teacher_pooling
from kdcache.cache.writer import CacheWriter
from kdcache.data.metrics import compute_metrics
from kdcache.data.splits import TEST, count_rows, existing_splits, metric_columns, open_tables, rows_at
from kdcache.data.task import Task, read_task
from kdcache.digests import file_digest
from kdcache.encoder.load import machine_kind, setup
from kdcache.errors import ModelError
from kdcache.on_disk import open_parquet
from kdcache.params import Count
from kdcache.progress import UnitBar, tell
from kdcache.project import Project, require, require_task
from kdcache.spread import Engine, spread
from kdcache.store.lease import Lease
from kdcache.store.location import Location
from kdcache.store.parts import Parts, require_same_build
from kdcache.teacher.extraction import KEYS, CachePart, Teacher
from kdcache.teacher.folder import COST, PROBE, read_folds, read_identity


@dataclass(frozen=True)
class CacheTeacherParams:
    """Section ``cache_teacher``.

    Args:
        batch_size: rows per forward pass; on a GPU more where they are short, see ``plans.plan_for``.
        dtype: of the model's weights and states. The manifest records how far bfloat16 moved the logits.
        top_k: how many logits of a row to keep, the largest, with the mass of the others; None keeps all, as
            does a task of no more labels.
    """

    batch_size: Count
    dtype: Literal["float32", "bfloat16"] = "float32"
    top_k: Count | None = None

    def kept_of(self, num_labels: int) -> int | None:
        """Return how many logits of a task's rows are kept; None keeps all."""
        return self.top_k if self.top_k and self.top_k < num_labels else None


def cache_teacher(project: Project, task_name: str, shard: tuple[int, int] | None = None) -> None:
    """Run the teacher on every prepared row and write the cache.

    With folds, the logits of a training row come from the teacher that was trained without its fold;
    the logits and features of any other row are means over the teachers of all folds. The logits of
    the teacher trained on all rows are stored too. An ensemble's logits and features are means over
    its members, and the logits of each member are stored too. An interrupted run goes on after the
    last stored part. The parts are the units that several workers share; see ``spread.Engine``.

    Args:
        project: the project.
        task_name: the task.
        shard: ``(i, n)`` computes every n-th part from the i-th, and leaves the cache to a run without it.

    Raises:
        ModelError: there is no teacher, its weights do not have the digests in its identity, or it pools in
            another way than the parameters say.
        DataError: there are no prepared data, or the training rows are not those of the teacher.
        CacheError: the cache cannot be written.
    """
    params = project.section("cache_teacher", CacheTeacherParams)
    require_task(project, task_name)
    identity = read_identity_of(_require_teacher(project, task_name)) or {}
    check_teacher_pooling(project, task_name, identity)
    _tell_of_another(project, task_name, identity)
    task, tables = open_tables(project.paths.data, task_name)
    teacher = open_teacher(project, task, params, tables)
    cost = json.loads((teacher.folder / COST).read_text(encoding="utf-8"))
    of_probe = teacher.folder / PROBE  # teachers had none before they started from it
    probe = json.loads(of_probe.read_text(encoding="utf-8")) if of_probe.is_file() else None

    location = Location.parse(project.paths.cache, task_name)
    scratch, shared = project.scratch(__name__, *_made_of(project, teacher)), project.paths.parts
    if shard:
        number, count = shard
        parts, stored = teacher.parts()[number::count], Parts(scratch, location, shared)
        share = f"{location.name}-shard-{number}-of-{count}"
        lease = Lease(shared, f"{scratch.name}-{share}", share) if shared else contextlib.nullcontext()
        with project.alone(Path(share)), lease:
            _compute(project, teacher, parts, stored)
        print(f"{task_name}: {len(parts)} parts of shard {number}/{count} are in {stored.place}")
        return
    metrics, all_rows_metrics = {}, {}
    top_k = params.kept_of(task.num_labels)
    with CacheWriter(location, scratch, top_k, shared) as writer:
        _compute(project, teacher, teacher.parts(), writer.parts)
        for split, file in tables.items():
            scored: list[tuple[np.ndarray, np.ndarray]] = []
            labels = file.read(["label"])["label"].to_numpy()
            if split == TEST or not (labels >= 0).any():
                writer.write(split, teacher.rows(writer, split))
                continue
            writer.write(split, _record(teacher.rows(writer, split), scored))
            logits, all_rows_logits = (np.concatenate(part) for part in zip(*scored, strict=True))
            names, columns = task.metrics_of(split), metric_columns(file.read([*task.columns]), task)
            metrics[split] = compute_metrics(names, labels, logits, columns)
            all_rows_metrics[split] = compute_metrics(names, labels, all_rows_logits, columns)
        forward = sum(teacher.passes(split) * count_rows(file) for split, file in tables.items())
        manifest = writer.finish(
            teacher.identity, dtype=params.dtype, tolerance=TOLERANCE[params.dtype],
            drift={} if params.dtype == "float32" else teacher.drift("train"),
            metrics={k: v for k, v in metrics.items() if v},
            all_rows_teacher={k: v for k, v in all_rows_metrics.items() if v},
            probe=probe,
            cost={f"training_{key}": value for key, value in cost.items()}
            | {"forward_examples": forward, "truncated_examples": sum(teacher.truncated.values())},
        )  # fmt: skip
    rows = sum(entry["rows"] for entry in manifest.files.values())
    size = sum(entry["bytes"] for entry in manifest.files.values())
    print(f"{task_name}: cached {rows} rows, {size / rows:.0f} bytes/row")
    for split, count in teacher.truncated.items():
        if count:
            print(
                f"{task_name} {split}: {count / count_rows(tables[split]):.1%} of rows are cut at max_length"
            )


def _tell_of_another(project: Project, task_name: str, identity: Mapping[str, Any]) -> None:
    """Say where the teacher that is there is not the one that params.yaml describes."""
    section = project.raw.get("train_teacher") or {}
    differing = [
        f"train_teacher.{key} {identity[key]}, not {section[key]}"
        for key in ("model", "method", "max_length", "ensemble")
        if key in section and key in identity and section[key] != identity[key]
    ]
    if differing:
        print(
            f"{task_name}: its teacher was trained with {'; '.join(differing)}, as is set now. "
            f"To train another: kdcache teach --task {task_name}", file=sys.stderr,
        )  # fmt: skip


def open_teacher(
    project: Project, task: Task, params: CacheTeacherParams, tables: Mapping[str, pa.Table | pq.ParquetFile],
    train_rows: str | None = None,
) -> Teacher:  # fmt: skip
    """Open the teacher of a task for prepared rows.

    Args:
        project: where it lies.
        task: the task.
        params: of the computation.
        tables: split → rows, or an open file of them.
        train_rows: digest of all training rows, where ``tables`` has some of them.

    Raises:
        ModelError: there is no teacher, or its weights do not have the digests in its identity.
        DataError: the training rows are not those of the teacher.
    """
    folder = _require_teacher(project, task.name)
    identity, train = read_identity(folder), tables["train"]
    keys = rows_at(train, np.arange(count_rows(train)), KEYS)
    folds = read_folds(folder, keys, task, identity, train_rows)
    device = setup(project.threads, params.dtype)
    return Teacher(folder, task, identity, tables, folds, params.batch_size, params.dtype, device)


def _compute(project: Project, teacher: Teacher, parts: Sequence[CachePart], stored: Parts) -> None:
    """Compute and store the parts that are not stored yet, by the project's engine."""
    engine = Engine.of(project.raw)
    missing = [part for part in parts if stored.read(str(part)) is None]
    done = sum(part.rows for part in parts) - sum(part.rows for part in missing)
    project.taken_up.extend(str(part) for part in parts if part not in missing)
    if engine.here:
        stored.require_machine(machine_kind(teacher.device))
    models = len(teacher.members) * (1 + teacher.num_folds)
    title = teacher.task.name + (f", {models} models" if models > 1 else "")
    # A part tells of rows that it computes; those of other folds come at its end.
    with UnitBar({part: part.rows for part in missing}, done, desc=title, unit="row") as bar:
        task, identity, folds = teacher.task.name, teacher.identity, teacher.train_folds
        opened = partial(open_elsewhere, project.raw, task, identity, folds, stored)
        if engine.here:
            opened = partial(store_parts, teacher, stored)
        spread(missing, opened, engine, project.threads, bar.after, bar.during)
    if missing and not engine.here and stored.read(str(missing[0])) is None:
        raise stored.unseen(missing[0])


def open_elsewhere(
    raw: dict[str, Any], task_name: str, identity: dict[str, Any], train_folds: np.ndarray, stored: Parts
) -> Callable[[CachePart], None]:
    """Open a worker in a process of its own: the first one has checked all files, and hashed them once.

    Raises:
        DataError: the parts go through ``paths.parts``, so this node may have files of its own, and they or
            its packages are not those of the first process.
    """
    project = Project.of(raw).only([task_name])
    params = project.section("cache_teacher", CacheTeacherParams)
    data = Path(project.paths.data) / task_name
    task = read_task(data, task_name)
    tables = {split: open_parquet(data / f"{split}.parquet") for split in existing_splits(data, task)}
    if project.paths.parts:
        teacher = open_teacher(project, task, params, tables)
        own = project.scratch_name(__name__, *_made_of(project, teacher))
        require_same_build(own, stored.place.name, task_name, "the data, the teacher")
        stored.require_machine(machine_kind(teacher.device))
        return store_parts(teacher, stored)
    folder = _require_teacher(project, task_name)
    device = setup(project.threads, params.dtype)
    stored.require_machine(machine_kind(device))
    teacher = Teacher(folder, task, identity, tables, train_folds, params.batch_size, params.dtype, device)
    return store_parts(teacher, stored)


def _made_of(project: Project, teacher: Teacher) -> list[Any]:
    """All that decides the parts, beside the code, and the place, which one process at a time writes."""
    data = Path(project.paths.data) / teacher.task.name
    digests = [file_digest(data / f"{split}.parquet") for split in teacher.tables]
    return [
        teacher.identity, teacher.batch_size, teacher.dtype, project.threads, digests, project.paths.cache,
    ]  # fmt: skip


def store_parts(teacher: Teacher, stored: Parts) -> Callable[[CachePart], None]:
    """Return what computes a part and stores it."""
    return lambda part: stored.store(str(part), teacher.compute(part, tell))


def _record(chunks: Iterator[CacheRows], scored: list[tuple[np.ndarray, np.ndarray]]) -> Iterator[CacheRows]:
    """Pass rows on, and record their cached logits and those of the teacher trained on all rows."""
    for chunk in chunks:
        scored.append((chunk.logits, chunk.all_rows_teacher().logits))
        yield chunk


def _require_teacher(project: Project, task_name: str) -> Path:
    folder = Path(project.paths.teacher) / task_name
    return require(folder, "the teacher", f"kdcache teach --task {task_name}", ModelError)
