"""Simulated predictions whose true effects are known, and a bootstrap to check estimates against.

A row is right where a latent value is above 0. The value is the sum of the arm's gain, the difficulty of the
row and of its group (shared by arms), what this arm finds hard, the luck of the seed, and noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import norm

from kdcache.stats.runs import TALLIES, Runs, tally_runs

BLOCK = 500  # resamples held at once


@dataclass(frozen=True)
class World:
    """The distribution of predictions; standard deviations are of latent values, the noise has 1."""

    gains: dict[str, float] = field(default_factory=lambda: {"a": 0.0, "b": 0.0})  # arm → latent gain
    single: tuple[str, ...] = ()  # arms trained once, as a teacher
    seeds: int = 5
    rows: int = 300
    group_size: int = 1
    shift: float = 0.7  # of all arms: 64 % right
    difficulty: float = 1.5
    of_group: float = 0.0  # difficulty of groups
    of_arm: float = 0.5
    of_seed: float = 0.05
    share: float = 0.5  # of rows whose label is 1

    def spread(self, arm: str) -> float:
        """Standard deviation of an arm's latent values."""
        luck = 0.0 if arm in self.single else self.of_seed
        return (1 + self.difficulty**2 + self.of_group**2 + self.of_arm**2 + luck**2) ** 0.5

    def accuracy(self, arm: str) -> float:
        """An arm's true accuracy, over all possible rows and seeds, in points."""
        return 100 * float(norm.cdf((self.shift + self.gains[arm]) / self.spread(arm)))

    def seed_points(self, arm: str) -> float:
        """Standard deviation of that accuracy over seeds, in points."""
        spread = self.spread(arm)
        return 100 * self.of_seed / spread * float(norm.pdf((self.shift + self.gains[arm]) / spread))

    def right(self, rng: np.random.Generator) -> np.ndarray:
        """Draw which rows are right, of shape (arms, seeds, rows)."""
        arms, normal = len(self.gains), rng.standard_normal
        groups = np.arange(self.rows) // self.group_size
        luck = np.array([0.0 if arm in self.single else self.of_seed for arm in self.gains])
        latent = self.shift + np.array(list(self.gains.values()))[:, None, None]
        latent = latent + self.difficulty * normal(self.rows) + self.of_group * normal(self.rows)[groups]
        latent = latent + self.of_arm * normal((arms, 1, self.rows))[..., groups]
        latent = latent + luck[:, None, None] * normal((arms, self.seeds, 1))
        return latent + normal((arms, self.seeds, self.rows)) > 0

    def runs(self, rng: np.random.Generator, metric: str = "accuracy") -> Runs:
        """Draw predictions of all arms, as runs under a metric."""
        labels = (rng.random(self.rows) < self.share).astype(int)
        logits = np.eye(2)[np.where(self.right(rng), labels, 1 - labels)]
        arms = {
            arm: dict(enumerate(outputs[: 1 if arm in self.single else self.seeds]))
            for arm, outputs in zip(self.gains, logits, strict=True)
        }
        return tally_runs(metric, labels, arms, [str(row // self.group_size) for row in range(self.rows)])


def gain_of(points: float, world: World, arm: str) -> float:
    """The latent gain that gives an arm of a world this accuracy, in points."""
    return world.spread(arm) * float(norm.ppf(points / 100)) - world.shift


def crossed_bootstrap(
    runs: Runs, weights: Mapping[str, float], resamples: int = 10_000, seed: int = 0
) -> np.ndarray:
    """The crossed bootstrap: resample groups (the same for all runs) and seeds (the same for all arms).

    An independent check of ``estimates``. As an interval it is too narrow where seeds dominate, and too wide
    where each seed errs on other rows (Owen, 2007).

    Args:
        runs: of one task.
        weights: arm → factor, as in ``contrasts.contrast``.
        resamples: number of resamples.
        seed: of the draws.

    Returns:
        The weighted sum of the arms' scores on each resample, in points, of shape (resamples,).
    """
    rng = np.random.default_rng(seed)
    value = TALLIES[runs.metric].value
    groups = len(next(iter(next(iter(runs.tallies.values())).values())))
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
