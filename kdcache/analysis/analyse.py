"""What a cache holds, before any student: how right its targets are, how sure, and how honest.

Numbers only; ``reading`` says what they mean. A split is *held out* where no teacher trained on the
rows that it speaks of: every split but train, and train where its logits are cross-fitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import log_softmax

from kdcache.analysis.agreement import Agreement, Seeds, compare_folds, compare_seeds
from kdcache.analysis.calibration import Bin, Temperature, chance_ece, ece, fit_temperature, reliability
from kdcache.cache.location import Location
from kdcache.cache.manifest import EXTERNAL, read_manifest
from kdcache.cache.reader import load_cache
from kdcache.cache.rows import CacheRows
from kdcache.data.metrics import accuracy_interval
from kdcache.errors import ShapeError

ENTROPY_BINS = 20
MARGIN_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Share:
    """A share of rows with Wilson's 95 % interval, which takes the rows as independent."""

    value: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True)
class Mistake:
    """A row that the logits get wrong; ``suspect`` where its label may be, see ``suspect_labels``."""

    example_id: str
    label: int
    prediction: int
    confidence: float
    suspect: bool


@dataclass(frozen=True)
class LabelAnalysis:
    """Logits against labels, over the labelled rows of a split.

    Args:
        accuracy: share that is right.
        majority: share of the most frequent label.
        nll: mean negative log-likelihood, in nats.
        ece: expected calibration error over the bins of ``reliability``, 0 … 1.
        ece_by_chance: what so many rows of a calibrated teacher would show.
        reliability: bins of equal mass, by confidence.
        classes: class index → share that is right, of the classes that have rows.
        mistakes: wrong rows, the most confident first.
        suspects: how many of them are suspected label noise; None where the teacher trained on
            these rows, or nobody knows.
    """

    accuracy: Share
    majority: float
    nll: float
    ece: float
    ece_by_chance: float
    reliability: tuple[Bin, ...]
    classes: dict[int, Share]
    mistakes: tuple[Mistake, ...]
    suspects: int | None


@dataclass(frozen=True)
class SplitAnalysis:
    """One split.

    Args:
        rows: how many.
        held_out: whether no teacher trained on them; None where nobody knows.
        entropy: mean of the rows' entropies, in nats.
        entropy_share: the same, over the logarithm of the number of classes.
        entropy_counts: rows per bin, of ``ENTROPY_BINS`` equal ones from 0 to that logarithm.
        margins: quantile → best minus second logit.
        labels: against the labels; None where there are none.
    """

    rows: int
    held_out: bool | None
    entropy: float
    entropy_share: float
    entropy_counts: tuple[int, ...]
    margins: dict[float, float]
    labels: LabelAnalysis | None


@dataclass(frozen=True)
class CacheAnalysis:
    """A whole cache.

    Args:
        labels: names of the classes.
        external: whether kdcache did not run the teacher.
        splits: split → analysis.
        temperatures: split → temperature, of tune and of cross-fitted train: validation chooses nothing.
        folds: fold → accuracy of its teacher on its held-out part of train.
        agreement: split → teacher on all rows against fold teachers; empty without folds.
        seeds: split → members of the ensemble; empty where there is one teacher.
    """

    labels: tuple[str, ...]
    external: bool
    splits: dict[str, SplitAnalysis]
    temperatures: dict[str, Temperature]
    folds: dict[int, Share]
    agreement: dict[str, Agreement]
    seeds: dict[str, Seeds]


def analyse_cache(path: Location | Path | str) -> CacheAnalysis:
    """Analyse a verified cache, from its logits and labels alone.

    Args:
        path: the folder ``cache/<task>``, or a URI that pyarrow or fsspec opens.

    Raises:
        CacheError: there is none, or it is damaged.
    """
    location = Location.parse(path)
    manifest = read_manifest(location)
    external = manifest.identity.get("kind") == EXTERNAL
    splits: dict[str, SplitAnalysis] = {}
    temperatures: dict[str, Temperature] = {}
    folds: dict[int, Share] = {}
    agreement: dict[str, Agreement] = {}
    seeds: dict[str, Seeds] = {}
    for split in manifest.splits:
        ids, (labels, fold, logits, plain, members) = _read_columns(location, split)
        if plain.shape[1]:
            agreement[split] = compare_folds(labels, logits.argmax(axis=1), plain[:, 0])
        if members.shape[1]:
            seeds[split] = compare_seeds(labels, logits.argmax(axis=1), members)
        held_out = split != "train" or bool((fold >= 0).all()) or (None if external else False)
        splits[split] = analyse_split(ids, labels, logits, held_out)
        if held_out and split in ("train", "tune") and (found := fit_temperature(labels, logits)):
            temperatures[split] = found
        for k in np.unique(fold[(fold >= 0) & (labels >= 0)]).tolist():
            mine = (fold == k) & (labels >= 0)
            folds[k] = _share(logits[mine].argmax(axis=1) == labels[mine])
    return CacheAnalysis(
        tuple(manifest.identity["labels"]), external, splits,
        dict(sorted(temperatures.items(), reverse=True)),  # tune before train
        folds, agreement, seeds,
    )  # fmt: skip


def analyse_split(
    ids: list[str], labels: np.ndarray, logits: np.ndarray, held_out: bool | None = True
) -> SplitAnalysis:
    """Analyse the rows of one split.

    Args:
        ids: example ids, (rows,).
        labels: int array of shape (rows,); −1 has none.
        logits: array of shape (rows, num_labels).
        held_out: whether the teacher saw none of these rows; None where nobody knows.

    Raises:
        ShapeError: they are not equally many, or none.

    >>> found = analyse_split(["a", "b"], np.array([0, 0]), np.array([[2., 0.], [0., 2.]]))
    >>> found.labels.accuracy.value, round(found.entropy, 3), round(found.labels.ece, 3)
    (0.5, 0.365, 0.381)
    """
    logits = np.asarray(logits, np.float64)
    if not len(ids) == len(labels) == len(logits) or min(logits.shape, default=0) < 1 or logits.shape[1] < 2:
        raise ShapeError(
            "analyse_split: logits must be (rows, num_labels), at least (1, 2), of as many ids and labels, "
            f"got {logits.shape} of {len(ids)} ids and {len(labels)} labels."
        )
    log_p = log_softmax(logits, axis=1)
    entropies = -(np.exp(log_p) * log_p).sum(axis=1)
    limit = float(np.log(logits.shape[1]))
    counts, _ = np.histogram(np.clip(entropies, 0, limit), ENTROPY_BINS, (0, limit))
    ranked = np.partition(logits, -2, axis=1)
    margins = np.quantile(ranked[:, -1] - ranked[:, -2], MARGIN_QUANTILES)
    labelled = np.flatnonzero(labels >= 0)
    named = [ids[i] for i in labelled.tolist()]
    against = _analyse_labels(named, labels[labelled], log_p[labelled], held_out) if named else None
    return SplitAnalysis(
        len(ids), held_out, float(entropies.mean()), float(entropies.mean() / limit),
        tuple(counts.tolist()), dict(zip(MARGIN_QUANTILES, margins.tolist(), strict=True)), against,
    )  # fmt: skip


def suspect_labels(labels: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Find suspected label noise, by confident learning.

    A class's threshold is the mean probability that rows of that label get for it. A row counts for
    the likeliest class that reaches its threshold; it is a suspect where that is not its label, and
    likelier than its label.

    Args:
        labels: int array of shape (rows,), all ≥ 0.
        p: probabilities of shape (rows, num_labels), by a teacher that trained on none of the rows.

    Returns:
        bool array of shape (rows,).

    Reference:
        Northcutt, Jiang & Chuang (2021), the off-diagonal of the confident joint. A weak
        teacher's suspects are mostly its own mistakes.

    >>> p = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.1, 0.9]])
    >>> suspect_labels(np.array([0, 0, 1, 1, 0]), p)
    array([False, False, False, False,  True])
    """
    thresholds = np.full(p.shape[1], np.inf)
    for k in np.unique(labels):
        thresholds[k] = p[labels == k, k].mean()
    rows = np.arange(len(labels))
    other = np.where(p >= thresholds, p, -np.inf).argmax(axis=1)
    return (p[rows, other] >= thresholds[other]) & (p[rows, other] > p[rows, labels])


def _analyse_labels(
    ids: list[str], labels: np.ndarray, log_p: np.ndarray, held_out: bool | None
) -> LabelAnalysis:
    rows, p = np.arange(len(labels)), np.exp(log_p)
    predictions, confidence = log_p.argmax(axis=1), p.max(axis=1)
    right = predictions == labels
    suspects = suspect_labels(labels, p) if held_out else np.zeros(len(labels), bool)
    # Confidences near 1 are all alike; then the log-odds against the label decide.
    order = np.lexsort((log_p[rows, labels] - log_p.max(axis=1), -confidence))
    bins = reliability(confidence, right)
    return LabelAnalysis(
        accuracy=_share(right),
        majority=float(np.bincount(labels).max() / len(labels)),
        nll=-float(log_p[rows, labels].mean()),
        ece=ece(bins),
        ece_by_chance=chance_ece(bins),
        reliability=bins,
        classes={int(k): _share(right[labels == k]) for k in np.unique(labels)},
        mistakes=tuple(
            Mistake(ids[i], int(labels[i]), int(predictions[i]), float(confidence[i]), bool(suspects[i]))
            for i in order[~right[order]].tolist()
        ),
        suspects=int(suspects.sum()) if held_out else None,
    )


def _share(right: np.ndarray) -> Share:
    value = float(right.mean())
    return Share(value, *accuracy_interval(value, len(right)), len(right))


def _read_columns(location: Location, split: str) -> tuple[list[str], list[np.ndarray]]:
    """Ids, labels, folds, logits; classes that the teacher on all rows and the ensemble's members predict.

    The last two have no column where there is no such teacher. Features are never all in memory.
    """
    ids: list[str] = []
    columns = []
    for rows in load_cache(location, split).stream():
        ids += rows.example_id
        plain = [] if rows.logits_plain is None else [rows.logits_plain]
        predicted = _classes(rows, plain), _classes(rows, rows.members)
        columns.append((rows.label, rows.fold, rows.logits, *predicted))
    return ids, [np.concatenate(parts) for parts in zip(*columns, strict=True)]


def _classes(rows: CacheRows, logits: Sequence[np.ndarray]) -> np.ndarray:
    """Predicted classes, of shape (rows, teachers)."""
    return np.array([said.argmax(axis=1) for said in logits], np.int64).reshape(len(logits), len(rows)).T
