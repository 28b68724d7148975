"""Which rows make a batch: by length for evaluation, by seed and epoch for training."""

from collections.abc import Sequence

import numpy as np
import torch

# On a GPU, a batch without gradients takes so many tokens for each row of its size: short rows come in more,
# since few tokens leave a GPU waiting for the host.
ROW_TOKENS = 512
SORTING_WINDOW = 16  # batches sorted together: short padding, yet batches differ between epochs


def fixed_plan(lengths: np.ndarray, batch_size: int, tokens: int = 0) -> list[np.ndarray]:
    """Cut batches for evaluation, by length, longest first, so that memory runs out at once or never.

    Args:
        lengths: shape (rows,), in tokens.
        batch_size: rows per batch.
        tokens: a batch has more rows while they have no more tokens than this, padding included.

    Returns:
        Index arrays that together hold every row once.

    >>> [b.tolist() for b in fixed_plan(np.array([3, 9, 5]), 2)]
    [[1, 2], [0]]
    >>> [b.tolist() for b in fixed_plan(np.array([3, 9, 5, 4]), 1, tokens=15)]
    [[1], [2, 3, 0]]
    """
    order = np.argsort(-lengths, kind="stable")
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


def training_plan(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Batches for one epoch: shuffled, sorted by length within a window, batches shuffled again.

    Every arm of one seed sees the same batches in the same order. A smaller batch comes last, so that
    students of as many rows have batches of one size at each step.

    Args:
        lengths: shape (rows,), in tokens.
        batch_size: rows per batch.
        seed: of the student.
        epoch: from 0.

    Returns:
        Index arrays that together hold every row once.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    window = SORTING_WINDOW * batch_size
    batches = []
    for start in range(0, len(order), window):
        part = order[start : start + window]
        part = part[np.argsort(-lengths[part], kind="stable")]
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    whole = len(lengths) // batch_size
    return [batches[i] for i in rng.permutation(whole)] + batches[whole:]


def num_batches(num_rows: int, batch_size: int) -> int:
    """Batches of one epoch; the last of a window may be smaller.

    >>> num_batches(33, 32)
    2
    """
    return -(-num_rows // batch_size)


def in_row_order(batches: Sequence[torch.Tensor], plan: Sequence[np.ndarray]) -> torch.Tensor:
    """Put what a model made of the batches of a plan together, in the order of the rows.

    Args:
        batches: one tensor per batch, of shape (rows of the batch, …).
        plan: index arrays that together hold every row once.

    >>> plan = [np.array([1, 2]), np.array([0])]
    >>> in_row_order([torch.tensor([10, 20]), torch.tensor([0])], plan).tolist()
    [0, 10, 20]
    """
    stacked = torch.cat(list(batches))
    return stacked[torch.from_numpy(np.argsort(np.concatenate(plan))).to(stacked.device)]
