"""What would fail at some later batch, found before the first step: the longest rows go through."""

from collections.abc import Mapping

import torch

from kdcache.encoder.batching import Encoded
from kdcache.encoder.dry_run import read_longest
from kdcache.encoder.forward import pooled_states
from kdcache.errors import ModelError
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

    def read(two: Encoded) -> torch.Tensor:
        return pooled_states(backbone.pooled, two, len(two), backbone.device)

    cure = "Choose another student_backbone.model, or lower distill.max_length."
    for split, _, states in read_longest(read, backbone.config, rows, name, cure):
        if not torch.isfinite(states).all():
            raise ModelError(
                f"{name}: the states of the longest and the shortest row of {split} must be finite, got "
                "others. Choose another student_backbone.model, or set distill.dtype to float32."
            )
