"""The crossed bootstrap: seeds and groups of rows are both drawn anew, every metric recomputed.

The usual interval, kept as a check on the one that ``estimates`` makes: over few seeds it is too
narrow where seeds dominate, as n draws of n values vary by (n − 1) / n only and no t makes up for it,
and too wide where each seed errs on other rows, which it counts three times (Owen, 2007).
"""

from collections.abc import Mapping

import numpy as np

from kdcache.stats.runs import TALLIES, Runs

BLOCK = 500  # resamples held at once


def crossed_bootstrap(
    runs: Runs, weights: Mapping[str, float], resamples: int = 10_000, seed: int = 0
) -> np.ndarray:
    """Draw groups, the same for all runs, and seeds, the same for all arms, with replacement.

    Args:
        runs: of one task.
        weights: arm → its factor, as in ``contrasts.contrast``; all arms with the same seeds, or one.
        resamples: how many.
        seed: of the draws.

    Returns:
        The weighted sum of the arms' scores on each resample, in points, of shape (resamples,).
    """
    rng = np.random.default_rng(seed)
    value, groups = TALLIES[runs.metric].value, runs.groups
    arms = runs.paired(weights)
    seeds = len(next(iter(arms.values())))
    effects = []
    for block in np.array_split(np.arange(resamples), -(-resamples // BLOCK)):
        size = len(block)
        drawn = rng.integers(groups, size=(size, groups)) + groups * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * groups).reshape(size, groups).astype(float)
        scores = sum(
            weight * np.stack([value(counts @ sums) for sums in arms[arm]]) for arm, weight in weights.items()
        )
        effects.append((scores * rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=size).T).sum(axis=0))
    return 100 * np.concatenate(effects) / seeds
