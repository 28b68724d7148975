"""The k largest logits of a row, and the mass of the rest: what a cache with ``top_k`` keeps.

Readers see all logits again: a kept label has its own, and all others have one in common, ``rest``, the
logarithm of the mean of their exponentials. So the softmax is exact for the kept labels, and for the others
together. ``rest`` is less than each kept logit: the kept labels are those above the least logit of the row.
"""

import numpy as np

from kdcache.errors import ShapeError

AT_ONCE_LOGITS = 2**22  # looked at together: what is made of them takes several times their memory


def keep_largest(logits: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep the largest logits of each row.

    Args:
        logits: float32 array of shape (rows, num_labels).
        top_k: how many, less than ``num_labels``.

    Returns:
        int32 labels and their float32 logits of shape (rows, top_k), by falling logit and then by label, and
        the float32 ``rest`` of shape (rows,).

    Raises:
        ShapeError: no label would be left out, or a kept logit is the least that float32 has.

    >>> labels, largest, rest = keep_largest(np.array([[0.0, 2.0, 0.0, 3.0]], np.float32), 2)
    >>> labels.tolist(), largest.tolist(), rest.tolist()
    ([[3, 1]], [[3.0, 2.0]], [0.0])
    """
    num_labels = logits.shape[1]
    if not 0 < top_k < num_labels:
        raise ShapeError(
            f"cache rows: top_k must be from 1 to {num_labels - 1} of {num_labels} labels, got {top_k}."
        )
    parts = [_keep(logits[some], top_k) for some in _some_rows(logits)]
    labels, largest, rest = (np.concatenate(part) for part in zip(*parts, strict=True))
    if not np.isfinite(rest).all():
        raise ShapeError(
            "cache rows: with top_k, the logits of a row that are kept must be larger than "
            f"{np.finfo(np.float32).min:g}, which masks a label, got others. Lower cache_teacher.top_k."
        )
    return labels, largest, rest


def _some_rows(logits: np.ndarray) -> list[slice]:
    """Cut rows into those that are looked at together; there is one cut at least."""
    at_once = max(1, AT_ONCE_LOGITS // logits.shape[1])
    return [slice(start, start + at_once) for start in range(0, max(1, len(logits)), at_once)]


def _keep(logits: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows, num_labels = logits.shape
    least = np.partition(logits, num_labels - top_k, axis=1)[:, num_labels - top_k, None]
    kept = logits > least
    equal = logits == least  # of these, as many as there is room for
    kept |= equal & (np.cumsum(equal, axis=1, dtype=np.int32) <= top_k - kept.sum(axis=1, keepdims=True))
    labels = np.nonzero(kept)[1].reshape(rows, top_k).astype(np.int32)
    largest = np.take_along_axis(logits, labels, axis=1)
    order = np.argsort(-largest, axis=1, kind="stable")
    labels, largest = (np.take_along_axis(values, order, axis=1) for values in (labels, largest))
    # Below the last also where all others are as large; no denormal number, which some devices take for 0.
    with np.errstate(over="ignore"):
        next_less = np.nextafter(largest[:, -1], -np.float32(np.inf))
        below = np.minimum(next_less, largest[:, -1] - np.float32(1e-30))
    return labels, largest, np.minimum(log_mean_exp(logits, ~kept).astype(np.float32), below)


def expand_logits(labels: np.ndarray, largest: np.ndarray, rest: np.ndarray, num_labels: int) -> np.ndarray:
    """Return all logits of rows of which the largest are kept.

    Args:
        labels, largest, rest: see ``keep_largest``.
        num_labels: of the task.

    Returns:
        float32 array of shape (rows, num_labels).

    >>> args = np.array([[2, 0]]), np.array([[3.0, 2.0]]), np.array([-1.0])
    >>> expand_logits(*args, num_labels=4).tolist()
    [[2.0, -1.0, 3.0, -1.0]]
    """
    logits = np.repeat(rest.astype(np.float32)[:, None], num_labels, axis=1)
    np.put_along_axis(logits, labels.astype(np.int64), largest, axis=1)
    return logits


def can_be_kept(labels: np.ndarray, largest: np.ndarray, rest: np.ndarray, num_labels: int) -> np.ndarray:
    """Return whether ``keep_largest`` can give these rows, bool of shape (rows,)."""
    equal = (largest[:, :-1] == largest[:, 1:]) & (labels[:, :-1] < labels[:, 1:])
    falling = (largest[:, :-1] > largest[:, 1:]) | equal
    ranked = np.sort(labels, axis=1)
    different = (
        (ranked[:, :-1] < ranked[:, 1:]).all(axis=1) & (ranked[:, 0] >= 0) & (ranked[:, -1] < num_labels)
    )
    return falling.all(axis=1) & different & (rest < largest[:, -1])


def kept_labels(logits: np.ndarray) -> np.ndarray:
    """Return which labels a cache kept, bool of the shape of its expanded logits (rows, num_labels)."""
    return logits > logits.min(axis=1, keepdims=True)


def share_rest(logits: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return logits in which all labels that are not kept have their ``rest``.

    Args:
        logits: of shape (rows, num_labels).
        kept: bool of the same shape.
    """
    return np.where(kept, logits, log_mean_exp(logits, ~kept)[:, None]).astype(logits.dtype)


def log_mean_exp(logits: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return log mean exp of the chosen logits of each row, float64 of shape (rows,); −inf of none."""
    return np.concatenate([_log_mean_exp(logits[some], chosen[some]) for some in _some_rows(logits)])


def _log_mean_exp(logits: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    some = np.where(chosen, logits.astype(np.float64), -np.inf)
    largest = some.max(axis=1, initial=-np.inf)
    shift = np.where(np.isfinite(largest), largest, 0.0)
    with np.errstate(divide="ignore"):
        return shift + np.log(np.exp(some - shift[:, None]).sum(axis=1) / np.maximum(1, chosen.sum(axis=1)))
