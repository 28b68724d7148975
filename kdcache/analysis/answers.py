"""What the analysis reads of a split: its logits, and of other columns of logits the predictions."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from kdcache.cache.reader import CachedSplit


@dataclass(frozen=True)
class Answers:
    """A split's rows.

    Args:
        ids: example ids, (rows,).
        labels, fold: see ``CacheRows``.
        logits: float32 of shape (rows, num_labels).
        predictions: the class of the largest logit, (rows,).
        plain: the same of the teacher on all rows; None unless the cache has both.
        members: the same of each member of an ensemble, (rows, members); None without.
    """

    ids: pa.ChunkedArray
    labels: np.ndarray
    fold: np.ndarray
    logits: np.ndarray
    predictions: np.ndarray
    plain: np.ndarray | None
    members: np.ndarray | None


def read_answers(split: CachedSplit, with_labels: bool = True) -> Answers:
    """Read a split, one row group at a time; without labels as if it had none."""
    logits = np.empty((len(split), split.num_logits), np.float32)
    ids, start = [], 0
    columns: dict[str, list[np.ndarray]] = {}
    names = [name for name in split.manifest.schema.names if name.startswith("logits")]
    for rows in split.stream(names):
        logits[start : start + len(rows)] = rows.logits
        start += len(rows)
        ids.append(pa.array(rows.example_id, pa.string()))
        labels = rows.label if with_labels else np.full_like(rows.label, -1)
        found = {"labels": labels, "fold": rows.fold, "predictions": _predict(rows.logits)}
        if rows.logits_plain is not None:
            found["plain"] = _predict(rows.logits_plain)
        if rows.members:
            found["members"] = np.stack([_predict(member) for member in rows.members], axis=1)
        for name, values in found.items():
            columns.setdefault(name, []).append(values)
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    return Answers(
        pa.chunked_array(ids, pa.string()), arrays["labels"], arrays["fold"], logits, arrays["predictions"],
        arrays.get("plain"), arrays.get("members"),
    )  # fmt: skip


def _predict(logits: np.ndarray) -> np.ndarray:
    return logits.argmax(axis=1).astype(np.int32)
