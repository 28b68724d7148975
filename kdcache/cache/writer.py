"""Rows → Parquet files, and the manifest after them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdcache.cache.manifest import MANIFEST, Manifest
from kdcache.cache.schema import ROW_GROUP_ROWS, cache_schema
from kdcache.digests import file_digest
from kdcache.errors import ShapeError
from kdcache.tasks.splits import split_digest


@dataclass(frozen=True)
class CacheRows:
    """One split as the teacher saw it, row by row.

    Args:
        example_id, content_hash: lists of strings, (rows,).
        label: int64 array of shape (rows,), −1 = unlabelled.
        fold: int8 array of shape (rows,), see ``cache.schema``.
        logits: float32 array of shape (rows, num_labels).
        features: float array of shape (rows, dim), kept as float16.
    """

    example_id: list[str]
    content_hash: list[str]
    label: np.ndarray
    fold: np.ndarray
    logits: np.ndarray
    features: np.ndarray

    def to_table(self) -> pa.Table:
        """As an Arrow table of the cache's schema.

        Raises:
            ShapeError: the columns are not equally long, or a value is not finite.
        """
        rows = len(self.example_id)
        columns = (self.content_hash, self.label, self.fold, self.logits, self.features)
        if any(len(column) != rows for column in columns):
            lengths = ", ".join(str(len(column)) for column in columns)
            raise ShapeError(f"cache rows: all columns must have {rows} rows, got {lengths}.")
        if not (np.isfinite(self.logits).all() and np.isfinite(self.features).all()):
            raise ShapeError("cache rows: logits and features must be finite, got NaN or infinity.")
        schema = cache_schema(self.logits.shape[1], self.features.shape[1])
        arrays = [
            pa.array(self.example_id),
            pa.array(self.label, pa.int64()),
            pa.array(self.content_hash),
            pa.array(self.fold, pa.int8()),
            _vectors(self.logits.astype(np.float32), schema.field("logits").type),
            _vectors(self.features.astype(np.float16), schema.field("features").type),
        ]
        return pa.Table.from_arrays(arrays, schema=schema)


def write_cache(
    folder: Path,
    splits: Mapping[str, CacheRows],
    **facts: Any,
) -> Manifest:
    """Write one file per split, then the manifest.

    Args:
        folder: empty; the caller moves it into place afterwards.
        splits: split name → rows.
        facts: the other fields of ``Manifest``.

    Returns:
        The manifest as written. The same rows and facts give the same bytes.

    Raises:
        ShapeError: see ``CacheRows.to_table``.
    """
    files, data = {}, {}
    for split, rows in splits.items():
        path = folder / f"{split}.parquet"
        pq.write_table(
            rows.to_table(), path,
            compression="zstd", compression_level=1, use_dictionary=False,
            row_group_size=ROW_GROUP_ROWS, write_page_checksum=True,
        )  # fmt: skip
        files[path.name] = {
            "rows": len(rows.example_id),
            "bytes": path.stat().st_size,
            "sha256": file_digest(path),
        }
        data[split] = split_digest(rows.example_id, rows.content_hash, rows.label)
    dim = next(iter(splits.values())).features.shape[1]
    manifest = Manifest(data=data, files=files, dim=dim, **facts)
    manifest.write(folder / MANIFEST)
    return manifest


def _vectors(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, type=kind)
