"""How the rows of a task are read from the official layout and rendered; ``prepare`` alone needs it."""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdcache.tasks.schema import Task


@dataclass(frozen=True)
class Span:
    """A stretch of characters of one field that the template marks with asterisks."""

    field: str
    start: str
    end: str


@dataclass(frozen=True)
class Source:
    """A task, and how to make its examples from rows.

    Args:
        task: what becomes of it. Its ``template`` must change whenever ``text``, ``text_pair``
            or ``spans`` do.
        folder: the folder of the official JSONL layout.
        labels: the values of the field ``label`` in the files, in the order of ``task.labels``.
        text: format string over the row's fields, the first sequence.
        text_pair: the second sequence.
        group: the field whose equal values belong together when kdcache cuts a split.
        spans: the marked stretches.
    """

    task: Task
    folder: str
    labels: tuple[str | bool, ...]
    text: str
    text_pair: str
    group: str
    spans: tuple[Span, ...] = ()

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
