"""How the tokens of a batch's sequences lie one after the other: in groups of sequences of one length."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch


@dataclass(frozen=True)
class TokenGroups:
    """Groups of sequences, one group after the other.

    Args:
        order: int64 of shape (sequences,): their numbers in the batch, as the groups have them.
        lengths: of each group's sequences, in tokens; shorter ones are padded to the longest of their group.
    """

    order: np.ndarray
    lengths: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, lengths: np.ndarray, cut: bool) -> "TokenGroups":
        """Group sequences.

        Args:
            lengths: int64 of shape (sequences,), in tokens.
            cut: whether to cut them into groups of one length each, the longest first. Else they are one
                group, in their order.

        >>> groups = TokenGroups.of(np.array([3, 5, 3]), cut=True)
        >>> groups.order.tolist(), groups.shapes
        ([1, 0, 2], [(1, 5), (2, 3)])
        """
        if not cut:
            return cls(np.arange(len(lengths)), (lengths,))
        order = np.argsort(-lengths, kind="stable")
        ends = np.flatnonzero(np.diff(lengths[order])) + 1
        return cls(order, tuple(np.split(lengths[order], ends)))

    @cached_property
    def shapes(self) -> list[tuple[int, int]]:
        """(sequences, tokens) of each group, padding included."""
        return [(len(some), int(some.max())) for some in self.lengths]

    @cached_property
    def tokens(self) -> np.ndarray:
        """Of each sequence, as the groups have them, padding included."""
        return np.concatenate([np.full(*shape) for shape in self.shapes])

    @cached_property
    def masks(self) -> list[torch.Tensor | None]:
        """Bool (sequences, tokens) of each group, False for padding; None for a group without any."""
        return [
            torch.arange(tokens) < torch.from_numpy(some)[:, None] if some.min() < tokens else None
            for some, (_, tokens) in zip(self.lengths, self.shapes, strict=True)
        ]

    def places(self, starts: np.ndarray) -> np.ndarray:
        """Return where the tokens of all groups are, padding included.

        Args:
            starts: where the first token of each sequence of the batch is; the others follow.

        >>> TokenGroups.of(np.array([1, 3, 1]), cut=True).places(np.array([10, 20, 30])).tolist()
        [20, 21, 22, 10, 30]
        """
        tokens = self.tokens
        return np.arange(tokens.sum()) + np.repeat(starts[self.order] - tokens.cumsum() + tokens, tokens)

    def split(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Cut values of shape (tokens, …) into those of the groups, of shape (sequences, tokens, …)."""
        each = values.split([sequences * tokens for sequences, tokens in self.shapes])
        return [some.unflatten(0, shape) for some, shape in zip(each, self.shapes, strict=True)]

    def in_batch_order(self, values: torch.Tensor) -> torch.Tensor:
        """Return values of the sequences, of shape (sequences, …), as the batch has them."""
        if (np.diff(self.order) > 0).all():
            return values
        return values.index_select(0, torch.from_numpy(self.order.argsort()))
