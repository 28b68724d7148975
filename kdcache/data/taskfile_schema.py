"""The schema of a task file: ``TaskFile`` and its parts."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

from kdcache.data.metrics import COLUMNS_READ
from kdcache.data.parsers import PLACE, Layout
from kdcache.data.readers import Hub
from kdcache.data.splits import METRIC_COLUMNS
from kdcache.data.task import Task
from kdcache.digests import value_digest
from kdcache.params import Count, Range, Seed


@dataclass(frozen=True)
class Files:
    """Split → file, or the hub's name of the split. A ``*`` in a name takes all files that fit, in order.

    Without ``tune``, it is cut from train. ``unlabelled`` needs no label column; if it has one, it is not
    read.
    """

    train: str
    tune: str | None = None
    validation: str | None = None
    test: str | None = None
    unlabelled: str | None = None

    @property
    def named(self) -> dict[str, str]:
        """The splits that have a file, in canonical order."""
        return {split: name for split, name in vars(self).items() if name is not None}


@dataclass(frozen=True)
class HoldOut:
    """Validation and test rows taken from train: stratified by label, groups kept together.

    Args:
        fraction: share of train, 0.05 … 0.5.
        seed: of the choice.
        test: share of train that becomes test, at most half of what validation leaves; 0 takes none.
    """

    fraction: Annotated[float, Range(0.05, 0.5)]
    seed: Seed = 0
    test: Annotated[float, Range(0, 0.5)] = 0.0


@dataclass(frozen=True)
class Span:
    """Characters of a text column that are put between two marks.

    Args:
        column: a column of ``text``, ``text_pair`` or ``choices``.
        start: the column of the first character's index, from 0.
        end: the column of the index after the last character.
        mark: set before and after the span.
    """

    column: str
    start: str
    end: str
    mark: str = "*"


@dataclass(frozen=True)
class Diagnostic:
    """An extra split that the task's models are scored on and never trained on.

    Args:
        file: as in ``splits``.
        metrics: of this split; the first is the one that reports show.
        text, text_pair, group, unit, expand, submission: where they differ from the task's.
    """

    file: str
    metrics: tuple[str, ...]
    text: str | None = None
    text_pair: str | None = None
    group: str | None = None
    unit: str | None = None
    expand: Literal["axg", "multirc", "record", "wsc"] | None = None
    submission: str | None = None


@dataclass(frozen=True)
class TaskFile:
    """What a task file says. A template is a column, or a text with columns in braces: ``{title}. {body}``.

    Args:
        splits: split → file. Names are relative to ``prepare.path`` if ``prepare.source`` is ``files`` or the
            task is one of SuperGLUE's, else to the task file's folder.
        text: template of the first sequence.
        text_pair: template of the second sequence, for a task of pairs.
        choices: templates of the second sequences, one per choice; the label says which choice is right.
        spans: stretches of the texts to mark.
        label: the column of the label.
        label_files: split → file with the labels of its rows, in their order, for texts and labels that lie
            apart: one label a line, or the column ``label``.
        labels: the labels in index order, or label → name to show. None takes the labels of train, sorted;
            a label that train lacks is then an error.
        id: a column of unique ids; None numbers the rows of each split from 1.
        group: a column; labelled rows that share its value stay on one side of every cut. None groups rows
            of the same texts.
        unit: a column; rows that share its value are scored together, by the metrics that need it.
        candidate: the column of the answer that a row proposes, for metrics that compare answers.
        answers: the column of the list of right answers, for the same metrics.
        metrics: the first is the one that reports show. Accuracy is added unless rows are scored in units.
        truncate: which sequence loses tokens if both are too long; ``longest`` shortens the longer one.
        required: columns that must hold text in every row. Of the columns of each template, one must anyway.
        optional: splits whose file may be absent.
        holdout: makes validation, if no file does.
        diagnostics: extra splits by name.
        expand: the function of ``superglue.expand`` that turns a row into the rows of its examples.
        version: of the templates, a number to raise when the texts change. None takes a digest of them.
        submission: name of the benchmark's submission file. Ids must then be whole numbers.
        read: how the files are written.
        hub: the data set on the hub to read rows from, instead of files.
    """

    splits: Files
    text: str
    text_pair: str | None = None
    choices: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()
    label: str = "label"
    label_files: dict[str, str] = field(default_factory=dict)
    labels: tuple[str | int | bool, ...] | dict[str, str] | None = None
    id: str | None = None
    group: str | None = None
    unit: str | None = None
    candidate: str | None = None
    answers: str | None = None
    metrics: tuple[str, ...] = ("accuracy",)
    truncate: Literal["longest", "first", "second"] = "longest"
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    holdout: HoldOut | None = None
    diagnostics: dict[str, Diagnostic] = field(default_factory=dict)
    expand: Literal["axg", "multirc", "record", "wsc"] | None = None
    version: Count | None = None
    submission: str | None = None
    read: Layout = field(default_factory=Layout)
    hub: Hub | None = None

    @property
    def files(self) -> dict[str, str]:
        """Split → file, the diagnostics included."""
        return self.splits.named | {split: extra.file for split, extra in self.diagnostics.items()}

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels as shown, in index order; empty if they are those of train."""
        return tuple(self.spelt_labels.values())

    @property
    def spelt_labels(self) -> dict[str, str]:
        """Label as the files spell it → name, in index order; empty if they are those of train."""
        if isinstance(self.labels, dict):
            return {spell_label(label): name for label, name in self.labels.items()}  # YAML's 0 is a number
        return {spell_label(label): spell_label(label) for label in self.labels or ()}

    @property
    def templates(self) -> tuple[str, ...]:
        """The templates of the first and the second sequences."""
        return (self.text, *self.choices, *([self.text_pair] if self.text_pair else []))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that every row must have, whatever its split; those of the texts come first."""
        others = (self.id, self.group, self.unit, self.candidate, self.answers)
        return tuple(dict.fromkeys([*self.text_columns, *(name for name in others if name)]))

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that the texts are made of."""
        names = [name for template in self.templates for name in places(template)]
        names += [name for span in self.spans for name in (span.start, span.end)]
        return tuple(dict.fromkeys(names))

    def for_split(self, split: str) -> "TaskFile":
        """Return the task file as a split is read: a diagnostic has columns of its own."""
        if split not in self.diagnostics:
            return self
        own = {key: value for key, value in vars(self.diagnostics[split]).items() if value is not None}
        del own["file"]
        return replace(self, **own)

    def template(self, name: str) -> str:
        """Return the name and version of the rendering: other templates are another version."""
        if self.version is not None:
            return f"{name}/{self.version}"
        made_of: list[Any] = [self.text, self.text_pair]
        if self.choices or self.spans or self.expand:
            made_of += [self.choices, [asdict(span) for span in self.spans], self.expand]
        if self.truncate != "longest":  # what a model reads of a long row is part of it
            made_of += [self.truncate]
        return f"{name}/{value_digest(made_of)[:8]}"

    def task(self, name: str, labels: Iterable[str] = ()) -> Task:
        """Return the task that the file describes.

        Args:
            name: the task's.
            labels: those of train, where the file lists none.
        """
        parts = [self, *map(self.for_split, self.diagnostics)]
        read = {
            column for part in parts for metric in part.metrics for column in COLUMNS_READ.get(metric, ())
        }
        in_units = any(metric in COLUMNS_READ for metric in self.metrics)
        return Task(
            name=name,
            labels=self.label_names or tuple(labels),
            template=self.template(name),
            metrics=tuple(dict.fromkeys([*self.metrics, *([] if in_units else ["accuracy"])])),
            num_choices=len(self.choices) or 1,
            truncate=self.truncate,
            columns=tuple(column for column in METRIC_COLUMNS if column in read),
            diagnostics={split: extra.metrics for split, extra in self.diagnostics.items()},
            pairs=self.text_pair is not None,
        )


def places(template: str) -> list[str]:
    """Return the columns that a template names; a bare column is its own template.

    >>> places("{title}. {body}"), places("#1 String")
    (['title', 'body'], ['#1 String'])
    """
    return PLACE.findall(template) or [template]


def spell_label(value: Any) -> str:
    """Spell a label as text, "" if the row has none.

    A whole number counts in any form: pandas writes whole numbers with a gap among them as 1.0 and NaN.

    >>> spell_label(True), spell_label(3), spell_label(3.0), spell_label(None), spell_label(0.5)
    ('true', '3', '3', '', '')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, (str, int)) and str(value).strip() else ""
