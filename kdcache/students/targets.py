"""data + cache of one task, checked against each other and joined by id: what a student learns from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from kdcache.cache.location import Location
from kdcache.cache.manifest import Manifest, check_identity
from kdcache.cache.reader import load_cache
from kdcache.cache.rows import CacheRows
from kdcache.data.splits import existing_splits, read_split, sequences, table_digest
from kdcache.data.task import Task
from kdcache.encoder.batching import Encoded, encode, join
from kdcache.encoder.load import load_tokenizer
from kdcache.project import IDENTITY, Project
from kdcache.students.arms import Arm
from kdcache.students.run import TrainingRows


@dataclass(frozen=True)
class SplitWithTargets:
    """Prepared rows of one split, tokenised, and the teacher's rows in the same order."""

    table: pa.Table
    encoded: Encoded
    targets: CacheRows

    @property
    def labels(self) -> np.ndarray:
        """int64 of shape (rows,), −1 = unlabelled."""
        return self.table["label"].to_numpy()

    def taught(self, arm: Arm, seed: int) -> CacheRows:
        """The teacher's rows as one student has them: what it follows, and what its fidelity is to.

        Raises:
            CacheMissing: the arm wants other logits than the cache holds.
        """
        if arm.targets == "plain":
            return self.targets.all_rows_teacher()
        return self.targets.member(seed) if arm.targets == "member" else self.targets

    def take(self, rows: np.ndarray) -> "SplitWithTargets":
        """Some of the rows, in the given order."""
        table = self.table.take(pa.array(rows))
        return SplitWithTargets(table, self.encoded.take(rows), self.targets.take(rows))

    def training_rows(self, *more: "SplitWithTargets") -> TrainingRows:
        """The same as tensors, and the rows of more splits after them."""
        parts = (self, *more)
        return TrainingRows(
            join([part.encoded for part in parts]),
            torch.from_numpy(np.concatenate([part.labels for part in parts])),
            torch.from_numpy(np.concatenate([part.targets.logits for part in parts])),
            torch.from_numpy(np.concatenate([part.targets.features for part in parts]).astype(np.float32)),
        )


def load_splits(
    project: Project, task: Task, max_length: int, expect: Mapping[str, Any]
) -> tuple[dict[str, SplitWithTargets], Manifest]:
    """Read all splits but test, refuse a cache of other data or another teacher, join by id.

    Args:
        project: where data, cache, teacher and backbone lie.
        task: which one.
        max_length: of the student's inputs, in tokens.
        expect: fields that the teacher's identity must have.

    Returns:
        split → rows with targets, and the cache's manifest.

    Raises:
        DataError, CacheError, ParamsError: see ``read_split``, ``load_cache``, ``check_identity``.
    """
    data = Path(project.paths.data) / task.name
    tables = {
        split: read_split(data, split, task) for split in existing_splits(data, task) if split != "test"
    }
    location = Location.parse(project.paths.cache, task.name)
    cached = {split: load_cache(location, split) for split in tables}
    manifest = cached["train"].manifest
    identity = Path(project.paths.teacher) / task.name / IDENTITY
    check_identity(
        manifest, task.name, task.labels,
        {split: table_digest(table) for split, table in tables.items()},
        json.loads(identity.read_text(encoding="utf-8")) if identity.is_file() else None,
        expect,
    )  # fmt: skip
    tokenizer = load_tokenizer(Path(project.paths.backbone))
    splits = {}
    for split, table in tables.items():
        encoded = encode(tokenizer, *sequences(table, task), max_length, task.truncate, task.num_choices)
        targets = cached[split].align(table["example_id"].to_pylist(), table["content_hash"].to_pylist())
        splits[split] = SplitWithTargets(table, encoded, targets)
    return splits, manifest
