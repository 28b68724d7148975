"""Agreement between teachers, row by row: fold teachers, the teacher on all rows, ensemble members."""

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np


@dataclass(frozen=True)
class FoldAgreement:
    """The teacher trained on all rows against the cross-fitted fold teachers, on one split.

    Args:
        all_rows, fold_teachers: their accuracies on the labelled rows; None if there are none.
        same: share of all rows with equal predictions.
        rows: number of labelled rows.
        discordant: share of the labelled rows on which exactly one of the two is correct.
    """

    all_rows: float | None
    fold_teachers: float | None
    same: float
    rows: int
    discordant: float

    @property
    def drop(self) -> tuple[float, float]:
        """``all_rows`` minus ``fold_teachers``, and the standard error of that paired difference.

        >>> FoldAgreement(all_rows=0.75, fold_teachers=0.5, same=0.75, rows=100, discordant=0.25).drop
        (0.25, 0.04330127018922193)
        """
        if self.all_rows is None or self.fold_teachers is None:
            return 0.0, 0.0
        drop = self.all_rows - self.fold_teachers
        return drop, math.sqrt(max(self.discordant - drop**2, 0.0) / self.rows)


@dataclass(frozen=True)
class MemberAgreement:
    """The members of an ensemble, on one split.

    Args:
        accuracies: of each member on the labelled rows; empty if there are none.
        ensemble: accuracy of their mean; None without labelled rows.
        same: share of all rows with equal predictions, mean over pairs of members.
        unanimous: share of all rows on which all members predict the same.
    """

    accuracies: tuple[float, ...]
    ensemble: float | None
    same: float
    unanimous: float


def compare_folds(labels: np.ndarray, fold_teachers: np.ndarray, all_rows: np.ndarray) -> FoldAgreement:
    """Compare cross-fitted predictions with those of the teacher trained on all rows.

    Args:
        labels: int array of shape (rows,); −1 = unlabelled.
        fold_teachers, all_rows: predicted classes, int arrays of shape (rows,).

    >>> compare_folds(np.array([0, 1, -1]), np.array([0, 0, 1]), np.array([0, 1, 1]))
    FoldAgreement(all_rows=1.0, fold_teachers=0.5, same=0.6666666666666666, rows=2, discordant=0.5)
    """
    same = float((fold_teachers == all_rows).mean())
    labelled = labels >= 0
    differ = (fold_teachers == labels) != (all_rows == labels)
    return FoldAgreement(
        _accuracy(labels, all_rows), _accuracy(labels, fold_teachers), same, int(labelled.sum()),
        float(differ[labelled].mean()) if labelled.any() else 0.0,
    )  # fmt: skip


def compare_members(labels: np.ndarray, ensemble: np.ndarray, members: np.ndarray) -> MemberAgreement:
    """Compare the members of an ensemble with each other.

    Args:
        labels: int array of shape (rows,); −1 = unlabelled.
        ensemble: classes that the ensemble predicts, int array of shape (rows,).
        members: classes that each member predicts, int array of shape (rows, members ≥ 2).

    >>> compare_members(np.array([0, 1]), np.array([0, 1]), np.array([[0, 0], [1, 0]]))
    MemberAgreement(accuracies=(1.0, 0.5), ensemble=1.0, same=0.5, unanimous=0.5)
    """
    accuracies = [_accuracy(labels, predictions) for predictions in members.T]
    same = [(members[:, a] == members[:, b]).mean() for a, b in combinations(range(members.shape[1]), 2)]
    unanimous = float((members == members[:, :1]).all(axis=1).mean())
    return MemberAgreement(
        tuple(a for a in accuracies if a is not None), _accuracy(labels, ensemble), float(np.mean(same)),
        unanimous,
    )  # fmt: skip


def _accuracy(labels: np.ndarray, predictions: np.ndarray) -> float | None:
    labelled = labels >= 0
    return float((predictions[labelled] == labels[labelled]).mean()) if labelled.any() else None
