"""Example ids: finding repeated ones, and naming a few in a message."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from kdcache.on_disk import Growing

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


def hash_ids(ids: Sequence[str]) -> np.ndarray:
    """Hash ids with the hash of this process, which no file can foresee."""
    return np.fromiter(map(hash, ids), np.int64, len(ids))


def more_than_once(hashes: np.ndarray) -> set[int]:
    """Return the values that occur more than once; sorts the array in place."""
    hashes.sort()
    return set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())


def repeated_in_parts(open_parts: Callable[[], Iterable[Sequence[str]]]) -> list[str]:
    """Return the ids that stand more than once in some parts, in 8 bytes of memory per id.

    Hashes are compared first. Only ids whose hashes collide are then compared themselves.

    Args:
        open_parts: opens the parts from the start.
    """
    growing = Growing(np.int64, None)
    for ids in open_parts():
        growing.append(hash_ids(ids))
    suspects = more_than_once(growing.whole())
    if not suspects:
        return []
    return repeated(i for ids in open_parts() for i in ids if hash(i) in suspects)
