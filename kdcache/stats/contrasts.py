"""Contrasts between arms, seed by seed and group by group of rows, and what makes them vary.

The value of seed s on group g is modelled as follows. Where the metric is not a mean of rows, the value is
the jackknife pseudo-value.

    level + seed + group + rest,   Var(mean) = σ²_seed / S + σ²_group / G + σ²_rest / (S G) = A + B

A is the variance of the seeds' scores over S: the first and the last term, known as well as S seeds allow.
B is the covariance of two seeds' scores over groups: the middle term.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kdcache.stats.runs import TALLIES, Runs

EQUAL = 1e-9  # points, or their square: smaller differences and variances are rounding


@dataclass(frozen=True)
class Contrast:
    """The values of a contrast between arms by seed and group, in points.

    Args:
        values: of each seed on all rows, of shape (seeds,).
        pseudo: pseudo-values of shape (seeds, groups). Their mean over groups is the value, up to the
            jackknife's bias correction.
    """

    values: np.ndarray
    pseudo: np.ndarray


def contrast(runs: Runs, weights: Mapping[str, float]) -> Contrast:
    """Compute a weighted sum of arms, seed by seed and group by group.

    Args:
        runs: of one task.
        weights: arm → factor.

    Raises:
        DataError: an arm has no predictions, or the arms share no seed.
    """
    values, pseudo = [], []
    for arm, tallies in runs.paired(weights).items():
        jackknifed = [_jackknife(runs.metric, sums) for sums in tallies]
        values.append([weights[arm] * value for value, _ in jackknifed])
        pseudo.append([weights[arm] * parts for _, parts in jackknifed])
    return Contrast(np.sum(values, axis=0), np.sum(pseudo, axis=0))


def over_teachers(tables: Sequence[Contrast]) -> Contrast:
    """Join a contrast over several teachers: each teacher, with the mean of its students, is one draw.

    What the students of one teacher share then does not count as an effect of distillation.

    Args:
        tables: one per teacher, over its own trainings of every arm; same rows, same order.

    Returns:
        A table with teachers in place of seeds.

    >>> one, two = (Contrast(np.array([1.0, 3.0]) + shift, np.ones((2, 4))) for shift in (0, 5))
    >>> over_teachers([one, two]).values.tolist()
    [2.0, 7.0]
    """
    return Contrast(
        values=np.array([table.values.mean() for table in tables]),
        pseudo=np.stack([table.pseudo.mean(axis=0) for table in tables]),
    )


def _jackknife(metric: str, sums: np.ndarray) -> tuple[float, np.ndarray]:
    """Return a run's score and its pseudo-values, of shape (groups,), in points."""
    sums = sums.astype(float)
    value, total, groups = TALLIES[metric].value, sums.sum(axis=0), len(sums)
    on_all = float(value(total))
    return 100 * on_all, 100 * (groups * on_all - (groups - 1) * value(total - sums))


def covariance(tables: Sequence[Contrast]) -> tuple[np.ndarray, np.ndarray]:
    """Compute the covariance of the means of contrasts by source: A (seeds and the rest) and B (groups).

    Args:
        tables: contrasts over the same seeds and groups.

    Returns:
        Two arrays of shape (contrasts, contrasts), positive semidefinite.
    """
    values = np.stack([table.values for table in tables])
    pseudo = np.stack([table.pseudo for table in tables])
    seeds, groups = pseudo.shape[1:]
    rest = pseudo - pseudo.mean(axis=2, keepdims=True)
    same_seed = np.tensordot(rest, rest, axes=((1, 2), (1, 2))) / (groups * (groups - 1))
    if seeds == 1:
        return np.zeros_like(same_seed), same_seed
    over_seeds = rest.sum(axis=1)
    all_pairs = over_seeds @ over_seeds.T / (groups * (groups - 1))
    roots, axes = np.linalg.eigh((all_pairs - same_seed) / (seeds * (seeds - 1)))  # pairs of two seeds
    of_groups = (axes * np.maximum(roots, 0.0)) @ axes.T  # negative variances are noise
    of_seeds = np.atleast_2d(np.cov(values))
    # Where all seeds count as many right rows by chance, they still differ in which rows: the term "rest".
    equal = np.flatnonzero(np.ptp(values, axis=1) < EQUAL)
    per_row = pseudo.var(axis=2, ddof=1).mean(axis=1) / groups
    rest = per_row - of_groups.diagonal()
    of_seeds[equal, equal] = np.where(rest > EQUAL, rest, 0.0)[equal]  # none between seeds that are the same
    return of_seeds / seeds, of_groups
