"""teacher + data → cache/<task>/: extraction meets the writer here, and nowhere else."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn
from tqdm import tqdm

from kdcache.adapters import load_teacher
from kdcache.batching import encode
from kdcache.cache.location import Location
from kdcache.cache.rows import CacheRows
from kdcache.cache.schema import ALL_ROWS_TEACHER, MEAN_OF_FOLDS
from kdcache.cache.writer import Arrays, CacheWriter
from kdcache.digests import file_digest
from kdcache.errors import DataError, ModelError
from kdcache.extract import Dtype, extract
from kdcache.metrics import compute_metrics
from kdcache.models import load_tokenizer, setup
from kdcache.params import Count
from kdcache.stages.teachers import part, read_identity
from kdcache.stages.workspace import COST, FOLDS, Project, require, require_task
from kdcache.tasks.schema import Task, read_task
from kdcache.tasks.splits import existing_splits, metric_columns, read_split, sequences

# How far a logit may move when it is computed again in another batch, as measured with a margin.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
DRIFT_ROWS = 256


@dataclass(frozen=True)
class CacheTeacherParams:
    """Section ``cache_teacher``.

    Args:
        batch_size: rows per forward pass.
        dtype: what the teacher computes in; the manifest says how far bfloat16 moved the logits.
    """

    batch_size: Count
    dtype: Dtype = "float32"


def cache_teacher(project: Project, task_name: str) -> None:
    """Run every prepared row through the teacher and write the cache.

    With folds, a training row goes through the one fold teacher that never saw it, and a row
    of another split through all of them, its logits and features being their means; beside these
    stands what the teacher on all rows says. An ensemble speaks as the mean of its members.
    Interrupted, the next run goes on after the last whole part.

    Raises:
        ModelError: no teacher in place, or one with other weights than its identity names.
        DataError: no prepared data, or other training rows than the teacher's.
        CacheError: the cache cannot be written.
    """
    params = project.section("cache_teacher", CacheTeacherParams)
    require_task(project, task_name)
    _teacher_folder(project, task_name)
    data = Path(project.paths.data) / task_name
    task = read_task(data, task_name)
    tables = {split: read_split(data, split, task) for split in existing_splits(data, task)}
    teacher = open_teacher(project, task, params, tables)
    cost = json.loads((teacher.folder / COST).read_text(encoding="utf-8"))

    location = Location.parse(project.paths.cache, task_name)
    digests = [file_digest(data / f"{split}.parquet") for split in tables]
    scratch = project.scratch(
        "cache", teacher.identity, params.batch_size, params.dtype, project.threads, digests
    )
    metrics, all_rows = {}, {}
    with CacheWriter(location, scratch) as writer:
        for split, table in tables.items():
            teacher.run(writer, split)
            scored: list[tuple[np.ndarray, np.ndarray]] = []
            writer.write(split, teacher.rows(writer, split, scored))
            ours, whole = (np.concatenate(part) for part in zip(*scored, strict=True))
            labels = table["label"].to_numpy()
            names, columns = task.metrics_of(split), metric_columns(table, task)
            metrics[split] = compute_metrics(names, labels, ours, columns)
            all_rows[split] = compute_metrics(names, labels, whole, columns)
        truncated = {split: int(encoded.truncated.sum()) for split, encoded in teacher.encoded.items()}
        forward = sum(teacher.passes(split) * len(tables[split]) for split in tables)
        manifest = writer.finish(
            teacher.identity, dtype=params.dtype, tolerance=TOLERANCE[params.dtype],
            drift={} if params.dtype == "float32" else teacher.drift("train"),
            metrics={k: v for k, v in metrics.items() if v},
            all_rows_teacher={k: v for k, v in all_rows.items() if v},
            cost={f"training_{key}": value for key, value in cost.items()}
            | {"forward_examples": forward, "truncated_examples": sum(truncated.values())},
        )  # fmt: skip
    rows = sum(entry["rows"] for entry in manifest.files.values())
    size = sum(entry["bytes"] for entry in manifest.files.values())
    print(f"{task_name}: cached {rows} rows, {size / rows:.0f} bytes/row")
    for split, count in truncated.items():
        if count:
            share = count / len(tables[split])
            print(f"{task_name} {split}: {share:.1%} of the rows lost tokens to max_length")


def open_teacher(
    project: Project, task: Task, params: CacheTeacherParams, tables: Mapping[str, pa.Table]
) -> "Teacher":
    """The teacher of a task, ready for the prepared rows ``tables`` (split → table).

    Raises:
        ModelError: no teacher in place, or one with other weights than its identity names.
        DataError: other training rows than the teacher's.
    """
    folder = _teacher_folder(project, task.name)
    return Teacher(folder, task, read_identity(folder), tables, params, setup(project.threads))


def _teacher_folder(project: Project, task_name: str) -> Path:
    folder = Path(project.paths.teacher) / task_name
    return require(folder, "the teacher", f"kdcache teach --task {task_name}", ModelError)


class Teacher:
    """The teachers of one task, one in memory at a time, over the prepared rows.

    Args:
        folder: as ``train_teacher`` wrote it.
        task: the task.
        identity: of the teacher.
        tables: split → prepared rows.
        params: how to compute.
        device: where.

    Raises:
        DataError: other training rows than the teacher's.
    """

    def __init__(
        self, folder: Path, task: Task, identity: dict[str, Any],
        tables: Mapping[str, pa.Table], params: CacheTeacherParams, device: torch.device,
    ) -> None:  # fmt: skip
        self.folder, self.task, self.identity = folder, task, identity
        self.tables, self.params, self.device = tables, params, device
        self.num_folds = len(identity["folds_sha256"])
        self.members = range(identity.get("ensemble", 1))
        self._train_folds = _row_folds(pq.read_table(folder / FOLDS), tables["train"], task.name)
        self._loaded: tuple[Path, nn.Module] | None = None
        tokenizer = load_tokenizer(folder)
        self.encoded = {
            split: encode(
                tokenizer, *sequences(table, task), identity["max_length"], task.truncate, task.num_choices
            )
            for split, table in tables.items()
        }

    def passes(self, split: str) -> int:
        """Forward passes per row of a split."""
        crossed = min(1, self.num_folds) if split == "train" else self.num_folds
        return (1 + crossed) * len(self.members)

    def folds(self, split: str) -> np.ndarray:
        """The cache's column ``fold`` of a split, int8 of shape (rows,)."""
        if self.num_folds and split == "train":
            return self._train_folds
        return np.full(
            len(self.tables[split]), MEAN_OF_FOLDS if self.num_folds else ALL_ROWS_TEACHER, np.int8
        )

    def run(self, writer: CacheWriter, split: str) -> None:
        """Let every teacher see its rows of a split, in parts that a killed build finds again."""
        for fold, member in itertools.product(range(ALL_ROWS_TEACHER, self.num_folds), self.members):
            title = f"{self.task.name} {split}" + ("" if fold < 0 else f", fold {fold}")
            title += f", member {member}" if len(self.members) > 1 else ""
            with tqdm(total=len(self.tables[split]), desc=title, unit="row") as bar:
                for rows, _ in self._parts(writer, split, fold, member, bar):
                    bar.update(rows.stop - bar.n)  # what this run found, or what other folds hold

    def rows(
        self, writer: CacheWriter, split: str, scored: list[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[CacheRows]:
        """The rows of a split, after ``run``.

        Args:
            writer: holds the parts.
            split: its name.
            scored: receives (cached logits, those of the teacher on all rows) per chunk.
        """
        table, folds = self.tables[split], self.folds(split)
        teachers = [self._means(writer, split, k) for k in range(ALL_ROWS_TEACHER, self.num_folds)]
        for (rows, whole), *crossed in zip(*teachers, strict=True):
            logits, features = whole["logits"], whole["features"]
            if crossed and split == "train":
                logits, features = np.empty_like(logits), np.empty_like(features)
                for k, (_, said) in enumerate(crossed):
                    if (mine := folds[rows] == k).any():
                        logits[mine], features[mine] = said["logits"], said["features"]
            elif crossed:
                logits, features = _mean([said for _, said in crossed]).values()
            scored.append((logits, whole["logits"]))
            chunk = table.slice(rows.start, rows.stop - rows.start)
            yield CacheRows(
                chunk["example_id"].to_pylist(), chunk["content_hash"].to_pylist(),
                chunk["label"].to_numpy(), folds[rows], logits, features,
                logits_plain=whole["logits"] if crossed else None,
            )  # fmt: skip

    def recompute(self, split: str, rows: np.ndarray) -> np.ndarray:
        """Logits of some rows, computed now as they were for the cache.

        Args:
            split: name of the split.
            rows: positions in the prepared split.

        Returns:
            float32 array of shape (len(rows), num_labels).
        """
        folds = self.folds(split)[rows]
        logits = np.empty((len(rows), self.task.num_labels), np.float32)
        for fold in np.unique(folds):
            mine = np.flatnonzero(folds == fold)
            teachers = range(self.num_folds) if fold == MEAN_OF_FOLDS else [int(fold)]
            logits[mine] = np.mean([self.logits(split, k, rows[mine]) for k in teachers], axis=0)
        return logits

    def logits(self, split: str, fold: int, rows: np.ndarray, dtype: Dtype | None = None) -> np.ndarray:
        """Logits of some rows by one fold's teacher, or the one on all rows, computed now."""
        said = [self._extract(split, fold, member, rows, dtype)["logits"] for member in self.members]
        return np.mean(said, axis=0)

    def drift(self, split: str) -> dict[str, float]:
        """How far ``params.dtype`` moves the logits of some rows from their float32 values."""
        rows = np.random.default_rng(0).permutation(len(self.tables[split]))[:DRIFT_ROWS]
        ours = self.logits(split, ALL_ROWS_TEACHER, rows)
        exact = self.logits(split, ALL_ROWS_TEACHER, rows, dtype="float32")
        moved = np.abs(ours - exact)
        return {
            "rows": len(rows),
            "max_abs": float(moved.max()),
            "mean_abs": float(moved.mean()),
            "argmax_flips": int((ours.argmax(1) != exact.argmax(1)).sum()),
        }

    def _means(self, writer: CacheWriter, split: str, fold: int) -> Iterator[tuple[slice, Arrays]]:
        """What a fold's teacher says, in parts: the mean of its members."""
        parts = [self._parts(writer, split, fold, member) for member in self.members]
        for found in zip(*parts, strict=True):
            yield found[0][0], _mean([said for _, said in found])

    def _parts(
        self, writer: CacheWriter, split: str, fold: int, member: int, bar: "tqdm[Any] | None" = None
    ) -> Iterator[tuple[slice, Arrays]]:
        def compute(rows: slice) -> Arrays:
            seen = np.arange(rows.start, rows.stop)
            if fold >= 0 and split == "train":
                seen = seen[self._train_folds[rows] == fold]
            return self._extract(split, fold, member, seen, bar=bar)

        return writer.resume(f"{split}{fold:+d}-{member}", len(self.tables[split]), compute)

    def _extract(
        self, split: str, fold: int, member: int, rows: np.ndarray,
        dtype: Dtype | None = None, bar: "tqdm[Any] | None" = None,
    ) -> Arrays:  # fmt: skip
        if not len(rows):  # a part without a row of this fold
            return {"logits": np.empty((0, self.task.num_labels), np.float32)}
        logits, features = extract(
            self._model(part(self.folder, fold, member)), self.encoded[split].take(rows),
            self.task.num_outputs, self.params.batch_size, self.device, dtype or self.params.dtype,
            bar.update if bar is not None else None,
        )  # fmt: skip
        return {"logits": logits, "features": features}

    def _model(self, folder: Path) -> nn.Module:
        if self._loaded is None or self._loaded[0] != folder:
            self._loaded = folder, load_teacher(folder, self.task.num_outputs)
        return self._loaded[1]


def _mean(said: Sequence[Arrays]) -> Arrays:
    return {name: np.mean([arrays[name] for arrays in said], axis=0) for name in said[0]}


def _row_folds(table: pa.Table, train: pa.Table, task_name: str) -> np.ndarray:
    """The fold of each training row, by id."""
    fold_of = dict(zip(table["example_id"].to_pylist(), table["fold"].to_pylist(), strict=True))
    ids = train["example_id"].to_pylist()
    if set(ids) != set(fold_of):
        raise DataError(
            f"data of {task_name}: the training rows must be those of the teacher ({len(fold_of)} rows), "
            f"got {len(ids)} others or fewer. Run: kdcache teach --task {task_name}"
        )
    return np.array([fold_of[i] for i in ids], dtype=np.int8)
