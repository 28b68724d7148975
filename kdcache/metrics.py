"""Scores of predictions, by name; every task lists the ones that its benchmark reports."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score

METRICS = {
    "accuracy": lambda labels, predictions: accuracy_score(labels, predictions),
    "macro_f1": lambda labels, predictions: f1_score(labels, predictions, average="macro", zero_division=0.0),
}


def compute_metrics(names: Sequence[str], labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Score logits on the labelled rows.

    Args:
        names: keys of ``METRICS``.
        labels: int array of shape (rows,); rows with −1 do not count.
        logits: array of shape (rows, num_labels).

    Returns:
        name → value between 0 and 1, plus ``rows``, how many were scored; empty without labels.

    >>> compute_metrics(["accuracy"], np.array([0, 1, -1]), np.array([[2., 1.], [2., 1.], [0., 1.]]))
    {'accuracy': 0.5, 'rows': 2}
    """
    labelled = labels >= 0
    if not labelled.any():
        return {}
    labels, predictions = labels[labelled], logits[labelled].argmax(axis=1)
    scores = {name: float(METRICS[name](labels, predictions)) for name in names}
    return scores | {"rows": int(labelled.sum())}


def majority_metrics(names: Sequence[str], labels: np.ndarray, num_labels: int) -> dict[str, float]:
    """Score the constant answer: the class that most of these rows have."""
    counts = np.bincount(labels[labels >= 0], minlength=num_labels)
    constant = np.tile((np.arange(num_labels) == counts.argmax()).astype(float), (len(labels), 1))
    return compute_metrics(names, labels, constant)


def accuracy_interval(accuracy: float, rows: int) -> tuple[float, float]:
    """Wilson's 95 % interval of one model's accuracy over independent rows.

    Reference:
        Wilson (1927).

    >>> low, high = accuracy_interval(0.5, 100)
    >>> print(f"{low:.3f} {high:.3f}")
    0.404 0.596
    """
    interval = binomtest(round(accuracy * rows), rows).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)
