"""A teacher over the prepared rows: what each of its models says, and what the cache holds of that."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn
from tqdm import tqdm

from kdcache.cache.rows import CacheRows
from kdcache.cache.schema import ALL_ROWS_TEACHER, MEAN_OF_FOLDS
from kdcache.cache.writer import Arrays, CacheWriter
from kdcache.data.splits import sequences
from kdcache.data.task import Task
from kdcache.encoder.adapters import load_teacher
from kdcache.encoder.batching import encode
from kdcache.encoder.forward import Dtype, extract
from kdcache.encoder.load import load_tokenizer
from kdcache.errors import DataError
from kdcache.project import FOLDS
from kdcache.teacher.folder import part

DRIFT_ROWS = 256


class Teacher:
    """The teachers of one task, one in memory at a time, over the prepared rows.

    Args:
        folder: as ``train_teacher`` wrote it.
        task: the task.
        identity: of the teacher.
        tables: split → prepared rows.
        batch_size: rows per forward pass.
        dtype: what they compute in.
        device: where.

    Raises:
        DataError: other training rows than the teacher's.
    """

    def __init__(
        self, folder: Path, task: Task, identity: dict[str, Any],
        tables: Mapping[str, pa.Table], batch_size: int, dtype: Dtype, device: torch.device,
    ) -> None:  # fmt: skip
        self.folder, self.task, self.identity = folder, task, identity
        self.tables, self.batch_size, self.dtype, self.device = tables, batch_size, dtype, device
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
        teachers = [self._said(writer, split, k) for k in range(ALL_ROWS_TEACHER, self.num_folds)]
        for (rows, whole), *crossed in zip(*teachers, strict=True):
            members = whole
            if crossed:
                by_member = list(zip(*(said for _, said in crossed), strict=True))
                mine = [folds[rows] == k for k in range(self.num_folds)] if split == "train" else None
                members = [_mean(said) if mine is None else _picked(said, mine) for said in by_member]
            logits, features = _mean(members).values()
            plain = _mean(whole)["logits"] if crossed else logits
            scored.append((logits, plain))
            chunk = table.slice(rows.start, rows.stop - rows.start)
            yield CacheRows(
                chunk["example_id"].to_pylist(), chunk["content_hash"].to_pylist(),
                chunk["label"].to_numpy(), folds[rows], logits, features,
                logits_plain=plain if crossed else None,
                members=tuple(said["logits"] for said in members) if len(members) > 1 else (),
            )  # fmt: skip

    def recompute(self, split: str, rows: np.ndarray) -> np.ndarray:
        """Each member's logits of some rows, computed now as they were for the cache.

        Args:
            split: name of the split.
            rows: positions in the prepared split.

        Returns:
            float32 array of shape (members, len(rows), num_labels); one member where there is no ensemble.
        """
        folds = self.folds(split)[rows]
        logits = np.empty((len(self.members), len(rows), self.task.num_labels), np.float32)
        for fold in np.unique(folds):
            mine = np.flatnonzero(folds == fold)
            teachers = range(self.num_folds) if fold == MEAN_OF_FOLDS else [int(fold)]
            logits[:, mine] = np.mean([self.logits(split, k, rows[mine]) for k in teachers], axis=0)
        return logits

    def logits(self, split: str, fold: int, rows: np.ndarray, dtype: Dtype | None = None) -> np.ndarray:
        """The same by one fold's teacher, or the one on all rows."""
        return np.stack(
            [self._extract(split, fold, member, rows, dtype)["logits"] for member in self.members]
        )

    def drift(self, split: str) -> dict[str, float]:
        """How far ``dtype`` moves the logits of some rows from their float32 values."""
        rows = np.random.default_rng(0).permutation(len(self.tables[split]))[:DRIFT_ROWS]
        ours = self.logits(split, ALL_ROWS_TEACHER, rows).mean(axis=0)
        exact = self.logits(split, ALL_ROWS_TEACHER, rows, dtype="float32").mean(axis=0)
        moved = np.abs(ours - exact)
        return {
            "rows": len(rows),
            "max_abs": float(moved.max()),
            "mean_abs": float(moved.mean()),
            "argmax_flips": int((ours.argmax(1) != exact.argmax(1)).sum()),
        }

    def _said(self, writer: CacheWriter, split: str, fold: int) -> Iterator[tuple[slice, list[Arrays]]]:
        """What each member of a fold's teacher says, in parts."""
        parts = [self._parts(writer, split, fold, member) for member in self.members]
        for found in zip(*parts, strict=True):
            yield found[0][0], [said for _, said in found]

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
            self.task.num_outputs, self.batch_size, self.device, dtype or self.dtype,
            bar.update if bar is not None else None,
        )  # fmt: skip
        return {"logits": logits, "features": features}

    def _model(self, folder: Path) -> nn.Module:
        if self._loaded is None or self._loaded[0] != folder:
            self._loaded = folder, load_teacher(folder, self.task.num_outputs)
        return self._loaded[1]


def _mean(said: Sequence[Arrays]) -> Arrays:
    return {name: np.mean([arrays[name] for arrays in said], axis=0) for name in said[0]}


def _picked(said: Sequence[Arrays], mine: Sequence[np.ndarray]) -> Arrays:
    """Each row as the one fold says it that it is in."""
    some = next(arrays for arrays, rows in zip(said, mine, strict=True) if rows.any())
    picked = {name: np.empty((len(mine[0]), array.shape[1]), array.dtype) for name, array in some.items()}
    for arrays, rows in zip(said, mine, strict=True):
        if rows.any():  # a part without a row of this fold has no features
            for name, array in arrays.items():
                picked[name][rows] = array
    return picked


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
