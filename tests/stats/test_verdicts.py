"""Shares and verdicts: what they say where the answer is clear, and where there is none."""

import numpy as np
import pytest
from scipy.optimize import brentq
from simulated import World

from kdcache.stats.contrasts import contrast
from kdcache.stats.estimates import effect, estimate, mean_estimate
from kdcache.stats.runs import tally_runs
from kdcache.stats.verdicts import gap_closed, non_inferiority

GAINS = {"ce": 0.0, "kl": 0.5, "full": 1.0}


def test_ends_of_the_interval_are_where_the_data_stop_to_tell():
    """Fieller's ends, found by search: there, gain − r · gap is just told from 0."""
    runs = World(GAINS, rows=1000).runs(np.random.default_rng(0))
    share = gap_closed([runs], "kl")

    def distance(r: float) -> float:
        rest = estimate(contrast(runs, {"kl": 1.0, "ce": r - 1.0, "full": -r}))
        return abs(rest.points) - (rest.high - rest.points)

    assert share.percent == pytest.approx(100 * share.gain.points / share.gap.points)
    assert share.low == pytest.approx(100 * brentq(distance, share.percent / 100 - 1, share.percent / 100))
    assert share.high == pytest.approx(100 * brentq(distance, share.percent / 100, share.percent / 100 + 1))
    assert str(share) == f"{share.percent:.0f}% (95% CI {share.low:.0f}% to {share.high:.0f}%)"


def test_over_tasks_it_is_the_ratio_of_means():
    runs = [World(GAINS, rows=rows).runs(np.random.default_rng(rows)) for rows in (300, 500)]
    share = gap_closed(runs, "kl")
    assert share.gain == mean_estimate([effect(task, "kl", "ce") for task in runs])
    assert share.gap == mean_estimate([effect(task, "full", "ce") for task in runs])
    assert share.percent == pytest.approx(100 * share.gain.points / share.gap.points)
    assert share.low < share.percent < share.high
    twice = gap_closed([runs[0], runs[0]], "kl")
    assert twice.high - twice.low < gap_closed([runs[0]], "kl").high - gap_closed([runs[0]], "kl").low


def test_a_share_is_as_uncertain_as_its_gain_where_the_gap_is_the_same_for_all_seeds():
    right, wrong = np.array([1.0, 0.0]), np.array([0.0, 1.0])

    def arm(*counts: int) -> dict[int, np.ndarray]:
        return {seed: np.where((np.arange(100) < n)[:, None], right, wrong) for seed, n in enumerate(counts)}

    known = {"head": arm(50, 50, 50), "teacher": {0: arm(80)[0]}}
    shares = [
        gap_closed([tally_runs("accuracy", np.zeros(100, int), known | {"kl": kl})], "kl", "head", "teacher")
        for kl in (arm(62, 62, 62), arm(55, 61, 70))
    ]
    widths = [share.high - share.low for share in shares]
    assert widths[1] > 2 * widths[0]
    assert shares[1].low < 0 < shares[1].gain.points, "as the gain itself"


@pytest.mark.parametrize("full", [0.0, -1.0])
def test_without_a_gap_there_is_no_share(full):
    share = gap_closed([World({"ce": 0.0, "kl": 0.5, "full": full}).runs(np.random.default_rng(0))], "kl")
    assert (share.percent, share.low, share.high) == (None, None, None)
    assert str(share).startswith("undefined")


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ({"head": -2.0, "kl": 0.5, "teacher": 0.0}, "reaches"),
        ({"head": -2.0, "kl": -1.0, "teacher": 0.0}, "below"),
        ({"head": -2.0, "kl": -0.05, "teacher": 0.0}, "open"),
        ({"head": 0.0, "kl": 0.5, "teacher": 0.0}, "not asked"),
    ],
)
def test_verdict_where_it_is_clear(gains, verdict):
    world = World(gains, single=("teacher",), rows=1000)
    got = non_inferiority(world.runs(np.random.default_rng(0)), "kl")
    assert got.verdict == verdict
    assert got.bound == got.difference.interval(0.9)[0]
    assert str(got).startswith(f"{verdict}: ")


def test_margin_decides():
    runs = World({"head": -2.0, "kl": 0.0, "teacher": 0.0}, ("teacher",), rows=1000).runs(
        np.random.default_rng(0)
    )
    bound = non_inferiority(runs, "kl").bound
    assert non_inferiority(runs, "kl", margin=-bound + 0.01).verdict == "reaches"
    assert non_inferiority(runs, "kl", margin=-bound - 0.01).verdict == "open"
