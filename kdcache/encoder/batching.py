"""Tokenised rows and their batches: encoding and padding."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from kdcache.encoder.token_rows import TokenRows
from kdcache.errors import DataError, ModelError, ParamsError
from kdcache.on_disk import Growing, empty, join_arrays, release

ENCODED_AT_ONCE = 4096  # sequences
STRATEGIES = {"longest": "longest_first", "first": "only_first", "second": "only_second"}  # of tokenizers
LENGTH_STEP = 8  # on an accelerator, batches have lengths of these multiples: few shapes, and aligned ones


@dataclass(frozen=True)
class Encoded:
    """Token ids per sequence, and what the tokenizer needs to pad them.

    Args:
        tokenizer: the one that made the ids.
        sequences: ``input_ids``, ``attention_mask`` and perhaps ``token_type_ids`` of each; the sequences
            of a row stand one after the other.
        lengths: int64 array of shape (rows,), in tokens; of the longest sequence of each row.
        truncated: bool array of shape (rows,): which rows lost tokens to ``max_length``.
        num_choices: sequences per row.
        folder: for what is large of these rows, see ``on_disk``; None holds all in memory.
    """

    tokenizer: Any
    sequences: TokenRows
    lengths: np.ndarray
    truncated: np.ndarray
    num_choices: int = 1
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, indices: Sequence[int] | np.ndarray) -> "Encoded":
        """Return some of the rows, in the given order."""
        rows = np.asarray(indices, dtype=np.int64)
        sequences = self.sequences.take(self._of(rows))
        return replace(self, sequences=sequences, lengths=self.lengths[rows], truncated=self.truncated[rows])

    def first(self, count: int) -> "Encoded":
        """Return the first rows, which share the memory of all."""
        sequences = self.sequences.first(count * self.num_choices)
        return replace(
            self, sequences=sequences, lengths=self.lengths[:count], truncated=self.truncated[:count]
        )

    def batch(
        self, indices: Sequence[int] | np.ndarray, device: torch.device | str = "cpu"
    ) -> dict[str, torch.Tensor]:
        """Pad the rows ``indices`` to their longest.

        Returns:
            Tensors of shape (batch · choices, tokens).
        """
        padded = self.sequences.padded(self._of(indices), self.tokenizer)
        return {k: v.to(device) for k, v in padded.items()}

    def by_row(self, values: torch.Tensor) -> torch.Tensor:
        """Put a model's outputs for ``batch`` together by row, so that nobody else needs to know of choices.

        Args:
            values: of shape (batch · choices, dim): logits or features.

        Returns:
            Of shape (batch, choices · dim); with one choice, ``values`` as they are.
        """
        return values.reshape(-1, self.num_choices * values.shape[1])

    def _of(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The numbers of the sequences of some rows."""
        rows, n = np.asarray(indices, dtype=np.int64), self.num_choices
        return (rows[:, None] * n + np.arange(n)).reshape(-1)


@dataclass(frozen=True)
class Padded:
    """Rows as tensors on a device, so that a batch is one gather and no copy from the host.

    Args:
        tensors: name → int64 of shape (rows, choices, tokens), padded to the longest of all.
        lengths: as ``Encoded`` has them, on the host.
    """

    tensors: dict[str, torch.Tensor]
    lengths: np.ndarray

    @classmethod
    def of(cls, encoded: Encoded, device: torch.device | str = "cpu") -> "Padded":
        """Pad all rows."""
        whole = encoded.batch(range(len(encoded)), device)
        return cls({k: v.unflatten(0, (-1, encoded.num_choices)) for k, v in whole.items()}, encoded.lengths)

    def tokens(self, rows: np.ndarray) -> int:
        """Return the length of a batch: that of its longest row, rounded up to a ``LENGTH_STEP``."""
        longest = int(self.lengths[rows].max())
        return min(-(-longest // LENGTH_STEP) * LENGTH_STEP, self.tensors["input_ids"].shape[2])

    def gather(self, rows: torch.Tensor, tokens: int) -> dict[str, torch.Tensor]:
        """Gather a batch on the device.

        Args:
            rows: int64 of shape (batch,), on the device.
            tokens: see ``tokens``.

        Returns:
            Tensors of shape (batch · choices, tokens).
        """
        return {k: v[rows, :, :tokens].flatten(0, 1) for k, v in self.tensors.items()}

    def batch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Gather a batch of rows that the host knows."""
        device = self.tensors["input_ids"].device
        return self.gather(torch.from_numpy(rows).to(device), self.tokens(rows))


def concatenate(parts: Sequence[Encoded]) -> Encoded:
    """Put rows of one tokenizer one after the other."""
    return replace(
        parts[0],
        sequences=TokenRows.joined((part.sequences for part in parts), parts[0].folder),
        lengths=join_arrays([part.lengths for part in parts], parts[0].folder),
        truncated=np.concatenate([part.truncated for part in parts]),
    )


def encode(
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
    truncate: Literal["longest", "first", "second"] = "longest",
    num_choices: int = 1,
) -> Encoded:
    """Tokenise sequences or pairs.

    Args:
        tokenizer: a fast transformers tokenizer.
        texts: first sequences.
        pairs: second sequences, "" where there is none; None for single ones throughout.
        max_length: in tokens, special ones included.
        truncate: which of a pair loses tokens; ``longest`` shortens the longer of the two.
        num_choices: sequences per row, one after the other.

    Raises:
        DataError: a text has no token at all.
        ParamsError: even without the sequence that may lose tokens, one does not fit.
    """
    parts = []
    for start in range(0, len(texts), ENCODED_AT_ONCE):
        some = slice(start, start + ENCODED_AT_ONCE)
        parts.append((texts[some], None if pairs is None else pairs[some]))
    return encode_parts(tokenizer, parts, max_length, truncate, num_choices)


def encode_parts(
    tokenizer: Any,
    parts: Iterable[tuple[Sequence[str], Sequence[str] | None]],
    max_length: int,
    truncate: Literal["longest", "first", "second"] = "longest",
    num_choices: int = 1,
    folder: Path | None = None,
) -> Encoded:
    """Tokenise sequences or pairs part by part, so that texts and tokens of one part are held as such.

    Args:
        tokenizer, max_length, truncate, num_choices: see ``encode``.
        parts: first and second sequences of some rows, and those of the next ones.
        folder: see ``Encoded``.

    Raises:
        As ``encode``.
    """
    flat: dict[str, Growing] = {}
    tokens = Growing(np.int64, folder)
    long: list[np.ndarray] = []
    done, needed = 0, 0
    for texts, pairs in parts:
        pairs = [""] * len(texts) if pairs is None else pairs
        inputs = [(text, pair) if pair else text for text, pair in zip(texts, pairs, strict=True)]
        full = tokenizer(inputs, truncation=False)
        rows = [{key: full[key][i] for key in full} for i in range(len(texts))]
        if without := [i for i, row in enumerate(rows) if not row["input_ids"]]:
            raise DataError(
                f"row {done + without[0] + 1}: a text must have at least one token, got none of "
                f"{texts[without[0]]!r}. Remove the row, or use a tokenizer that adds special tokens."
            )
        over = [i for i, row in enumerate(rows) if len(row["input_ids"]) > max_length]
        both = [i for i in over if pairs[i] and truncate != "longest"]
        needed = max(needed, _least_length(tokenizer, full, both, kept=1 if truncate == "first" else 0))
        either = [i for i in over if i not in set(both)]
        for which, strategy in ((either, "longest_first"), (both, STRATEGIES[truncate])):
            if which and needed <= max_length:
                cut = tokenizer([inputs[i] for i in which], truncation=strategy, max_length=max_length)
                for k, i in enumerate(which):
                    rows[i] = {key: cut[key][k] for key in cut}
        part = TokenRows.of(rows)
        flat = flat or {name: Growing(np.int32, folder) for name in part.flat}
        for name, values in part.flat.items():
            flat[name].append(values)
        tokens.append(part.lengths)
        long.append(done + np.array(over, np.int64))
        done += len(texts)
    if needed > max_length:
        raise ParamsError(
            f"max_length: it must be at least {needed} tokens, so that the text that is kept whole fits "
            f"beside one token of the other, got {max_length}. Raise max_length in every section that has it."
        )
    lengths = tokens.whole()
    starts = empty(lengths.shape, np.int64, folder)
    np.subtract(np.cumsum(lengths, out=starts), lengths, out=starts)
    sequences = TokenRows({name: values.whole() for name, values in flat.items()}, lengths, starts)
    release()
    if num_choices > 1:
        lengths = lengths.reshape(-1, num_choices).max(axis=1)
    truncated = np.zeros(len(lengths), dtype=bool)
    truncated[np.concatenate([np.empty(0, np.int64), *long]) // num_choices] = True
    return Encoded(tokenizer, sequences, lengths, truncated, num_choices, folder)


def _least_length(tokenizer: Any, full: Any, rows: list[int], kept: int) -> int:
    """The tokens that leave room for one of the sequence that is cut, beside the one that is kept whole."""
    special = tokenizer.num_special_tokens_to_add(pair=True)
    return max((full.sequence_ids(i).count(kept) + special + 1 for i in rows), default=0)


def iterate(
    plan: Sequence[np.ndarray], encoded: Encoded, device: torch.device
) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
    """Yield (row indices, padded batch on the device) along a plan."""
    for indices in plan:
        yield indices, encoded.batch(indices, device)


def check_ids(config: Any, encoded: Encoded, split: str, name: str) -> None:
    """Refuse rows with a token that a model has no embedding for.

    Args:
        config: of the model.
        encoded: the rows.
        split: theirs.
        name: of the model, for the message.

    Raises:
        ModelError: names the token.
    """
    known = config.vocab_size
    if len(encoded.tokenizer) <= known or not len(encoded):
        return
    ids = encoded.sequences.flat["input_ids"]
    highest = max(int(ids[start : start + 2**20].max()) for start in range(0, len(ids), 2**20))
    release()
    if highest >= known:
        token = encoded.tokenizer.convert_ids_to_tokens(highest)
        raise ModelError(
            f"{name}: it must have an embedding for each token, got {known} embeddings and the token "
            f"{token!r} with id {highest} in {split}. Use the model's own tokenizer."
        )
