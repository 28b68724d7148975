"""Analysis of a cache: accuracy, entropy, calibration, label noise and agreement of its teachers.

``describe`` puts the numbers into words. A split is *held out* if no teacher was trained on the rows
that its logits are of. That is every split but train, and train if its logits are cross-fitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdcache.analysis.agreement import FoldAgreement, MemberAgreement, compare_folds, compare_members
from kdcache.analysis.answers import Ids, read_answers
from kdcache.analysis.calibration import (
    Bin,
    Temperature,
    chance_ece,
    chunks,
    ece,
    fit_temperature,
    reliability,
)
from kdcache.analysis.frozen_probes import FrozenProbes, read_frozen_probes
from kdcache.cache.cached_rows import compute_uncertainty
from kdcache.cache.manifest import OUTSIDE, read_manifest
from kdcache.cache.reader import load_cache
from kdcache.data.metrics import accuracy_interval
from kdcache.data.splits import TEST
from kdcache.errors import ShapeError
from kdcache.store.location import Location

ENTROPY_BINS = 20
MAX_MISTAKES = 1000
MARGIN_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Proportion:
    """A share of rows with its 95% interval by Wilson, which assumes independent rows."""

    value: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True)
class Mistake:
    """A row with a wrong prediction; ``suspect`` if its label may be wrong, see ``suspect_labels``."""

    example_id: str
    label: int
    prediction: int
    confidence: float
    suspect: bool


@dataclass(frozen=True)
class LabelAnalysis:
    """Logits against labels, over the labelled rows of a split.

    Args:
        accuracy: share of correct predictions.
        majority: share of the most frequent label.
        nll: mean negative log-likelihood, in nats.
        ece: expected calibration error over the bins of ``reliability``, 0 … 1.
        ece_by_chance: expected value of ``ece`` for a calibrated teacher on as many rows.
        reliability: bins of equal mass, by confidence.
        classes: class index → accuracy on the rows of that label, for the labels that occur.
        wrong: number of wrong predictions.
        mistakes: the most confident of them, at most ``MAX_MISTAKES``, in that order.
        suspects: how many of them are suspected label noise; None unless the split is held out.
    """

    accuracy: Proportion
    majority: float
    nll: float
    ece: float
    ece_by_chance: float
    reliability: tuple[Bin, ...]
    classes: dict[int, Proportion]
    wrong: int
    mistakes: tuple[Mistake, ...]
    suspects: int | None


@dataclass(frozen=True)
class SplitAnalysis:
    """One split.

    Args:
        rows: their number.
        held_out: whether no teacher was trained on them; None if that is unknown.
        entropy: mean over rows, in nats.
        entropy_share: ``entropy`` divided by the logarithm of the number of classes.
        entropy_counts: rows per bin, for ``ENTROPY_BINS`` equal bins from 0 to that logarithm.
        margins: quantile → largest minus second largest logit.
        labels: logits against labels; None without labelled rows.
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
        external: whether the cache was imported.
        splits: split → analysis.
        temperatures: split → temperature, for tune and for cross-fitted train only, since nothing is
            chosen on validation.
        folds: fold → accuracy on it of the teacher that was trained without it.
        agreement: split → teacher on all rows against fold teachers; empty without folds.
        members: split → members of the ensemble; empty without an ensemble.
        probes: split → linear probes of the frozen models, for splits where one is known.
    """

    labels: tuple[str, ...]
    external: bool
    splits: dict[str, SplitAnalysis]
    temperatures: dict[str, Temperature]
    folds: dict[int, Proportion]
    agreement: dict[str, FoldAgreement]
    members: dict[str, MemberAgreement]
    probes: dict[str, FrozenProbes]


def analyse_cache(path: Location | Path | str, backbone: Path | None = None) -> CacheAnalysis:
    """Analyse the logits and labels of a verified cache; of test, the logits alone.

    Args:
        path: the folder ``cache/<task>``, or a URI that pyarrow or fsspec opens.
        backbone: folder of the students' backbone, whose probe is compared with the teacher.

    Raises:
        CacheError: the cache is missing or damaged.
    """
    location = Location.parse(path)
    manifest = read_manifest(location)
    external = manifest.identity.get("kind") == OUTSIDE
    splits: dict[str, SplitAnalysis] = {}
    temperatures: dict[str, Temperature] = {}
    folds: dict[int, Proportion] = {}
    agreement: dict[str, FoldAgreement] = {}
    members: dict[str, MemberAgreement] = {}
    for split in manifest.splits:
        rows = read_answers(load_cache(location, split), with_labels=split != TEST)
        labels, logits, predictions = rows.labels, rows.logits, rows.predictions
        if rows.plain is not None:
            agreement[split] = compare_folds(labels, predictions, rows.plain)
        if rows.members is not None:
            members[split] = compare_members(labels, predictions, rows.members)
        held_out = split != "train" or bool((rows.fold >= 0).all()) or (None if external else False)
        splits[split] = analyse_split(rows.ids, labels, logits, held_out)
        if held_out and split in ("train", "tune") and (found := fit_temperature(labels, logits)):
            temperatures[split] = found
        for k in np.unique(rows.fold[(rows.fold >= 0) & (labels >= 0)]).tolist():
            of_fold = (rows.fold == k) & (labels >= 0)
            folds[k] = _accuracy_of(predictions[of_fold] == labels[of_fold])
    return CacheAnalysis(
        tuple(manifest.identity["labels"]), external, splits,
        dict(sorted(temperatures.items(), reverse=True)),  # tune before train
        folds, agreement, members, read_frozen_probes(manifest, backbone),
    )  # fmt: skip


def analyse_split(
    ids: Sequence[str] | Ids, labels: np.ndarray, logits: np.ndarray, held_out: bool | None = True
) -> SplitAnalysis:
    """Analyse the rows of one split.

    Args:
        ids: example ids, (rows,).
        labels: int array of shape (rows,); −1 = unlabelled.
        logits: array of shape (rows, num_labels).
        held_out: whether the teacher was trained on none of these rows; None if that is unknown.

    Raises:
        ShapeError: their numbers differ, or there are no rows.

    >>> found = analyse_split(["a", "b"], np.array([0, 0]), np.array([[2., 0.], [0., 2.]]))
    >>> found.labels.accuracy.value, round(found.entropy, 3), round(found.labels.ece, 3)
    (0.5, 0.365, 0.381)
    """
    same = logits.ndim == 2 and len(ids) == len(labels) == len(logits)
    if not same or len(logits) < 1 or logits.shape[1] < 2:
        raise ShapeError(
            "analyse_split: logits must be (rows, num_labels), at least (1, 2), of as many ids and labels, "
            f"got {logits.shape} of {len(ids)} ids and {len(labels)} labels."
        )
    entropy, margin = (np.empty(len(labels)) for _ in range(2))
    for part in chunks(len(labels), logits.shape[1]):
        found = compute_uncertainty(logits[part])
        entropy[part], margin[part] = found.entropy, found.margin
    limit = float(np.log(logits.shape[1]))
    counts, _ = np.histogram(np.clip(entropy, 0, limit), ENTROPY_BINS, (0, limit))
    mean, margins = float(entropy.mean()), np.quantile(margin, MARGIN_QUANTILES)
    del entropy, margin
    labelled = np.flatnonzero(labels >= 0).astype(np.int32)  # no split has 2³¹ rows
    return SplitAnalysis(
        len(ids), held_out, mean, mean / limit, tuple(counts.tolist()),
        dict(zip(MARGIN_QUANTILES, margins.tolist(), strict=True)),
        _analyse_labels(ids, labels, logits, labelled, held_out) if len(labelled) else None,
    )  # fmt: skip


def suspect_labels(labels: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Find suspected label noise by confident learning.

    A class's threshold is the mean probability of that class over the rows with that label. A row is
    counted as the likeliest class that reaches its threshold. It is a suspect if that class is not
    its label, and is likelier than its label.

    Args:
        labels: int array of shape (rows,), all ≥ 0.
        p: probabilities of shape (rows, num_labels), from a teacher that was trained on none of the rows.

    Returns:
        bool array of shape (rows,).

    Reference:
        Northcutt, Jiang & Chuang (2021), the off-diagonal of the confident joint. The
        suspects of a weak teacher are mostly its own mistakes.

    >>> p = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.1, 0.9]])
    >>> suspect_labels(np.array([0, 0, 1, 1, 0]), p)
    array([False, False, False, False,  True])
    """
    rows = np.arange(len(labels))
    return _suspects(labels, p, _thresholds(labels, p[rows, labels], p.shape[1]))


def _thresholds(labels: np.ndarray, own: np.ndarray, num_labels: int) -> np.ndarray:
    """Of each class, the mean of the labels' own probabilities; infinity where no row has the label."""
    thresholds = np.full(num_labels, np.inf)
    for k in np.unique(labels):
        thresholds[k] = own[labels == k].mean()
    return thresholds


def _suspects(labels: np.ndarray, p: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    rows = np.arange(len(labels))
    other = np.where(p >= thresholds, p, -np.inf).argmax(axis=1)
    return (p[rows, other] >= thresholds[other]) & (p[rows, other] > p[rows, labels])


def _analyse_labels(
    ids: Sequence[str] | Ids, labels: np.ndarray, logits: np.ndarray, labelled: np.ndarray,
    held_out: bool | None,
) -> LabelAnalysis:  # fmt: skip
    """Analyse the rows ``labelled``. Of each row a few numbers are held."""
    labels, num_labels = labels if len(labelled) == len(labels) else labels[labelled], logits.shape[1]
    predictions = np.empty(len(labels), np.int32)
    most, own = np.empty(len(labels)), np.empty(len(labels))  # log-probabilities of prediction and label
    for part in chunks(len(labels), num_labels):
        log_p = compute_uncertainty(logits[labelled[part]]).log_p
        predictions[part], most[part] = log_p.argmax(axis=1), log_p.max(axis=1)
        own[part] = log_p[np.arange(len(log_p)), labels[part]]
    suspects = np.zeros(len(labels), bool)
    if held_out:
        thresholds = _thresholds(labels, np.exp(own), num_labels)
        for part in chunks(len(labels), num_labels):
            p = np.exp(compute_uncertainty(logits[labelled[part]]).log_p)
            suspects[part] = _suspects(labels[part], p, thresholds)
    correct, nll = predictions == labels, -float(own.mean())
    ties = own[wrong := np.flatnonzero(~correct)] - most[wrong]
    del own
    # Confidences near 1 are equal after rounding; the log-odds against the label break such ties.
    confidence = np.exp(most, out=most)
    shown = wrong[np.lexsort((ties, -confidence[wrong]))[:MAX_MISTAKES]]
    bins = reliability(confidence, correct)
    which = labelled[shown]
    names = ids.take(which) if isinstance(ids, Ids) else [ids[i] for i in which]
    facts = zip(names, labels[shown], predictions[shown], confidence[shown], suspects[shown], strict=True)
    return LabelAnalysis(
        accuracy=_accuracy_of(correct),
        majority=float(np.bincount(labels).max() / len(labels)),
        nll=nll,
        ece=ece(bins),
        ece_by_chance=chance_ece(bins),
        reliability=bins,
        classes={int(k): _accuracy_of(correct[labels == k]) for k in np.unique(labels)},
        wrong=len(wrong),
        mistakes=tuple(Mistake(i, int(k), int(j), float(c), bool(s)) for i, k, j, c, s in facts),
        suspects=int(suspects.sum()) if held_out else None,
    )


def _accuracy_of(correct: np.ndarray) -> Proportion:
    value = float(correct.mean())
    return Proportion(value, *accuracy_interval(value, len(correct)), len(correct))
