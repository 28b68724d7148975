"""The check that a cache's teacher pools as the parameters say."""

from collections.abc import Mapping
from typing import Any

from kdcache.cache.manifest import OUTSIDE
from kdcache.encoder.pooling import read_pooling
from kdcache.encoder.references import resolve
from kdcache.errors import ModelError
from kdcache.project import IDENTITY_DEFAULTS, Project


def check_teacher_pooling(project: Project, task_name: str, identity: Mapping[str, Any]) -> None:
    """Refuse a teacher that pools in another way than ``train_teacher.pooling`` says.

    An imported teacher is exempt. ``auto`` says something of a teacher of the section's model only, and only
    where that model is on this machine.

    Args:
        project: the project.
        task_name: the teacher's task.
        identity: of the teacher, as its folder or a cache has it.

    Raises:
        ModelError: they differ.
    """
    section = project.raw.get("train_teacher") or {}
    wanted, model = section.get("pooling", "auto"), str(section.get("model"))
    if identity.get("kind") == OUTSIDE:
        return
    if wanted == "auto":
        if identity.get("model") != model:
            return
        try:
            wanted = read_pooling(resolve(model, download=False))
        except ModelError:
            return
    found = identity.get("pooling", IDENTITY_DEFAULTS["pooling"])
    if found != wanted:
        raise ModelError(
            f"teacher of {task_name}: it must pool by {wanted}, as train_teacher.pooling says of {model}, "
            f"got {found}. Run: kdcache teach --task {task_name} && kdcache cache --task {task_name}, or set "
            f"train_teacher.pooling to {found}."
        )
