"""The task table. ``get_task("wic")`` is the only door to it."""

from kdcache.errors import ParamsError, nearest
from kdcache.tasks.schema import Example, Task
from kdcache.tasks.superglue import CB, WIC

__all__ = ["TASKS", "Example", "Task", "get_task"]

TASKS = {task.name: task for task in (WIC, CB)}


def get_task(name: str) -> Task:
    """Look a task up by name.

    Raises:
        ParamsError: no such task; names the nearest.

    >>> get_task("cb").num_labels
    3
    """
    if name not in TASKS:
        raise ParamsError(f"task: it must be a known task, got {name!r}. {nearest(name, TASKS)}")
    return TASKS[name]
