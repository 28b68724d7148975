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
    """

    teacher: float | None = None
    backbone: float | None = None


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
        of_backbone = _backbone_probe(manifest, backbone) if backbone and split == "tune" else None
        if of_teacher is not None or of_backbone is not None:
            found[split] = FrozenProbes(of_teacher, of_backbone)
    return found


def _backbone_probe(manifest: Manifest, backbone: Path) -> float | None:
    path = backbone / BACKBONE_RECORD
    if not path.is_file():
        return None
    probes = json.loads(path.read_text(encoding="utf-8"))["probes"]
    row = probes.get(manifest.identity["task"], {})
    return next((row[which] for which in OF_BACKBONE if which in row), None)
