"""The runs of a task: every metric as a function of sums over groups of rows.

A *run* is one student: an arm with one seed. A *group* is an independent draw: an example, or the rows
that share a passage. With sums per group, leaving a group out costs one subtraction.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcache.data.metrics import COLUMNS_READ, METRICS, TWO_LABELS, Columns, group_rows
from kdcache.errors import DataError, nearest
from kdcache.project import TEACHERS

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Tally:
    """A metric in two steps: sums over rows, then a function of the sums.

    Args:
        parts: (labels, logits, columns) → each row's summands, of shape (rows, parts).
        value: sums of shape (..., parts) → the metric, of shape (...).
    """

    parts: Callable[[np.ndarray, np.ndarray, Columns], np.ndarray]
    value: Callable[[np.ndarray], np.ndarray]


def _right(labels: np.ndarray, logits: np.ndarray, _columns: Columns) -> np.ndarray:
    """Return (is right, 1) per row."""
    return np.column_stack([logits.argmax(axis=1) == labels, np.ones(len(labels))])


def _units(name: str, labels: np.ndarray, logits: np.ndarray, columns: Columns) -> np.ndarray:
    """Return (the unit's score, 1) on the first row of each unit; the metric is the mean over units."""
    parts = np.zeros((len(labels), 2))
    for rows in group_rows(columns["unit"]).values():
        own = {column: [values[row] for row in rows] for column, values in columns.items()}
        parts[rows[0]] = METRICS[name](labels[rows], logits[rows], own), 1.0
    return parts


def _class_counts(labels: np.ndarray, logits: np.ndarray, _columns: Columns) -> np.ndarray:
    """Return (found, predicted, present) per row and class."""
    classes = np.eye(logits.shape[1], dtype=np.float32)  # exact for counts, in half the memory
    predicted, present = classes[logits.argmax(axis=1)], classes[labels]
    return np.hstack([predicted * present, predicted, present])


def _ratio(sums: np.ndarray) -> np.ndarray:
    return _divide(sums[..., 0], sums[..., 1])


def _macro_f1(sums: np.ndarray) -> np.ndarray:
    found, predicted, present = np.split(sums, 3, axis=-1)
    # as in scikit-learn, a class that is neither present nor predicted does not count
    return _divide(_divide(2 * found, predicted + present).sum(-1), (predicted + present > 0).sum(-1))


def _f1a(sums: np.ndarray) -> np.ndarray:
    found, predicted, present = np.split(sums, 3, axis=-1)
    return _divide(2 * found[..., 1], (predicted + present)[..., 1])


def _matthews(sums: np.ndarray) -> np.ndarray:
    """Compute Matthews' coefficient for any number of classes (Gorodkin, 2004)."""
    found, predicted, present = np.split(sums, 3, axis=-1)
    rows = present.sum(-1)
    spread = (rows**2 - (predicted**2).sum(-1)) * (rows**2 - (present**2).sum(-1))
    return _divide(found.sum(-1) * rows - (predicted * present).sum(-1), np.sqrt(spread))


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divide; 0 where the divisor is 0."""
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
    """All runs on one task's rows under one metric.

    Args:
        metric: a key of ``metrics.METRICS``.
        tallies: arm → seed → sums per group, of shape (groups, parts).
    """

    metric: str
    tallies: Mapping[str, Mapping[int, np.ndarray]]

    def paired(self, arms: Iterable[str]) -> dict[str, list[np.ndarray]]:
        """Return the sums of several arms over the seeds that they share.

        Args:
            arms: arms with predictions. A single teacher is paired with every seed of the others; students
                and members of an ensemble are paired by seed.

        Returns:
            arm → the sums of each seed, in the order of seeds.

        Raises:
            DataError: an arm has no predictions, or the arms share no seed.
        """
        arms = list(arms)
        for arm in arms:
            if arm not in self.tallies:
                raise DataError(f"No predictions of an arm {arm!r}. {nearest(arm, self.tallies)}")
        fixed = {arm for arm in arms if arm in TEACHERS and len(self.tallies[arm]) == 1}
        students = [set(self.tallies[arm]) for arm in arms if arm not in fixed]
        seeds = sorted(set.intersection(*students)) if students else [0]
        if not seeds:
            raise DataError(
                f"The arms {' and '.join(arms)} share no seed. Train them with the same distill.seeds."
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
    """Sum the logits' scores per group, for all arms and seeds on the same rows.

    Args:
        metric: a key of ``metrics.METRICS``.
        labels: int array of shape (rows,); no −1.
        logits: arm → seed → array of shape (rows, num_labels).
        groups: the group of each row, of shape (rows,). None: each row is a group.
        columns: name → (rows,), other columns that the metric reads.

    Returns:
        The runs.

    Raises:
        DataError: the metric is unknown or does not fit these rows, or there are fewer than two groups.

    >>> runs = tally_runs("accuracy", np.array([0, 1]), {"ce": {0: np.array([[2., 1.], [2., 1.]])}})
    >>> runs.tallies["ce"][0].tolist()
    [[1.0, 1.0], [0.0, 1.0]]
    """
    if metric not in TALLIES:
        raise DataError(f"Unknown metric {metric!r}. {nearest(metric, TALLIES)}")
    if lacking := [name for name in COLUMNS_READ.get(metric, ()) if name not in (columns or {})]:
        raise DataError(f"The metric {metric} reads {', '.join(lacking)}, which these rows do not have.")
    shape = next((outputs.shape for seeds in logits.values() for outputs in seeds.values()), ())
    if metric in TWO_LABELS and len(shape) == 2 and shape[1] != 2:
        raise DataError(f"The metric {metric} must have two labels, got {shape[1]}. Name another.")
    numbers: dict[Any, int] = {}  # of the groups, in order of first appearance
    names = range(len(labels)) if groups is None else groups
    group = [numbers.setdefault(name, len(numbers)) for name in names]
    count = len(numbers)
    if count < 2:
        raise DataError(
            f"Statistics need at least 2 groups of labelled rows, got {count}. Score more labelled rows."
        )

    def tally(outputs: np.ndarray) -> np.ndarray:
        parts = TALLIES[metric].parts(labels, outputs, columns or {})
        sums = np.zeros((count, parts.shape[1]), parts.dtype)
        np.add.at(sums, group, parts)
        return sums

    return Runs(metric, {arm: {seed: tally(z) for seed, z in seeds.items()} for arm, seeds in logits.items()})


def read_runs(predictions: "pd.DataFrame", metric: str, rows: "pd.DataFrame | None" = None) -> Runs:
    """Sum a frame of predictions per group.

    Args:
        predictions: columns ``example_id``, ``label``, ``arm``, ``seed``, ``logits``; one row per
            arm, seed and example. Rows with label −1 are left out.
        metric: a key of ``metrics.METRICS``.
        rows: the prepared split: ``example_id``, ``group`` and other columns that the metric reads.
            None: each example is a group, and the metric reads nothing else.

    Returns:
        The runs.

    Raises:
        DataError: a run has other examples than the first run, or repeats one; ``rows`` lacks an example;
            the metric is unknown; there are fewer than two groups.
    """
    runs = {key: run.set_index("example_id") for key, run in predictions.groupby(["arm", "seed"], sort=False)}
    (first_arm, first_seed), first = next(iter(runs.items()))
    labelled = first.index[first["label"] >= 0]
    logits: dict[str, dict[int, np.ndarray]] = {}
    for (arm, seed), run in runs.items():
        differing = len(run.index.symmetric_difference(first.index)) or len(run) - run.index.nunique()
        if differing:
            raise DataError(
                f"{arm}-{seed} and {first_arm}-{first_seed} must predict the same examples, each once; "
                f"{differing} differ. Run: kdcache distill"
            )
        logits.setdefault(arm, {})[int(seed)] = np.array(run.loc[labelled, "logits"].tolist())
    labels = first.loc[labelled, "label"].to_numpy()
    if rows is None:
        return tally_runs(metric, labels, logits)
    beside = rows.set_index("example_id")
    if absent := labelled.difference(beside.index).tolist():
        raise DataError(f"The split lacks the predicted example {absent[0]!r}. Run: kdcache distill")
    beside = beside.loc[labelled]
    columns = {name: beside[name].tolist() for name in ("unit", "candidate", "answers") if name in beside}
    return tally_runs(metric, labels, logits, beside["group"].tolist(), columns)
