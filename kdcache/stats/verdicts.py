"""The share of a gap that an arm closes, and whether it reaches its teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from kdcache.stats.contrasts import contrast, covariance
from kdcache.stats.estimates import Estimate, decimal, effect, estimate, mean_estimate, pooled_df
from kdcache.stats.runs import Runs


@dataclass(frozen=True)
class GapShare:
    """A share of a gap in percent; None where the gap may be 0.

    Args:
        percent: gain / gap.
        low: lower end of the 95% interval.
        high: upper end.
        gain: of the arm over the baseline.
        gap: of the upper arm over the baseline.
    """

    percent: float | None
    low: float | None
    high: float | None
    gain: Estimate
    gap: Estimate

    @property
    def range(self) -> str:
        """The 95% interval as text: ``low to high``; empty without a share."""
        return (
            "" if self.low is None or self.high is None else f"{_percent(self.low)} to {_percent(self.high)}"
        )

    @property
    def cell(self) -> str:
        """The share as a table shows it: ``50% (20% to 80%)``."""
        return "no gap" if self.percent is None else f"{_percent(self.percent)} ({self.range})"

    def __str__(self) -> str:
        """The share as text."""
        if self.percent is None:
            return f"undefined: the gap is not above 0, {self.gap}"
        return f"{_percent(self.percent)} (95% CI {self.range})"


def _percent(value: float) -> str:
    return f"{decimal(value, digits=0)}%"


def gap_closed(tasks: Sequence[Runs], arm: str, baseline: str = "ce", upper: str = "full") -> GapShare:
    """Estimate the share of a gap that an arm closes: Σ (arm − baseline) / Σ (upper − baseline).

    The interval holds every share r for which (arm − baseline) − r (upper − baseline) does not differ
    significantly from 0. It is finite only if the gap differs from 0; a gap that is not above 0 has no share.

    Args:
        tasks: the runs of each task, under its first metric.
        arm: the distilled arm.
        baseline: the arm where the gap begins.
        upper: the arm where the gap ends.

    Returns:
        The share; over several tasks a ratio of means, so that a task with a small gap weighs little.

    Raises:
        DataError: an arm has no predictions, or the three share no seed.

    Reference:
        Fieller (1954).
    """
    # the third arm has weight 0, so that both contrasts use the seeds that all three share
    gains, gaps = {arm: 1.0, baseline: -1.0, upper: 0.0}, {arm: 0.0, baseline: -1.0, upper: 1.0}
    pairs = [(contrast(runs, gains), contrast(runs, gaps)) for runs in tasks]
    gain, gap = (mean_estimate([estimate(pair[i]) for pair in pairs]) for i in (0, 1))
    # each source's covariance times its squared quantile: r is in the interval where
    # (gain − r gap)² ≤ (1, −r) spread (1, −r)ᵀ
    spread = np.zeros((2, 2))
    for source, dfs in (
        (0, [pair[0].pseudo.shape[0] - 1 for pair in pairs]),
        (1, [pair[0].pseudo.shape[1] - 1 for pair in pairs]),
    ):
        parts = [covariance(pair)[source] for pair in pairs]
        # as the gap's own interval has it, or the gain's where the gap is the same for all seeds
        of_gain, of_gap = ([float(part[k, k]) for part in parts] for k in (0, 1))
        if df := pooled_df(of_gap, dfs) or pooled_df(of_gain, dfs):
            spread += np.sum(parts, axis=0) / len(tasks) ** 2 * stdtrit(df, 0.025) ** 2
    square = gap.points**2 - spread[1, 1]
    if gap.low <= 0 or square <= 0:
        return GapShare(None, None, None, gain, gap)
    middle = gain.points * gap.points - spread[0, 1]
    half = np.sqrt(max(middle**2 - square * (gain.points**2 - spread[0, 0]), 0.0))
    low, high = (float(100 * (middle + side) / square) for side in (-half, half))
    return GapShare(100 * gain.points / gap.points, low, high, gain, gap)


@dataclass(frozen=True)
class Verdict:
    """Whether an arm reaches its teacher.

    Args:
        verdict: ``reaches``: less than the margin below, at 5% risk; ``below``: more than the margin
            below, at the same risk; ``open``: neither; ``not asked``: the teacher is not far enough above
            the control.
        bound: one-sided 95% lower bound of student − teacher, in points.
        margin: in points.
        difference: student − teacher.
        advantage: teacher − control.
    """

    verdict: Literal["reaches", "below", "open", "not asked"]
    bound: float
    margin: float
    difference: Estimate
    advantage: Estimate

    def __str__(self) -> str:
        """The verdict as a table shows it."""
        return f"{self.verdict}: {decimal(self.difference.points, '+')} (≥ {decimal(self.bound, '+')})"


def non_inferiority(
    runs: Runs,
    arm: str,
    teacher: str = "teacher",
    control: str = "head",
    margin: float = 1.0,
    least: float = 5.0,
) -> Verdict:
    """Decide whether an arm is at most ``margin`` points below the teacher.

    Args:
        runs: of one task.
        arm: the student's arm.
        teacher: the teacher. With a single seed, the verdict is about this teacher.
        control: the arm without prompts and without a teacher.
        margin: in points.
        least: points by which the teacher must beat the control; otherwise reaching it means little.

    Raises:
        DataError: an arm has no predictions, or two share no seed.
    """
    difference, advantage = effect(runs, arm, teacher), effect(runs, teacher, control)
    bound, upper = difference.interval(0.90)
    if advantage.points < least:
        verdict: Literal["reaches", "below", "open", "not asked"] = "not asked"
    elif bound > -margin:
        verdict = "reaches"
    else:
        verdict = "below" if upper < -margin else "open"
    return Verdict(verdict, bound, margin, difference, advantage)
