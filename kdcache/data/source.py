"""How rows become examples: what a family file says of a task's rows, and the checks on them.

A row here is flat, as the hub's version of a data set has it: a mapping of fields. Readers
of other layouts (``official``) flatten theirs first, so that either gives the same examples.
"""

import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kdcache.data.task import Example, Task
from kdcache.errors import DataError, shorten

Row = Mapping[str, Any]

LABELLED_SPLITS = ("train", "validation")  # these must be there, and every row with its label


@dataclass(frozen=True)
class Span:
    """A stretch of characters of one field that the template puts between two marks."""

    field: str
    start: str
    end: str
    mark: str = "*"


@dataclass(frozen=True)
class Diagnostic:
    """An extra split of a task, with a file of its own.

    Args:
        split: its name, here and as a configuration on the hub.
        file: in the official layout, below the folder of all tasks.
        expand: as ``Source.expand``, to rows with the fields of the task.
    """

    split: str
    file: str
    expand: Callable[[Row], Iterable[Row]]


def _one(row: Row) -> Iterable[Row]:
    return (row,)


@dataclass(frozen=True)
class Source:
    """A task, and how to make its examples from rows.

    Args:
        task: what becomes of it. Its ``template`` must change whenever what the model reads does.
        folder: the folder of the official JSONL layout; its name in submissions too.
        labels: the values of the field ``label`` in the official files, in the order of
            ``task.labels``; empty where ``expand`` finds the label.
        text: format string over the row's fields, the first sequence.
        text_pair: the second sequence.
        choices: the second sequences of a task of choices, instead of ``text_pair``.
        group: the field whose equal values belong together when kdcache cuts a split.
        spans: the marked stretches.
        may_be_empty: fields that the data themselves leave empty now and then.
        flatten: an official line → flat rows.
        expand: a flat row → one row per example. It may add fields for the template, ``unit``,
            ``candidate``, ``answers`` (see ``Example``) and an own ``label`` (index or −1).
        diagnostics: the extra splits.
    """

    task: Task
    folder: str
    labels: tuple[str | bool | int, ...]
    text: str
    group: str
    text_pair: str = ""
    choices: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()
    may_be_empty: tuple[str, ...] = ()
    flatten: Callable[[Row], Iterable[Row]] = _one
    expand: Callable[[Row], Iterable[Row]] = _one
    diagnostics: tuple[Diagnostic, ...] = ()

    @cached_property
    def fields(self) -> dict[str, type]:
        """Fields every expanded row must have, with their types."""
        names = {name for text in (self.text, self.text_pair, *self.choices) for name in _fields(text)}
        fields: dict[str, type] = dict.fromkeys(sorted(names | {self.group}), str)
        for span in self.spans:
            fields |= {span.start: int, span.end: int}
        return fields

    def examples(self, row: Row, label: int, split: str, where: str) -> Iterator[Example]:
        """Turn one flat row into its examples.

        Args:
            row: with all that ``expand`` needs.
            label: index of the class, −1 where none is given.
            split: which one the row is of; part of the ids.
            where: file and line, for messages.

        Raises:
            DataError: a field is missing, of another type or empty, or a span lies outside.
        """
        try:
            rows = list(self.expand(row))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise DataError(
                f"{where}: the row must be one of {self.task.name}, got {shorten(dict(row))} "
                f"({type(error).__name__}: {error}). Repair or remove it."
            ) from None
        for expanded in rows:
            self._check_fields(expanded, where)
            try:
                text, *seconds = self._render(expanded)
            except ValueError as error:
                raise DataError(f"{where}: {error}.") from None
            found = label if self.labels else expanded["label"]
            if found < 0 and split in LABELLED_SPLITS:
                raise DataError(f"{where}: the answer must be there in {split}, got none.")
            yield Example(
                example_id=f"{split}-{_row_id(expanded.get('idx'), where)}",
                label=found,
                group=expanded[self.group],
                text=text,
                text_pair="" if self.choices else seconds[0],
                choices=tuple(seconds) if self.choices else (),
                unit=f"{split}-{expanded['unit']}" if "unit" in expanded else "",
                candidate=expanded.get("candidate", ""),
                answers=tuple(expanded.get("answers", ())),
            )

    def _check_fields(self, row: Row, where: str) -> None:
        for name, kind in self.fields.items():
            value = row.get(name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise DataError(f"{where}: {name} must be {_KINDS[kind]}, got {shorten(value)}.")
            if isinstance(value, str) and not value.strip() and name not in self.may_be_empty:
                raise DataError(f"{where}: {name} must not be empty, got {value!r}.")

    def _render(self, row: Row) -> list[str]:
        """The sequences the model reads: the first, then the second or the choices."""
        values = dict(row)
        for name in {span.field: None for span in self.spans}:
            values[name] = _mark(row, [span for span in self.spans if span.field == name])
        return [text.format_map(values) for text in (self.text, *(self.choices or (self.text_pair,)))]


def _mark(row: Row, spans: list[Span]) -> str:
    text: str = row[spans[0].field]
    places: list[tuple[int, str]] = []
    for span in spans:
        start, end = row[span.start], row[span.end]
        if not 0 <= start < end <= len(text):
            raise ValueError(
                f"{span.start}, {span.end} must be a span of {span.field} "
                f"({len(text)} characters), got {start}, {end}"
            )
        places += [(start, span.mark), (end, span.mark)]
    for place, mark in sorted(places, reverse=True):
        text = f"{text[:place]}{mark}{text[place:]}"
    return text


_KINDS = {str: "text", int: "a whole number"}


def _row_id(idx: Any, where: str) -> str:
    """A row's number, or the numbers of its passage, question and answer.

    >>> _row_id({"paragraph": 3, "question": 1, "answer": 0}, "f:1")
    '3-1-0'
    """
    parts = list(idx.values()) if isinstance(idx, Mapping) else [idx]
    for part in parts:
        if not isinstance(part, int) or isinstance(part, bool):
            raise DataError(f"{where}: idx must be a whole number, got {shorten(part)}.")
    return "-".join(map(str, parts))


def unique(examples: Iterable[tuple[str, Example]], split: str) -> Iterator[Example]:
    """Pass examples on, each with where it was read, until an id comes twice.

    Raises:
        DataError: naming both places.
    """
    seen: dict[str, str] = {}
    for where, example in examples:
        if example.example_id in seen:
            raise DataError(
                f"{where}: idx must be unique, got {example.example_id.removeprefix(split + '-')} again "
                f"(first at {seen[example.example_id]}). Renumber the rows."
            )
        seen[example.example_id] = where
        yield example


def _fields(template: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(template) if name]
