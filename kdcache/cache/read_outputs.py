"""Reading a teacher's outputs from a file: one rule for which number belongs to which label.

A file holds, per example id, one number per label: logits, probabilities or log-probabilities.
The numbers are in one column per label (``logit_0``, ``probability_true``, ``logprob_2``), in one list
in index order (``logits``, ``probabilities``, ``logprobs``), or in a mapping under one of these names.

A name is a label where it reads as one of the task's, and an index only where none of the names does. What
is ambiguous, surplus, missing or of another length is refused.
"""

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.cache.npz import read_npz
from kdcache.cache.schema import ROW_GROUP_ROWS
from kdcache.data.ids import name_some, repeated
from kdcache.data.parsers import Layout, Row
from kdcache.data.readers import read_rows
from kdcache.errors import DataError, shorten

KINDS = {"logits": "logit", "probabilities": "probability", "logprobs": "logprob"}
FILE_ENDINGS = (".csv", ".jsonl", ".parquet", ".npz")


@dataclass(frozen=True)
class Outputs:
    """The content of a file.

    Args:
        example_id: of each row; ids are unique.
        kind: a key of ``KINDS``.
        values: float64 array of shape (rows, num_labels), NaN for a label without a number.
        features: float32 array of shape (rows, dim); dim is 0 if the file has no features.
        content_hash: of each row, if the file has them.
        label: int64 array of shape (rows,): the index in a column ``label``, which tells whether numbers that
            are not named by label are in the order of the labels; −1 where there is none, where the numbers
            are named, and where labels are numbers themselves.
    """

    example_id: list[str]
    kind: str
    values: np.ndarray
    features: np.ndarray
    content_hash: list[str] | None
    label: np.ndarray


def read_outputs(path: Path, labels: Sequence[str], id_column: str = "example_id") -> Outputs:
    """Read a teacher's outputs. The file's ending decides the format.

    Args:
        path: a .csv, .jsonl, .parquet or .npz file.
        labels: the task's label names, in index order.
        id_column: name of the column of ids.

    Raises:
        DataError: the file is missing, has another ending, lacks ids or numbers, or repeats an id; a number
            whose label is not plain, or a row that differs in kind or length from the first.
    """
    parts = list(stream_outputs(path, labels, id_column))
    ids = [i for part in parts for i in part.example_id]
    if twice := repeated(ids):
        raise DataError(f"{path}: ids must be unique, got twice {name_some(twice)}.")
    hashes = [i for part in parts for i in part.content_hash or ()]
    values, features, label = (
        np.concatenate([getattr(p, n) for p in parts]) for n in ("values", "features", "label")
    )
    return Outputs(ids, parts[0].kind, values, features, hashes or None, label)


def stream_outputs(path: Path, labels: Sequence[str], id_column: str = "example_id") -> Iterator[Outputs]:
    """Read a teacher's outputs as ``read_outputs`` does, some rows at a time; ids may repeat.

    Raises:
        DataError: see ``read_outputs``.
    """
    require_ending(path)
    if not path.is_file():
        raise DataError(f"{path}: the file does not exist.")
    reader = _Reader(labels, id_column)
    for row in _npz_rows(path, id_column) if path.suffix == ".npz" else read_rows(path, Layout(), [], None):
        reader.add(row)
        if len(reader.ids) == ROW_GROUP_ROWS:
            yield reader.part(path)
    if reader.ids or reader.read == 0:
        yield reader.part(path)


def require_ending(path: Path) -> None:
    """Refuse a file of another format.

    Raises:
        DataError: its ending is none of ``FILE_ENDINGS``.
    """
    if path.suffix not in FILE_ENDINGS:
        raise DataError(
            f"{path}: the file must end in {', '.join(FILE_ENDINGS)}, got {path.suffix or 'no ending'}."
        )


class _Reader:
    """Takes rows one by one, and keeps the numbers of one part."""

    def __init__(self, labels: Sequence[str], id_column: str) -> None:
        self.labels, self.id_column = labels, id_column
        self.ids: list[str] = []
        self.hashes: list[str] = []
        self.values, self.features, self.label = array("d"), array("f"), array("q")
        self.kind, self.dim = "", -1
        self.read = self.hashed = 0
        self.found: dict[tuple[str, ...], tuple[str, dict[str, int]]] = {}
        self.has_index = id_column != "label" and not any(map(_is_number, labels))

    def add(self, row: Row) -> None:
        if row.values.get(self.id_column) in (None, ""):
            raise DataError(
                f"{row.where}: the column {self.id_column} must hold the id, got columns "
                f"{', '.join(row.values)}. Name the column of ids with --id-column."
            )
        self.ids.append(str(row.values[self.id_column]))
        if row.values.get("content_hash") is not None:
            self.hashes.append(str(row.values["content_hash"]))
        columns = tuple(name for name, value in row.values.items() if value is not None or name not in KINDS)
        if columns not in self.found:
            self.found[columns] = self._find(row.where, columns)
        kind, flat = self.found[columns]
        self.kind = self.kind or kind
        if kind != self.kind:
            raise DataError(f"{row.where}: each row must hold {self.kind}, as the first does, got {kind}.")
        self.values.extend(self._numbers(row, kind, flat))
        self._add_features(row)

    def part(self, path: Path) -> Outputs:
        """Return the rows since the last part, and let go of them."""
        rows = len(self.ids)
        self.read, self.hashed = self.read + rows, self.hashed + len(self.hashes)
        if self.hashed not in (0, self.read):
            raise DataError(f"{path}: each of {self.read} rows must have a content_hash, got {self.hashed}.")
        values = np.array(self.values, np.float64).reshape(rows, len(self.labels))
        features = np.array(self.features, np.float32).reshape(rows, max(self.dim, 0))
        label = np.array(self.label, np.int64)
        outputs = Outputs(self.ids, self.kind, values, features, self.hashes or None, label)
        self.ids, self.hashes = [], []
        self.values, self.features, self.label = array("d"), array("f"), array("q")
        return outputs

    def _find(self, where: str, columns: Sequence[str]) -> tuple[str, dict[str, int]]:
        """Find the kind of a row's numbers and, if they are in one column per label, column → index."""
        flat = {kind: {c: c.removeprefix(f"{p}_") for c in columns if c.startswith(f"{p}_")}
                for kind, p in KINDS.items()}  # fmt: skip
        kinds = [kind for kind in KINDS if flat[kind] or kind in columns]
        if len(kinds) > 1 or (kinds and kinds[0] in columns and flat[kinds[0]]):
            there = [
                column for column in columns if column in KINDS or any(column in f for f in flat.values())
            ]
            raise DataError(
                f"{where}: the numbers must be there once, got {', '.join(there)}. Leave one of them."
            )
        if not kinds:
            shown = " or ".join(f"{prefix}_{self.labels[0]} …" for prefix in KINDS.values())
            raise DataError(
                f"{where}: the row must hold {', '.join(KINDS)} or columns {shown} for each of "
                f"{', '.join(self.labels)}, got {', '.join(columns)}."
            )
        kind = kinds[0]
        if kind in columns:
            return kind, {}
        index = self._indices(where, list(flat[kind].values()))
        if missing := [name for k, name in enumerate(self.labels) if k not in index.values()]:
            raise DataError(f"{where}: each label must have a column, got none for {', '.join(missing)}.")
        return kind, {column: index[name] for column, name in flat[kind].items()}

    def _indices(self, where: str, names: Sequence[str]) -> dict[str, int]:
        """Name → index of its label."""
        labels = [name for name in names if name in self.labels]
        if labels:
            others = [name for name in names if name not in self.labels]
            by_name = {name: self.labels.index(name) for name in labels}
        else:
            places = {str(k): k for k in range(len(self.labels))}
            others = [name for name in names if name not in places]
            by_name = {name: places[name] for name in names if name in places}
            numbers = {name: k for k, name in enumerate(self.labels) if _is_number(name)}
            if not others and any(float(name) != k for name, k in numbers.items()):
                raise DataError(
                    f"{where}: {', '.join(names)} must be the labels as the task spells them, as these are "
                    f"numbers themselves: {', '.join(self.labels)}. Name each number by its label."
                )
        if others:
            raise DataError(
                f"{where}: the numbers must be named by the labels {', '.join(self.labels)}, or all by index "
                f"from 0 to {len(self.labels) - 1}, got also {name_some(others)}. Remove or rename it."
            )
        return by_name

    def _numbers(self, row: Row, kind: str, flat: dict[str, int]) -> list[float]:
        index: dict[Any, int]
        given = row.values[kind] if not flat else {c: row.values[c] for c in flat}
        if isinstance(given, list) and given and all(isinstance(one, tuple) for one in given):
            if twice := repeated(str(name) for name, _ in given):  # a map of Arrow
                raise DataError(
                    f"{row.where}: {kind} must have each name once, got twice {name_some(twice)}."
                )
            given = {str(name): number for name, number in given}
        by_label = any(name.partition("_")[2] in self.labels for name in flat)
        by_label = by_label or (isinstance(given, dict) and any(name in self.labels for name in given))
        self.label.append(-1 if by_label or not self.has_index else self._index(row.values.get("label")))
        if flat:
            index = flat
        elif isinstance(given, dict):
            given = {name: number for name, number in given.items() if number is not None}
            index = self._indices(f"{row.where}: {kind}", list(given))
        else:
            given = list(given) if isinstance(given, (list, np.ndarray)) else [given]
            if len(given) != len(self.labels):
                raise DataError(
                    f"{row.where}: {kind} must hold {len(self.labels)} numbers ({', '.join(self.labels)}), "
                    f"got {shorten(given)}."
                )
            given = dict(enumerate(given))
            index = {k: k for k in range(len(given))}
        numbers = [float("nan")] * len(self.labels)
        for name, number in given.items():
            numbers[index[name]] = _number(number, f"{row.where}: {name if flat else kind}")
        return numbers

    def _index(self, label: Any) -> int:
        """Return a label that is an index, or −1."""
        numeric = isinstance(label, (int, float, np.integer, np.floating)) and not isinstance(label, bool)
        return int(label) if numeric and label in range(len(self.labels)) else -1

    def _add_features(self, row: Row) -> None:
        given = row.values.get("features")
        vector = [] if given is None else given
        try:
            found: np.ndarray = np.asarray(vector, np.float32)
        except (ValueError, TypeError, OverflowError):
            found = np.empty((), np.float32)
        self.dim = len(found) if self.dim < 0 and found.ndim == 1 else self.dim
        if found.ndim != 1 or len(found) != self.dim:
            wanted = f"{self.dim} numbers, as in the first row" if self.dim >= 0 else "a list of numbers"
            raise DataError(f"{row.where}: features must be {wanted}, got {shorten(given)}.")
        self.features.frombytes(found.tobytes())


def _number(value: Any, where: str) -> float:
    """A number, or NaN where there is none."""
    if value is None or value == "":
        return float("nan")
    try:
        if isinstance(value, (bool, np.bool_, complex, np.complexfloating)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{where} must be a number, got {shorten(value)}.") from None


def _is_number(name: str) -> bool:
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False


def _npz_rows(path: Path, id_column: str) -> Iterator[Row]:
    rows = read_npz(path, lambda name: _is_read(name, id_column), optional=("label",))
    for number, values in enumerate(rows, start=1):
        yield Row(f"{path} row {number}", values)


def _is_read(name: str, id_column: str) -> bool:
    known = (id_column, "content_hash", "label", "features", *KINDS)
    return name in known or name.startswith(tuple(f"{prefix}_" for prefix in KINDS.values()))
