"""What a student's folder says of it: ``student.json``."""

from dataclasses import dataclass
from pathlib import Path

from kdcache.data.task import Task
from kdcache.encoder.pooling import Pooling
from kdcache.errors import ModelError
from kdcache.params import build
from kdcache.plain_json import read_json
from kdcache.students.methods import Method

ABOUT = "student.json"


@dataclass(frozen=True)
class About:
    """What ``student.json`` says, so that a folder serves text without the project that made it.

    Args:
        method: a key of ``METHODS``.
        backbone: its folder, relative to the project's root.
        backbone_sha256: of its weights: prompts fit no others.
        num_virtual_tokens: length of the prompt, in tokens; 0 without.
        max_length: of the inputs, in tokens.
        task: labels, template, truncation.
        pooling: what the head reads. Students older than this field read [CLS].
    """

    method: Method
    backbone: str
    backbone_sha256: str
    num_virtual_tokens: int
    max_length: int
    task: Task
    pooling: Pooling = "cls"


def find_backbone(folder: Path, about: About) -> Path:
    """The backbone's folder.

    Raises:
        ModelError: it is not where the student says.
    """
    base = Path(about.backbone)
    if not (base / "config.json").is_file():
        raise ModelError(
            f"{folder}: its backbone must be at {base}, relative to the current folder, got nothing "
            "there. Change to the project's root, or run: kdcache shrink"
        )
    return base


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
