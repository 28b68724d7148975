"""Predictions whose truth is known: two arms on the same examples, with all that correlates them.

A row is right where a latent value is above 0: its arm's shift, the difficulty of its group and of
itself (shared by arms), what the arm finds hard, the luck of the seed, and noise of its own.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from kdcache.stats.runs import Runs, tally_runs


@dataclass(frozen=True)
class World:
    """Standard deviations of the latent parts; the noise of a single row has 1."""

    seeds: int = 5
    rows: int = 300
    group_size: int = 1
    shift: float = 0.7  # of both arms
    gain: float = 0.0  # of "b" over "a"
    difficulty: float = 1.5  # of rows, shared by arms
    of_group: float = 0.0  # of groups, shared by arms
    of_arm: float = 0.5  # of groups and rows, of one arm
    of_seed: float = 0.05  # of all rows of one run
    share: float = 0.5  # of rows whose label is 1

    @property
    def truth(self) -> float:
        """The effect of b over a on accuracy over all rows and seeds that there could be, in points."""
        spread = (
            1 + self.difficulty**2 + self.of_group**2 + (1 + (self.group_size > 1)) * self.of_arm**2
            + self.of_seed**2
        ) ** 0.5  # fmt: skip
        return 100 * float(norm.cdf((self.shift + self.gain) / spread) - norm.cdf(self.shift / spread))

    def right(self, rng: np.random.Generator) -> np.ndarray:
        """Which rows are right, of shape (2 arms, seeds, rows)."""
        groups = np.arange(self.rows) // self.group_size
        normal = rng.standard_normal
        latent = self.shift + np.array([0.0, self.gain])[:, None, None]
        latent = latent + self.difficulty * normal(self.rows) + self.of_group * normal(self.rows)[groups]
        latent = latent + self.of_arm * normal((2, 1, self.rows)) + self.of_seed * normal((2, self.seeds, 1))
        if self.group_size > 1:
            latent = latent + self.of_arm * normal((2, 1, self.rows))[..., groups]
        return latent + normal((2, self.seeds, self.rows)) > 0

    def runs(self, rng: np.random.Generator, metric: str = "accuracy") -> Runs:
        """The arms a and b under a metric."""
        labels = (rng.random(self.rows) < self.share).astype(int)
        logits = np.eye(2)[np.where(self.right(rng), labels, 1 - labels)]
        arms = {name: dict(enumerate(outputs)) for name, outputs in zip("ab", logits, strict=True)}
        groups = [str(row // self.group_size) for row in range(self.rows)]
        return tally_runs(metric, labels, arms, groups)
