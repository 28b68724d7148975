"""Stage import_teacher: the outputs of outside teachers, written as a cache."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kdcache.cache.exchange import MissingMass
from kdcache.cache.manifest import MANIFEST, OUTSIDE, read_manifest
from kdcache.errors import CacheError, ParamsError, nearest
from kdcache.params import PositiveFloat, build
from kdcache.project import Project, require_task
from kdcache.store.location import Location
from kdcache.teacher.outside_cache import import_cache

SECTION = "import_teacher"


@dataclass(frozen=True)
class ImportTeacherParams:
    """An entry of section ``import_teacher``, for one task.

    Args:
        path: a file of one teacher's outputs, or a folder with a file per teacher; see ``import_cache``.
        weights: of several teachers: name of a file without its ending → weight.
        missing_mass: what to do with probabilities that do not sum to 1.
        id_column: name of the column of ids.
    """

    path: str
    weights: dict[str, PositiveFloat] = field(default_factory=dict)
    missing_mass: MissingMass = "refuse"
    id_column: str = "example_id"


def import_teacher(project: Project, task_name: str) -> None:
    """Write the cache of a task from the file or files that its entry in ``import_teacher`` names.

    Raises:
        ParamsError: there is no such entry.
        DataError, CacheError: see ``import_cache``.
    """
    require_task(project, task_name)
    params = read_import(project, task_name)
    if params is None:
        raise ParamsError(f"{SECTION}: it must have an entry for {task_name}, got none. Name its path there.")
    manifest = import_cache(
        project, task_name, Path(params.path), params.missing_mass, params.id_column, params.weights
    )
    rows = sum(entry["rows"] for entry in manifest.files.values())
    print(f"{task_name}: imported {rows} rows of {params.path}")


def read_import(project: Project, task_name: str) -> ImportTeacherParams | None:
    """Return the entry of a task in ``import_teacher``; None if its teacher is fine-tuned.

    Raises:
        ParamsError: the entry is not valid, or fine_tune lists the task too.
    """
    entry = _section(project).get(task_name)
    if entry is None:
        return None
    if task_name in (project.fine_tune or ()):
        raise ParamsError(
            f"{SECTION}: a task must have one teacher, got {task_name} here and in fine_tune. "
            "Take it out of one of them."
        )
    return build(ImportTeacherParams, entry, f"{SECTION}.{task_name}")


def check_teachers(project: Project) -> None:
    """Check that each task has one teacher, and that none would replace an imported cache by training.

    The pipeline asks first of all, since DVC removes the old outputs of a stage before it runs.

    Raises:
        ParamsError: a task has no teacher or two, or a teacher no task; or an import would be lost.
    """
    imported = _section(project)
    for name in imported:
        read_import(project, name)
    _refuse_others(SECTION, imported, project.tasks)
    trained = project.fine_tune
    if trained is None:
        trained = tuple(name for name in project.tasks if name not in imported)
    _refuse_others("fine_tune", trained, project.tasks)
    for name in project.tasks:
        if name not in imported and name not in trained:
            raise ParamsError(
                f"tasks: each must be in fine_tune or {SECTION}, got {name} in neither. Add it to one."
            )
        if name in trained and _is_imported(Location.parse(project.paths.cache, name)):
            raise ParamsError(
                f"{project.paths.cache}/{name}: the cache was imported, and the pipeline would replace it by "
                f"a fine-tuned teacher's. Move {name} from fine_tune to {SECTION}, or remove that folder."
            )


def _section(project: Project) -> dict[str, object]:
    section = project.raw.get(SECTION) or {}
    if not isinstance(section, dict):
        raise ParamsError(f"{SECTION}: it must be a mapping of tasks, got {type(section).__name__}.")
    return {str(name): entry for name, entry in section.items()}


def _refuse_others(key: str, names: Iterable[str], tasks: Iterable[str]) -> None:
    for name in names:
        if name not in tasks:
            raise ParamsError(
                f"{key}: each task there must be in tasks, got {name!r}. {nearest(name, tasks)}"
            )


def _is_imported(location: Location) -> bool:
    """Whether a sound cache of an outside teacher lies there."""
    if not location.exists(MANIFEST):
        return False
    try:
        return read_manifest(location).identity.get("kind") == OUTSIDE
    except CacheError:  # it can only be made again
        return False
