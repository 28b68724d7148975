"""Parquet → rows by id. Nothing is read that the manifest does not vouch for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.schema import cache_schema
from kdcache.digests import file_digest
from kdcache.errors import CacheCorrupt, CacheMissing, CacheStale, nearest


@dataclass(frozen=True)
class CachedSplit:
    """One split of a cache, in file order until ``align`` puts it in yours.

    Args:
        example_id, content_hash: (rows,).
        label: int64 array of shape (rows,).
        fold: int8 array of shape (rows,).
        logits: float32 array of shape (rows, num_labels).
        features: float16 array of shape (rows, dim).
    """

    example_id: list[str]
    content_hash: list[str]
    label: np.ndarray
    fold: np.ndarray
    logits: np.ndarray
    features: np.ndarray

    def align(self, ids: Sequence[str], content_hashes: Sequence[str]) -> "CachedSplit":
        """Return the rows of ``ids``, in that order: the join is by id, never by position.

        Args:
            ids: example ids of the caller's rows.
            content_hashes: of the same rows.

        Raises:
            CacheStale: ids the cache lacks, ids given twice, or rows whose text has changed.
        """
        where = {example_id: i for i, example_id in enumerate(self.example_id)}
        _refuse("ids must be in the cache, got unknown", [i for i in ids if i not in where])
        seen: set[str] = set()
        twice = [i for i in ids if i in seen or seen.add(i)]  # type: ignore[func-returns-value]
        _refuse("ids must be unique, got twice", twice)
        order = [where[i] for i in ids]
        changed = [
            i for i, row, found in zip(ids, order, content_hashes, strict=True)
            if self.content_hash[row] != found
        ]  # fmt: skip
        _refuse("the text must be what the teacher read, got another text for", changed)
        return CachedSplit(
            [self.example_id[i] for i in order], [self.content_hash[i] for i in order],
            self.label[order], self.fold[order], self.logits[order], self.features[order],
        )  # fmt: skip


def load_cache(folder: str | Path, split: str) -> tuple[CachedSplit, Manifest]:
    """Open one split of a cache and verify it: manifest, sha256, schema, row count.

    Args:
        folder: ``cache/<task>``.
        split: one of the manifest's.

    Returns:
        The rows and the manifest.

    Raises:
        CacheMissing: no cache there, or no such split in it.
        CacheCorrupt: bytes, schema or row count are not the manifest's.
        CacheStale: another format version.
    """
    folder = Path(folder)
    remedy = f"Run: kdcache cache --task {folder.name}"
    manifest = read_manifest(folder, folder.name)
    name = f"{split}.parquet"
    if name not in manifest.files:
        known = [file.removesuffix(".parquet") for file in manifest.files]
        raise CacheMissing(
            f"{folder}: the split must be in the cache, got {split!r}. {nearest(split, known)}"
        )
    path, entry = folder / name, manifest.files[name]
    if not path.is_file():
        raise CacheCorrupt(f"{path}: the file must be there, as the manifest says, got none. {remedy}")
    if (found := file_digest(path)) != entry["sha256"]:
        raise CacheCorrupt(f"{path}: its sha256 must be {entry['sha256']}, got {found}. {remedy}")
    table = pq.read_table(path, page_checksum_verification=True)
    schema = cache_schema(manifest.identity["num_labels"], manifest.dim)
    if table.schema != schema or table.num_rows != entry["rows"]:
        raise CacheCorrupt(
            f"{path}: it must hold {entry['rows']} rows of {schema.names}, "
            f"got {table.num_rows} of {table.schema.names}. {remedy}"
        )
    table = table.combine_chunks()
    return CachedSplit(
        table["example_id"].to_pylist(), table["content_hash"].to_pylist(),
        table["label"].to_numpy(), table["fold"].to_numpy(),
        _matrix(table["logits"]), _matrix(table["features"]),
    ), manifest  # fmt: skip


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    width = column.type.list_size
    if len(column) == 0:
        return np.empty((0, width), column.type.value_type.to_pandas_dtype())
    return np.concatenate([c.flatten().to_numpy(zero_copy_only=False) for c in column.chunks]).reshape(
        -1, width
    )


def _refuse(what: str, ids: list[str]) -> None:
    if ids:
        more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
        raise CacheStale(
            f"cache: {what} {', '.join(ids[:5])}{more}. "
            "Build the cache from the data that is trained on: kdcache cache --task TASK"
        )
