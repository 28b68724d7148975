"""What a student's folder says of it: ``student.json``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from kdcache.data.task import Task
from kdcache.digests import file_digest
from kdcache.encoder.load import WEIGHTS
from kdcache.encoder.pooling import Pooling
from kdcache.errors import ModelError
from kdcache.params import Range, build
from kdcache.places import ABOUT
from kdcache.plain_json import read_json
from kdcache.students.methods import Method

MAX_TOKENS = 10**6  # of a prompt or a text: more than any encoder has positions for
EXPORTED_BACKBONE = "backbone"  # within a student's folder that was exported


@dataclass(frozen=True)
class About:
    """What ``student.json`` says, so that a folder serves text without the project that made it.

    Args:
        method: a key of ``METHODS``.
        backbone: its folder, relative to the project's root, or to the student's where that was exported.
        backbone_sha256: of its weights: prompts fit no others.
        num_virtual_tokens: length of the prompt, in tokens; 0 without.
        max_length: of the inputs, in tokens.
        task: labels, template, truncation.
        pooling: what the head reads. Students older than this field read [CLS].
    """

    method: Method
    backbone: str
    backbone_sha256: str
    num_virtual_tokens: Annotated[int, Range(0, MAX_TOKENS)]
    max_length: Annotated[int, Range(8, MAX_TOKENS)]
    task: Task
    pooling: Pooling = "cls"


def find_backbone(folder: Path, about: About, named: Path | str | None = None) -> Path:
    """Find the folder of the backbone by the digest of its weights.

    It is looked for in the student's folder, where the student says (relative to the current folder, and to
    each folder above the student's), and beside those places.

    Args:
        folder: the student's.
        about: what it says.
        named: the backbone's folder, where the caller knows it; no other place counts then.

    Raises:
        ModelError: it is nowhere there.
    """
    roots = [Path(), *folder.resolve().parents]
    said = [root / about.backbone for root in roots]
    places = [Path(named)] if named else [folder / EXPORTED_BACKBONE, folder / about.backbone, *said]
    alone = named or len(Path(about.backbone).parts) <= 1  # beside it lies what is not of the project
    beside = [] if alone else [path for place in said for path in sorted(place.parent.glob("*"))]
    seen = {}
    for place in dict.fromkeys([*places, *beside]):
        if (place / "config.json").is_file() and (weights := place / WEIGHTS).is_file():
            seen[place] = file_digest(weights)
            whole = about.method == "full" and place.samefile(folder)  # exported with weights of its own
            if whole or seen[place] == about.backbone_sha256:
                return place
    if not seen:
        raise ModelError(
            f"{folder}: its backbone must be at {named or about.backbone}, relative to the current "
            "folder or to one above the student, got nothing there. Name it: load_student(…, backbone=FOLDER)"
        )
    place, found = next(iter(seen.items()))
    raise ModelError(
        f"{folder}: the sha256 of {place / WEIGHTS} must be {about.backbone_sha256}, got {found}. Name the "
        "folder of the student's own backbone: load_student(…, backbone=FOLDER), or train the student again."
    )


def read_about(folder: Path) -> About:
    """Read ``student.json``.

    Raises:
        ModelError: it is not there, or not what kdcache writes.
    """
    path = folder / ABOUT
    if not path.is_file():
        raise ModelError(f"{path}: a student's folder must hold it, got nothing there. Run: kdcache distill")
    try:
        return build(About, read_json(path), str(path))
    except ValueError as error:  # no JSON, or a ParamsError of one line per field
        first = str(error).splitlines()[0]
        raise ModelError(f"{path}: it must be what kdcache writes. {first}") from None
