"""What would fail at some later batch, found before the first step: the longest rows go through."""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from kdcache.backbone.probe import PROBE_BATCH_SIZE, refuse_blind, variation
from kdcache.backbone.student_backbone import EXAMINED_ROWS
from kdcache.encoder.batching import Encoded
from kdcache.encoder.dry_run import read_longest
from kdcache.encoder.forward import pooled_states
from kdcache.encoder.pooling import Pooling, read_pooling
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


@torch.no_grad()
def check_poolings(backbone: Backbone, poolings: Collection[Pooling], train: Encoded, folder: Path) -> None:
    """Refuse a pooling of which the states hardly depend on the text, as ``kdcache shrink`` does.

    Args:
        backbone: of the students.
        poolings: of all arms.
        train: tokenised rows.
        folder: of the backbone. The pooling that it says itself was examined when it was made.

    Raises:
        ModelError: names the pooling.
    """
    some = train.first(min(EXAMINED_ROWS, len(train)))
    for pooling in sorted({*poolings} - {read_pooling(folder)}):
        read = backbone.read_by(pooling).pooled
        seen = variation(pooled_states(read, some, PROBE_BATCH_SIZE, backbone.device))
        refuse_blind(seen, f"distill.pooling {pooling} of {folder}", "Take another pooling, or more layers.")
