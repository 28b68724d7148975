"""Prepared splits: their schema and Parquet files, folds, hold-outs and subsets of rows."""

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdcache.data.task import Example, Task, read_task
from kdcache.digests import RowsDigest, check_seal, seal, value_digest
from kdcache.errors import DataError
from kdcache.on_disk import open_parquet

TEST = "test"  # scored by ``kdcache evaluate`` and by nothing else
GROUP_ROWS = 8192  # of a row group: what is read of a file to have a row of it
SPLITS = ("train", "tune", "validation", TEST, "unlabelled")

# What some metrics read besides the labels; see ``task.Example``.
METRIC_COLUMNS = {"unit": pa.string(), "candidate": pa.string(), "answers": pa.list_(pa.string())}


def split_schema(task: Task) -> pa.Schema:
    """Return the columns of a task's splits; none is nullable.

    >>> split_schema(Task("t", ("no", "yes"), "t/1", ("accuracy",))).names
    ['example_id', 'label', 'content_hash', 'group', 'text', 'text_pair']
    """
    second = {"choices": pa.list_(pa.string())} if task.num_choices > 1 else {"text_pair": pa.string()}
    columns = {
        "example_id": pa.string(),
        "label": pa.int64(),
        "content_hash": pa.string(),
        "group": pa.string(),
        "text": pa.string(),
        **second,
        **{name: METRIC_COLUMNS[name] for name in task.columns},
    }
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


def content_hash(template: str, text: str, *others: str) -> str:
    """Hash what the model reads, to 32 hexadecimal digits.

    >>> content_hash("wic/1", "a", "b")
    '78b877fee897c0eb8ddb5124fd7db124'
    """
    return value_digest([template, text, *others])[:32]


def build_table(examples: Sequence[Example], task: Task) -> pa.Table:
    """Build a table of the task's schema from examples, in the given order."""
    schema = split_schema(task)
    columns = {
        name: [getattr(example, name) for example in examples]
        for name in schema.names
        if name != "content_hash"
    }
    columns["content_hash"] = [
        content_hash(task.template, e.text, *(e.choices or (e.text_pair,))) for e in examples
    ]
    if "unit" in columns:
        columns["unit"] = [example.unit or example.example_id for example in examples]
    return pa.table(columns, schema=schema)


def sequences(table: pa.Table, task: Task) -> tuple[list[str], list[str]]:
    """Return the first and the second sequences of a table's rows, ``num_choices`` of each per row."""
    texts = table["text"].to_pylist()
    if task.num_choices == 1:
        return texts, table["text_pair"].to_pylist()
    choices = table["choices"].to_pylist()
    return [text for text in texts for _ in range(task.num_choices)], [c for row in choices for c in row]


def metric_columns(table: pa.Table, task: Task) -> dict[str, list[Any]]:
    """Return what the task's metrics read besides labels and logits."""
    return {name: table[name].to_pylist() for name in task.columns}


def write_split(parts: Iterable[pa.Table], path: Path) -> None:
    """Write one split. The same rows give the same bytes.

    Args:
        parts: at least one, a row group each where they have at most ``GROUP_ROWS`` rows.
        path: of the file.
    """
    rest = iter(parts)
    first = next(rest)
    with pq.ParquetWriter(path, first.schema, compression="zstd", write_page_checksum=True) as file:
        for part in chain([first], rest):
            file.write_table(part, GROUP_ROWS)
    seal(path)


def read_split(folder: Path, split: str, task: Task) -> pa.Table:
    """Read one prepared split; see ``open_split``."""
    return open_split(folder, split, task).read()


def open_split(folder: Path, split: str, task: Task) -> pq.ParquetFile:
    """Open one prepared split.

    Args:
        folder: the task's data folder.
        split: one of ``SPLITS`` or the task's diagnostics.
        task: the task.

    Raises:
        DataError: the split was not prepared, or the file has another schema.
    """
    path = folder / f"{split}.parquet"
    if not path.is_file():
        raise DataError(f"{path}: the split is not prepared. Run: kdcache prepare --task {task.name}")
    check_seal(path, f"Run: kdcache prepare --task {task.name}", DataError)
    file = open_parquet(path)
    if file.schema_arrow != split_schema(task):
        raise DataError(
            f"{path}: the columns must be {', '.join(split_schema(task).names)}, got "
            f"{', '.join(file.schema_arrow.names)}. Run: kdcache prepare --task {task.name}"
        )
    return file


def existing_splits(folder: Path, task: Task) -> list[str]:
    """Return the names of the prepared splits in a task's data folder, in canonical order."""
    return [split for split in (*SPLITS, *task.diagnostics) if (folder / f"{split}.parquet").is_file()]


def table_digest(table: pa.Table) -> str:
    """Return the ``RowsDigest`` of a table with the columns example_id, content_hash and label."""
    return digest_of(table.to_batches())


def digest_of(batches: Iterable[pa.RecordBatch]) -> str:
    """Return the ``RowsDigest`` of the rows of some batches."""
    digest = RowsDigest()
    for batch in batches:
        digest.update(*(batch[name].to_pylist() for name in ("example_id", "content_hash", "label")))
    return digest.hexdigest()


def assign_folds(labels: Sequence[int], groups: Sequence[str], num_folds: int, seed: int) -> np.ndarray:
    """Deal rows into folds, stratified by label and with each group in one fold.

    Args:
        labels: class index per row.
        groups: group id per row.
        num_folds: ≥ 2.
        seed: of the shuffle.

    Returns:
        int8 array of shape (rows,), values 0 … num_folds − 1; int16 beyond 128 folds.

    Raises:
        DataError: fewer groups than folds.
    """
    if len(set(groups)) < num_folds:
        raise DataError(
            f"folds: there must be at least as many groups as folds ({num_folds}), "
            f"got {len(set(groups))}. Lower the number of folds or raise prepare.max_rows."
        )
    if max(Counter(labels).values()) < num_folds:
        # scikit-learn wants a class that is in every fold: one of its own, which is left out again.
        names, numbers = np.unique(groups, return_inverse=True)
        made = [*labels, *[max(labels) + 1] * num_folds]
        folds = _deal(made, [*numbers, *(len(names) + np.arange(num_folds))], num_folds, seed)[: len(labels)]
        if len(np.unique(folds)) == num_folds:
            return folds
        labels = [0] * len(labels)  # so few rows that it took whole folds
    return _deal(labels, groups, num_folds, seed)


def _deal(labels: Sequence[int], groups: Sequence[Any], num_folds: int, seed: int) -> np.ndarray:
    from sklearn.model_selection import StratifiedGroupKFold  # slow import, rarely needed

    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    folds = np.full(len(labels), -1, dtype=np.int8 if num_folds <= 128 else np.int16)
    with warnings.catch_warnings():
        # A class rarer than the folds (CB's neutral under a small max_rows) is dealt as far as it goes.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for fold, (_, held_out) in enumerate(splitter.split(labels, labels, groups)):
            folds[held_out] = fold
    return folds


def hold_out(labels: Sequence[int], groups: Sequence[str], fraction: float, seed: int) -> np.ndarray:
    """Choose a share of the rows, stratified by label and with each group on one side.

    Args:
        labels: class index per row.
        groups: group id per row.
        fraction: the share, 0 < … ≤ 0.5. It is taken in folds: 3/20 is 3 of 20.
        seed: of the choice.

    Returns:
        bool array of shape (rows,).

    Raises:
        DataError: there are too few groups for such a share.
    """
    share = Fraction(fraction).limit_denominator(max(20, round(1 / fraction)))
    if (found := len(set(groups))) < share.denominator:
        raise DataError(
            f"prepare.tune_fraction, holdout: to hold out {share} of train, it must have at least "
            f"{share.denominator} groups of rows, got {found}. Hold out a larger share, or add rows."
        )
    return assign_folds(labels, groups, share.denominator, seed) < share.numerator


def choose_rows(units: Iterable[str], count: int, max_rows: int | None, seed: int) -> np.ndarray:
    """Choose a pseudo-random subset of rows.

    The choice depends only on units and seed. Units stay whole: one that is too large for what is left is
    skipped.

    Args:
        units: of each row, its own id where it is a unit of its own.
        count: of the rows.
        max_rows: to choose; None chooses all.
        seed: of the choice.

    Returns:
        bool array of shape (rows,).
    """
    if max_rows is None or count <= max_rows:
        return np.ones(count, bool)
    # Two units of one number would be kept or left together: no harm, and hardly ever with 64 bits.
    drawn = (hashlib.sha256(f"{seed}/{unit}".encode()).digest()[:8] for unit in units)
    draws = np.fromiter((int.from_bytes(draw) for draw in drawn), np.uint64, count)
    kept, left = [], max_rows
    for draw, size in zip(*np.unique(draws, return_counts=True), strict=True):
        if size <= left:
            kept.append(draw)
            left -= size
        if not left:
            break
    return np.isin(draws, np.array(kept, np.uint64))


def read_tables(data: Path | str, task_name: str) -> tuple[Task, dict[str, pa.Table]]:
    """Read a task and all of its prepared splits.

    Args:
        data: the folder of all tasks' data.
        task_name: the task's folder in it.

    Returns:
        The task, and split → rows in canonical order of the splits.

    Raises:
        DataError: nothing was prepared, or a file has other columns.
    """
    task, files = open_tables(data, task_name)
    return task, {split: file.read() for split, file in files.items()}


def open_tables(data: Path | str, task_name: str) -> tuple[Task, dict[str, pq.ParquetFile]]:
    """Open a task's prepared splits, as ``read_tables`` reads them."""
    folder = Path(data) / task_name
    task = read_task(folder, task_name)
    splits = existing_splits(folder, task) or ["train"]
    return task, {split: open_split(folder, split, task) for split in splits}


def rows_at(
    source: pa.Table | pq.ParquetFile, rows: np.ndarray, columns: Sequence[str] | None = None
) -> pa.Table:
    """Read some rows of a prepared split, with no more than their row groups in memory.

    Args:
        source: the split, or an open file of it.
        rows: positions, in any order.
        columns: all if left out.

    Returns:
        The rows, in the given order.
    """
    if isinstance(source, pa.Table):
        return (source.select(list(columns)) if columns else source).take(pa.array(rows, pa.int64()))
    ascending = np.unique(rows)
    found, start = [source.schema_arrow.empty_table().select(list(columns or source.schema_arrow.names))], 0
    for group in range(source.num_row_groups):
        end = start + source.metadata.row_group(group).num_rows
        inside = ascending[(ascending >= start) & (ascending < end)]
        if len(inside):
            found.append(source.read_row_group(group, columns).take(pa.array(inside - start)))
        start = end
    return pa.concat_tables(found).take(pa.array(np.searchsorted(ascending, rows)))


def count_rows(source: pa.Table | pq.ParquetFile) -> int:
    """Count the rows of a prepared split, or of an open file of it."""
    return source.num_rows if isinstance(source, pa.Table) else source.metadata.num_rows
