"""Calibration on data with known answers: calibrated by construction, scaled by a known factor."""

import numpy as np
import pytest
from scipy.special import log_softmax

from kdcache.analysis.calibration import ECE_BINS, chance_ece, ece, fit_temperature, reliability


def calibrated(rows: int, num_labels: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from the softmax of the logits that come with them."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(rows, num_labels))
    p = np.exp(log_softmax(logits, axis=1))
    return (p.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1).clip(max=num_labels - 1), logits


def bins_of(labels: np.ndarray, logits: np.ndarray):
    confidence = np.exp(log_softmax(logits, axis=1)).max(axis=1)
    return reliability(confidence, logits.argmax(axis=1) == labels)


def test_calibrated_logits_have_no_error_but_chance():
    found = [bins_of(*calibrated(900, seed=seed)) for seed in range(200)]
    errors, chance = np.array([ece(bins) for bins in found]), np.mean([chance_ece(bins) for bins in found])
    assert abs(errors.mean() - chance) < 4 * errors.std() / 200**0.5
    assert ece(bins_of(*calibrated(400_000))) < 0.004


def test_error_of_a_known_miscalibration_is_that():
    # 70 % right at a confidence of 90 %, and 60 % at 60 %: half the rows each.
    confidence = np.repeat([0.9, 0.6], 1000)
    right = np.tile(np.arange(1000) % 10 < 7, 2) & np.r_[np.ones(1000, bool), np.arange(1000) % 10 < 6]
    bins = reliability(confidence, right)
    assert [(part.rows, round(part.confidence, 9), part.accuracy) for part in bins] == [
        (1000, 0.6, 0.6), (1000, 0.9, 0.7),
    ]  # fmt: skip
    assert ece(bins) == pytest.approx(0.5 * 0.2)


def test_bins_have_equal_mass_and_ties_share_one():
    labels, logits = calibrated(1500)
    assert [part.rows for part in bins_of(labels, logits)] == [100] * ECE_BINS
    rng = np.random.default_rng(0)
    confidence, right = rng.choice([0.5, 0.7, 0.8], 300), rng.random(300) < 0.6
    order = rng.permutation(300)
    bins, shuffled = reliability(confidence, right), reliability(confidence[order], right[order])
    assert [part.rows for part in shuffled] == [int((confidence == c).sum()) for c in (0.5, 0.7, 0.8)]
    assert ece(shuffled) == pytest.approx(ece(bins), abs=1e-12)
    assert sum(part.rows for part in reliability(np.array([0.5]), np.array([True]))) == 1


@pytest.mark.parametrize("k", [1e-6, 0.2, 1.0, 7.0, 1e30])
def test_scaled_logits_are_undone_by_that_temperature(k):
    labels, logits = calibrated(5000)
    plain, scaled = fit_temperature(labels, logits), fit_temperature(labels, k * logits)
    assert plain is not None
    assert scaled is not None
    assert plain.value == pytest.approx(1, abs=0.06)
    assert scaled.value == pytest.approx(k * plain.value, rel=1e-4, abs=0)
    assert (scaled.low, scaled.high) == pytest.approx((k * plain.low, k * plain.high), rel=1e-4, abs=0)
    assert scaled.nll_scaled == pytest.approx(plain.nll_scaled, abs=1e-9)
    assert scaled.nll >= scaled.nll_scaled
    assert plain.rows == 5000


@pytest.mark.parametrize(
    ("seeds", "least", "most"), [(80, 0.88, 0.99), pytest.param(300, 0.92, 0.98, marks=pytest.mark.slow)]
)
def test_interval_of_the_temperature_covers_the_truth_as_often_as_it_says(seeds, least, most):
    found = [fit_temperature(*calibrated(200, seed=seed)) for seed in range(seeds)]
    covered = np.mean([fit.low <= 1 <= (fit.high or np.inf) for fit in found])
    assert least < covered < most


@pytest.mark.parametrize("how", ["a label of each row is masked", "one row is huge"])
def test_logits_that_are_no_measure_of_the_others_do_not_move_the_temperature(how):
    labels, logits = calibrated(500)
    plain = fit_temperature(labels, logits)
    assert plain is not None
    for size in (1e4, 1e9):
        if how == "one row is huge":
            row = size * np.eye(3)[labels[:1]]
            found = fit_temperature(np.append(labels, labels[0]), np.concatenate([logits, row]))
        else:
            found = fit_temperature(labels, np.column_stack([logits, np.full(500, -size)]))
        assert found is not None
        assert found.value == pytest.approx(plain.value, rel=0.02)
        assert (found.low, found.high) == pytest.approx((plain.low, plain.high), rel=0.02)


def test_no_temperature_where_there_is_none():
    labels, logits = calibrated(50)
    assert fit_temperature(np.full(50, -1), logits) is None
    assert fit_temperature(logits.argmax(axis=1), logits) is None  # all right: the sharper, the better
    assert fit_temperature(logits.argmin(axis=1), logits) is None  # the flatter, the better
    assert fit_temperature(labels, np.zeros((50, 3))) is None
    few = np.where(np.arange(50)[:, None] < 5, 1e6, 1.0) * logits  # a few rows are far larger
    found = fit_temperature(labels, few)
    assert found is not None
    assert found.high is not None
    flat = np.where(np.arange(50)[:, None] < 30, 0.0, logits)  # most rows say nothing
    assert fit_temperature(labels, flat) is not None
    partly = np.where(np.arange(50) < 25, labels, -1)
    assert fit_temperature(partly, logits) == fit_temperature(labels[:25], logits[:25])


def test_interval_may_be_open():
    # Two rows, one of them wrong by a little: anything down to a very flat softmax will do.
    found = fit_temperature(np.array([0, 1, 0]), np.array([[2.0, 0.0], [0.1, 0.0], [0.3, 0.0]]))
    assert found is not None
    assert found.high is None
    assert 0 < found.low < found.value
