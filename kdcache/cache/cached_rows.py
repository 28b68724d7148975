"""Rows of a cache in memory: NumPy columns, to and from Arrow."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from kdcache.cache.columns import dtype_of, read_logits, require_finite, to_arrow, vectors_of
from kdcache.cache.schema import (
    ALL_ROWS_TEACHER,
    MEMBER_PREFIX,
    SCALARS,
    cache_schema,
    row_schema,
    top_columns,
)  # fmt: skip
from kdcache.cache.top_logits import keep_largest
from kdcache.errors import CacheMissing, ShapeError
from kdcache.on_disk import empty, join_arrays

EXPANDED = 2**25  # numbers held at a time, of all logits where a file has the largest


@dataclass(frozen=True)
class CacheRows:
    """Some rows of one split, column by column.

    Args:
        example_id, content_hash: lists of strings, (rows,); empty where only targets are held.
        label: int64 array of shape (rows,), −1 = unlabelled.
        fold: int8 array of shape (rows,), see ``cache.schema``.
        logits: float32 array of shape (rows, num_labels).
        features: float array of shape (rows, dim), stored as float16; dim is 0 without features.
        layers: further columns ``features_<layer>``, each like ``features``.
        logits_plain: like ``logits``, of the teacher trained on all rows; only beside cross-fitted
            ``logits``.
        members: like ``logits``, of each member of an ensemble; ``logits`` are their mean.
    """

    example_id: list[str]
    content_hash: list[str]
    label: np.ndarray
    fold: np.ndarray
    logits: np.ndarray
    features: np.ndarray
    layers: dict[str, np.ndarray] = field(default_factory=dict)
    logits_plain: np.ndarray | None = None
    members: tuple[np.ndarray, ...] = ()

    def __len__(self) -> int:
        return len(self.example_id) or len(self.label)

    def __repr__(self) -> str:
        columns = ", ".join(f"{name} {values.shape[1]}" for name, values in self.vectors.items())
        return f"<{len(self)} rows, {columns}>"

    @property
    def num_correct(self) -> int:
        """Number of labelled rows whose largest logit is that of the label."""
        labelled = self.label >= 0
        return int((self.logits[labelled].argmax(axis=1) == self.label[labelled]).sum())

    @property
    def vectors(self) -> dict[str, np.ndarray]:
        """All columns of vectors, by their names in the file."""
        plain = {} if self.logits_plain is None else {"logits_plain": self.logits_plain}
        members = {f"{MEMBER_PREFIX}{m}": logits for m, logits in enumerate(self.members)}
        return {"logits": self.logits, "features": self.features, **self.layers, **plain, **members}

    def all_rows_teacher(self) -> "CacheRows":
        """Return the same rows with the logits of the teacher trained on all rows, without features.

        That teacher was trained on the training rows, so these logits are not cross-fitted.

        Raises:
            CacheMissing: the cache holds cross-fitted logits only.
        """
        if (self.fold == ALL_ROWS_TEACHER).all():
            return self
        if self.logits_plain is None:
            raise CacheMissing(
                "cache rows: a cache of cross-fitted logits must also hold logits_plain, got none. "
                "Build the cache again with kdcache cache."
            )
        return replace(self._logits_only(self.logits_plain), fold=np.full_like(self.fold, ALL_ROWS_TEACHER))

    def member(self, m: int) -> "CacheRows":
        """Return the same rows with the logits of one member of the ensemble, without features.

        Args:
            m: number of the member, from 0.

        Raises:
            CacheMissing: the cache holds no such member.
        """
        if not 0 <= m < len(self.members):
            raise CacheMissing(
                f"cache rows: member must be one of the ensemble's {len(self.members)}, from 0, got {m}. "
                "Set train_teacher.ensemble, then build the teacher and the cache again."
            )
        return self._logits_only(self.members[m])

    def _logits_only(self, logits: np.ndarray) -> "CacheRows":
        none = np.empty((len(self), 0), np.float16)
        return replace(self, logits=logits, features=none, layers={}, logits_plain=None, members=())

    def take(self, indices: Sequence[int] | np.ndarray) -> "CacheRows":
        """Return some of the rows, in the given order."""
        indices = np.asarray(indices, dtype=np.int64)
        ids, hashes = ([column[i] for i in indices] if column else [] for column in self._strings)
        vectors = {name: values[indices] for name, values in self.vectors.items()}
        return CacheRows._of(ids, hashes, self.label[indices], self.fold[indices], vectors)

    def between(self, start: int, stop: int) -> "CacheRows":
        """Return rows that follow each other; they share the memory of all."""
        some = slice(start, stop)
        vectors = {name: values[some] for name, values in self.vectors.items()}
        ids, hashes = (column[some] for column in self._strings)
        return CacheRows._of(ids, hashes, self.label[some], self.fold[some], vectors)

    @property
    def _strings(self) -> tuple[list[str], list[str]]:
        return self.example_id, self.content_hash

    @classmethod
    def empty(
        cls, schema: pa.Schema, count: int, strings: bool = True, folder: Path | None = None
    ) -> "CacheRows":
        """Return rows of a schema whose values are still to be put there.

        Args:
            schema: of rows, see ``schema.row_schema``.
            count: of rows.
            strings: with or without ids and hashes.
            folder: for vectors that take much memory, see ``on_disk``.
        """
        kinds = {name: schema.field(name).type for name in schema.names[4:]}
        vectors = {name: empty((count, k.list_size), dtype_of(k), folder) for name, k in kinds.items()}
        scalars = empty((count,), np.int64, folder), empty((count,), np.int8, folder)
        ids = [""] * count if strings else []
        return cls._of(ids, list(ids), *scalars, vectors)

    def put(self, places: Sequence[int] | np.ndarray, rows: "CacheRows") -> None:
        """Write rows of the same columns to some places, in place."""
        self.label[places], self.fold[places] = rows.label, rows.fold
        theirs = rows.vectors
        for name, values in self.vectors.items():
            values[places] = theirs[name]
        if not self.example_id:
            return
        for place, example_id, content_hash in zip(places, rows.example_id, rows.content_hash, strict=True):
            self.example_id[place], self.content_hash[place] = example_id, content_hash

    @classmethod
    def joined(cls, parts: Sequence["CacheRows"], folder: Path | None = None) -> "CacheRows":
        """Join rows of one cache, one part after another; ``folder`` is as in ``empty``."""
        vectors = {n: join_arrays([part.vectors[n] for part in parts], folder) for n in parts[0].vectors}
        label, fold = (join_arrays([getattr(p, n) for p in parts], folder) for n in ("label", "fold"))
        ids, hashes = (list(chain(*column)) for column in zip(*(p._strings for p in parts), strict=True))
        return cls._of(ids, hashes, label, fold, vectors)

    def to_table(self, top_k: int | None = None) -> pa.Table:
        """Return an Arrow table of the cache's schema.

        Args:
            top_k: how many logits of a row to keep; None keeps all.

        Raises:
            ShapeError: the columns differ in length, or a value is not finite; or ``top_k`` keeps all.
        """
        rows = len(self)
        vectors = self.vectors
        lengths = [len(self.content_hash), len(self.label), len(self.fold), *map(len, vectors.values())]
        if set(lengths) != {rows}:
            raise ShapeError(
                f"cache rows: all columns must have {rows} rows, got {', '.join(map(str, lengths))}."
            )
        widths = {name: values.shape[1] for name, values in vectors.items() if values.shape[1]}
        num_labels = widths.pop("logits")
        columns = {name: getattr(self, name) for name in SCALARS}
        for name in cache_schema(num_labels, widths).names[4:]:
            require_finite(name, vectors[name])
            if top_k and name.startswith("logits"):
                columns |= zip(top_columns(name), keep_largest(vectors[name], top_k), strict=True)
            else:
                columns[name] = vectors[name]
        schema = cache_schema(num_labels, widths, top_k)
        arrays = [to_arrow(name, columns[name], schema.field(name).type) for name in schema.names]
        return pa.Table.from_arrays(arrays, schema=schema)

    @classmethod
    def from_table(cls, table: pa.Table, num_labels: int, where: str = "cache rows") -> "CacheRows":
        """Return the rows of a table of the cache's schema; optional columns may be left out.

        Args:
            table: of a cache.
            num_labels, where: see ``read_logits``.

        Raises:
            CacheCorrupt: see ``read_logits``.
        """
        names = row_schema(table.schema, num_labels).names[4:]
        vectors = {
            n: read_logits(table, n, num_labels, where) if n.startswith("logits") else vectors_of(table[n])
            for n in names
        }
        ids, hashes = table["example_id"].to_pylist(), table["content_hash"].to_pylist()
        return cls._of(ids, hashes, table["label"].to_numpy(), table["fold"].to_numpy(), vectors)

    @classmethod
    def parts_of(cls, table: pa.Table, num_labels: int, where: str) -> Iterator["CacheRows"]:
        """Yield the rows of a row group: all at once, or some where they hold more than the file does."""
        columns = sum(name.startswith("top_labels") for name in table.column_names)
        at_once = max(1, EXPANDED // (columns * num_labels)) if columns else max(1, len(table))
        for start in range(0, len(table), at_once):
            yield cls.from_table(table.slice(start, at_once), num_labels, where)

    @classmethod
    def _of(
        cls, ids: list[str], hashes: list[str], label: np.ndarray, fold: np.ndarray,
        vectors: dict[str, np.ndarray],
    ) -> "CacheRows":  # fmt: skip
        """Make rows of columns of vectors by their names in the file."""
        count = sum(name.startswith(MEMBER_PREFIX) for name in vectors)
        members = tuple(vectors.pop(f"{MEMBER_PREFIX}{m}") for m in range(count))
        return cls(
            ids, hashes, label, fold, vectors.pop("logits"),
            vectors.pop("features", np.empty((len(label), 0), np.float16)),
            logits_plain=vectors.pop("logits_plain", None), layers=vectors, members=members,
        )  # fmt: skip


@dataclass(frozen=True)
class Uncertainty:
    """What the softmax of some logits says, per row, in float64.

    Args:
        log_p: log-probabilities of shape (rows, num_labels).
        entropy: in nats, (rows,).
        margin: largest minus second largest logit, (rows,).
    """

    log_p: np.ndarray
    entropy: np.ndarray
    margin: np.ndarray


def compute_uncertainty(logits: np.ndarray) -> Uncertainty:
    """Compute log-probabilities, entropy and margin of logits of shape (rows, num_labels ≥ 2).

    >>> found = compute_uncertainty(np.array([[1.0, 1.0], [3.0, 0.0]]))
    >>> found.entropy.round(3).tolist(), found.margin.tolist()
    ([0.693, 0.191], [0.0, 3.0])
    """
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    ranked = np.partition(logits, -2, axis=1)
    return Uncertainty(log_p, -(np.exp(log_p) * log_p).sum(axis=1), ranked[:, -1] - ranked[:, -2])
