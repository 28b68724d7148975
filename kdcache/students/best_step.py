"""The parameters of the best step, kept while training goes on."""

from collections.abc import Sequence

import torch
from torch import nn


class BestStep:
    """Some parameters as they were after the step of the highest score; the earlier of equal ones.

    >>> weight = nn.Parameter(torch.tensor(1.0))
    >>> best = BestStep([weight])
    >>> best.see(10, 0.8); _ = weight.data.fill_(2.0); best.see(20, 0.7); best.restore()
    >>> best.step, weight.item()
    (10, 1.0)
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.step: int | None = None
        self._score = float("-inf")
        self._kept: list[torch.Tensor] = []

    def see(self, step: int, score: float) -> None:
        """Keep the parameters if this step's score is the highest so far."""
        if score > self._score:
            self.step, self._score = step, score
            self._kept = [parameter.detach().clone() for parameter in self.parameters]

    def state(self) -> tuple[int | None, float, list[torch.Tensor]]:
        """Return what was kept, for a checkpoint."""
        return self.step, self._score, self._kept

    def restore_state(self, state: tuple[int | None, float, list[torch.Tensor]]) -> None:
        """Go on from a checkpoint."""
        self.step, self._score, self._kept = state

    @torch.no_grad()
    def restore(self) -> None:
        """Put the kept values back. Without any step seen, nothing changes."""
        for parameter, kept in zip(self.parameters, self._kept, strict=False):
            parameter.copy_(kept)
