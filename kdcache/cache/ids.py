"""Example ids: finding repeated ones, and naming a few in a message."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow.parquet as pq

NAMED = 5


def name_some(ids: Sequence[str]) -> str:
    """Name up to five ids, and count the others.

    >>> name_some(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d, e and 1 more'
    """
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return ", ".join(ids[:NAMED]) + more


def repeated(ids: Iterable[str]) -> list[str]:
    """Return the ids that are given more than once, each once, in order.

    >>> repeated(["b", "a", "b", "b"])
    ['b']
    """
    return [i for i, count in Counter(ids).items() if count > 1]


def repeated_in_file(file: pq.ParquetFile) -> list[str]:
    """Return the ids that a file holds more than once, in 8 bytes of memory per row.

    Hashes are compared first. Only ids whose hashes collide are then compared themselves.
    """
    hashes = np.empty(file.metadata.num_rows, np.int64)
    filled = 0
    for ids in _ids(file):
        hashes[filled : filled + len(ids)] = [hash(i) for i in ids]
        filled += len(ids)
    hashes.sort()
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not suspects:
        return []
    return repeated(i for ids in _ids(file) for i in ids if hash(i) in suspects)


def _ids(file: pq.ParquetFile) -> Iterator[list[str]]:
    for group in range(file.num_row_groups):
        yield file.read_row_group(group, columns=["example_id"])["example_id"].to_pylist()
