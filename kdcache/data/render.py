"""A row's columns → the texts that a model reads, the only way there: ``prepare`` and ``predict`` take it."""

from collections.abc import Mapping, Sequence

from kdcache.data.parsers import PLACE, Row
from kdcache.data.taskfile_schema import Span, TaskFile, places
from kdcache.errors import DataError, shorten


def render(file: TaskFile, row: Row) -> tuple[str, str, tuple[str, ...]]:
    """Render a row's texts by the templates of its task file.

    Args:
        file: the task file.
        row: with ``file.text_columns``.

    Returns:
        ``text``, ``text_pair`` ("" without one) and ``choices`` (empty without), as the model reads them.

    Raises:
        DataError: a text that is null or blank, or a span outside its text.
    """
    values = _texts(file, row)
    text_pair = _fill(file.text_pair, values) if file.text_pair else ""
    return _fill(file.text, values), text_pair, tuple(_fill(choice, values) for choice in file.choices)


def _texts(file: TaskFile, row: Row) -> dict[str, str]:
    """The text columns with their spans marked; one column of each template must hold more than spaces."""
    for template in file.templates:
        names = places(template)
        for name in names:
            value = row.values[name]
            if not isinstance(value, str):
                raise DataError(
                    f"{row.where}: {name} must be text, got {shorten(value)}. Give the row one, or remove it."
                )
        blank = [name for name in names if not row.values[name].strip()]
        if blank and (len(blank) == len(names) or any(name in file.required for name in blank)):
            name = next((name for name in blank if name in file.required), blank[0])
            raise DataError(
                f"{row.where}: {name} must not be empty, got {shorten(row.values[name])}. "
                "Give the row a text, or remove it."
            )
    values = row.values
    for column in {span.column: None for span in file.spans}:
        marked = _mark(row, column, [span for span in file.spans if span.column == column])
        values = {**values, column: marked}
    return values


def _mark(row: Row, column: str, spans: Sequence[Span]) -> str:
    text: str = row.values[column]
    marks: list[tuple[int, int, int, int, str]] = []
    for number, span in enumerate(spans):
        start, end = _position(row, span.start), _position(row, span.end)
        if not 0 <= start < end <= len(text):
            raise DataError(
                f"{row.where}: {span.start}, {span.end} must be a span of {column} "
                f"({len(text)} characters), got {start}, {end}."
            )
        # Put in from the end. At one place a span ends before another begins, the inner one first.
        marks += [(start, 1, -end, number, span.mark), (end, 0, -start, -number, span.mark)]
    for place, *_, mark in sorted(marks, reverse=True):
        text = f"{text[:place]}{mark}{text[place:]}"
    return text


def _position(row: Row, column: str) -> int:
    value = row.values[column]
    if isinstance(value, str) and value.isdecimal():  # a cell of CSV
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{row.where}: {column} must be a whole number, got {shorten(value)}.")
    return value


def _fill(template: str, values: Mapping[str, str]) -> str:
    if PLACE.fullmatch(template):
        template = template[1:-1]
    if not PLACE.search(template):
        return values[template]  # the same object: a passage is held once for all its questions
    return PLACE.sub(lambda found: values[found[1]], template)
