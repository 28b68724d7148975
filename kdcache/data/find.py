"""The door to the sources: a task's name → where its rows come from."""

from collections.abc import Iterable
from pathlib import Path

from kdcache.data.source import Source
from kdcache.data.superglue import SUPERGLUE
from kdcache.data.taskfile import ENDINGS
from kdcache.errors import ParamsError, nearest


def own_tasks(folder: Path, files: Iterable[Path] = ()) -> dict[str, Path]:
    """Name → task file of every task of the user's own.

    Args:
        folder: all task files in it; it may be absent.
        files: more of them, wherever they lie.

    Raises:
        ParamsError: two files of one name, or one with the name of a SuperGLUE task.
    """
    found: dict[str, Path] = {}
    for path in [*sorted(folder.glob("*")), *files]:
        if path.suffix not in ENDINGS:
            continue
        other = found.setdefault(path.stem, path)
        if path.stem in SUPERGLUE or not other.samefile(path):
            taken = f"that of {other}" if other != path else "that of a SuperGLUE task"
            raise ParamsError(f"{path}: a task file must have a name of its own, got {taken}. Rename it.")
    return found


def find_source(name: str) -> Source:
    """Look the source of a SuperGLUE task up by name.

    Raises:
        ParamsError: no such task; names the nearest.

    >>> find_source("cb").task.num_labels
    3
    """
    if name not in SUPERGLUE:
        raise ParamsError(f"task: it must be a known task, got {name!r}. {nearest(name, SUPERGLUE)}")
    return SUPERGLUE[name]
