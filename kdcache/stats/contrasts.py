"""Contrasts between arms, seed by seed and group by group of rows, and what makes them vary.

The value of seed s on group g (where the metric is no mean of rows: its jackknife pseudo-value) is taken as

    level + seed + group + rest,   Var(mean) = σ²_seed / S + σ²_group / G + σ²_rest / (S G) = A + B

A, the variance of the seeds' scores over S, holds the first and the last term and is known as well as S
seeds allow; B, the covariance of two seeds' scores over groups, is the middle one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kdcache.stats.runs import TALLIES, Runs


@dataclass(frozen=True)
class Table:
    """What each seed and group says of a contrast between arms, in points.

    Args:
        values: on all rows, of shape (seeds,).
        pseudo: pseudo-values of shape (seeds, groups); their mean over groups is the value, but for
            the jackknife's correction of bias.
    """

    values: np.ndarray
    pseudo: np.ndarray


def contrast(runs: Runs, weights: Mapping[str, float]) -> Table:
    """A weighted sum of arms, seed by seed and group by group.

    Args:
        runs: of one task.
        weights: arm → its factor.

    Raises:
        DataError: an arm has no predictions, or the arms share no seed.
    """
    values, pseudo = [], []
    for arm, tallies in runs.paired(weights).items():
        jackknifed = [_jackknife(runs.metric, sums) for sums in tallies]
        values.append([weights[arm] * value for value, _ in jackknifed])
        pseudo.append([weights[arm] * parts for _, parts in jackknifed])
    return Table(np.sum(values, axis=0), np.sum(pseudo, axis=0))


def over_teachers(tables: Sequence[Table]) -> Table:
    """Put a contrast under several teachers together: each teacher, with its students' mean, is one draw.

    What the students of one teacher share is no longer taken for an effect of distillation.

    Args:
        tables: of each teacher, over its own trainings of every arm; on the same rows in the same order.

    Returns:
        Table, with teachers in the place of seeds.

    >>> one, two = (Table(np.array([1.0, 3.0]) + shift, np.ones((2, 4))) for shift in (0, 5))
    >>> over_teachers([one, two]).values.tolist()
    [2.0, 7.0]
    """
    return Table(
        values=np.array([table.values.mean() for table in tables]),
        pseudo=np.stack([table.pseudo.mean(axis=0) for table in tables]),
    )


def _jackknife(metric: str, sums: np.ndarray) -> tuple[float, np.ndarray]:
    """A run's score and its pseudo-values, of shape (groups,), in points."""
    sums = sums.astype(float)
    value, total, groups = TALLIES[metric].value, sums.sum(axis=0), len(sums)
    on_all = float(value(total))
    return 100 * on_all, 100 * (groups * on_all - (groups - 1) * value(total - sums))


def covariance(tables: Sequence[Table]) -> tuple[np.ndarray, np.ndarray]:
    """Covariance of the means of contrasts, by source: A, seeds and the rest, and B, groups.

    Args:
        tables: over the same seeds and groups.

    Returns:
        Two arrays of shape (contrasts, contrasts), positive semidefinite.
    """
    values = np.stack([table.values for table in tables])
    pseudo = np.stack([table.pseudo for table in tables])
    seeds, groups = pseudo.shape[1:]
    rest = pseudo - pseudo.mean(axis=2, keepdims=True)
    alone = np.tensordot(rest, rest, axes=((1, 2), (1, 2))) / (groups * (groups - 1))
    if seeds == 1:
        return np.zeros_like(alone), alone
    over_seeds = rest.sum(axis=1)
    all_pairs = over_seeds @ over_seeds.T / (groups * (groups - 1))
    roots, axes = np.linalg.eigh((all_pairs - alone) / (seeds * (seeds - 1)))  # pairs of two seeds
    of_groups = (axes * np.maximum(roots, 0.0)) @ axes.T  # a variance below 0 is chance
    return np.atleast_2d(np.cov(values)) / seeds, of_groups
