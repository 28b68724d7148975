"""Metrics by name; every task lists those that its benchmark reports.

scikit-learn and scipy are imported where a metric needs them: importing this module needs neither.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# What a metric reads of the rows besides labels and logits: ``unit``, ``candidate``, ``answers``.
Columns = Mapping[str, Sequence[Any]]


def _predictions(logits: np.ndarray) -> np.ndarray:
    return logits if logits.ndim == 1 else logits.argmax(axis=1)


def _accuracy(labels: np.ndarray, logits: np.ndarray, _columns: Columns) -> float:
    return float(np.mean(_predictions(logits) == labels))  # importing scikit-learn would take seconds


def _f1(average: str) -> Callable[[np.ndarray, np.ndarray, Columns], float]:
    def f1(labels: np.ndarray, logits: np.ndarray, _columns: Columns) -> float:
        from sklearn.metrics import f1_score

        return float(f1_score(labels, _predictions(logits), average=average, zero_division=0.0))

    return f1


def _matthews(labels: np.ndarray, logits: np.ndarray, _columns: Columns) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, _predictions(logits)))


def _exact_match(labels: np.ndarray, logits: np.ndarray, columns: Columns) -> float:
    """Share of units whose rows are all right; in MultiRC a unit is a question."""
    right = _predictions(logits) == labels
    return float(np.mean([right[rows].all() for rows in _units(columns)]))


def _gender_parity(_labels: np.ndarray, logits: np.ndarray, columns: Columns) -> float:
    """Share of units whose rows get the same prediction; in AX-g a unit is a pair of genders."""
    predictions = _predictions(logits)
    return float(np.mean([len(set(predictions[rows].tolist())) == 1 for rows in _units(columns)]))


def _answer_score(score: Callable[[str, str], float]) -> Callable[[np.ndarray, np.ndarray, Columns], float]:
    """Mean over units of the chosen candidate's best score over the answers, as ReCoRD has it.

    The chosen candidate is the one whose logits most say "true", the first of equal ones.
    """

    def mean(_labels: np.ndarray, logits: np.ndarray, columns: Columns) -> float:
        chosen = choose(logits, _units(columns))
        return float(np.mean([
            max(score(columns["candidate"][row], answer) for answer in columns["answers"][row])
            for row in chosen
        ]))  # fmt: skip

    return mean


METRICS: dict[str, Callable[[np.ndarray, np.ndarray, Columns], float]] = {
    "accuracy": _accuracy,
    "macro_f1": _f1("macro"),
    "matthews": _matthews,
    "f1a": _f1("binary"),
    "exact_match": _exact_match,
    "gender_parity": _gender_parity,
    "answer_f1": _answer_score(lambda candidate, answer: token_f1(candidate, answer)),
    "answer_exact_match": _answer_score(lambda a, b: float(normalise_answer(a) == normalise_answer(b))),
}

TWO_LABELS = {"f1a", "answer_f1", "answer_exact_match"}  # metrics of which label is the second one
# Metric → the columns that it reads; the others read none.
COLUMNS_READ = {
    "exact_match": ("unit",),
    "gender_parity": ("unit",),
    "answer_f1": ("unit", "candidate", "answers"),
    "answer_exact_match": ("unit", "candidate", "answers"),
}


def compute_metrics(
    names: Sequence[str], labels: np.ndarray, logits: np.ndarray, columns: Columns | None = None
) -> dict[str, float]:
    """Score logits on the labelled rows.

    Args:
        names: keys of ``METRICS``.
        labels: int array of shape (rows,). Rows with −1 do not count.
        logits: array of shape (rows, num_labels), or predicted classes of shape (rows,) where no metric ranks
            candidates by their logits.
        columns: name → (rows,), what the metrics of ``COLUMNS_READ`` need.

    Returns:
        name → value between 0 and 1 (matthews: −1 and 1), and ``rows``, the number of rows scored. Empty
        without labels.

    >>> compute_metrics(["accuracy"], np.array([0, 1, -1]), np.array([[2., 1.], [2., 1.], [0., 1.]]))
    {'accuracy': 0.5, 'rows': 2}
    """
    labelled = labels >= 0
    if not labelled.any():
        return {}
    kept = {
        name: [value for value, keep in zip(column, labelled, strict=True) if keep]
        for name, column in (columns or {}).items()
    }
    scores = {name: float(METRICS[name](labels[labelled], logits[labelled], kept)) for name in names}
    return scores | {"rows": int(labelled.sum())}


def majority_metrics(
    names: Sequence[str], labels: np.ndarray, num_labels: int, columns: Columns | None = None
) -> dict[str, float]:
    """Score the constant answer, the most frequent class of these rows."""
    counts = np.bincount(labels[labels >= 0], minlength=num_labels)
    constant = np.tile((np.arange(num_labels) == counts.argmax()).astype(float), (len(labels), 1))
    return compute_metrics(names, labels, constant, columns)


def choose(logits: np.ndarray, units: Iterable[Sequence[int]]) -> list[int]:
    """Choose the row of each unit whose logits most say class 1, the first of equal ones.

    Args:
        logits: of shape (rows, 2).
        units: the rows of each unit.

    >>> choose(np.array([[0., 1.], [0., 3.], [2., 5.], [1., 0.]]), [[0, 1, 2], [3]])
    [1, 3]
    """
    margin = logits[:, 1] - logits[:, 0]
    return [max(rows, key=lambda row: margin[row]) for rows in units]


def group_rows(units: Sequence[str]) -> dict[str, list[int]]:
    """Map each unit to its rows, both in the order they come.

    >>> group_rows(["a", "b", "a"])
    {'a': [0, 2], 'b': [1]}
    """
    rows: dict[str, list[int]] = {}
    for row, unit in enumerate(units):
        rows.setdefault(unit, []).append(row)
    return rows


def _units(columns: Columns) -> list[list[int]]:
    return list(group_rows(columns["unit"]).values())


def normalise_answer(text: str) -> str:
    """Lower-case and drop punctuation, articles and extra spaces, as SQuAD and ReCoRD compare answers.

    Reference:
        Rajpurkar et al. (2016).

    >>> normalise_answer("The U.S.  Congress")
    'us congress'
    """
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def token_f1(candidate: str, answer: str) -> float:
    """Compute the harmonic mean of precision and recall over the words of two normalised answers.

    >>> token_f1("Barack Obama", "President Obama")
    0.5
    """
    ours, theirs = normalise_answer(candidate).split(), normalise_answer(answer).split()
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def accuracy_interval(accuracy: float, rows: int) -> tuple[float, float]:
    """Compute Wilson's 95% interval of one model's accuracy over independent rows.

    Reference:
        Wilson (1927).

    >>> low, high = accuracy_interval(0.5, 100)
    >>> print(f"{low:.3f} {high:.3f}")
    0.404 0.596
    """
    from scipy.stats import binomtest

    interval = binomtest(round(accuracy * rows), rows).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)
