"""Extraction: the outputs of all of a task's teachers for the prepared rows, and the cached rows."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from tqdm import tqdm

from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.schema import ALL_ROWS_TEACHER, MEAN_OF_FOLDS
from kdcache.cache.writer import Arrays, CacheWriter
from kdcache.data.splits import sequences
from kdcache.data.task import Task
from kdcache.encoder.adapters import load_trained, saved_pooling
from kdcache.encoder.batching import Encoded, encode
from kdcache.encoder.forward import Dtype, extract
from kdcache.encoder.load import load_tokenizer
from kdcache.teacher.folder import model_folder, read_folds, teacher_folds

DRIFT_ROWS = 256


class Teacher:
    """All teachers of a task, with one model in memory at a time.

    Args:
        folder: as ``train_teacher`` wrote it.
        task: the task.
        identity: of the teacher.
        tables: split → prepared rows.
        batch_size: rows per forward pass.
        dtype: of the computation.
        device: of the computation.
        train_rows: digest of all training rows, where ``tables`` has some of them.

    Raises:
        DataError, ModelError: see ``folder.read_folds``.
    """

    def __init__(
        self, folder: Path, task: Task, identity: dict[str, Any],
        tables: Mapping[str, pa.Table], batch_size: int, dtype: Dtype, device: torch.device,
        train_rows: str | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.task, self.identity = folder, task, identity
        self.tables, self.batch_size, self.dtype, self.device = tables, batch_size, dtype, device
        self.num_folds = len(identity["folds_sha256"])
        self.members = range(identity.get("ensemble", 1))
        self._train_folds = read_folds(folder, tables["train"], task, identity, train_rows)
        self._loaded: tuple[Path, nn.Module] | None = None
        self._tokenizer = load_tokenizer(folder)

    @cached_property
    def encoded(self) -> dict[str, Encoded]:
        """Split → all rows, tokenised; some rows are tokenised when they are asked for."""
        return {split: self._encode(table) for split, table in self.tables.items()}

    def _encode(self, table: pa.Table) -> Encoded:
        task = self.task
        texts = sequences(table, task)
        return encode(self._tokenizer, *texts, self.identity["max_length"], task.truncate, task.num_choices)

    def passes(self, split: str) -> int:
        """Forward passes per row of a split."""
        fold_teachers = min(1, self.num_folds) if split == "train" else self.num_folds
        return (1 + fold_teachers) * len(self.members)

    def folds(self, split: str) -> np.ndarray:
        """The cache's column ``fold`` of a split, int8 of shape (rows,)."""
        if self.num_folds and split == "train":
            return self._train_folds
        return np.full(
            len(self.tables[split]), MEAN_OF_FOLDS if self.num_folds else ALL_ROWS_TEACHER, np.int8
        )

    def run(self, writer: CacheWriter, split: str) -> None:
        """Compute the outputs of every model for its rows of a split, in parts that the writer stores."""
        _ = self.encoded  # once for all models
        for fold, member in itertools.product(teacher_folds(self.num_folds), self.members):
            title = f"{self.task.name} {split}" + ("" if fold is None else f", fold {fold}")
            title += f", member {member}" if len(self.members) > 1 else ""
            with tqdm(total=len(self.tables[split]), desc=title, unit="row") as bar:
                for rows, _ in self._parts(writer, split, fold, member, bar):
                    bar.update(rows.stop - bar.n)  # stored parts, and rows of other folds

    def rows(self, writer: CacheWriter, split: str) -> Iterator[CacheRows]:
        """Yield the cached rows of a split from the parts that ``run`` stored.

        With folds, the logits of a training row are out-of-fold: they come from the teacher that was
        trained without its fold. Those of any other row are the mean over the teachers of all folds.
        """
        table, folds = self.tables[split], self.folds(split)
        teachers = [self._outputs(writer, split, fold) for fold in teacher_folds(self.num_folds)]
        for (rows, all_rows), *by_fold in zip(*teachers, strict=True):
            members = all_rows
            if by_fold:
                by_member = zip(*(outputs for _, outputs in by_fold), strict=True)
                members = [_cross_fit(outputs, folds[rows]) for outputs in by_member]
            logits, features = _mean(members).values()
            chunk = table.slice(rows.start, rows.stop - rows.start)
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
        """The same from one fold's teacher, or from the one trained on all rows."""
        return np.stack(
            [self._extract(split, fold, member, rows, dtype)["logits"] for member in self.members]
        )

    def drift(self, split: str) -> dict[str, float]:
        """Measure how far ``dtype`` moves the logits of some rows from their float32 values."""
        rows = np.random.default_rng(0).permutation(len(self.tables[split]))[:DRIFT_ROWS]
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
        parts = [self._parts(writer, split, fold, member) for member in self.members]
        for found in zip(*parts, strict=True):
            yield found[0][0], [outputs for _, outputs in found]

    def _parts(
        self, writer: CacheWriter, split: str, fold: int | None, member: int, bar: "tqdm[Any] | None" = None
    ) -> Iterator[tuple[slice, Arrays]]:
        def compute(part: slice) -> Arrays:
            rows = np.arange(part.start, part.stop)
            if fold is not None and split == "train":
                rows = rows[self._train_folds[part] == fold]
            return self._extract(split, fold, member, rows, bar=bar)

        name = "all-rows" if fold is None else f"fold-{fold}"
        return writer.resume(f"{split}-{name}-{member}", len(self.tables[split]), compute)

    def _extract(
        self, split: str, fold: int | None, member: int, rows: np.ndarray,
        dtype: Dtype | None = None, bar: "tqdm[Any] | None" = None,
    ) -> Arrays:  # fmt: skip
        if not len(rows):  # a part without a row of this fold
            return {"logits": np.empty((0, self.task.num_labels), np.float32)}
        logits, features = extract(
            self._model(model_folder(self.folder, fold, member)), self._rows(split, rows),
            self.task.num_outputs, self.batch_size, self.device, dtype or self.dtype,
            bar.update if bar is not None else None,
        )  # fmt: skip
        return {"logits": logits, "features": features}

    def _rows(self, split: str, rows: np.ndarray) -> Encoded:
        if "encoded" in self.__dict__:
            return self.encoded[split].take(rows)
        return self._encode(self.tables[split].take(pa.array(rows)))

    def _model(self, folder: Path) -> nn.Module:
        if self._loaded is None or self._loaded[0] != folder:
            self._loaded = folder, load_trained(folder, self.task.num_outputs, saved_pooling(folder))
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
