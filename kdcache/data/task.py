"""``Task`` and ``Example``, and ``task.json``, which ``prepare`` writes beside the rows for later stages."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from kdcache.digests import check_seal, seal
from kdcache.errors import DataError, ParamsError
from kdcache.params import build
from kdcache.project import write_json

TASK = "task.json"


@dataclass(frozen=True)
class Example:
    """One row as the model reads it.

    Args:
        example_id: unique within the task.
        label: index of the class; −1 is unlabelled.
        group: labelled rows of one group never fall on both sides of a split that kdcache makes.
        text: the first sequence.
        text_pair: the second sequence; empty in a task of single sequences or of choices.
        choices: the second sequences of a task of choices, one per choice.
        unit: rows of one unit are scored together, and ``max_rows`` keeps them together. Empty means that
            the row is a unit of its own.
        candidate: the answer that the row proposes, for metrics that compare answers.
        answers: the right answers of the row's unit, for the same metrics.
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
    """What teacher, cache and students need to know of a task. Nothing here is about files.

    Args:
        name: what users type, in lower case.
        labels: names of the classes, in index order.
        template: name and version of the rendering; part of the teacher's identity.
        metrics: names in ``metrics.METRICS``. Reports show the first.
        num_choices: sequences per example. With 1, the head gives one logit per class. With more, it gives
            one logit per sequence, and the classes are the sequences.
        truncate: which sequence loses tokens if both are too long; ``longest`` shortens the longer one.
        columns: the columns of ``splits.METRIC_COLUMNS`` that the metrics read.
        diagnostics: extra split → its metrics. The task's models are scored on it and never trained on it.
        pairs: whether every row has a second sequence, or none has; None where that is not known, as of
            students older than this field.
    """

    name: str
    labels: tuple[str, ...]
    template: str
    metrics: tuple[str, ...]
    num_choices: int = 1
    truncate: Literal["longest", "first", "second"] = "longest"
    columns: tuple[str, ...] = ()
    diagnostics: dict[str, tuple[str, ...]] = field(default_factory=dict)
    pairs: bool | None = None

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return len(self.labels)

    @property
    def num_outputs(self) -> int:
        """Number of logits that the head gives per sequence.

        >>> Task("copa", ("choice1", "choice2"), "copa/1", ("accuracy",), num_choices=2).num_outputs
        1
        """
        return 1 if self.num_choices > 1 else self.num_labels

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the head's outputs: the labels, or one name for the score of a choice."""
        return ("LABEL_0",) if self.num_choices > 1 else self.labels

    def metrics_of(self, split: str) -> tuple[str, ...]:
        """Return the names of the metrics that score a split."""
        return self.diagnostics.get(split, self.metrics)


def write_task(task: Task, folder: Path) -> None:
    """Write ``task.json``. The same task gives the same bytes."""
    write_json(asdict(task), folder / TASK)
    seal(folder / TASK)


def read_task(folder: Path, task_name: str) -> Task:
    """Read the task that ``prepare`` left in a task's data folder.

    Args:
        folder: the task's data folder.
        task_name: the task's, for messages.

    Raises:
        DataError: the task was not prepared, or another version of kdcache prepared it.
    """
    path = folder / TASK
    remedy = f"Run: kdcache prepare --task {task_name}"
    if not path.is_file():
        raise DataError(f"{path}: the task is not prepared. {remedy}")
    check_seal(path, remedy, DataError)
    try:
        return build(Task, json.loads(path.read_bytes()), TASK)
    except (ValueError, ParamsError):
        raise DataError(f"{path}: this is not a task of this version of kdcache. {remedy}") from None
