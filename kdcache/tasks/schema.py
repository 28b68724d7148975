"""What a task is: data, not code. ``prepare`` writes it beside the rows, later stages read it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from kdcache.errors import DataError

TASK = "task.json"


@dataclass(frozen=True)
class Example:
    """One row as the model reads it.

    ``label`` is the index of the class, −1 where none is given. Rows of one ``group`` never
    fall on both sides of a split that kdcache makes itself.
    """

    example_id: str
    label: int
    group: str
    text: str
    text_pair: str


@dataclass(frozen=True)
class Task:
    """What teacher, cache and students need to know of a task; nothing about files.

    Args:
        name: what users type, lower case.
        labels: names of the classes; position = class index.
        template: name and version of the rendering; part of the teacher's identity.
        metrics: names in ``metrics.METRICS``; the first is the one that reports show.
        num_choices: sequences per example. 1: the head gives a logit per class. More: it
            gives one logit per sequence, and the classes are the sequences.
    """

    name: str
    labels: tuple[str, ...]
    template: str
    metrics: tuple[str, ...]
    num_choices: int = 1

    @property
    def num_labels(self) -> int:
        """How many classes there are."""
        return len(self.labels)

    @property
    def num_outputs(self) -> int:
        """How many logits the head gives per sequence.

        >>> Task("copa", ("choice1", "choice2"), "copa/1", ("accuracy",), num_choices=2).num_outputs
        1
        """
        return 1 if self.num_choices > 1 else self.num_labels


def write_task(task: Task, folder: Path) -> None:
    """Write ``task.json``; the same task gives the same bytes."""
    text = json.dumps(asdict(task), indent=2, sort_keys=True, ensure_ascii=False)
    (folder / TASK).write_text(text + "\n", encoding="utf-8")


def read_task(folder: Path, task_name: str) -> Task:
    """Read the task that ``prepare`` left in a task's data folder.

    Args:
        folder: the task's data folder.
        task_name: for the remedy.

    Raises:
        DataError: the task was never prepared, or by another version of kdcache.
    """
    path = folder / TASK
    remedy = f"Run: kdcache prepare --task {task_name}"
    if not path.is_file():
        raise DataError(f"{path}: the prepared task must exist, got nothing there. {remedy}")
    try:
        values = json.loads(path.read_bytes())
        lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        return Task(**values | lists)
    except (ValueError, TypeError, AttributeError):
        raise DataError(
            f"{path}: it must be a task as prepare writes it, got other content. {remedy}"
        ) from None
