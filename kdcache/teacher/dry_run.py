"""What would fail after hours, found before the first step: a pass over the longest rows of every split."""

from collections.abc import Mapping

import numpy as np
import torch

from kdcache.encoder.adapters import Trained
from kdcache.encoder.architectures import check_positions
from kdcache.encoder.batching import Encoded, check_ids
from kdcache.encoder.forward import extract
from kdcache.errors import KdcacheError, ModelError, reason_of


def check_model(
    model: Trained, rows: Mapping[str, Encoded], num_outputs: int, name: str, num_virtual_tokens: int = 0
) -> None:
    """Refuse a model that cannot read the rows, or whose outputs cannot be cached.

    The longest and the shortest row of each split go through the untrained model, on the CPU.

    Args:
        model: as it will be trained.
        rows: split → tokenised rows, of all splits that are prepared.
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
