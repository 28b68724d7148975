"""Parquet → rows by id. Nothing is read that the manifest does not vouch for."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdcache.cache.ids import name_some, repeated_ids
from kdcache.cache.location import Location
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.rows import CacheRows
from kdcache.cache.schema import describe_columns
from kdcache.errors import CacheCorrupt, CacheError, CacheMissing, CacheStale, nearest

if TYPE_CHECKING:
    import pandas as pd
    import torch


class CachedSplit:
    """One verified split of a cache; made by ``load_cache``.

    Rows are read when they are first asked for, and then kept; ``stream`` keeps nothing.

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
        return CacheRows.from_table(self._file.read())

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {example_id: row for row, example_id in enumerate(self.rows.example_id)}

    def __contains__(self, example_id: object) -> bool:
        return example_id in self._row_of

    def __getitem__(self, example_id: str) -> CacheRows:
        """The one row of that id.

        Raises:
            CacheStale: the cache does not hold it.
        """
        return self.align([example_id])

    def align(self, ids: Sequence[str], content_hashes: Sequence[str] | None = None) -> CacheRows:
        """Return the rows of ``ids``, in that order: the join is by id, never by position.

        Args:
            ids: example ids of the caller's rows.
            content_hashes: of the same rows; None does not check that their text is the
                one the teacher read.

        Raises:
            CacheStale: ids the cache lacks, ids given twice, or rows whose text has changed.
        """
        where = self._row_of
        self._refuse("ids must be in the cache, got unknown", [i for i in ids if i not in where])
        seen: set[str] = set()
        twice = [i for i in ids if i in seen or seen.add(i)]  # type: ignore[func-returns-value]
        self._refuse("ids must be unique, got twice", twice)
        rows = self.rows.take([where[i] for i in ids])
        if content_hashes is not None:
            pairs = zip(ids, rows.content_hash, content_hashes, strict=True)
            changed = [i for i, ours, theirs in pairs if ours != theirs]
            self._refuse("the text must be what the teacher read, got another text for", changed)
        return rows

    def stream(self) -> Iterator[CacheRows]:
        """Yield the rows of one row group after another, in the order of the file."""
        for group in range(self._file.num_row_groups):
            yield CacheRows.from_table(self._file.read_row_group(group))

    def tensors(
        self, device: "torch.device | str" = "cpu", ids: Sequence[str] | None = None
    ) -> "dict[str, torch.Tensor]":
        """The targets as tensors, moved to the device once, so that a step only gathers rows.

        Args:
            device: where to.
            ids: which rows, in which order; None takes all, in the order of the file.

        Returns:
            ``label`` of shape (rows,), ``logits`` of shape (rows, num_labels) and ``features``
            of shape (rows, dim), as they are kept: float32 and float16; so, too, the cache's
            further columns (see ``CacheRows``).

        Raises:
            CacheError: they do not fit on the device; ``stream`` does.
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
        """The rows as a flat frame: one number per cell.

        Args:
            text: a frame with ``example_id``, whose other columns are joined to the right by id:
                the prepared split, to read the texts beside the logits.

        Returns:
            Columns example_id, label, fold, logit_0 …, prediction, confidence (of the softmax),
            entropy (in nats), margin (best minus second logit), and those of ``text``.

        Raises:
            CacheStale: ``text`` lacks rows of the cache.
        """
        import pandas as pd

        rows = self.rows
        logits = rows.logits.astype(np.float64)
        log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        ranked = np.sort(logits, axis=1)
        frame = pd.DataFrame(
            {"example_id": rows.example_id, "label": rows.label, "fold": rows.fold}
            | {f"logit_{k}": rows.logits[:, k] for k in range(logits.shape[1])}
            | {
                "prediction": logits.argmax(axis=1),
                "confidence": np.exp(log_p.max(axis=1)),
                "entropy": -(np.exp(log_p) * log_p).sum(axis=1),
                "margin": ranked[:, -1] - ranked[:, -2],
            }
        )
        if text is None:
            return frame
        missing = set(rows.example_id) - set(text["example_id"])
        self._refuse("the texts must hold every id, got none of", sorted(missing))
        added = [name for name in text.columns if name == "example_id" or name not in frame]
        return frame.merge(text[added], on="example_id", how="left", validate="one_to_one")

    def _refuse(self, what: str, ids: list[str]) -> None:
        if ids:
            raise CacheStale(
                f"cache of {self.manifest.identity.get('task')}, {self.split}: {what} {name_some(ids)}. "
                f"Build it from the data that is trained on. {self.manifest.rebuild}"
            )


def load_cache(path: Location | Path | str, split: str) -> CachedSplit:
    """Open one split of a cache and verify it: manifest, sha256, schema, row count, ids.

    Args:
        path: the folder ``cache/<task>``, or a URI that pyarrow or fsspec opens.
        split: one of the manifest's.

    Raises:
        CacheMissing: no cache there, or no such split in it.
        CacheCorrupt: bytes, schema or row count are not the manifest's.
        CacheStale: another format version.
    """
    location = Location.parse(path)
    manifest = read_manifest(location)
    if split not in manifest.data:
        raise CacheMissing(
            f"{location}: the split must be in the cache, got {split!r}. {nearest(split, manifest.data)}"
        )
    return CachedSplit(manifest, split, open_file(location, manifest, f"{split}.parquet"))


def open_file(location: Location, manifest: Manifest, name: str) -> pq.ParquetFile:
    """Open a file of the cache whose bytes, schema, row count and ids are what they must be.

    Raises:
        CacheCorrupt: they are not.
    """

    def refuse(what: str, wanted: Any, found: Any) -> None:
        if wanted != found:
            raise CacheCorrupt(f"{location}/{name}: {what} must be {wanted}, got {found}. {manifest.rebuild}")

    entry = manifest.files.get(name, {})
    if not location.exists(name):
        raise CacheCorrupt(
            f"{location}/{name}: the file must be there, as the manifest says, got none. {manifest.rebuild}"
        )
    refuse("its length in bytes", entry.get("bytes"), location.size(name))
    refuse("its sha256", entry.get("sha256"), location.digest(name))
    try:
        file = pq.ParquetFile(location.open(name), page_checksum_verification=True)
        schema = file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CacheCorrupt(
            f"{location}/{name}: it must be a Parquet file, got: {reason}. {manifest.rebuild}"
        ) from None
    if schema != manifest.schema:
        refuse("its columns", manifest.schema.names, schema.names)
        refuse("its column types", manifest.columns, describe_columns(schema))
    refuse("its number of rows", entry.get("rows"), file.metadata.num_rows)
    if twice := repeated_ids(file):
        raise CacheCorrupt(
            f"{location}/{name}: ids must be unique, got twice {name_some(twice)}. {manifest.rebuild}"
        )
    return file
