"""sha256 of files, of values and of rows, each in one canonical form."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return stream_digest(file)


def stream_digest(file: Any) -> str:
    """sha256 of what is left in an open file."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def value_digest(value: Any) -> str:
    """sha256 of a value of plain JSON types, whatever the order of its keys.

    >>> value_digest({"b": 1, "a": 2}) == value_digest({"a": 2, "b": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class RowsDigest:
    """Digest of a set of examples, whatever their order: Σ sha256(label ⇥ content_hash ⇥ id) mod 2²⁵⁶.

    A sum needs neither sorting nor memory, so a split of any size is digested in one pass, and a
    row that is there twice counts twice.

    >>> one, two = RowsDigest(), RowsDigest()
    >>> one.update(["a", "b"], ["x", "y"], [0, 1])
    >>> two.update(["b"], ["y"], [1])
    >>> two.update(["a"], ["x"], [0])
    >>> one.hexdigest() == two.hexdigest()
    True
    """

    def __init__(self) -> None:
        self._total = 0

    def update(self, ids: Iterable[str], content_hashes: Iterable[str], labels: Iterable[int]) -> None:
        """Add rows."""
        for example_id, content_hash, label in zip(ids, content_hashes, labels, strict=True):
            row = hashlib.sha256(f"{label}\t{content_hash}\t{example_id}".encode())
            self._total += int.from_bytes(row.digest())

    def hexdigest(self) -> str:
        """The sum so far, as 64 hexadecimal digits."""
        return f"{self._total % 2**256:064x}"
