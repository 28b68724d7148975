"""Do a cache's teachers agree, row by row: the folds' with the one on all rows, those of other seeds?"""

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np


@dataclass(frozen=True)
class Agreement:
    """The teacher on all rows beside the fold teachers, on one split.

    Args:
        all_rows, crossed: accuracies over the labelled rows; None where there are none.
        same: share of all rows with equal predictions.
        rows: labelled rows.
        one_right: share of these on which one of the two is right and the other is not.
    """

    all_rows: float | None
    crossed: float | None
    same: float
    rows: int
    one_right: float

    @property
    def lost(self) -> tuple[float, float]:
        """By how much ``crossed`` stands below ``all_rows``, and its standard error over the same rows.

        >>> Agreement(all_rows=0.75, crossed=0.5, same=0.75, rows=100, one_right=0.25).lost
        (0.25, 0.04330127018922193)
        """
        if self.all_rows is None or self.crossed is None:
            return 0.0, 0.0
        lost = self.all_rows - self.crossed
        return lost, math.sqrt(max(self.one_right - lost**2, 0.0) / self.rows)


@dataclass(frozen=True)
class Seeds:
    """The members of an ensemble, on one split.

    Args:
        members: accuracy of each over the labelled rows; empty where there are none.
        mean: of their mean; None where there are none.
        same: share of all rows with equal predictions, mean over pairs of members.
        unanimous: share of all rows on which all members predict the same.
    """

    members: tuple[float, ...]
    mean: float | None
    same: float
    unanimous: float


def compare_folds(labels: np.ndarray, crossed: np.ndarray, all_rows: np.ndarray) -> Agreement:
    """Compare fold teachers with the teacher on all rows.

    Args:
        labels: int array of shape (rows,); −1 has none.
        crossed, all_rows: predicted classes, int arrays of shape (rows,).

    >>> compare_folds(np.array([0, 1, -1]), np.array([0, 0, 1]), np.array([0, 1, 1]))
    Agreement(all_rows=1.0, crossed=0.5, same=0.6666666666666666, rows=2, one_right=0.5)
    """
    same = float((crossed == all_rows).mean())
    labelled = labels >= 0
    differ = (crossed == labels) != (all_rows == labels)
    one_right = float(differ[labelled].mean()) if labelled.any() else 0.0
    return Agreement(_right(labels, all_rows), _right(labels, crossed), same, int(labelled.sum()), one_right)


def compare_seeds(labels: np.ndarray, mean: np.ndarray, members: np.ndarray) -> Seeds:
    """Compare teachers of other seeds with each other.

    Args:
        labels: int array of shape (rows,); −1 has none.
        mean: classes that the ensemble predicts, int array of shape (rows,).
        members: those of each member, int array of shape (rows, members), at least two.

    >>> compare_seeds(np.array([0, 1]), np.array([0, 1]), np.array([[0, 0], [1, 0]]))
    Seeds(members=(1.0, 0.5), mean=1.0, same=0.5, unanimous=0.5)
    """
    each = [right for said in members.T if (right := _right(labels, said)) is not None]
    same = [(members[:, a] == members[:, b]).mean() for a, b in combinations(range(members.shape[1]), 2)]
    unanimous = float((members == members[:, :1]).all(axis=1).mean())
    return Seeds(tuple(each), _right(labels, mean), float(np.mean(same)), unanimous)


def _right(labels: np.ndarray, said: np.ndarray) -> float | None:
    labelled = labels >= 0
    return float((said[labelled] == labels[labelled]).mean()) if labelled.any() else None
