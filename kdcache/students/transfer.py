"""Prompt transfer (Vu et al., 2022, SPoT): a student whose prompt starts from another student's."""

from collections.abc import Iterable
from pathlib import Path

from kdcache.digests import file_digest
from kdcache.encoder.load import WEIGHTS, model_digests
from kdcache.errors import ModelError
from kdcache.students.arms import STUDENT, ArmSpec
from kdcache.students.folder import load_folder
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.prompts import Prompt


def donor_of(spec: ArmSpec) -> Path | None:
    """The folder of the student that an arm starts from; None where it starts from text."""
    return Path(spec.init.removeprefix(STUDENT)) if spec.init.startswith(STUDENT) else None


def donor_digests(specs: Iterable[ArmSpec]) -> dict[str, dict[str, str]]:
    """Folder → digests of the files of each student that some arm starts from."""
    donors = {donor for spec in specs if (donor := donor_of(spec))}
    return {str(donor): model_digests(donor) for donor in sorted(donors)}


def donor_prompt(donor: Path, backbone: Backbone, folder: Path) -> Prompt | None:
    """Read a student's prompt, which means something on its own backbone only.

    Args:
        donor: the student's folder.
        backbone: of the student that starts from it.
        folder: that backbone's.

    Raises:
        ModelError: no student there, or one of another backbone.
    """
    student, about = load_folder(donor, backbone)
    if about.backbone_sha256 != file_digest(folder / WEIGHTS):
        raise ModelError(
            f"distill.init: {donor} must be a student of {folder}, got one of another backbone. "
            "Start from a student of this one."
        )
    return student.prompt
