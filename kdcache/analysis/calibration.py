"""Calibration: reliability bins, expected calibration error and temperature scaling."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.special import log_softmax
from scipy.stats import chi2

ECE_BINS = 15  # as Guo et al. (2017)
PASSING = 2**20  # numbers held in float64 at a time
TEMPERATURES = (1e-3, 1e3)  # the range of the search; beyond it for logits of another size


@dataclass(frozen=True)
class Bin:
    """Rows of similar confidence: their number, mean confidence and accuracy."""

    rows: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Temperature:
    """The temperature of least negative log-likelihood (NLL), in nats per row.

    Args:
        value: 1 for calibrated logits, above 1 for overconfident ones.
        low, high: 95% interval by the profile likelihood; 0 and None if it is open.
        nll, nll_scaled: at temperature 1 and at ``value``.
        rows: number of labelled rows.
    """

    value: float
    low: float
    high: float | None
    nll: float
    nll_scaled: float
    rows: int


def chunks(rows: int, width: int) -> Iterator[slice]:
    """Cut rows of so many numbers into stretches of at most ``PASSING`` numbers."""
    size = max(1, PASSING // width)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def reliability(confidence: np.ndarray, correct: np.ndarray) -> tuple[Bin, ...]:
    """Sort rows into bins of equal mass by confidence.

    The edges are quantiles, so rows of equal confidence are in one bin, whatever their order.

    Args:
        confidence: probability of the prediction, (rows,).
        correct: whether the prediction is the label, (rows,).

    Returns:
        At most ``ECE_BINS`` bins, in order; fewer if there are few rows or few different confidences.

    >>> reliability(np.array([0.9, 0.9, 0.6]), np.array([True, True, False]))
    (Bin(rows=1, confidence=0.6, accuracy=0.0), Bin(rows=2, confidence=0.9, accuracy=1.0))
    """
    edges = np.quantile(confidence, np.linspace(0, 1, min(ECE_BINS, len(confidence)) + 1)[1:-1])
    bin_of = np.searchsorted(edges, confidence, side="right").astype(np.uint8)
    found = []
    for number in range(len(edges) + 1):  # one mask at a time
        inside = bin_of == number
        if inside.any():
            of_bin = float(confidence[inside].mean()), float(correct[inside].mean())
            found.append(Bin(int(inside.sum()), *of_bin))
    return tuple(found)


def ece(bins: Sequence[Bin]) -> float:
    """Compute the expected calibration error (ECE): the mean of |accuracy − confidence| over bins.

    Reference:
        Guo et al. (2017), equation 3, with bins of equal mass.
    """
    return sum(b.rows * abs(b.accuracy - b.confidence) for b in bins) / sum(b.rows for b in bins)


def chance_ece(bins: Sequence[Bin]) -> float:
    """Compute the expected ECE of a calibrated model in bins of these sizes.

    In a bin of n rows and confidence c, the accuracy is about normal around c with the variance
    c (1 − c) / n. The mean absolute deviation is √(2 / π) times the standard deviation.
    """
    deviations = sum(b.rows * np.sqrt(b.confidence * (1 - b.confidence) / b.rows) for b in bins)
    return float(np.sqrt(2 / np.pi) * deviations / sum(b.rows for b in bins))


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> Temperature | None:
    """Find the temperature T of least NLL, −mean log softmax(logits / T)[label].

    Args:
        labels: int array of shape (rows,); rows with −1 are ignored.
        logits: array of shape (rows, num_labels).

    Returns:
        The temperature, or None if there is none: without labelled rows, if every prediction is
        correct (the NLL falls as T → 0), or if the logits tell nothing about the labels (it falls as T → ∞).

    Reference:
        Guo et al. (2017), temperature scaling; the NLL is convex in 1 / T.
    """
    rows = np.flatnonzero(labels >= 0)
    if not len(rows):
        return None
    parts = list(chunks(len(rows), logits.shape[1]))
    all_right, told, ranges = True, 0.0, []
    for part in parts:
        some = np.asarray(logits[rows[part]], np.float64)
        given = some[np.arange(len(some)), labels[rows[part]]]
        all_right &= bool((given >= some.max(axis=1)).all())
        told += float((given - some.mean(axis=1)).sum())
        ranges.append(np.ptp(some, axis=1))
    if all_right or told <= 0:
        return None

    def nll(log_t: float) -> float:
        total = 0.0
        for part in parts:
            log_p = log_softmax(np.asarray(logits[rows[part]], np.float64) / np.exp(log_t), axis=1)
            total -= float(log_p[np.arange(len(log_p)), labels[rows[part]]].sum())
        return total / len(rows)

    of_rows = np.concatenate(ranges)
    smaller, larger = np.log([np.median(of_rows[of_rows > 0]), of_rows.max()])
    bottom, top = np.log(TEMPERATURES) + np.array([min(smaller, 0), max(larger, 0)])
    best = minimize_scalar(nll, bounds=(bottom, top), method="bounded", options={"xatol": 1e-6})
    worse = chi2.ppf(0.95, 1) / 2 / len(rows)

    def excess(log_t: float) -> float:
        return nll(log_t) - best.fun - worse

    low = float(np.exp(brentq(excess, bottom, best.x))) if excess(bottom) > 0 else 0.0
    high = float(np.exp(brentq(excess, best.x, top))) if excess(top) > 0 else None
    return Temperature(float(np.exp(best.x)), low, high, nll(0.0), float(best.fun), len(rows))
