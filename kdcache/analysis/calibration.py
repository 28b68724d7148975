"""How sure a model is against how right it is: reliability bins, calibration error, temperature."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.special import log_softmax
from scipy.stats import chi2

ECE_BINS = 15  # as Guo et al. (2017)
TEMPERATURES = (1e-3, 1e3)  # where the best one is looked for


@dataclass(frozen=True)
class Bin:
    """Rows of like confidence: how many, their mean confidence, the share that is right."""

    rows: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Temperature:
    """The temperature of least negative log-likelihood (NLL), in nats per row.

    Args:
        value: 1 for calibrated logits, above 1 for too sure ones.
        low, high: 95 % interval by the profile likelihood; 0 and None where it is open.
        nll, nll_scaled: at temperature 1 and at ``value``.
        rows: labelled rows it was found on.
    """

    value: float
    low: float
    high: float | None
    nll: float
    nll_scaled: float
    rows: int


def reliability(confidence: np.ndarray, right: np.ndarray) -> tuple[Bin, ...]:
    """Bins of equal mass, by confidence.

    Their edges are quantiles, so that rows of equal confidence share a bin, whatever their order.

    Args:
        confidence: probability of the prediction, (rows,).
        right: whether the prediction is the label, (rows,).

    Returns:
        At most ``ECE_BINS``, in order; fewer where rows are few or equally confident.

    >>> reliability(np.array([0.9, 0.9, 0.6]), np.array([True, True, False]))
    (Bin(rows=1, confidence=0.6, accuracy=0.0), Bin(rows=2, confidence=0.9, accuracy=1.0))
    """
    edges = np.quantile(confidence, np.linspace(0, 1, min(ECE_BINS, len(confidence)) + 1)[1:-1])
    bin_of = np.searchsorted(edges, confidence, side="right")
    mine = [bin_of == b for b in np.unique(bin_of)]
    return tuple(Bin(int(m.sum()), float(confidence[m].mean()), float(right[m].mean())) for m in mine)


def ece(bins: Sequence[Bin]) -> float:
    """Expected calibration error (ECE): the mean over rows of |accuracy − confidence| of their bin.

    Reference:
        Guo et al. (2017), equation 3, with bins of equal mass.
    """
    return sum(b.rows * abs(b.accuracy - b.confidence) for b in bins) / sum(b.rows for b in bins)


def chance_ece(bins: Sequence[Bin]) -> float:
    """The calibration error that a calibrated model shows on so few rows.

    In a bin of n rows its accuracy is about normal around the confidence c, with a variance of
    c (1 − c) / n; the mean of the absolute value of that is √(2 / π) of the standard deviation.
    """
    deviations = sum(b.rows * np.sqrt(b.confidence * (1 - b.confidence) / b.rows) for b in bins)
    return float(np.sqrt(2 / np.pi) * deviations / sum(b.rows for b in bins))


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> Temperature | None:
    """Find the temperature T of least NLL, −mean log softmax(logits / T)[label].

    Args:
        labels: int array of shape (rows,); rows with −1 do not count.
        logits: array of shape (rows, num_labels).

    Returns:
        None where there is no such temperature: without labels, where every row is right (the
        NLL falls forever as T → 0) or where the logits say nothing of the labels (as T → ∞).

    Reference:
        Guo et al. (2017), temperature scaling; the NLL is convex in 1 / T.
    """
    logits, labels = np.asarray(logits, np.float64)[labels >= 0], labels[labels >= 0]
    if not len(labels):
        return None
    given = logits[np.arange(len(labels)), labels]
    if (given >= logits.max(axis=1)).all() or (given - logits.mean(axis=1)).mean() <= 0:
        return None

    def nll(log_t: float) -> float:
        log_p = log_softmax(logits / np.exp(log_t), axis=1)
        return -float(log_p[np.arange(len(labels)), labels].mean())

    bottom, top = np.log(TEMPERATURES)
    best = minimize_scalar(nll, bounds=(bottom, top), method="bounded", options={"xatol": 1e-6})
    worse = chi2.ppf(0.95, 1) / 2 / len(labels)

    def excess(log_t: float) -> float:
        return nll(log_t) - best.fun - worse

    low = float(np.exp(brentq(excess, bottom, best.x))) if excess(bottom) > 0 else 0.0
    high = float(np.exp(brentq(excess, best.x, top))) if excess(top) > 0 else None
    return Temperature(float(np.exp(best.x)), low, high, nll(0.0), float(best.fun), len(labels))
