"""Extraction: the outputs of all of a task's teachers for the prepared rows, and the cached rows."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.schema import ALL_ROWS_TEACHER, MEAN_OF_FOLDS
from kdcache.cache.writer import CacheWriter, cut_parts, name_part
from kdcache.data.splits import count_rows, rows_at, sequences
from kdcache.data.task import Task
from kdcache.encoder.adapters import load_trained, saved_pooling
from kdcache.encoder.batching import Encoded, encode
from kdcache.encoder.forward import extract
from kdcache.encoder.load import load_tokenizer, machine_kind
from kdcache.encoder.precision import Dtype, hold_in_bfloat16
from kdcache.store.parts import Arrays
from kdcache.teacher.folder import model_folder, teacher_folds

DRIFT_ROWS = 256
KEYS = ("example_id", "content_hash", "label")
TOKENISED_PARTS = 8  # kept, of some 7 kB a row


class CachePart(NamedTuple):
    """The outputs of one model for some rows of a split: the unit that workers share.

    Args:
        split: its name.
        fold, member: the model, see ``folder.model_folder``.
        start, stop: the rows.
    """

    split: str
    fold: int | None
    member: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many rows it is of, those of other folds included."""
        return self.stop - self.start

    @property
    def sequence(self) -> str:
        """Name of all parts of the same model and split."""
        return f"{self.split}-{'all-rows' if self.fold is None else f'fold-{self.fold}'}-{self.member}"

    def __str__(self) -> str:
        return name_part(self.sequence, self.start)


class Teacher:
    """All teachers of a task, with one model in memory at a time, and a few parts of the rows.

    Args:
        folder: as ``train_teacher`` wrote it.
        task: the task.
        identity: of the teacher.
        tables: split → prepared rows, or an open file of them.
        train_folds: the fold of each row of ``train``, see ``folder.read_folds``.
        batch_size: rows per forward pass.
        dtype: of the computation.
        device: of the computation.
    """

    def __init__(
        self, folder: Path, task: Task, identity: dict[str, Any],
        tables: Mapping[str, pa.Table | pq.ParquetFile], train_folds: np.ndarray, batch_size: int,
        dtype: Dtype, device: torch.device,
    ) -> None:  # fmt: skip
        self.folder, self.task, self.identity = folder, task, identity
        self.tables, self.batch_size, self.dtype, self.device = tables, batch_size, dtype, device
        self.num_folds = len(identity["folds_sha256"])
        self.members = range(identity.get("ensemble", 1))
        self.truncated: dict[str, int] = {}
        self.train_folds = train_folds
        self._loaded: tuple[tuple[Path, Dtype], nn.Module] | None = None
        self._tokenizer = load_tokenizer(folder)
        self._tokenised = lru_cache(TOKENISED_PARTS)(self._tokenise)  # the next model reads the same rows

    def passes(self, split: str) -> int:
        """Forward passes per row of a split."""
        fold_teachers = min(1, self.num_folds) if split == "train" else self.num_folds
        return (1 + fold_teachers) * len(self.members)

    def folds(self, split: str) -> np.ndarray:
        """The cache's column ``fold`` of a split, int8 of shape (rows,)."""
        if self.num_folds and split == "train":
            return self.train_folds
        return np.full(
            count_rows(self.tables[split]), MEAN_OF_FOLDS if self.num_folds else ALL_ROWS_TEACHER, np.int8
        )

    def parts(self) -> list[CachePart]:
        """List all parts, those of one model together."""
        return [
            CachePart(split, fold, member, rows.start, rows.stop)
            for fold, member in itertools.product(teacher_folds(self.num_folds), self.members)
            for split, table in self.tables.items()
            for rows in cut_parts(count_rows(table))
        ]

    def compute(self, part: CachePart, after_batch: Callable[[int], object] | None = None) -> Arrays:
        """Compute a part.

        Args:
            part: which.
            after_batch: called with the number of rows of each batch that is done.

        Returns:
            float32 ``logits`` and ``features`` of the rows that the model is for: of ``train``, those of its
            own fold. Of one model also ``truncated``, bool of shape (rows,).
        """
        rows = np.arange(part.stop - part.start)
        if part.fold is not None and part.split == "train":
            rows = rows[self.train_folds[part.start : part.stop] == part.fold]
        if not len(rows):  # a part without a row of this fold
            return {"logits": np.empty((0, self.task.num_labels), np.float32)}
        encoded = self._tokenised(part.split, part.start, part.stop)
        outputs = self._extract(part.fold, part.member, encoded.take(rows), after_batch=after_batch)
        first = part.fold is None and not part.member
        return outputs | ({"truncated": encoded.truncated} if first else {})

    def rows(self, writer: CacheWriter, split: str) -> Iterator[CacheRows]:
        """Yield the cached rows of a split from its parts; those that are not stored are computed.

        With folds, the logits of a training row are out-of-fold: they come from the teacher that was
        trained without its fold. Those of any other row are the mean over the teachers of all folds.
        How many rows were cut at ``max_length`` is in ``truncated`` then.
        """
        table, folds = self.tables[split], self.folds(split)
        self.truncated[split] = 0
        teachers = [self._outputs(writer, split, fold) for fold in teacher_folds(self.num_folds)]
        for (rows, all_rows), *by_fold in zip(*teachers, strict=True):
            self.truncated[split] += int(all_rows[0].pop("truncated").sum())
            members = all_rows
            if by_fold:
                by_member = zip(*(outputs for _, outputs in by_fold), strict=True)
                members = [_cross_fit(outputs, folds[rows]) for outputs in by_member]
            logits, features = _mean(members).values()
            chunk = rows_at(table, np.arange(rows.start, rows.stop), KEYS)
            yield CacheRows(
                chunk["example_id"].to_pylist(), chunk["content_hash"].to_pylist(),
                chunk["label"].to_numpy(), folds[rows], logits, features,
                logits_plain=_mean(all_rows)["logits"] if by_fold else None,
                members=tuple(outputs["logits"] for outputs in members) if len(members) > 1 else (),
            )  # fmt: skip

    def recompute(self, split: str, rows: np.ndarray) -> np.ndarray:
        """Compute each member's cached logits of some rows again.

        Args:
            split: name of the split.
            rows: positions in the prepared split.

        Returns:
            float32 array of shape (members, len(rows), num_labels); one member without an ensemble.
        """
        folds = self.folds(split)[rows]
        logits = np.empty((len(self.members), len(rows), self.task.num_labels), np.float32)
        for fold in np.unique(folds):
            of_fold = np.flatnonzero(folds == fold)
            teachers = range(self.num_folds) if fold == MEAN_OF_FOLDS else [None if fold < 0 else int(fold)]
            logits[:, of_fold] = np.mean([self.logits(split, k, rows[of_fold]) for k in teachers], axis=0)
        return logits

    def logits(
        self, split: str, fold: int | None, rows: np.ndarray, dtype: Dtype | None = None
    ) -> np.ndarray:
        """Compute logits by one teacher, of shape (members, rows, num_labels).

        Args:
            split: of the rows.
            fold: without which the teacher was trained; None is the teacher trained on all rows.
            rows: their numbers.
            dtype: of the computation; None takes the teacher's.
        """
        encoded = self._encode(rows_at(self.tables[split], rows))
        return np.stack([self._extract(fold, member, encoded, dtype)["logits"] for member in self.members])

    def drift(self, split: str) -> dict[str, float]:
        """Measure how far ``dtype`` moves the logits of some rows from their float32 values."""
        rows = np.random.default_rng(0).permutation(count_rows(self.tables[split]))[:DRIFT_ROWS]
        logits = self.logits(split, None, rows).mean(axis=0)
        exact = self.logits(split, None, rows, dtype="float32").mean(axis=0)
        moved = np.abs(logits - exact)
        return {
            "rows": len(rows),
            "max_abs": float(moved.max()),
            "mean_abs": float(moved.mean()),
            "argmax_flips": int((logits.argmax(1) != exact.argmax(1)).sum()),
        }

    def _outputs(
        self, writer: CacheWriter, split: str, fold: int | None
    ) -> Iterator[tuple[slice, list[Arrays]]]:
        """Yield the outputs of each member of one teacher, in parts."""
        parts = [self._resume(writer, split, fold, member) for member in self.members]
        for found in zip(*parts, strict=True):
            yield found[0][0], [outputs for _, outputs in found]

    def _resume(
        self, writer: CacheWriter, split: str, fold: int | None, member: int
    ) -> Iterator[tuple[slice, Arrays]]:
        def part(rows: slice) -> CachePart:
            return CachePart(split, fold, member, rows.start, rows.stop)

        def compute(rows: slice) -> Arrays:  # what was lost since all parts were there
            writer.parts.require_machine(machine_kind(self.device))
            return self.compute(part(rows))

        return writer.resume(part(slice(0, 0)).sequence, count_rows(self.tables[split]), compute)

    def _extract(
        self, fold: int | None, member: int, encoded: Encoded, dtype: Dtype | None = None,
        after_batch: Callable[[int], object] | None = None,
    ) -> Arrays:  # fmt: skip
        dtype = dtype or self.dtype
        logits, features = extract(
            self._model(model_folder(self.folder, fold, member), dtype), encoded, self.task.num_outputs,
            self.batch_size, self.device, dtype, after_batch,
        )  # fmt: skip
        return {"logits": logits, "features": features}

    def _tokenise(self, split: str, start: int, stop: int) -> Encoded:
        return self._encode(rows_at(self.tables[split], np.arange(start, stop)))

    def _encode(self, table: pa.Table) -> Encoded:
        task = self.task
        texts = sequences(table, task)
        return encode(self._tokenizer, *texts, self.identity["max_length"], task.truncate, task.num_choices)

    def _model(self, folder: Path, dtype: Dtype) -> nn.Module:
        if self._loaded is None or self._loaded[0] != (folder, dtype):
            model: Any = load_trained(folder, self.task.num_outputs, saved_pooling(folder))
            if dtype == "bfloat16":  # held in it, not cast at every batch
                hold_in_bfloat16(model)
            self._loaded = (folder, dtype), model
        return self._loaded[1]


def _mean(outputs: Sequence[Arrays]) -> Arrays:
    return {name: np.mean([arrays[name] for arrays in outputs], axis=0) for name in outputs[0]}


def _cross_fit(outputs: Sequence[Arrays], folds: np.ndarray) -> Arrays:
    """Combine the outputs of the fold teachers: out-of-fold per row, or their mean outside of train."""
    if (folds == MEAN_OF_FOLDS).all():
        return _mean(outputs)
    combined: Arrays = {}
    for fold, arrays in enumerate(outputs):
        if (folds == fold).any():  # a part without a row of this fold has no features
            for name, array in arrays.items():
                if name not in combined:
                    combined[name] = np.empty((len(folds), array.shape[1]), array.dtype)
                combined[name][folds == fold] = array
    return combined
