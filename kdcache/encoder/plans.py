"""Which rows make a batch: by length for evaluation, by seed and epoch for training."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch

from kdcache.errors import ParamsError
from kdcache.on_disk import empty, pieces, release

# On a GPU, a batch without gradients takes so many tokens for each row of its size: short rows come in more,
# since few tokens leave a GPU waiting for the host.
ROW_TOKENS = 512
AT_ONCE = 2**14  # made at a time, or written before the memory that holds them is let go
SORTING_WINDOW = 16  # batches sorted together: short padding, yet batches differ between epochs


def fixed_plan(lengths: np.ndarray, batch_size: int, tokens: int = 0) -> list[np.ndarray]:
    """Cut batches for evaluation, by length, longest first, so that memory runs out at once or never.

    Args:
        lengths: shape (rows,), in tokens.
        batch_size: rows per batch.
        tokens: a batch has more rows while they have no more tokens than this, padding included.

    Returns:
        Index arrays that together hold every row once.

    Raises:
        ParamsError: batch_size is not at least 1.

    >>> [b.tolist() for b in fixed_plan(np.array([3, 9, 5]), 2)]
    [[1, 2], [0]]
    >>> [b.tolist() for b in fixed_plan(np.array([3, 9, 5, 4]), 1, tokens=15)]
    [[1], [2, 3, 0]]
    """
    if batch_size < 1:
        raise ParamsError(f"batch_size: it must be at least 1, got {batch_size}.")
    order = np.argsort(-lengths.astype(np.int32), kind="stable")
    plan, start = [], 0
    while start < len(order):
        rows = max(batch_size, tokens // int(lengths[order[start]]))
        plan.append(order[start : start + rows])
        start += rows
    return plan


def plan_for(
    device: torch.device, lengths: np.ndarray, batch_size: int, sequences: int = 1
) -> list[np.ndarray]:
    """Return the ``fixed_plan`` of some rows: on a GPU a batch has enough tokens to keep it busy.

    Args:
        device: that reads them.
        lengths: shape (rows,), in tokens.
        batch_size: rows per batch; on a GPU more, while their tokens are at most ``ROW_TOKENS`` times this.
        sequences: that a row has in a batch: its choices, for each student that reads it.
    """
    budget = 0 if device.type == "cpu" else ROW_TOKENS * batch_size // sequences
    return fixed_plan(lengths, batch_size, budget)


class TrainingPlan(Sequence[np.ndarray]):
    """Batches of one epoch: shuffled, sorted by length within a window, batches shuffled again.

    Arms of one seed, of as many rows and one batch size, see the same batches in the same order. A smaller
    batch comes last, so that they have batches of one size at each step. A window is sorted when a batch
    of it is asked for: most runs end long before they have drawn all of many rows.

    Args:
        lengths: shape (rows,), in tokens.
        batch_size: rows per batch.
        seed: of the student.
        epoch: from 0.

    Each item is an int64 array of the numbers of rows; together they hold every row once.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> None:
        rng = np.random.default_rng([seed, epoch])
        self._lengths, self._size = lengths, batch_size
        self._rows = permuted(rng, len(lengths))
        self._order = permuted(rng, len(lengths) // batch_size)  # of whole batches

    def __len__(self) -> int:
        return num_batches(len(self._rows), self._size)

    @overload
    def __getitem__(self, at: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, at: slice) -> list[np.ndarray]: ...
    def __getitem__(self, at: int | slice) -> np.ndarray | list[np.ndarray]:
        """Return the rows of a batch, or of several."""
        if isinstance(at, slice):
            return [self[k] for k in range(*at.indices(len(self)))]
        if not 0 <= at < len(self):
            raise IndexError(at)
        window, batch = divmod(self._order[at] if at < len(self._order) else at, SORTING_WINDOW)
        size = self._size * SORTING_WINDOW
        part = self._rows[window * size : (window + 1) * size]
        lengths = np.concatenate([self._lengths[some] for some in pieces(part)])
        part = part[np.argsort(-lengths, kind="stable")]
        return part[batch * self._size : (batch + 1) * self._size].astype(np.int64)


def permuted(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return what ``rng.permutation(count)`` returns, as int32: half the memory.

    >>> permuted(np.random.default_rng(0), 5).tolist() == np.random.default_rng(0).permutation(5).tolist()
    True
    """
    order = np.arange(count, dtype=np.int32)
    rng.shuffle(order)
    return order


def num_batches(num_rows: int, batch_size: int) -> int:
    """Batches of one epoch; the last may be smaller.

    >>> num_batches(33, 32)
    2
    """
    return -(-num_rows // batch_size)


def in_parts(count: int) -> list[np.ndarray]:
    """Cut rows into a plan of parts in their order, so that no array of all of them is needed at once."""
    return np.split(np.arange(count), range(AT_ONCE, count, AT_ONCE))


def in_row_order(
    batches: Iterable[torch.Tensor], plan: Sequence[np.ndarray], folder: Path | None = None
) -> torch.Tensor:
    """Put what a model made of the batches of a plan together, in the order of the rows.

    Args:
        batches: one tensor per batch, of shape (rows of the batch, …).
        plan: index arrays that together hold every row once.
        folder: for what is large, see ``on_disk``; batches are on the CPU then.

    >>> plan = [np.array([1, 2]), np.array([0])]
    >>> in_row_order([torch.tensor([10, 20]), torch.tensor([0])], plan).tolist()
    [0, 10, 20]
    """
    if folder is None:
        stacked = torch.cat(list(batches))
        return stacked[torch.from_numpy(np.argsort(np.concatenate(plan))).to(stacked.device)]
    whole, written = np.empty(0), 0
    for rows, batch in zip(plan, batches, strict=True):
        values = batch.numpy()
        if not written:
            whole = empty((sum(map(len, plan)), *values.shape[1:]), values.dtype, folder)
        whole[rows] = values
        written += len(rows)
        if written % AT_ONCE < len(rows):
            release()
    return torch.from_numpy(whole)
