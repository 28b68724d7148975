"""What would fail at some later batch, found before the first step: the longest rows go through."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from kdcache.backbone.probe import BLIND_BELOW, PROBE_BATCH_SIZE, refuse_blind, variation
from kdcache.backbone.student_backbone import EXAMINED_ROWS
from kdcache.encoder.batching import Encoded
from kdcache.encoder.dry_run import read_longest
from kdcache.encoder.forward import pooled_states
from kdcache.encoder.pooling import Pooling, read_pooling
from kdcache.errors import ModelError
from kdcache.students.arms import ArmSpec
from kdcache.students.methods import METHODS
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.training_rows import StudentRows


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
def check_poolings(
    backbone: Backbone, specs: Sequence[ArmSpec], splits: Mapping[str, StudentRows], folder: Path
) -> None:
    """Refuse arms whose prompts are read by a pooling that hardly depends on the text.

    ``kdcache shrink`` does so for the pooling that the backbone's folder says. Arms without a prompt are
    left: a probe may read what little there is, and weights that are trained may cure it.

    Args:
        backbone: of the students.
        specs: the arms.
        splits: their rows.
        folder: of the backbone.

    Raises:
        ModelError: names the arm.
    """
    try:
        own = read_pooling(folder)
    except ModelError:  # a folder that was put there by hand, and is read by neither of ours
        return
    learned = [splits[name].encoded for name in ("train", "unlabelled") if splits.get(name)]

    def seen(pooling: Pooling) -> float:
        read = backbone.read_by(pooling).pooled
        some = [rows.first(min(EXAMINED_ROWS, len(rows))) for rows in learned]
        return max(variation(pooled_states(read, rows, PROBE_BATCH_SIZE, backbone.device)) for rows in some)

    arms = {spec.pooling: spec.name for spec in specs if METHODS[spec.method].place and spec.pooling != own}
    for pooling, name in arms.items():
        if seen(own) >= BLIND_BELOW:  # else the texts are alike
            refuse_blind(
                seen(pooling), f"{folder} read by {pooling}, as arm {name} does",
                f"Set the pooling of distill, or that of the arm, to {own}.",
            )  # fmt: skip
