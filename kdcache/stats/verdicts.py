"""What may be said of an arm: the share of a gap that it closes, and whether it reaches its teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from kdcache.stats.contrasts import contrast, covariance
from kdcache.stats.estimates import Estimate, effect, estimate, mean_estimate, pooled_df
from kdcache.stats.runs import Runs


@dataclass(frozen=True)
class Share:
    """A share of a gap, in percent; None where the gap may be nothing.

    Args:
        percent: gain / gap.
        low: lower end of the 95 % interval.
        high: upper end.
        gain: of the arm over the base.
        gap: of the full arm over the base.
    """

    percent: float | None
    low: float | None
    high: float | None
    gain: Estimate
    gap: Estimate

    def __str__(self) -> str:
        """As a table shows it."""
        if self.percent is None:
            return f"undefined: the gap, {self.gap}, is not above 0"
        return f"{self.percent:.0f} % [{self.low:.0f}, {self.high:.0f}]"


def gap_closed(tasks: Sequence[Runs], arm: str, base: str = "ce", full: str = "full") -> Share:
    """The share of the gap that an arm closes: Σ (arm − base) / Σ (full − base) over tasks.

    The interval holds every share r for which the data do not tell (arm − base) − r (full − base)
    from 0. It is finite exactly where the gap is told from 0; a gap that is not above 0 has no share.

    Args:
        tasks: of each task, under the metric that counts there.
        arm: the distilled one.
        base: the same student without a teacher.
        full: where the gap ends.

    Returns:
        Share; over several tasks a ratio of means, so that a task with a small gap weighs little.

    Raises:
        DataError: an arm has no predictions, or the three share no seed.

    Reference:
        Fieller (1954).
    """
    # the third arm at weight 0: both contrasts are over the seeds that all three share
    gains, gaps = {arm: 1.0, base: -1.0, full: 0.0}, {arm: 0.0, base: -1.0, full: 1.0}
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
        df = pooled_df([float(part[1, 1]) for part in parts], dfs)  # as the gap's own interval has it
        if df:
            spread += np.sum(parts, axis=0) / len(tasks) ** 2 * stdtrit(df, 0.025) ** 2
    square = gap.points**2 - spread[1, 1]
    if gap.low <= 0 or square <= 0:
        return Share(None, None, None, gain, gap)
    middle = gain.points * gap.points - spread[0, 1]
    half = np.sqrt(max(middle**2 - square * (gain.points**2 - spread[0, 0]), 0.0))
    low, high = (float(100 * (middle + side) / square) for side in (-half, half))
    return Share(100 * gain.points / gap.points, low, high, gain, gap)


@dataclass(frozen=True)
class Verdict:
    """Whether a student reaches its teacher.

    Args:
        verdict: ``reaches``: less than the margin below, at 5 % risk; ``below``: more than the margin
            below, at the same risk; ``open``: neither; ``not asked``: the teacher is hardly above ``head``.
        bound: one-sided 95 % lower bound of student − teacher, in points.
        margin: in points.
        difference: student − teacher.
        advantage: teacher − head.
    """

    verdict: Literal["reaches", "below", "open", "not asked"]
    bound: float
    margin: float
    difference: Estimate
    advantage: Estimate

    def __str__(self) -> str:
        """As a table shows it."""
        return f"{self.verdict}: {self.difference.points:+.1f}, at least {self.bound:+.1f}"


def non_inferiority(
    runs: Runs,
    arm: str,
    teacher: str = "teacher",
    head: str = "head",
    margin: float = 1.0,
    least: float = 5.0,
) -> Verdict:
    """Whether an arm is at most ``margin`` points below the teacher.

    Args:
        runs: of one task.
        arm: the student.
        teacher: with a single seed, the verdict is about this teacher.
        head: what needs neither prompts nor teacher.
        margin: in points.
        least: points by which the teacher must beat ``head``; below, reaching it means nothing.

    Raises:
        DataError: an arm has no predictions, or two share no seed.
    """
    difference, advantage = effect(runs, arm, teacher), effect(runs, teacher, head)
    bound, upper = difference.interval(0.90)
    if advantage.points < least:
        verdict: Literal["reaches", "below", "open", "not asked"] = "not asked"
    elif bound > -margin:
        verdict = "reaches"
    else:
        verdict = "below" if upper < -margin else "open"
    return Verdict(verdict, bound, margin, difference, advantage)
