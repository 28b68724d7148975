"""Reading a cache: verified files, rows by id, tensors and data frames."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from kdcache.cache.cached_rows import CacheRows, compute_uncertainty
from kdcache.cache.columns import read_logits
from kdcache.cache.join import Batches, join_keys, pick
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.open_file import OpenSplit, open_files
from kdcache.cache.schema import MEAN_OF_FOLDS, SCALARS, row_column, row_schema
from kdcache.data.ids import name_some, repeated
from kdcache.errors import CacheCorrupt, CacheError, CacheMissing, CacheStale, nearest
from kdcache.on_disk import release
from kdcache.store.location import Location

if TYPE_CHECKING:
    import pandas as pd
    import torch

CHANGED = "the text must be what the teacher read, got another text for"


class CachedSplit:
    """One verified split of a cache, as ``load_cache`` returns it.

    Rows are read at the first request and then kept; ``stream``, ``keys`` and ``logits`` keep nothing.

    Args:
        manifest: of the cache.
        split: name of the split.
        opened: its files.
    """

    def __init__(self, manifest: Manifest, split: str, opened: OpenSplit) -> None:
        self.manifest, self.split = manifest, split
        self._opened, self._name = opened, f"cache of {manifest.identity['task']}, {split}"
        self.num_logits = len(manifest.identity["labels"])
        self.schema = row_schema(manifest.schema, self.num_logits)  # of ``rows``

    def __len__(self) -> int:
        return self.manifest.sum_of(self.split, "rows")

    def __repr__(self) -> str:
        columns = ", ".join(" ".join(reversed(column)) for column in self.manifest.columns[4:])
        return f"<{self.manifest.identity.get('task')} {self.split}: {len(self)} rows, {columns}>"

    @cached_property
    def rows(self) -> CacheRows:
        """All rows, in the order of the files."""
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
        _ = self.rows  # read once: others will be asked for
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
        self._refuse("ids must be unique, got twice", repeated(ids))
        if "rows" in self.__dict__:
            where = self._row_of
            self._refuse("ids must be in the cache, got unknown", [i for i in ids if i not in where])
            rows = self.rows.take([where[i] for i in ids])
        else:
            rows = self._gather(ids)
        if content_hashes is not None:
            changed = [i for i, a, b in zip(ids, rows.content_hash, content_hashes, strict=True) if a != b]
            self._refuse(CHANGED, changed)
        return rows

    def _gather(self, ids: Sequence[str]) -> CacheRows:
        """Return the rows of unique ids, with these and one row group in memory."""
        where = {example_id: place for place, example_id in enumerate(ids)}
        found = CacheRows.empty(self.schema, len(ids))
        for part in self.stream():
            rows = [row for row, example_id in enumerate(part.example_id) if example_id in where]
            if rows:
                found.put([where.pop(part.example_id[row]) for row in rows], part.take(rows))
        self._refuse("ids must be in the cache, got unknown", [i for i in ids if i in where])
        return found

    def targets(self, keys: Batches, folder: Path | None = None) -> CacheRows:
        """Return what a table's rows are taught, in its order, without ids and hashes; none are held.

        Args:
            keys: opens the table, see ``join.Batches``.
            folder: for vectors that take much memory, see ``on_disk``.

        Raises:
            CacheStale: see ``align``.
        """
        found = join_keys(keys, self.keys, folder)
        if (found.row >= 0).sum() > (~found.only_b).sum():
            ids = (i for batch in keys() for i in batch["example_id"].to_pylist())
            self._refuse("ids must be unique, got twice", repeated(ids))
        self._refuse("ids must be in the cache, got unknown", list(pick(keys, found.only_a)))
        self._refuse(CHANGED, list(pick(keys, found.texts)))
        place = np.full(len(self), -1, np.int32)
        place[found.row] = np.arange(len(found.row))
        rows, start = CacheRows.empty(self.schema, len(found.row), False, folder), 0
        for part in self.stream():
            here = place[start : start + len(part)]
            start += len(part)
            rows.put(here[here >= 0], part.take(np.flatnonzero(here >= 0)))
            release()
        return rows

    def stream(self, vectors: Sequence[str] | None = None) -> Iterator[CacheRows]:
        """Yield the rows in the order of the files, a row group at a time, see ``CacheRows.parts_of``.

        Args:
            vectors: the columns of vectors to read, ``logits`` among them; None reads all.
        """
        for _, table in self._opened.groups(self._columns(None if vectors is None else (*SCALARS, *vectors))):
            yield from map(self._sound, CacheRows.parts_of(table, self.num_logits, self._name))

    def _columns(self, columns: Sequence[str] | None) -> list[str]:
        """Return what the files hold of some columns of rows; None is all."""
        return [n for n in self.manifest.schema.names if columns is None or row_column(n) in columns]

    def keys(self) -> Iterator[pa.RecordBatch]:
        """Yield id, content hash and label of the rows, in the order of the files."""
        yield from self._opened.keys()

    def logits(self, start: int, stop: int) -> np.ndarray:
        """Return the logits of some rows, of shape (rows, num_labels), in the order of the files."""
        found = np.empty((stop - start, self.num_logits), np.float32)
        for low, table in self._opened.groups(self._columns(["example_id", "logits"]), range(start, stop)):
            first, last = max(low, start), min(low + len(table), stop)
            part = table.slice(first - low, last - first)
            found[first - start : last - start] = read_logits(part, "logits", self.num_logits, self._name)
        return found

    def tensors(
        self, device: "torch.device | str" = "cpu", ids: Sequence[str] | None = None
    ) -> "dict[str, torch.Tensor]":
        """Return the targets as tensors on a device, so that a training step only gathers rows.

        Args:
            device: of the tensors.
            ids: the rows to return, in that order; None returns all, in the order of the files.

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
        for what, wrong in find_faults(rows, self.manifest).values():
            if ids := [rows.example_id[i] for i in np.flatnonzero(wrong)]:
                raise CacheCorrupt(f"{self._name}: {what} {name_some(ids)}. {self.manifest.rebuild}")
        return rows

    def _refuse(self, what: str, ids: list[str]) -> None:
        if ids:
            raise CacheStale(
                f"{self._name}: {what} {name_some(ids)}. Build it from the data that is trained on. "
                f"{self.manifest.rebuild}"
            )


def find_faults(rows: CacheRows, manifest: Manifest) -> dict[str, tuple[str, np.ndarray]]:
    """Find rows that no teacher and no task can have.

    Args:
        rows: with the columns to look at.
        manifest: of their cache.

    Returns:
        What is looked at → what to say of it, and whether a row has that fault, of shape (rows,).
    """
    finite = np.ones(len(rows), bool)
    for values in rows.vectors.values():
        finite &= np.isfinite(values).all(axis=1)
    possible = (rows.label >= -1) & (rows.label < len(manifest.identity["labels"]))
    possible &= (rows.fold >= MEAN_OF_FOLDS) & (rows.fold < max(1, manifest.num_folds))
    return {
        "finite": ("every number must be finite, not so in", ~finite),
        "labels, folds": ("label or fold is impossible in", ~possible),
    }


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
    return CachedSplit(manifest, split, open_files(location, manifest, split))
