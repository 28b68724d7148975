"""Tokens of many sequences in flat arrays: 12 bytes per token, where lists of integers take 24 and more."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from kdcache.on_disk import join_arrays, pieces

# What a tokenizer pads; attention masks, the third of its kind, are padded with 0.
PADDED_WITH = {"input_ids": "pad_token_id", "token_type_ids": "pad_token_type_id"}
Tokens = dict[str, list[int]]


class TokenRows(Sequence[Tokens]):
    """Sequences of tokens; each is read as a mapping of lists, such as ``input_ids`` and ``attention_mask``.

    Args:
        flat: name → int32 array of the values of sequences, one sequence after the other.
        lengths: int64 array of shape (sequences,), in tokens.
        starts: of the same shape, where in ``flat`` each begins; left out, each follows the one before it.
    """

    def __init__(
        self, flat: Mapping[str, np.ndarray], lengths: np.ndarray, starts: np.ndarray | None = None
    ) -> None:
        self.flat, self.lengths = dict(flat), lengths
        self._starts = np.cumsum(lengths) - lengths if starts is None else starts

    @classmethod
    def of(cls, sequences: Sequence[Mapping[str, Sequence[int]]]) -> "TokenRows":
        """Put sequences into flat arrays; all of them have the names of the first."""
        names = list(sequences[0]) if sequences else []
        lengths = np.fromiter((len(row[names[0]]) for row in sequences), np.int64, len(sequences))
        total = int(lengths.sum())
        flat = {
            name: np.fromiter(chain.from_iterable(row[name] for row in sequences), np.int32, total)
            for name in names
        }
        return cls(flat, lengths)

    @classmethod
    def joined(cls, parts: Iterable["TokenRows"], folder: Path | None = None) -> "TokenRows":
        """Put the sequences of several parts one after the other.

        Args:
            parts: made by one tokenizer.
            folder: for what is large, see ``on_disk``.
        """
        some = [part for part in parts if len(part)]
        if len(some) < 2:
            return some[0] if some else cls({}, np.empty(0, np.int64))
        flat = {name: join_arrays([part.flat[name] for part in some], folder) for name in some[0].flat}
        lengths, starts = (
            join_arrays([getattr(part, name) for part in some], folder) for name in ("lengths", "_starts")
        )
        row = shift = 0
        for part in some:
            starts[row : row + len(part)] += shift
            row, shift = row + len(part), shift + len(next(iter(part.flat.values())))
        return cls(flat, lengths, starts)

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, at: int) -> Tokens: ...
    @overload
    def __getitem__(self, at: slice) -> "list[Tokens]": ...
    def __getitem__(self, at: int | slice) -> "Tokens | list[Tokens]":
        """Return a sequence, or the list of several."""
        if isinstance(at, slice):
            return [self[k] for k in range(*at.indices(len(self)))]
        start = int(self._starts[at])
        stop = start + int(self.lengths[at])
        return {name: values[start:stop].tolist() for name, values in self.flat.items()}

    def __eq__(self, other: object) -> bool:
        """Compare sequence by sequence."""
        return (
            isinstance(other, Sequence) and len(self) == len(other) and all(map(Tokens.__eq__, self, other))
        )

    __hash__ = None  # type: ignore[assignment]

    def take(self, which: np.ndarray) -> "TokenRows":
        """Return some of the sequences, in the given order, which share the memory of all."""
        return TokenRows(self.flat, self.lengths[which], self._starts[which])

    def first(self, count: int) -> "TokenRows":
        """Return the first sequences, which share the memory of all."""
        return TokenRows(self.flat, self.lengths[:count], self._starts[:count])

    def padded(self, which: np.ndarray, tokenizer: Any) -> dict[str, torch.Tensor]:
        """Return some of the sequences, padded on the right to the longest of them.

        Args:
            which: their numbers.
            tokenizer: the one that made them; it knows what pads.

        Returns:
            Name → int64 tensor of shape (sequences, tokens), as ``tokenizer.pad`` returns it.
        """
        lengths = np.concatenate([self.lengths[some] for some in pieces(which)])
        inside = np.arange(lengths.max(initial=0)) < lengths[:, None]
        found = {}
        for name, values in self.flat.items():
            pad = getattr(tokenizer, PADDED_WITH[name]) if name in PADDED_WITH else 0
            whole = np.full(inside.shape, pad, np.int64)
            whole[inside] = np.concatenate([values[self._places(some)] for some in pieces(which)])
            found[name] = torch.from_numpy(whole)
        return found

    def _places(self, which: np.ndarray) -> np.ndarray:
        """Where the values of some sequences lie in the flat arrays."""
        lengths = self.lengths[which]
        shift = self._starts[which] - (np.cumsum(lengths) - lengths)
        return np.arange(lengths.sum()) + np.repeat(shift, lengths)
