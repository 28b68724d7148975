"""Power and interval width of a study's design, from the variance components of a pilot."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import chdtri, ndtr

from kdcache.errors import DataError
from kdcache.stats.contrasts import contrast
from kdcache.stats.estimates import Estimate, estimate, mean_estimate
from kdcache.stats.runs import Runs

MOST = 2**20  # the largest number of seeds or groups that is tried


@dataclass(frozen=True)
class Components:
    """The variance components of an effect, in points².

    Args:
        seed: between seeds, on infinitely many rows.
        group: between groups of rows, over infinitely many seeds.
        rest: between groups from seed to seed.
        groups: number of groups of rows of the task.
    """

    seed: float
    group: float
    rest: float
    groups: int


def components(runs: Runs, arm: str, over: str) -> Components:
    """Estimate the variance components of an effect from a pilot.

    With 5 seeds, ``seed`` itself is uncertain by a factor of 2 either way.

    Args:
        runs: of one task; at least two seeds.
        arm: the arm that should be better.
        over: the arm it is compared with.

    Raises:
        DataError: fewer than two seeds; an arm has no predictions, or the two share no seed.
    """
    table = contrast(runs, {arm: 1.0, over: -1.0})
    seeds, groups = table.pseudo.shape
    if seeds < 2:
        raise DataError(
            f"components: A pilot needs at least 2 seeds, got {seeds}. Add seeds to distill.seeds."
        )
    pilot = estimate(table)
    group = groups * pilot.of_groups
    rest = max(float(table.pseudo.var(axis=1, ddof=1).mean()) - group, 0.0)
    return Components(max(seeds * pilot.of_seeds - rest / groups, 0.0), group, rest, groups)


def planned(tasks: Sequence[Components], gain: float, seeds: int) -> Estimate:
    """Return the estimate that a design is expected to give, with its interval.

    Args:
        tasks: the components of each task; several plan for the mean over them.
        gain: the true effect, in points.
        seeds: of each arm on each task, at least 2.

    >>> print(planned([Components(seed=0.5, group=900.0, rest=600.0, groups=3000)], gain=1.5, seeds=5))
    +1.5 (95% CI 0.0 to 3.0)
    """
    return mean_estimate([
        Estimate(
            points=gain,
            of_seeds=(task.seed + task.rest / task.groups) / seeds,
            of_groups=task.group / task.groups,
            df_seeds=seeds - 1,
            df_groups=task.groups - 1,
            seeds=seeds,
            groups=task.groups,
        )
        for task in tasks
    ])  # fmt: skip


def power(tasks: Sequence[Components], gain: float, seeds: int) -> float:
    """Compute how often a design finds an effect at the 5% level.

    Args:
        tasks: the components of each task; several plan for the mean over them.
        gain: the true effect, in points.
        seeds: of each arm on each task, at least 2.

    Returns:
        Between 0 and 1.

    >>> f"{power([Components(seed=0.5, group=900.0, rest=600.0, groups=3000)], gain=2.0, seeds=5):.2f}"
    '0.77'
    """
    design = planned(tasks, gain, seeds)
    if design.se == 0:
        return float(gain != 0)
    quantiles = (np.arange(200) + 0.5) / 200  # of the variance over seeds, as the design would estimate it
    scales = chdtri(design.df_seeds, quantiles) / design.df_seeds if design.df_seeds else [0.0]
    halves = np.array([
        replace(design, points=0.0, of_seeds=design.of_seeds * scale).high for scale in scales
    ])  # fmt: skip
    return float(np.mean(ndtr((gain - halves) / design.se) + ndtr((-gain - halves) / design.se)))


def seeds_needed(tasks: Sequence[Components], gain: float, wanted: float = 0.8) -> int | None:
    """Find the least number of seeds per arm that finds an effect with the wanted power.

    Args:
        tasks: the components of each task.
        gain: the true effect, in points.
        wanted: power.

    Returns:
        At least 2; None if no number suffices on these rows.

    >>> pilot = Components(seed=0.5, group=900.0, rest=600.0, groups=3000)
    >>> seeds_needed([pilot], gain=2.0), seeds_needed([pilot], gain=1.0)
    (6, None)
    """
    return _least(lambda seeds: power(tasks, gain, seeds) >= wanted, start=2)


def seeds_to_know(tasks: Sequence[Components], half: float) -> int | None:
    """Find the least number of seeds per arm whose expected 95% interval is this narrow.

    Args:
        tasks: the components of each task.
        half: half the width of the interval, in points.

    Returns:
        At least 2; None if no number suffices on these rows.

    >>> pilot = Components(seed=0.5, group=900.0, rest=600.0, groups=3000)
    >>> seeds_to_know([pilot], half=1.5), seeds_to_know([pilot], half=1.0)
    (5, None)
    """
    return _least(lambda seeds: half_width(planned(tasks, 0.0, seeds)) <= half, start=2)


def half_width(estimate: Estimate) -> float:
    """Return half the width of the 95% interval, in points."""
    return estimate.high - estimate.points


def groups_needed(tasks: Sequence[Components], gain: float, seeds: int, wanted: float = 0.8) -> int | None:
    """Find the least number of groups, over all tasks in the pilot's proportions, with the wanted power.

    Args:
        tasks: the components of each task.
        gain: the true effect, in points.
        seeds: of each arm on each task, at least 2.
        wanted: power.

    Returns:
        None if no number suffices with these seeds.
    """
    pilot = sum(task.groups for task in tasks)

    def scaled(total: int) -> list[Components]:
        return [replace(task, groups=max(round(task.groups * total / pilot), 2)) for task in tasks]

    return _least(lambda total: power(scaled(total), gain, seeds) >= wanted, start=2 * len(tasks))


def _least(enough: Callable[[int], bool], start: int) -> int | None:
    """Find the smallest number ≥ ``start`` that is enough, if more is never worse; None past ``MOST``."""
    high = start
    while not enough(high):
        if high > MOST:
            return None
        high *= 2
    low = high // 2 if high > start else start - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
