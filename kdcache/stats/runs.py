"""Predictions → each run's score as a function of sums over groups of rows.

A *run* is one student: an arm with one seed. A *group* is what was drawn independently: an example,
or the rows that share a passage. Every metric of ``metrics.METRICS`` is here a function of sums over
groups, so that leaving a group out, or drawing it twice, costs a subtraction or a product.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from kdcache.data.metrics import METRICS, Columns, group_rows
from kdcache.errors import DataError, nearest

ALL_ROWS = "teacher"  # on all training rows, where there are folds beside it
MEMBER = "teacher_member"  # of an ensemble; its number stands where students have their seed
CACHED = "teacher_cached"  # whose logits students follow
TEACHERS = (ALL_ROWS, MEMBER, CACHED)  # one that was trained once meets every seed of the students


@dataclass(frozen=True)
class Tally:
    """A metric in two steps.

    Args:
        parts: (labels, logits, columns) → what each row adds to the sums, of shape (rows, parts).
        value: sums of shape (..., parts) → the metric, of shape (...).
    """

    parts: Callable[[np.ndarray, np.ndarray, Columns], np.ndarray]
    value: Callable[[np.ndarray], np.ndarray]


def _right(labels: np.ndarray, logits: np.ndarray, _columns: Columns) -> np.ndarray:
    """Per row: right, 1."""
    return np.column_stack([logits.argmax(axis=1) == labels, np.ones(len(labels))])


def _units(name: str, labels: np.ndarray, logits: np.ndarray, columns: Columns) -> np.ndarray:
    """On the first row of each unit: the unit's score alone, 1; the metric is their mean."""
    parts = np.zeros((len(labels), 2))
    for rows in group_rows(columns["unit"]).values():
        own = {column: [values[row] for row in rows] for column, values in columns.items()}
        parts[rows[0]] = METRICS[name](labels[rows], logits[rows], own), 1.0
    return parts


def _class_counts(labels: np.ndarray, logits: np.ndarray, _columns: Columns) -> np.ndarray:
    """Per row and class: found, predicted, there."""
    classes = np.eye(logits.shape[1], dtype=np.float32)  # counts are exact in half of the memory
    predicted, there = classes[logits.argmax(axis=1)], classes[labels]
    return np.hstack([predicted * there, predicted, there])


def _ratio(sums: np.ndarray) -> np.ndarray:
    return _divide(sums[..., 0], sums[..., 1])


def _macro_f1(sums: np.ndarray) -> np.ndarray:
    found, predicted, there = np.split(sums, 3, axis=-1)
    # as scikit-learn has it: a class that is neither there nor predicted does not count
    return _divide(_divide(2 * found, predicted + there).sum(-1), (predicted + there > 0).sum(-1))


def _f1a(sums: np.ndarray) -> np.ndarray:
    found, predicted, there = np.split(sums, 3, axis=-1)
    return _divide(2 * found[..., 1], (predicted + there)[..., 1])


def _matthews(sums: np.ndarray) -> np.ndarray:
    """For any number of classes, after Gorodkin (2004)."""
    found, predicted, there = np.split(sums, 3, axis=-1)
    rows = there.sum(-1)
    spread = (rows**2 - (predicted**2).sum(-1)) * (rows**2 - (there**2).sum(-1))
    return _divide(found.sum(-1) * rows - (predicted * there).sum(-1), np.sqrt(spread))


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """A quotient; 0 where the divisor is."""
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=np.asarray(below) != 0)


TALLIES = {
    "accuracy": Tally(_right, _ratio),
    "macro_f1": Tally(_class_counts, _macro_f1),
    "matthews": Tally(_class_counts, _matthews),
    "f1a": Tally(_class_counts, _f1a),
    **{
        name: Tally(partial(_units, name), _ratio)
        for name in ("exact_match", "gender_parity", "answer_f1", "answer_exact_match")
    },
}


@dataclass(frozen=True)
class Runs:
    """All runs on one task's rows, ready to be compared under one metric.

    Args:
        metric: a key of ``metrics.METRICS``.
        tallies: arm → seed → sums per group, of shape (groups, parts).
    """

    metric: str
    tallies: Mapping[str, Mapping[int, np.ndarray]]

    @property
    def groups(self) -> int:
        """How many groups of rows there are."""
        return next(iter(next(iter(self.tallies.values())).values())).shape[0]

    def paired(self, arms: Iterable[str]) -> dict[str, list[np.ndarray]]:
        """The tallies of arms over the seeds that they share.

        Args:
            arms: with predictions. A single teacher meets every seed of the others; a student, and a member
                of an ensemble, those that it shares: of a student that trained once, as of one whose other
                seeds diverged, there is only that seed.

        Returns:
            arm → one tally per seed, in the order of seeds.

        Raises:
            DataError: there is no such arm, or the arms share no seed.
        """
        arms = list(arms)
        for arm in arms:
            if arm not in self.tallies:
                raise DataError(
                    f"stats: arm must be one with predictions, got {arm!r}. {nearest(arm, self.tallies)}"
                )
        fixed = {arm for arm in arms if arm in TEACHERS and len(self.tallies[arm]) == 1}
        students = [set(self.tallies[arm]) for arm in arms if arm not in fixed]
        seeds = sorted(set.intersection(*students)) if students else [0]
        if not seeds:
            raise DataError(
                f"stats: {' and '.join(arms)} must share seeds, got none in common. "
                "Train them with the same distill.seeds."
            )
        return {
            arm: list(runs.values()) * len(seeds) if arm in fixed else [runs[seed] for seed in seeds]
            for arm, runs in ((arm, self.tallies[arm]) for arm in arms)
        }


def tally_runs(
    metric: str,
    labels: np.ndarray,
    logits: Mapping[str, Mapping[int, np.ndarray]],
    groups: Sequence[str] | None = None,
    columns: Columns | None = None,
) -> Runs:
    """Tally the logits of all arms and seeds on the same rows.

    Args:
        metric: a key of ``metrics.METRICS``.
        labels: int array of shape (rows,); no −1.
        logits: arm → seed → array of shape (rows, num_labels).
        groups: of shape (rows,), the group of each row; None: each row alone.
        columns: name → (rows,), what the metric reads beside.

    Returns:
        Runs.

    Raises:
        DataError: the metric is unknown, or fewer than two groups are there.

    >>> runs = tally_runs("accuracy", np.array([0, 1]), {"ce": {0: np.array([[2., 1.], [2., 1.]])}})
    >>> runs.tallies["ce"][0].tolist()
    [[1.0, 1.0], [0.0, 1.0]]
    """
    if metric not in TALLIES:
        raise DataError(f"stats: metric must be a known one, got {metric!r}. {nearest(metric, TALLIES)}")
    group = np.arange(len(labels)) if groups is None else pd.factorize(np.asarray(groups, dtype=object))[0]
    count = len(set(group.tolist()))
    if count < 2:
        raise DataError(
            f"stats: rows must fall into at least 2 groups, got {count}. Score more labelled rows."
        )

    def tally(outputs: np.ndarray) -> np.ndarray:
        parts = TALLIES[metric].parts(labels, outputs, columns or {})
        sums = np.zeros((count, parts.shape[1]), parts.dtype)
        np.add.at(sums, group, parts)
        return sums

    return Runs(metric, {arm: {seed: tally(z) for seed, z in seeds.items()} for arm, seeds in logits.items()})


def read_runs(predictions: pd.DataFrame, metric: str, rows: pd.DataFrame | None = None) -> Runs:
    """Tally a frame of predictions.

    Args:
        predictions: columns ``example_id``, ``label``, ``arm``, ``seed``, ``logits``; one row per
            arm, seed and example. Rows with label −1 do not count.
        metric: a key of ``metrics.METRICS``.
        rows: the split itself, as prepared: ``example_id``, ``group`` and what the metric reads
            beside. None: each example is a group, and the metric reads nothing else.

    Returns:
        Runs.

    Raises:
        DataError: a run has other examples than the first, or one twice; ``rows`` lacks an example;
            the metric is unknown; fewer than two groups are there.
    """
    runs = {key: run.set_index("example_id") for key, run in predictions.groupby(["arm", "seed"], sort=False)}
    (first_arm, first_seed), first = next(iter(runs.items()))
    labelled = first.index[first["label"] >= 0]
    logits: dict[str, dict[int, np.ndarray]] = {}
    for (arm, seed), run in runs.items():
        differing = len(run.index.symmetric_difference(first.index)) or len(run) - run.index.nunique()
        if differing:
            raise DataError(
                f"stats: {arm}-{seed} must predict the examples of {first_arm}-{first_seed}, each once, "
                f"got {differing} others. Run: kdcache distill"
            )
        logits.setdefault(arm, {})[int(seed)] = np.array(run.loc[labelled, "logits"].tolist())
    labels = first.loc[labelled, "label"].to_numpy()
    if rows is None:
        return tally_runs(metric, labels, logits)
    beside = rows.set_index("example_id")
    if absent := labelled.difference(beside.index).tolist():
        raise DataError(
            f"stats: rows must hold every predicted example, got no {absent[0]}. "
            "Read the split that was predicted."
        )
    beside = beside.loc[labelled]
    columns = {name: beside[name].tolist() for name in ("unit", "candidate", "answers") if name in beside}
    return tally_runs(metric, labels, logits, beside["group"].tolist(), columns)
