"""The door to the sources: a task's name → where its rows come from."""

from kdcache.errors import ParamsError, nearest
from kdcache.tasks.source import Source
from kdcache.tasks.superglue import SUPERGLUE


def find_source(name: str) -> Source:
    """Look a task's source up by name.

    Raises:
        ParamsError: no such task; names the nearest.

    >>> find_source("cb").task.num_labels
    3
    """
    if name not in SUPERGLUE:
        raise ParamsError(f"task: it must be a known task, got {name!r}. {nearest(name, SUPERGLUE)}")
    return SUPERGLUE[name]
