"""What the analysis reads of a split: its logits, and of other columns of logits the predictions."""

from dataclasses import dataclass

import numpy as np

from kdcache.cache.join import pick
from kdcache.cache.reader import CachedSplit


@dataclass(frozen=True)
class Ids:
    """The example ids of a split, which are read when some are asked for."""

    split: CachedSplit

    def __len__(self) -> int:
        return len(self.split)

    def take(self, rows: np.ndarray) -> list[str]:
        """Return the ids of some rows, none given twice, in the given order."""
        chosen = np.zeros(len(self), bool)
        chosen[rows] = True
        found = dict(zip(np.sort(rows).tolist(), pick(self.split.keys, chosen), strict=True))
        return [found[row] for row in rows.tolist()]


@dataclass(frozen=True)
class Answers:
    """A split's rows.

    Args:
        ids: example ids, (rows,).
        labels, fold: see ``CacheRows``; labels are int32.
        logits: float32 of shape (rows, num_labels).
        predictions: the class of the largest logit, (rows,).
        plain: the same of the teacher on all rows; None unless the cache has both.
        members: the same of each member of an ensemble, (rows, members); None without.
    """

    ids: Ids
    labels: np.ndarray
    fold: np.ndarray
    logits: np.ndarray
    predictions: np.ndarray
    plain: np.ndarray | None
    members: np.ndarray | None


def read_answers(split: CachedSplit, with_labels: bool = True) -> Answers:
    """Read a split, one row group at a time; without labels as if it had none."""
    logits = np.empty((len(split), split.num_logits), np.float32)
    start = 0
    columns: dict[str, list[np.ndarray]] = {}
    names = [name for name in split.schema.names if name.startswith("logits")]
    for rows in split.stream(names):
        logits[start : start + len(rows)] = rows.logits
        start += len(rows)
        labels = rows.label if with_labels else np.full_like(rows.label, -1)
        found = {"labels": labels.astype(np.int32), "fold": rows.fold, "predictions": _predict(rows.logits)}
        if rows.logits_plain is not None:
            found["plain"] = _predict(rows.logits_plain)
        if rows.members:
            found["members"] = np.stack([_predict(member) for member in rows.members], axis=1)
        for name, values in found.items():
            columns.setdefault(name, []).append(values)
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    return Answers(
        Ids(split), arrays["labels"], arrays["fold"], logits, arrays["predictions"],
        arrays.get("plain"), arrays.get("members"),
    )  # fmt: skip


def _predict(logits: np.ndarray) -> np.ndarray:
    return logits.argmax(axis=1).astype(np.int32)
