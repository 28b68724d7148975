"""Reading a cache: verified files, rows by id, tensors and data frames."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdcache.cache.cached_rows import CacheRows, compute_uncertainty, vectors_of
from kdcache.cache.ids import name_some, repeated, repeated_in_file
from kdcache.cache.join import batches_of
from kdcache.cache.location import Location
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.schema import MEAN_OF_FOLDS, SCALARS, describe_columns, find_unlawful
from kdcache.data.parquet_claims import NOT_WHOLE, find_impossible, read_claims
from kdcache.errors import CacheCorrupt, CacheError, CacheMissing, CacheStale, nearest

if TYPE_CHECKING:
    import pandas as pd
    import torch


class CachedSplit:
    """One verified split of a cache, as ``load_cache`` returns it.

    Rows are read at the first request and then kept; ``stream``, ``keys`` and ``logits`` keep nothing.

    Args:
        manifest: of the cache.
        split: name of the split.
        file: the open Parquet file.
    """

    def __init__(self, manifest: Manifest, split: str, file: pq.ParquetFile) -> None:
        self.manifest, self.split = manifest, split
        self._file = file

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    def __repr__(self) -> str:
        columns = ", ".join(" ".join(reversed(column)) for column in self.manifest.columns[4:])
        return f"<{self.manifest.identity.get('task')} {self.split}: {len(self)} rows, {columns}>"

    @cached_property
    def rows(self) -> CacheRows:
        """All rows, in the order of the file."""
        return CacheRows.joined(list(self.stream()))

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {example_id: row for row, example_id in enumerate(self.rows.example_id)}

    def __contains__(self, example_id: object) -> bool:
        return example_id in self._row_of

    def __getitem__(self, example_id: str) -> CacheRows:
        """Return the row of one id.

        Raises:
            CacheStale: the cache does not hold that id.
        """
        return self.align([example_id])

    def align(self, ids: Sequence[str], content_hashes: Sequence[str] | None = None) -> CacheRows:
        """Return the rows of ``ids``, in that order. The join is by id, never by position.

        Args:
            ids: example ids of the caller's rows.
            content_hashes: of the same rows. If given, each text must be the one that the teacher
                read.

        Raises:
            CacheStale: an id is not in the cache or is given twice, or a text has changed.
        """
        where = self._row_of
        self._refuse("ids must be in the cache, got unknown", [i for i in ids if i not in where])
        self._refuse("ids must be unique, got twice", repeated(ids))
        rows = self.rows.take([where[i] for i in ids])
        if content_hashes is not None:
            pairs = zip(ids, rows.content_hash, content_hashes, strict=True)
            changed = [i for i, ours, theirs in pairs if ours != theirs]
            self._refuse("the text must be what the teacher read, got another text for", changed)
        return rows

    def stream(self, vectors: Sequence[str] | None = None) -> Iterator[CacheRows]:
        """Yield the rows one row group at a time, in the order of the file.

        Args:
            vectors: the columns of vectors to read, ``logits`` among them; None reads all.
        """
        names = [n for n in self._file.schema_arrow.names if vectors is None or n in (*SCALARS, *vectors)]
        with self._whole():
            for group in range(self._file.num_row_groups):
                yield self._sound(CacheRows.from_table(self._file.read_row_group(group, columns=names)))

    def keys(self) -> Iterator[pa.RecordBatch]:
        """Yield id, content hash and label of the rows, in the order of the file."""
        with self._whole():
            yield from batches_of(self._file)()

    @property
    def num_logits(self) -> int:
        """Number of logits per row."""
        return self.manifest.schema.field("logits").type.list_size

    def logits(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the logits of some rows, of shape (rows, num_labels), in the order of the file."""
        stop = len(self) if stop is None else stop
        found = np.empty((stop - start, self.num_logits), np.float32)
        low = 0
        with self._whole():
            for group in range(self._file.num_row_groups):
                high = low + self._file.metadata.row_group(group).num_rows
                if high > start and low < stop:
                    part = vectors_of(self._file.read_row_group(group, columns=["logits"])["logits"])
                    first, last = max(low, start), min(high, stop)
                    found[first - start : last - start] = part[first - low : last - low]
                low = high
        return found

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        try:
            yield
        except NOT_WHOLE as error:
            raise CacheCorrupt(
                f"cache of {self.manifest.identity.get('task')}, {self.split}: its pages must be whole, "
                f"got: {str(error).splitlines()[0]}. {self.manifest.rebuild}"
            ) from None

    def tensors(
        self, device: "torch.device | str" = "cpu", ids: Sequence[str] | None = None
    ) -> "dict[str, torch.Tensor]":
        """Return the targets as tensors on a device, so that a training step only gathers rows.

        Args:
            device: of the tensors.
            ids: the rows to return, in that order; None returns all, in the order of the file.

        Returns:
            ``label`` of shape (rows,), ``logits`` of shape (rows, num_labels) in float32,
            ``features`` of shape (rows, dim) in float16, and the cache's other columns of vectors
            by their names in the file (see ``CacheRows``).

        Raises:
            CacheError: the tensors do not fit on the device. Use ``stream``.
            CacheStale: see ``align``.
        """
        import torch

        rows = self.rows if ids is None else self.align(ids)
        arrays = {"label": rows.label, **rows.vectors}
        needed = sum(array.nbytes for array in arrays.values())
        device = torch.device(device)
        if device.type == "cuda" and needed > (free := torch.cuda.mem_get_info(device)[0]):
            raise CacheError(
                f"{self!r}: the targets must fit on {device} ({free} bytes free), got {needed} bytes. "
                "Use stream(), which reads one row group at a time."
            )
        return {name: torch.from_numpy(array.copy()).to(device) for name, array in arrays.items()}

    def to_pandas(self, text: "pd.DataFrame | None" = None) -> "pd.DataFrame":
        """Return the rows as a flat data frame, one number per cell.

        Args:
            text: a frame with ``example_id``, such as the prepared split. Its other columns are
                joined on the right by id.

        Returns:
            Columns example_id, label, fold, logit_0 …, prediction, confidence (the largest
            probability), entropy (in nats), margin (largest minus second largest logit), and those
            of ``text``.

        Raises:
            CacheStale: ``text`` lacks rows of the cache.
        """
        import pandas as pd

        rows = self.rows
        found = compute_uncertainty(rows.logits)
        frame = pd.DataFrame(
            {"example_id": rows.example_id, "label": rows.label, "fold": rows.fold}
            | {f"logit_{k}": rows.logits[:, k] for k in range(rows.logits.shape[1])}
            | {
                "prediction": rows.logits.argmax(axis=1),
                "confidence": np.exp(found.log_p.max(axis=1)),
                "entropy": found.entropy,
                "margin": found.margin,
            }
        )
        if text is None:
            return frame
        missing = set(rows.example_id) - set(text["example_id"])
        self._refuse("the texts must hold every id, got none for", sorted(missing))
        added = [name for name in text.columns if name == "example_id" or name not in frame]
        return frame.merge(text[added], on="example_id", how="left", validate="one_to_one")

    def _sound(self, rows: CacheRows) -> CacheRows:
        for what, wrong in find_faults(rows, self.manifest).items():
            if ids := [rows.example_id[i] for i in np.flatnonzero(wrong)]:
                name = f"cache of {self.manifest.identity.get('task')}, {self.split}"
                raise CacheCorrupt(f"{name}: {what} {name_some(ids)}. {self.manifest.rebuild}")
        return rows

    def _refuse(self, what: str, ids: list[str]) -> None:
        if ids:
            raise CacheStale(
                f"cache of {self.manifest.identity.get('task')}, {self.split}: {what} {name_some(ids)}. "
                f"Build it from the data that is trained on. {self.manifest.rebuild}"
            )


def find_faults(rows: CacheRows, manifest: Manifest) -> dict[str, np.ndarray]:
    """Find rows that no teacher and no task can have: what is wrong → whether it is, of shape (rows,).

    Args:
        rows: with the columns to look at.
        manifest: of their cache.
    """
    finite = np.ones(len(rows), bool)
    for values in rows.vectors.values():
        finite &= np.isfinite(values).all(axis=1)
    possible = (rows.label >= -1) & (rows.label < len(manifest.identity["labels"]))
    possible &= (rows.fold >= MEAN_OF_FOLDS) & (rows.fold < max(1, manifest.num_folds))
    return {
        "every number must be finite, not so in": ~finite, "label or fold is impossible in": ~possible
    }  # fmt: skip


def load_cache(path: Location | Path | str, split: str) -> CachedSplit:
    """Open one split of a cache, and verify its manifest, sha256, schema, row count and ids.

    Args:
        path: the folder ``cache/<task>``, or a URI that pyarrow or fsspec opens.
        split: name of a split in the cache.

    Raises:
        CacheMissing: there is no cache, or it lacks that split.
        CacheCorrupt: bytes, schema or row count differ from the manifest's.
        CacheStale: the cache has another format version.
    """
    location = Location.parse(path)
    manifest = read_manifest(location)
    if split not in manifest.data:
        raise CacheMissing(
            f"{location}: the split must be in the cache, got {split!r}. {nearest(split, manifest.data)}"
        )
    return CachedSplit(manifest, split, open_file(location, manifest, f"{split}.parquet"))


def open_file(location: Location, manifest: Manifest, name: str) -> pq.ParquetFile:
    """Open a file of the cache, and verify its bytes, schema, row count and ids.

    Raises:
        CacheCorrupt: one of them is not what the manifest says.
    """

    def refuse(what: str, wanted: Any, found: Any) -> None:
        if wanted != found:
            raise CacheCorrupt(f"{location}/{name}: {what} must be {wanted}, got {found}. {manifest.rebuild}")

    entry = manifest.files.get(name)
    if entry is None:
        raise CacheCorrupt(f"{location}/{name}: the manifest must list the file. {manifest.rebuild}")
    if not location.exists(name):
        raise CacheCorrupt(
            f"{location}/{name}: the file must be there, as the manifest says, got none. {manifest.rebuild}"
        )
    refuse("its length in bytes", entry["bytes"], location.size(name))
    refuse("its sha256", entry["sha256"], location.digest(name))
    try:
        source = location.open(name)
        file = pq.ParquetFile(source, page_checksum_verification=True)
        schema, claims = file.schema_arrow, read_claims(source)
    except NOT_WHOLE as error:
        reason = str(error).splitlines()[0]
        raise CacheCorrupt(
            f"{location}/{name}: it must be a Parquet file, got: {reason}. {manifest.rebuild}"
        ) from None
    if schema != manifest.schema:
        refuse("its columns", manifest.schema.names, schema.names)
        refuse("its column types", manifest.columns, describe_columns(schema))
    refuse("its number of rows", entry["rows"], file.metadata.num_rows)
    if problem := find_impossible(claims) or find_unlawful(claims, schema):
        refuse("its footer", "what the format allows", problem)
    try:
        twice = repeated_in_file(file)
    except NOT_WHOLE as error:
        refuse("its pages", "whole", str(error).splitlines()[0])
    if twice:
        raise CacheCorrupt(
            f"{location}/{name}: ids must be unique, got twice {name_some(twice)}. {manifest.rebuild}"
        )
    return file
