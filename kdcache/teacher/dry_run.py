"""What would fail after hours, found before the first step: a pass over the longest rows of every split."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch

from kdcache.encoder.adapters import Trained
from kdcache.encoder.architectures import check_positions
from kdcache.encoder.batching import Encoded, check_ids, concatenate
from kdcache.encoder.forward import extract
from kdcache.encoder.model_config import reason_of
from kdcache.encoder.token_rows import TokenRows
from kdcache.errors import KdcacheError, ModelError


def extremes(parts: Iterable[Encoded]) -> Encoded:
    """Keep the longest and the shortest of many rows, and one with the highest token id: what decides.

    Args:
        parts: the rows, some at a time; at least one part.
    """
    kept: list[Encoded] = []
    for part in parts:
        both = concatenate([*kept, part])
        at = int(both.sequences.flat["input_ids"].argmax())
        highest = int(np.searchsorted(both.sequences.lengths.cumsum(), at, side="right"))
        rows = sorted({int(both.lengths.argmax()), int(both.lengths.argmin()), highest // both.num_choices})
        chosen = both.take(rows)
        kept = [replace(chosen, sequences=TokenRows.of(list(chosen.sequences)))]  # without all the others
    return kept[0]


def check_model(
    model: Trained, rows: Mapping[str, Encoded], num_outputs: int, name: str, num_virtual_tokens: int = 0
) -> None:
    """Refuse a model that cannot read the rows, or whose outputs cannot be cached.

    The longest and the shortest row of each split go through the untrained model, on the CPU.

    Args:
        model: as it will be trained.
        rows: split → tokenised rows, or the ``extremes`` of them, of all splits that are prepared.
        num_outputs: of the head, per sequence.
        name: of the model, for messages.
        num_virtual_tokens: of its prompt.

    Raises:
        ModelError: token ids or positions run out, the pass fails, or it gives other shapes.
    """
    some = {
        split: encoded.take([int(encoded.lengths.argmax()), int(encoded.lengths.argmin())])
        for split, encoded in rows.items()
        if len(encoded)
    }
    longest = max(int(encoded.lengths.max()) for encoded in some.values())
    check_positions(model.config, longest, num_virtual_tokens, name, "train_teacher")
    for split, encoded in rows.items():
        check_ids(model.config, encoded, split, name)
    for split, encoded in some.items():
        try:
            logits, features = extract(model, encoded, num_outputs, len(encoded), torch.device("cpu"))
        except KdcacheError:
            raise
        except Exception as error:  # of whatever code the model runs
            raise ModelError(
                f"{name}: it must read the longest row of {split}, {encoded.lengths.max()} tokens, got: "
                f"{reason_of(error)}. Choose another train_teacher.model, or lower train_teacher.max_length."
            ) from error
        wanted = (len(encoded), num_outputs * encoded.num_choices)
        if logits.shape != wanted or features.ndim != 2 or not np.isfinite(logits).all():
            what = "finite logits" if logits.shape == wanted and features.ndim == 2 else "one state per text"
            raise ModelError(
                f"{name}: its head must give {what}, got logits of shape {logits.shape} and features of "
                f"shape {features.shape} for {split}. Choose another train_teacher.model."
            )
