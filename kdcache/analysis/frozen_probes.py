"""What linear probes of frozen models score on a task: what a teacher has to beat to be worth distilling."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.cache.manifest import Manifest
from kdcache.project import BACKBONE_RECORD

OF_BACKBONE = ("cut", "full")  # what students get, where there was a cut


@dataclass(frozen=True)
class FrozenProbes:
    """Accuracies on one split of linear probes that were fitted on train.

    Args:
        teacher: of the model that the teacher was fine-tuned from; None where it is not known.
        backbone: of the students' backbone.
        stale: whether that one is left out, since it is of other rows than the cache: prepared before
            or after, or by a version that did not say of which.
    """

    teacher: float | None = None
    backbone: float | None = None
    stale: bool = False


def read_frozen_probes(manifest: Manifest, backbone: Path | None) -> dict[str, FrozenProbes]:
    """Collect what is known of a task's probes.

    Args:
        manifest: of the task's cache, which has the probe of the teacher's model.
        backbone: folder of the students' backbone, whose record has its probe; on ``tune`` only.

    Returns:
        Split → probes, for splits that have one.
    """
    found = {}
    base: dict[str, Any] = dict(manifest.probe or {})
    for split in ("tune", "validation"):
        of_teacher = base.get(split, {}).get("accuracy")
        of_backbone, stale = _backbone_probe(manifest, backbone) if split == "tune" else (None, False)
        if of_teacher is not None or of_backbone is not None or stale:
            found[split] = FrozenProbes(of_teacher, of_backbone, stale)
    return found


def _backbone_probe(manifest: Manifest, backbone: Path | None) -> tuple[float | None, bool]:
    """Return the probe's accuracy, if it is known and of the cache's rows; and whether it is of others."""
    path = (backbone or Path()) / BACKBONE_RECORD
    if backbone is None or not path.is_file():
        return None, False
    probes = json.loads(path.read_text(encoding="utf-8"))["probes"]
    row = probes.get(manifest.identity["task"], {})
    accuracy = next((row[which] for which in OF_BACKBONE if which in row), None)
    if accuracy is None:
        return None, False
    if row.get("data") != {split: manifest.data.get(split) for split in ("train", "tune")}:
        return None, True
    return accuracy, False
