"""Predictions whose truth is known: arms on the same examples, with all that correlates them.

A row is right where a latent value is above 0: the arm's gain, the difficulty of the row and of its
group (shared by arms), what this arm finds hard, the luck of the seed, and noise of its own.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.stats import norm

from kdcache.stats.runs import Runs, tally_runs


@dataclass(frozen=True)
class World:
    """What predictions are drawn from; standard deviations are of latent values, the noise's is 1."""

    gains: dict[str, float] = field(default_factory=lambda: {"a": 0.0, "b": 0.0})  # arm → latent gain
    single: tuple[str, ...] = ()  # arms that were trained once, as a teacher, and mean this one training
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
        """An arm's accuracy over all the rows and seeds that there could be, in points."""
        return 100 * float(norm.cdf((self.shift + self.gains[arm]) / self.spread(arm)))

    def seed_points(self, arm: str) -> float:
        """Standard deviation over seeds of that accuracy, in points."""
        spread = self.spread(arm)
        return 100 * self.of_seed / spread * float(norm.pdf((self.shift + self.gains[arm]) / spread))

    def right(self, rng: np.random.Generator) -> np.ndarray:
        """Which rows are right, of shape (arms, seeds, rows)."""
        arms, normal = len(self.gains), rng.standard_normal
        groups = np.arange(self.rows) // self.group_size
        luck = np.array([0.0 if arm in self.single else self.of_seed for arm in self.gains])
        latent = self.shift + np.array(list(self.gains.values()))[:, None, None]
        latent = latent + self.difficulty * normal(self.rows) + self.of_group * normal(self.rows)[groups]
        latent = latent + self.of_arm * normal((arms, 1, self.rows))[..., groups]
        latent = latent + luck[:, None, None] * normal((arms, self.seeds, 1))
        return latent + normal((arms, self.seeds, self.rows)) > 0

    def runs(self, rng: np.random.Generator, metric: str = "accuracy") -> Runs:
        """The arms' predictions under a metric."""
        labels = (rng.random(self.rows) < self.share).astype(int)
        logits = np.eye(2)[np.where(self.right(rng), labels, 1 - labels)]
        arms = {
            arm: dict(enumerate(outputs[: 1 if arm in self.single else self.seeds]))
            for arm, outputs in zip(self.gains, logits, strict=True)
        }
        return tally_runs(metric, labels, arms, [str(row // self.group_size) for row in range(self.rows)])


def gain_of(points: float, world: World, arm: str) -> float:
    """The latent gain with which an arm of a world has this accuracy, in points."""
    return world.spread(arm) * float(norm.ppf(points / 100)) - world.shift
