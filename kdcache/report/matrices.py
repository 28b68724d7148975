"""The relations that the inter-instance loss sees: which rows a model puts into one class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

MOST_ROWS = 96  # of a matrix that is drawn
MOST_CLASSES = 8


@dataclass(frozen=True)
class Relations:
    """Matrices P Pᵀ of several models on the same rows, by class and the teacher's sureness.

    Args:
        matrices: model → of shape (rows, rows); an entry is the chance that two rows, drawn
            independently from the model's probabilities, fall into one class.
        classes: name and number of rows of each class that is drawn, in order.
        of_classes: how many the task has.
        distances: model → root mean square difference of its matrix to the first model's, over
            all pairs of labelled rows, in percentage points.
    """

    matrices: dict[str, np.ndarray]
    classes: list[tuple[str, int]]
    of_classes: int
    distances: dict[str, float]

    def contrast(self, model: str) -> tuple[float, float]:
        """Mean entries between two rows of one class and of two, in percent; 0 where there are none."""
        matrix = self.matrices[model]
        label = np.repeat(np.arange(len(self.classes)), [rows for _, rows in self.classes])
        same = label[:, None] == label
        pairs = same & ~np.eye(len(label), dtype=bool), ~same
        return tuple(round(100 * float(matrix[of].mean()), 6) if of.any() else 0.0 for of in pairs)  # type: ignore[return-value]


def relate(
    labels: np.ndarray, logits: Mapping[str, np.ndarray], names: Sequence[str], temperature: float
) -> Relations:
    """Put models' relation matrices side by side.

    Args:
        labels: int array of shape (rows,); rows with −1 do not count.
        logits: model → array of shape (rows, num_labels); the teacher comes first.
        names: of the classes.
        temperature: T > 0 of the softmax.

    >>> right = np.array([[99.0, 0.0], [0.0, 99.0]])
    >>> found = relate(np.array([1, 0]), {"teacher": right, "student": 0 * right}, ["no", "yes"], 1.0)
    >>> found.distances["student"], found.matrices["teacher"].round(2).tolist(), found.classes
    (50.0, [[1.0, 0.0], [0.0, 1.0]], [('no', 1), ('yes', 1)])
    """
    labelled = np.flatnonzero(labels >= 0)
    probabilities = {
        name: softmax(z[labelled].astype(float) / temperature, axis=1) for name, z in logits.items()
    }
    teacher = next(iter(probabilities.values()))
    rows, classes = _stratified(labels[labelled], teacher)
    drawn = {name: p[rows] for name, p in probabilities.items()}
    return Relations(
        matrices={name: p @ p.T for name, p in drawn.items()},
        classes=[(names[label], count) for label, count in classes],
        of_classes=len(set(labels[labelled].tolist())),
        distances={name: _distance(p, teacher) for name, p in list(probabilities.items())[1:]},
    )


def _stratified(labels: np.ndarray, teacher: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Rows to draw: as many of each of at most eight classes; by class, the teacher's surest first."""
    rng = np.random.default_rng(0)
    there = np.unique(labels)
    chosen = np.sort(rng.permutation(there)[:MOST_CLASSES])
    each = MOST_ROWS // len(chosen)
    parts = [rng.permutation(np.flatnonzero(labels == label))[:each] for label in chosen]
    parts = [
        part[np.argsort(-teacher[part, label], kind="stable")]
        for label, part in zip(chosen, parts, strict=True)
    ]
    return np.concatenate(parts), [(int(label), len(part)) for label, part in zip(chosen, parts, strict=True)]


def _distance(student: np.ndarray, teacher: np.ndarray) -> float:
    """‖Ps Psᵀ − Pt Ptᵀ‖_F / rows, from products of shape (num_labels, num_labels)."""
    square = (
        np.square(student.T @ student).sum() + np.square(teacher.T @ teacher).sum()
        - 2 * np.square(student.T @ teacher).sum()
    )  # fmt: skip
    return round(100 * float(np.sqrt(max(square, 0.0))) / len(student), 6)
