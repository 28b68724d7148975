"""What would fail at some later batch, found before the first step: the longest rows go through."""

from collections.abc import Mapping

import torch

from kdcache.encoder.batching import Encoded, check_ids
from kdcache.encoder.forward import pooled_states
from kdcache.errors import KdcacheError, ModelError, reason_of
from kdcache.students.prompted_backbone import Backbone


@torch.no_grad()
def check_backbone(backbone: Backbone, rows: Mapping[str, Encoded], name: str) -> None:
    """Refuse a backbone that cannot read the rows.

    The longest and the shortest row of each split go through it together, so that one of them is padded.

    Args:
        backbone: of the students.
        rows: split → tokenised rows, of all splits that students read.
        name: of the backbone, for messages.

    Raises:
        ModelError: a token has no embedding, the pass fails, or a state is not finite.
    """
    for split, encoded in rows.items():
        if not len(encoded):
            continue
        check_ids(backbone.config, encoded, split, name)
        some = encoded.take([int(encoded.lengths.argmax()), int(encoded.lengths.argmin())])
        try:
            states = pooled_states(backbone.pooled, some, len(some), backbone.device)
        except KdcacheError:
            raise
        except Exception as error:  # of whatever code the model runs
            raise ModelError(
                f"{name}: it must read the longest row of {split}, {encoded.lengths.max()} tokens, got: "
                f"{reason_of(error)}. Choose another student_backbone.model, or lower distill.max_length."
            ) from error
        if not torch.isfinite(states).all():
            raise ModelError(
                f"{name}: the states of the longest and the shortest row of {split} must be finite, got "
                "others. Choose another student_backbone.model, or set distill.dtype to float32."
            )
