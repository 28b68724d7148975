"""Columns of a cache's files, to and from NumPy."""

from typing import Any

import numpy as np
import pyarrow as pa

from kdcache.cache.schema import top_columns
from kdcache.cache.top_logits import can_be_kept, expand_logits
from kdcache.data.ids import name_some
from kdcache.errors import CacheCorrupt, ShapeError


def dtype_of(kind: pa.DataType) -> Any:
    """Return the NumPy type of the numbers of a column of vectors."""
    return kind.value_type.to_pandas_dtype()


def require_finite(name: str, values: np.ndarray) -> None:
    """Refuse vectors with numbers that are none.

    Raises:
        ShapeError: names the column.
    """
    if not np.isfinite(values).all():
        raise ShapeError(f"cache rows: {name} must be finite, got NaN or infinity.")


def to_arrow(name: str, values: Any, kind: pa.DataType) -> pa.Array:
    """Return values as an array of a column's type.

    Raises:
        ShapeError: a number of a vector does not fit the type; names the column.
    """
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(values, kind)
    dtype = dtype_of(kind)
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(values, dtype).reshape(-1)
    if not np.isfinite(stored).all():
        raise ShapeError(f"cache rows: {name} must fit {dtype.__name__}, got {np.abs(values).max():g}.")
    return pa.FixedSizeListArray.from_arrays(pa.array(stored), type=kind)


def read_logits(table: pa.Table, name: str, num_labels: int, where: str = "cache rows") -> np.ndarray:
    """Return all logits of a table whose columns hold all of them, or the largest.

    Args:
        table: of a cache, ids among its columns.
        name: ``logits``, ``logits_plain`` or ``logits_member_<m>``.
        num_labels: of the task.
        where: the rows are from, for messages.

    Raises:
        CacheCorrupt: no writer keeps such labels or logits of a row.
    """
    if name in table.column_names:
        return vectors_of(table[name])
    columns = top_columns(name)
    labels, largest = (vectors_of(table[column]) for column in columns[:2])
    rest = table[columns[2]].to_numpy()
    wrong = ~can_be_kept(labels, largest, rest, num_labels)
    if wrong.any():
        ids = table["example_id"].filter(pa.array(wrong)).to_pylist()
        raise CacheCorrupt(
            f"{where}: {columns[0]} must be different labels by falling logit, each above {columns[2]}, got "
            f"others in {name_some(ids)}. Build the cache again."
        )
    return expand_logits(labels, largest, rest, num_labels)


def vectors_of(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of vectors as an array of shape (rows, width)."""
    kind = column.type
    if len(column) == 0:
        return np.empty((0, kind.list_size), dtype_of(kind))
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate(chunks).reshape(-1, kind.list_size)
