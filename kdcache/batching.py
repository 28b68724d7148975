"""Tokenise once, then cut length-sorted batches by a plan that depends on seed and epoch only."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

SORTING_WINDOW = 16  # batches sorted together: short padding, yet batches differ between epochs


@dataclass(frozen=True)
class Encoded:
    """Token ids per row, and what the tokenizer needs to pad them.

    Args:
        tokenizer: the one that made the ids.
        rows: one mapping per example (``input_ids``, ``attention_mask``, perhaps ``token_type_ids``).
        lengths: int64 array of shape (rows,), in tokens.
        num_truncated: how many rows lost tokens to ``max_length``.
    """

    tokenizer: Any
    rows: list[dict[str, list[int]]]
    lengths: np.ndarray
    num_truncated: int

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Sequence[int] | np.ndarray) -> "Encoded":
        """Return some of the rows, in the given order."""
        rows = [self.rows[int(i)] for i in indices]
        return replace(self, rows=rows, lengths=self.lengths[np.asarray(indices, dtype=np.int64)])

    def batch(
        self, indices: Sequence[int] | np.ndarray, device: torch.device | str = "cpu"
    ) -> dict[str, torch.Tensor]:
        """Pad the rows ``indices`` to their longest.

        Returns:
            Tensors of shape (batch, tokens).
        """
        rows = [self.rows[int(i)] for i in indices]
        return {k: v.to(device) for k, v in self.tokenizer.pad(rows, return_tensors="pt").items()}


def encode(tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> Encoded:
    """Tokenise sequences or pairs, truncating the longer of a pair first.

    Args:
        tokenizer: a fast transformers tokenizer.
        texts: first sequences.
        pairs: second sequences, "" where a row has none; None for single ones throughout.
        max_length: in tokens, special ones included.
    """
    pairs = [""] * len(texts) if pairs is None else pairs
    sequences = [(text, pair) if pair else text for text, pair in zip(texts, pairs, strict=True)]
    full = tokenizer(sequences, truncation=False)
    cut = tokenizer(sequences, truncation="longest_first", max_length=max_length)
    rows = [{key: cut[key][i] for key in cut} for i in range(len(texts))]
    lengths = np.array([len(row["input_ids"]) for row in rows], dtype=np.int64)
    truncated = sum(len(ids) > max_length for ids in full["input_ids"])
    return Encoded(tokenizer, rows, lengths, truncated)


def fixed_plan(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Batches for evaluation: rows by length, longest first so that memory runs out at once or never.

    Args:
        lengths: shape (rows,), in tokens.
        batch_size: rows per batch.

    Returns:
        Index arrays that together hold every row once.

    >>> [b.tolist() for b in fixed_plan(np.array([3, 9, 5]), 2)]
    [[1, 2], [0]]
    """
    order = np.argsort(-lengths, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def training_plan(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Batches for one epoch: shuffled, sorted by length within a window, batches shuffled again.

    Every arm of one seed sees the same batches in the same order.

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
    return [batches[i] for i in rng.permutation(len(batches))]


def num_batches(num_rows: int, batch_size: int) -> int:
    """Batches of one epoch; the last of a window may be smaller.

    >>> num_batches(33, 32)
    2
    """
    return -(-num_rows // batch_size)


def iterate(
    plan: Sequence[np.ndarray], encoded: Encoded, device: torch.device
) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
    """Yield (row indices, padded batch on the device) along a plan."""
    for indices in plan:
        yield indices, encoded.batch(indices, device)
