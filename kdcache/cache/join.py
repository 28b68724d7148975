"""Joining two tables of rows by id, whatever their order, in some 50 bytes of memory per row at the peak.

With a folder for the keys, it is some 25 bytes.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdcache.cache.schema import ROW_GROUP_ROWS
from kdcache.data.ids import NAMED, hash_ids
from kdcache.on_disk import Growing, empty, release

LOOKED_UP = 2**20  # ids at a time
RELEASED = 2**19  # rows after which mapped keys leave memory: what is looked up next is read again
COLUMNS = ("example_id", "content_hash", "label")
# Opens a table from its start: batches with at least ``COLUMNS``.
Batches = Callable[[], Iterable[pa.RecordBatch]]


def batches_of(file: pq.ParquetFile) -> Batches:
    """Return what opens a file's keys from its start."""
    return lambda: file.iter_batches(ROW_GROUP_ROWS, columns=list(COLUMNS))


@dataclass(frozen=True)
class Keys:
    """Rows by their hashes, in the order of the table.

    Args:
        ids, texts: hashes of id and content hash, int64 of shape (rows,).
        labels: int64 of shape (rows,).
        folder: for what takes much memory, see ``on_disk``; None holds all.
    """

    ids: np.ndarray
    texts: np.ndarray
    labels: np.ndarray
    folder: Path | None = None

    @classmethod
    def of(cls, batches: Batches, folder: Path | None = None) -> "Keys":
        """Read the keys of a table."""
        ids, texts, labels = (Growing(np.int64, folder) for _ in range(3))
        for batch in batches():
            ids.append(hash_ids(batch["example_id"].to_pylist()))
            texts.append(hash_ids(batch["content_hash"].to_pylist()))
            labels.append(batch["label"].to_numpy())
        return cls(ids.whole(), texts.whole(), labels.whole(), folder)

    @cached_property
    def _in_order(self) -> tuple[np.ndarray, np.ndarray]:
        """The ids in ascending order, and the row of each."""
        row, ids = (empty(self.ids.shape, dtype, self.folder) for dtype in (np.int32, np.int64))
        row[:] = np.argsort(self.ids)
        release()
        for start in range(0, len(row), LOOKED_UP):
            ids[start : start + LOOKED_UP] = self.ids[row[start : start + LOOKED_UP]]
        release()
        return ids, row

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Return for each hash of an id its row here, or −1, as int32: no split has 2³¹ rows."""
        row = np.full(len(ids), -1, np.int32)
        if not len(self.ids):
            return row
        ordered, rows = self._in_order
        for start in range(0, len(ids), LOOKED_UP):
            part = ids[start : start + LOOKED_UP]
            place = np.minimum(np.searchsorted(ordered, part), len(ordered) - 1)
            row[start : start + LOOKED_UP] = np.where(ordered[place] == part, rows[place], -1)
        return row


@dataclass(frozen=True)
class Joined:
    """Two tables by id; each field but the first is a bool array over the rows of one of them.

    Args:
        row: of the second table, for each row of the first; −1 where there is none.
        only_a, texts, labels: rows of the first without a partner, with another text, with another label.
        only_b: rows of the second without a partner.
    """

    row: np.ndarray
    only_a: np.ndarray
    only_b: np.ndarray
    texts: np.ndarray
    labels: np.ndarray


def join_keys(a: Batches, b: Batches, folder: Path | None = None) -> Joined:
    """Join two tables of unique ids. Of ``b`` the keys are held, of ``a`` a few bytes per row.

    Args:
        a, b: open the tables.
        folder: for the keys of ``b``, see ``on_disk``; None holds them.
    """
    of_b = Keys.of(b, folder)
    only_b = np.ones(len(of_b.ids), bool)
    rows, texts, labels = Growing(np.int32, None), Growing(bool, None), Growing(bool, None)
    seen = 0
    for batch in a():
        row = of_b.find(hash_ids(batch["example_id"].to_pylist()))
        shared = np.flatnonzero(row >= 0)
        of_shared = row[shared]
        only_b[of_shared] = False
        changed = np.zeros((2, len(row)), bool)
        changed[0, shared] = hash_ids(batch["content_hash"].to_pylist())[shared] != of_b.texts[of_shared]
        changed[1, shared] = batch["label"].to_numpy()[shared] != of_b.labels[of_shared]
        for column, values in ((rows, row), (texts, changed[0]), (labels, changed[1])):
            column.append(values)
        seen += len(batch)
        if seen % RELEASED < len(batch):
            release()
    whole = rows.whole()
    return Joined(whole, whole < 0, only_b, texts.whole(), labels.whole())


def pick(batches: Batches, chosen: np.ndarray) -> Iterator[str]:
    """Yield the ids of some rows.

    Args:
        batches: of the table.
        chosen: bool array of shape (rows,).
    """
    start = 0
    for batch in batches():
        part = chosen[start : start + len(batch)]
        start += len(batch)
        if part.any():
            yield from batch["example_id"].filter(pa.array(part)).to_pylist()


def name_chosen(batches: Batches, chosen: np.ndarray) -> str:
    """Name up to five of some rows, and count the others; see ``ids.name_some``."""
    count = int(chosen.sum())
    named = [example_id for example_id, _ in zip(pick(batches, chosen), range(NAMED), strict=False)]
    return ", ".join(named) + (f" and {count - NAMED} more" if count > NAMED else "")
