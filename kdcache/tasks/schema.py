"""What a task is: data, not code. Adding a task is adding one ``Task(...)`` to a family file."""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
class Span:
    """A stretch of characters of one field that the template marks with asterisks."""

    field: str
    start: str
    end: str


@dataclass(frozen=True)
class Task:
    """A classification task of sentence pairs.

    Args:
        name: what users type, lower case.
        folder: the folder of the official JSONL layout.
        labels: the values of the field ``label`` in the files; position = class index.
        template: name and version of the rendering; part of the teacher's identity, so it
            must change whenever ``text``, ``text_pair`` or ``spans`` do.
        text: format string over the row's fields, the first sequence.
        text_pair: the second sequence.
        spans: the marked stretches.
        group: the field whose equal values belong together when kdcache cuts a split.
        metrics: names in ``metrics.METRICS``; the first is the one that reports show.
    """

    name: str
    folder: str
    labels: tuple[str | bool, ...]
    template: str
    text: str
    text_pair: str
    group: str
    metrics: tuple[str, ...]
    spans: tuple[Span, ...] = ()

    @property
    def num_labels(self) -> int:
        """How many classes there are."""
        return len(self.labels)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The classes as text, in index order.

        >>> Task("t", "T", (False, True), "t/1", "{a}", "{b}", "a", ("accuracy",)).label_names
        ('false', 'true')
        """
        return tuple(str(label).lower() for label in self.labels)

    @property
    def fields(self) -> dict[str, type]:
        """Fields every row must have, with their types."""
        names = {name for text in (self.text, self.text_pair) for name in _fields(text)}
        fields: dict[str, type] = dict.fromkeys(sorted(names | {self.group}), str)
        for span in self.spans:
            fields |= {span.start: int, span.end: int}
        return fields

    def render(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """Return the two sequences the model reads for a row that has all ``fields``.

        Raises:
            ValueError: a span lies outside its field.
        """
        values = dict(row)
        for span in self.spans:
            text, start, end = row[span.field], row[span.start], row[span.end]
            if not 0 <= start < end <= len(text):
                raise ValueError(
                    f"{span.start}, {span.end} must be a span of {span.field} "
                    f"({len(text)} characters), got {start}, {end}"
                )
            values[span.field] = f"{text[:start]}*{text[start:end]}*{text[end:]}"
        return self.text.format_map(values), self.text_pair.format_map(values)


def _fields(template: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(template) if name]
