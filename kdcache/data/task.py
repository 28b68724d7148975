"""What a task is: data, not code. ``prepare`` writes it beside the rows, later stages read it."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from kdcache.errors import DataError, ParamsError
from kdcache.params import build

TASK = "task.json"


@dataclass(frozen=True)
class Example:
    """One row as the model reads it.

    Args:
        example_id: names the row within its task.
        label: index of the class, −1 where none is given.
        group: rows of one group never fall on both sides of a split that kdcache makes itself.
        text: the first sequence.
        text_pair: the second; empty in a task of single sequences, or of choices.
        choices: the second sequences, one per choice, in a task of choices.
        unit: rows of one unit are scored together, and kept together by ``max_rows``; empty
            means the row alone.
        candidate: the answer that the row proposes, where the metric compares answers.
        answers: the right answers of the row's unit, where the metric compares answers.
    """

    example_id: str
    label: int
    group: str
    text: str
    text_pair: str = ""
    choices: tuple[str, ...] = ()
    unit: str = ""
    candidate: str = ""
    answers: tuple[str, ...] = ()


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
        truncate: which sequence loses tokens where both are too long; ``longest`` shortens
            the longer of the two.
        columns: what the metrics read beside the labels, of ``splits.METRIC_COLUMNS``.
        diagnostics: extra split → its metrics; scored with the task's models, never trained on.
    """

    name: str
    labels: tuple[str, ...]
    template: str
    metrics: tuple[str, ...]
    num_choices: int = 1
    truncate: Literal["longest", "first", "second"] = "longest"
    columns: tuple[str, ...] = ()
    diagnostics: dict[str, tuple[str, ...]] = field(default_factory=dict)

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

    def metrics_of(self, split: str) -> tuple[str, ...]:
        """Names of the metrics that score a split."""
        return self.diagnostics.get(split, self.metrics)


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
        return build(Task, json.loads(path.read_bytes()), TASK)
    except (ValueError, ParamsError):
        raise DataError(
            f"{path}: it must be a task as prepare writes it, got other content. {remedy}"
        ) from None
