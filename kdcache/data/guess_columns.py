"""Guessing which columns of a table are the text, the label, the id and the group."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.data.parsers import Values
from kdcache.data.taskfile_schema import spell_label
from kdcache.errors import DataError

LABEL_NAMES = (
    "label", "labels", "class", "category", "target", "intent", "sentiment", "topic", "stars", "rating",
    "gold_label",
)  # fmt: skip
ID_NAMES = ("id", "idx", "uid", "uuid", "guid", "index", "row_id", "example_id")
GROUP_NAMES = (
    "group", "group_id", "document", "document_id", "doc_id", "author", "author_id", "user", "user_id",
    "conversation_id", "session_id", "thread_id", "patient_id",
)  # fmt: skip
MIN_GROUPS = 20  # fewer cannot be cut into train, tune and validation
SECOND_WORDS = 4  # of a second text, on average; names, dates and addresses have fewer


@dataclass(frozen=True)
class Guess:
    """What the columns of a table seem to be.

    Args:
        text: the column with the longest text on average; of two texts, the one that comes first.
        text_pair: the other one.
        label: the column of the label.
        labels: how many rows each label has, the most frequent first.
        id: a column of unique ids.
        group: a column of things that must stay together.
        unused: the other columns.
    """

    text: str
    text_pair: str | None
    label: str
    labels: Mapping[str, int]
    id: str | None
    group: str | None
    unused: tuple[str, ...]


def guess_columns(path: Path, rows: Sequence[Values]) -> Guess:
    """Guess which column is the text, the label, the id and the group.

    Args:
        path: of the file, for messages.
        rows: all of them.

    Raises:
        DataError: no column can be the label, or none the text.
    """
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name.strip()]
    columns = {name: [row.get(name) for row in rows] for name in names}
    label = _choose_label(path, columns)
    rest = {name: values for name, values in columns.items() if name != label}
    id_ = next((name for name in _named(rest, ID_NAMES) if len(_distinct(rest[name])) == len(rows)), None)
    group = next((name for name in _named(rest, GROUP_NAMES) if name != id_ and _can_group(rest[name])), None)
    lengths = {
        name: _mean_length(values)
        for name, values in rest.items()
        if name not in (id_, group) and _is_text(values)
    }
    if not lengths:
        raise DataError(
            f"{path}: no column besides the label {label!r} holds texts that differ between rows. Add one "
            "with the text to classify."
        )
    first = max(lengths, key=lengths.__getitem__)
    others = [name for name in lengths if name != first and _mean_words(rest[name]) >= SECOND_WORDS]
    longest = {first, *sorted(others, key=lengths.__getitem__)[-1:]}
    texts = [name for name in names if name in longest]  # in the order of the file
    if braced := [name for name in texts if "{" in name or "}" in name]:
        raise DataError(
            f"{path}: a column of text must have no braces in its name, got {braced[0]!r}. Rename it."
        )
    used = {label, id_, group, *texts}
    return Guess(
        text=texts[0],
        text_pair=texts[1] if len(texts) == 2 else None,
        label=label,
        labels=dict(_count_labels(columns[label]).most_common()),
        id=id_,
        group=group,
        unused=tuple(name for name in names if name not in used),
    )


def label_problem(values: Sequence[Any]) -> str | None:
    """Say why a column cannot hold the labels; None where it can.

    A label column has at least two labels, and at least two rows per label on average.

    >>> label_problem(["a", "b", "a", "b", None])
    >>> label_problem(["a", "b", "c", "a"])
    'has 3 different values in 4 rows'
    """
    if any(isinstance(value, (list, dict)) for value in values):
        return "holds lists or objects"
    if any(_is_fraction(value) for value in values):
        return "holds numbers with a decimal point"
    counts = _count_labels(values)
    if len(counts) < 2:
        return f"has only the value {next(iter(counts))!r}" if counts else "is empty"
    if len(counts) > counts.total() / 2:
        return f"has {len(counts)} different values in {counts.total()} rows"
    return None


def _count_labels(values: Sequence[Any]) -> Counter[str]:
    return Counter(filter(None, map(spell_label, values)))


def _choose_label(path: Path, columns: Mapping[str, Sequence[Any]]) -> str:
    named = _named(columns, LABEL_NAMES)
    problems = {name: label_problem(columns[name]) for name in named or columns}
    possible = [name for name, problem in problems.items() if problem is None]
    if not possible:
        found = ", ".join(f"{name!r} {problem}" for name, problem in list(problems.items())[:5])
        raise DataError(
            f"{path}: no column can be the label: {found}. A label column has at least 2 labels, as text or "
            "whole numbers, with several rows each; call it 'label'."
        )
    if named:
        return possible[0]
    candidates = [name for name in possible if name.lower() not in GROUP_NAMES] or possible
    return min(reversed(candidates), key=lambda name: len(_distinct(columns[name])))


def _named(columns: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The columns with one of these names, the first name first."""
    by_name = {column.strip().lower(): column for column in columns}
    return [by_name[name] for name in names if name in by_name]


def _distinct(values: Sequence[Any]) -> set[str]:
    return {str(value) for value in values if value is not None and str(value).strip()}


def _can_group(values: Sequence[Any]) -> bool:
    whole = all(value is not None and str(value).strip() for value in values)
    return whole and MIN_GROUPS <= len(_distinct(values)) < len(values)


def _is_text(values: Sequence[Any]) -> bool:
    if not all(isinstance(value, str) or value is None for value in values):
        return False
    there = _distinct(values)
    return len(there) > 1 and not all(map(is_number, there))


def _mean_length(values: Sequence[str | None]) -> float:
    return sum(len(value or "") for value in values) / len(values)


def _mean_words(values: Sequence[str | None]) -> float:
    return sum(len((value or "").split()) for value in values) / len(values)


def is_number(text: str) -> bool:
    """Whether a cell reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_fraction(value: Any) -> bool:
    if isinstance(value, str):
        return "." in value and is_number(value) and not float(value).is_integer()
    return isinstance(value, float) and not math.isnan(value) and not value.is_integer()
