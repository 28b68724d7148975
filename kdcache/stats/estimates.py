"""Levels, effects and their means in points, with intervals that hold for new seeds *and* new examples.

Seeds and examples are both samples. ``contrasts`` splits the variance of a mean by source: A is due to
S seeds, B to G groups of rows. Each source gets its own quantile of Student's t:

    points ± √(t²_{S−1} A + t²_{G−1} B)

docs/reference/statistics.md has the measured error rates of this interval and of its alternatives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit

from kdcache.stats.contrasts import Contrast, contrast, covariance
from kdcache.stats.runs import Runs

LEAST_P = 1e-100


@dataclass(frozen=True)
class Estimate:
    """A level or an effect in points of a metric, with its variance.

    Args:
        points: the estimate.
        of_seeds: A, its variance due to seeds; 0 with a single seed, which says nothing about others.
        of_groups: B, its variance due to examples.
        df_seeds: degrees of freedom of A.
        df_groups: degrees of freedom of B.
        seeds: number of seeds, of the task with the fewest.
        groups: number of groups of rows, summed over tasks.
        share: whether it is a level that lies between 0 and 100, so that its interval does too.

    Reference:
        Howe (1974) for the interval; Hillis (2007) for the variances, with readers and cases in place of
        seeds and groups. Wilson (1927) for a share, with as many rows as give its variance.
    """

    points: float
    of_seeds: float
    of_groups: float
    df_seeds: float
    df_groups: float
    seeds: int
    groups: int
    share: bool = False

    @property
    def se(self) -> float:
        """Standard error over seeds and examples."""
        return float(np.sqrt(self.of_seeds + self.of_groups))

    @property
    def low(self) -> float:
        """Lower end of the 95% interval."""
        return self.interval()[0]

    @property
    def high(self) -> float:
        """Upper end of the 95% interval."""
        return self.interval()[1]

    @property
    def p(self) -> float:
        """Two-sided p-value: 1 − the level of the interval that ends at 0."""
        size = abs(self.points)
        if self._half(LEAST_P) <= size:
            return 1.0 if size == 0 else 0.0
        return float(np.exp(brentq(lambda log_p: self._half(np.exp(log_p)) - size, np.log(LEAST_P), 0.0)))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the interval that covers the true value at this rate.

        >>> low, high = Estimate(1.0, 0.2, 0.05, df_seeds=4, df_groups=299, seeds=5, groups=300).interval()
        >>> print(f"{low:.2f} {high:.2f}")
        -0.32 2.32
        """
        half = self._half(1 - level)
        if not self.share:
            return self.points - half, self.points + half
        p, square = self.points / 100, stdtrit(self.df_groups, (1 - level) / 2) ** 2 / self.groups
        if 0 < p < 1:
            square = (half / 100) ** 2 / (p * (1 - p))  # quantile² / rows; at an edge, each group is a row
        middle, spread = p + square / 2, np.sqrt(square * p * (1 - p) + square**2 / 4)
        low, high = (float(100 * (middle + side) / (1 + square)) for side in (-spread, spread))
        return low, high

    def _half(self, alpha: float) -> float:
        """Half the width of the interval at level 1 − ``alpha``."""
        parts = ((self.of_seeds, self.df_seeds), (self.of_groups, self.df_groups))
        return float(
            np.sqrt(sum(variance * stdtrit(df, alpha / 2) ** 2 for variance, df in parts if variance))
        )

    @property
    def range(self) -> str:
        """The 95% interval as text: ``low to high``."""
        return f"{decimal(self.low)} to {decimal(self.high)}"

    @property
    def cell(self) -> str:
        """The effect as a table shows it: ``+1.0 (−0.3 to 2.3)``."""
        return f"{decimal(self.points, '+')} ({self.range})"

    def __str__(self) -> str:
        """The effect as text.

        >>> str(Estimate(1.0, 0.2, 0.05, df_seeds=4, df_groups=299, seeds=5, groups=300))
        '+1.0 (95% CI −0.3 to 2.3)'
        """
        return f"{decimal(self.points, '+')} (95% CI {self.range})"


def decimal(value: float, sign: str = "", digits: int = 1) -> str:
    """Format a number with a true minus sign and without a negative zero.

    >>> decimal(-0.25), decimal(3.14, "+"), decimal(-0.01)
    ('−0.2', '+3.1', '0.0')
    """
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}".replace("-", "−")


def level(runs: Runs, arm: str) -> Estimate:
    """Estimate an arm's score in points; its ``p`` has no meaning.

    Args:
        runs: of one task.
        arm: an arm with predictions.

    Raises:
        DataError: the arm has no predictions.
    """
    return replace(estimate(contrast(runs, {arm: 1.0})), share=runs.metric != "matthews")


def effect(runs: Runs, arm: str, over: str) -> Estimate:
    """Estimate by how many points one arm scores above another, paired by seed and example.

    Args:
        runs: of one task.
        arm: the arm that should be better.
        over: the arm it is compared with. A teacher with a single seed is paired with every seed of the
            other arm, so the effect is over *this* teacher.

    Raises:
        DataError: an arm has no predictions, or the two share no seed.

    >>> from kdcache.stats.runs import tally_runs
    >>> labels, right, wrong = np.zeros(4, int), [1.0, 0.0], [0.0, 1.0]
    >>> arms = {"ce": {0: np.array([right, wrong, wrong, wrong]), 1: np.array([right, right, wrong, wrong])},
    ...         "kl": {0: np.array([right, right, wrong, wrong]), 1: np.array([right, right, right, wrong])}}
    >>> effect(tally_runs("accuracy", labels, arms), "kl", over="ce").points
    25.0
    """
    return estimate(contrast(runs, {arm: 1.0, over: -1.0}))


def mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """Average levels or effects over tasks, each task with the same weight.

    The tasks are fixed, not a sample of tasks; their data are independent.

    Args:
        estimates: one per task.

    >>> one = Estimate(1.0, 0.2, 0.05, df_seeds=4, df_groups=299, seeds=5, groups=300)
    >>> mean = mean_estimate([one, one])
    >>> print(f"{mean.se:.3f} {mean.df_seeds:.0f} {mean.df_groups:.0f}")
    0.354 8 598
    """
    of_seeds, of_groups = [e.of_seeds for e in estimates], [e.of_groups for e in estimates]
    return Estimate(
        points=float(np.mean([e.points for e in estimates])),
        of_seeds=sum(of_seeds) / len(estimates) ** 2,
        of_groups=sum(of_groups) / len(estimates) ** 2,
        df_seeds=pooled_df(of_seeds, [e.df_seeds for e in estimates]),
        df_groups=pooled_df(of_groups, [e.df_groups for e in estimates]),
        seeds=min(e.seeds for e in estimates),
        groups=sum(e.groups for e in estimates),
        share=all(e.share for e in estimates),
    )


def pooled_df(variances: Sequence[float], dfs: Sequence[float]) -> float:
    """Compute the degrees of freedom of a sum of variances; 0 where the sum is 0.

    Reference:
        Satterthwaite (1946).

    >>> pooled_df([1.0, 1.0, 0.0], [4, 4, 4])
    8.0
    """
    uncertain = sum(variance**2 / df for variance, df in zip(variances, dfs, strict=True) if variance)
    return float(sum(variances) ** 2 / uncertain) if uncertain else 0.0


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust the p-values of a family of comparisons.

    Rejecting those ≤ α makes at least one false rejection at rate ≤ α.

    Args:
        p_values: comparison → p-value.

    Returns:
        comparison → adjusted p-value, in the same order.

    Reference:
        Holm (1979). Valid whatever the dependence between comparisons.

    >>> holm({"kl": 0.01, "gram": 0.04, "sp": 0.03})
    {'kl': 0.03, 'gram': 0.06, 'sp': 0.06}
    """
    ordered = sorted(p_values.items(), key=lambda item: item[1])
    factors = range(len(ordered), 0, -1)
    steps = [factor * p for factor, (_, p) in zip(factors, ordered, strict=True)]
    adjusted = np.minimum(np.maximum.accumulate(steps), 1.0).tolist()
    by_name = {name: value for (name, _), value in zip(ordered, adjusted, strict=True)}
    return {name: by_name[name] for name in p_values}


def estimate(table: Contrast) -> Estimate:
    """Estimate a contrast: its mean over seeds, and its variance by source."""
    of_seeds, of_groups = covariance([table])
    seeds, groups = table.pseudo.shape
    if of_seeds[0, 0] == of_groups[0, 0] == 0:
        # No group differs, so there is no variance to see. Groups that differ may be as frequent as Wilson's
        # bound on none of so many.
        t = stdtrit(groups - 1, 0.025)
        of_groups[0, 0] = (100 * t / (groups + t**2)) ** 2
    return Estimate(
        points=float(table.values.mean()),
        of_seeds=float(of_seeds[0, 0]),
        of_groups=float(of_groups[0, 0]),
        df_seeds=seeds - 1,
        df_groups=groups - 1,
        seeds=seeds,
        groups=groups,
    )
