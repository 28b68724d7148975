"""teacher + data → cache/<task>/: extraction meets the writer here, and nowhere else."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from kdcache.batching import Encoded, encode
from kdcache.cache.schema import ALL_ROWS_TEACHER, MEAN_OF_FOLDS
from kdcache.cache.writer import CacheRows, write_cache
from kdcache.errors import DataError, ModelError
from kdcache.extract import extract
from kdcache.metrics import compute_metrics
from kdcache.models import load_classifier, load_tokenizer, setup
from kdcache.params import Count
from kdcache.stages.workspace import COST, FOLDS, IDENTITY, Project, place, require, require_task
from kdcache.tasks.schema import Task, read_task
from kdcache.tasks.splits import existing_splits, metric_columns, read_split, sequences


@dataclass(frozen=True)
class CacheTeacherParams:
    """Section ``cache_teacher``.

    Args:
        batch_size: rows per forward pass.
    """

    batch_size: Count


def cache_teacher(project: Project, task_name: str) -> None:
    """Run every prepared row through the teacher and write the cache.

    With folds, a training row goes through the one fold teacher that never saw it, and a row
    of another split through all of them, its logits and features being their means.

    Raises:
        ModelError: no teacher in place.
        DataError: no prepared data, or other training rows than the teacher's.
    """
    params = project.section("cache_teacher", CacheTeacherParams)
    require_task(project, task_name)
    data = Path(project.paths.data) / task_name
    teacher = require(
        Path(project.paths.teacher) / task_name,
        "the teacher", f"kdcache teach --task {task_name}", ModelError,
    )  # fmt: skip
    task = read_task(data, task_name)
    tables = {split: read_split(data, split, task) for split in existing_splits(data, task)}
    identity = json.loads((teacher / IDENTITY).read_text(encoding="utf-8"))
    folds = _row_folds(pq.read_table(teacher / FOLDS), tables, task_name)
    device = setup(project.threads)

    runner = _Runner(teacher, task, identity, tables, params.batch_size, device)
    splits, metrics, all_rows = {}, {}, {}
    for split, table in tables.items():
        labels = table["label"].to_numpy()
        whole = runner.run(ALL_ROWS_TEACHER, split)
        logits, features, fold = runner.cross_fit(split, folds) if runner.num_folds else (*whole, None)
        splits[split] = CacheRows(
            table["example_id"].to_pylist(), table["content_hash"].to_pylist(), labels,
            np.full(len(labels), ALL_ROWS_TEACHER, np.int8) if fold is None else fold,
            logits, features,
        )  # fmt: skip
        names, columns = task.metrics_of(split), metric_columns(table, task)
        metrics[split] = compute_metrics(names, labels, logits, columns)
        all_rows[split] = compute_metrics(names, labels, whole[0], columns)

    truncated = {split: int(encoded.truncated.sum()) for split, encoded in runner.encoded.items()}
    made = project.scratch("cache", identity, params.batch_size)
    shutil.rmtree(made)
    made.mkdir()
    cost = json.loads((teacher / COST).read_text(encoding="utf-8"))
    manifest = write_cache(
        made, splits,
        identity=identity, dtype="float32",
        metrics={k: v for k, v in metrics.items() if v},
        all_rows_teacher={k: v for k, v in all_rows.items() if v},
        cost={f"training_{key}": value for key, value in cost.items()}
        | {"forward_examples": runner.examples, "truncated_examples": sum(truncated.values())},
    )  # fmt: skip
    place(made, Path(project.paths.cache) / task_name)
    rows = sum(entry["rows"] for entry in manifest.files.values())
    size = sum(entry["bytes"] for entry in manifest.files.values())
    print(f"{task_name}: cached {rows} rows, {size / rows:.0f} bytes/row")
    for split, count in truncated.items():
        if count:
            share = count / len(runner.encoded[split])
            print(f"{task_name} {split}: {share:.1%} of the rows lost tokens to max_length")


class _Runner:
    """Teachers of one task, loaded one at a time, and a count of the rows they ran."""

    def __init__(
        self, teacher: Path, task: Task, identity: dict[str, object],
        tables: dict[str, pa.Table], batch_size: int, device: torch.device,
    ) -> None:  # fmt: skip
        self.teacher, self.task = teacher, task
        self.num_folds = len(identity["folds_sha256"])  # type: ignore[arg-type]
        self.batch_size, self.device = batch_size, device
        self.examples = 0
        tokenizer = load_tokenizer(teacher)
        self.encoded = {
            split: encode(
                tokenizer, *sequences(table, task),
                identity["max_length"],  # type: ignore[arg-type]
                task.truncate, task.num_choices,
            )
            for split, table in tables.items()
        }  # fmt: skip

    def run(self, fold: int, split: str, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Logits and features of one teacher on a split, or on some of its rows."""
        folder = self.teacher if fold < 0 else self.teacher / f"fold-{fold}"
        model = load_classifier(folder, self.task.num_outputs, seed=0)
        encoded: Encoded = self.encoded[split] if rows is None else self.encoded[split].take(rows)
        self.examples += len(encoded)
        title = f"{self.task.name} {split}" + ("" if fold < 0 else f", fold {fold}")
        return extract(model, encoded, self.task.num_outputs, self.batch_size, self.device, title)

    def cross_fit(self, split: str, folds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits, features and the column ``fold`` of a split under the fold teachers."""
        if split != "train":
            runs = [self.run(fold, split) for fold in range(self.num_folds)]
            logits, features = (np.mean(part, axis=0) for part in zip(*runs, strict=True))
            return logits, features, np.full(len(logits), MEAN_OF_FOLDS, np.int8)
        parts = [np.flatnonzero(folds == fold) for fold in range(self.num_folds)]
        runs = [self.run(fold, split, rows) for fold, rows in enumerate(parts)]
        back = np.argsort(np.concatenate(parts))
        logits, features = (np.concatenate(part)[back] for part in zip(*runs, strict=True))
        return logits, features, folds


def _row_folds(table: pa.Table, tables: dict[str, pa.Table], task_name: str) -> np.ndarray:
    """The fold of each training row, by id."""
    fold_of = dict(zip(table["example_id"].to_pylist(), table["fold"].to_pylist(), strict=True))
    ids = tables["train"]["example_id"].to_pylist()
    if set(ids) != set(fold_of):
        raise DataError(
            f"data of {task_name}: the training rows must be those of the teacher ({len(fold_of)} rows), "
            f"got {len(ids)} others or fewer. Run: kdcache teach --task {task_name}"
        )
    return np.array([fold_of[i] for i in ids], dtype=np.int8)
