"""Prepared splits: one Parquet file per task × split, and how kdcache cuts its own splits."""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdcache.digests import RowsDigest, value_digest
from kdcache.errors import DataError
from kdcache.tasks.schema import Example, Task

SPLITS = ("train", "tune", "validation", "test", "unlabelled")

SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("text_pair", pa.string(), nullable=False),
    ]
)


def content_hash(template: str, text: str, text_pair: str) -> str:
    """Hash what the model reads: 32 hexadecimal digits.

    >>> content_hash("wic/1", "a", "b")
    '78b877fee897c0eb8ddb5124fd7db124'
    """
    return value_digest([template, text, text_pair])[:32]


def build_table(examples: Sequence[Example], task: Task) -> pa.Table:
    """Turn examples into a table of ``SCHEMA``, in the given order."""
    columns = {
        name: [getattr(example, name) for example in examples]
        for name in ("example_id", "label", "group", "text", "text_pair")
    }
    columns["content_hash"] = [content_hash(task.template, e.text, e.text_pair) for e in examples]
    return pa.table(columns, schema=SCHEMA)


def write_split(table: pa.Table, path: Path) -> None:
    """Write one split; the same rows give the same bytes."""
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)


def read_split(folder: Path, split: str, task_name: str) -> pa.Table:
    """Read one prepared split.

    Args:
        folder: the task's data folder.
        split: one of ``SPLITS``.
        task_name: for the remedy.

    Raises:
        DataError: the split was never prepared, or the file is of another schema.
    """
    path = folder / f"{split}.parquet"
    if not path.is_file():
        raise DataError(
            f"{path}: the prepared split must exist, got nothing there. "
            f"Run: kdcache prepare --task {task_name}"
        )
    table = pq.read_table(path, page_checksum_verification=True)
    if table.schema != SCHEMA:
        raise DataError(
            f"{path}: the columns must be {', '.join(SCHEMA.names)}, got "
            f"{', '.join(table.schema.names)}. Run: kdcache prepare --task {task_name}"
        )
    return table


def existing_splits(folder: Path) -> list[str]:
    """Names of the prepared splits in a task's data folder, in canonical order."""
    return [split for split in SPLITS if (folder / f"{split}.parquet").is_file()]


def table_digest(table: pa.Table) -> str:
    """``RowsDigest`` of a table that has the three columns."""
    digest = RowsDigest()
    digest.update(*(table[name].to_pylist() for name in ("example_id", "content_hash", "label")))
    return digest.hexdigest()


def assign_folds(labels: Sequence[int], groups: Sequence[str], num_folds: int, seed: int) -> np.ndarray:
    """Deal rows into folds: stratified by label, a group never in two folds.

    Args:
        labels: class index per row.
        groups: group id per row.
        num_folds: ≥ 2.
        seed: of the shuffle.

    Returns:
        int8 array of shape (rows,), values 0 … num_folds − 1.

    Raises:
        DataError: fewer groups than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # slow import, rarely needed

    if len(set(groups)) < num_folds:
        raise DataError(
            f"folds: there must be at least as many groups as folds ({num_folds}), "
            f"got {len(set(groups))}. Lower the number of folds or raise prepare.max_rows."
        )
    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    folds = np.full(len(labels), -1, dtype=np.int8)
    with warnings.catch_warnings():
        # A class rarer than the folds (CB's neutral under a small max_rows) is dealt as far as it goes.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for fold, (_, held_out) in enumerate(splitter.split(labels, labels, groups)):
            folds[held_out] = fold
    return folds


def keep_rows(examples: Sequence[Example], max_rows: int | None, seed: int) -> list[Example]:
    """Keep a pseudo-random subset that depends on ids only, in the given order."""
    if max_rows is None or len(examples) <= max_rows:
        return list(examples)

    def draw(example: Example) -> str:
        return hashlib.sha256(f"{seed}/{example.example_id}".encode()).hexdigest()

    kept = {example.example_id for example in sorted(examples, key=draw)[:max_rows]}
    return [example for example in examples if example.example_id in kept]
