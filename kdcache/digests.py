"""sha256 of files, of values and of rows, each in one canonical form."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdcache.errors import KdcacheError

SEAL = "digests.json"  # file name → sha256, of files that later stages read


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return stream_digest(file)


def stream_digest(file: Any) -> str:
    """sha256 of what is left in an open file."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def seal(path: Path) -> None:
    """Write the digest of a file beside it, among those of the other files there."""
    beside = path.parent / SEAL
    known = json.loads(beside.read_bytes()) if beside.is_file() else {}
    text = json.dumps(known | {path.name: file_digest(path)}, indent=2, sort_keys=True)
    part = beside.with_suffix(".part")
    part.write_text(text + "\n", encoding="utf-8")
    os.replace(part, beside)


def check_seal(path: Path, remedy: str, error: type[KdcacheError]) -> Path:
    """Return a file that has the digest that was written beside it.

    Raises:
        error: it has another one, or none was written; ends with the remedy.
    """
    try:
        wanted = json.loads((path.parent / SEAL).read_bytes())[path.name]
    except (OSError, ValueError, KeyError, TypeError):
        wanted = "none"
    if (found := file_digest(path)) != wanted:
        raise error(f"{path}: its sha256 must be {wanted} as in {SEAL}, got {found}. {remedy}")
    return path


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
