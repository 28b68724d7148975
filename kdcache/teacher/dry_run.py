"""What would fail after hours, found before the first step: a pass over the longest rows of every split."""

from collections.abc import Mapping

import numpy as np
import torch

from kdcache.encoder.adapters import Trained
from kdcache.encoder.architectures import check_positions
from kdcache.encoder.batching import Encoded
from kdcache.encoder.dry_run import read_longest
from kdcache.encoder.forward import extract
from kdcache.errors import ModelError


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
    longest = max(int(encoded.lengths.max()) for encoded in rows.values() if len(encoded))
    check_positions(model.config, longest, num_virtual_tokens, name, "train_teacher")

    def read(two: Encoded) -> tuple[np.ndarray, np.ndarray]:
        return extract(model, two, num_outputs, len(two), torch.device("cpu"))

    cure = "Choose another train_teacher.model, or lower train_teacher.max_length."
    for split, two, (logits, features) in read_longest(read, model.config, rows, name, cure):
        wanted = (len(two), num_outputs * two.num_choices)
        if logits.shape != wanted or features.ndim != 2 or not np.isfinite(logits).all():
            what = "finite logits" if logits.shape == wanted and features.ndim == 2 else "one state per text"
            raise ModelError(
                f"{name}: its head must give {what}, got logits of shape {logits.shape} and features of "
                f"shape {features.shape} for {split}. Choose another train_teacher.model."
            )
