"""Rows of a task file's splits → examples, the only way from rows to a task.

Every defect of a row is an error of one line that names file, line and value.
"""

import glob
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.data.example_rows import ExampleRows
from kdcache.data.ids import name_some, repeated_in_parts
from kdcache.data.metrics import TWO_LABELS
from kdcache.data.parsers import FORMATS, Layout, Row, check_columns
from kdcache.data.readers import hub_rows, read_rows
from kdcache.data.render import render
from kdcache.data.splits import hold_out
from kdcache.data.superglue.expand import EXPANDERS
from kdcache.data.task import Example, Task
from kdcache.data.taskfile_schema import TaskFile, spell_label
from kdcache.digests import value_digest
from kdcache.errors import DataError, nearest, shorten


def read_examples(
    name: str, file: TaskFile, folder: Path, scratch: Path | None = None
) -> tuple[Task, dict[str, ExampleRows]]:
    """Read all rows that a task file names. Train is read twice where its labels are inferred.

    Args:
        name: the task's.
        file: its task file.
        folder: what the names of files are relative to.
        scratch: a folder for many rows, see ``on_disk``; None holds them.

    Returns:
        The task, and split → examples in file order, ``validation`` among them.

    Raises:
        DataError: see ``readers.read_rows`` and ``readers.hub_rows``; a label that is none or, where they are
            inferred, that train lacks; a text that is null or blank; a span outside its text; an id twice.
    """
    opened = {split: partial(_split_rows, name, file.for_split(split), split, folder) for split in file.files}
    rows = {split: found for split, read in opened.items() if (found := read()) is not None}
    labels = file.spelt_labels or _inferred_labels(file, opened["train"]() or ())
    task = file.task(name, labels.values())
    metrics = {*task.metrics, *(metric for some in task.diagnostics.values() for metric in some)}
    if task.num_labels != 2 and (wrong := sorted(metrics & TWO_LABELS)):
        raise DataError(
            f"{name}: the metric {wrong[0]} must have two labels, got {name_some(task.labels)}. Name "
            "another in the task file, such as macro_f1."
        )
    examples = {}
    for split, part in rows.items():
        own = file.for_split(split)
        examples[split] = ExampleRows.of(_examples(own, split, part, list(labels)), scratch)
        if twice := repeated_in_parts(partial(examples[split].column, "example_id")):
            raise _repeated(own, split, opened[split]() or (), set(twice))
    if file.holdout:
        cut, left = file.holdout, 1.0
        for split, share in (("validation", cut.fraction), ("test", cut.test)):
            if share:
                examples |= cut_off(examples["train"], split, share / left, cut.seed)
                left -= share
    return task, examples


def cut_off(train: ExampleRows, split: str, fraction: float, seed: int) -> dict[str, ExampleRows]:
    """Cut a share of the training rows off as another split; see ``splits.hold_out``."""
    labels, groups = ([value for part in train.column(name) for value in part] for name in ("label", "group"))
    taken = hold_out(labels, groups, fraction, seed)
    return {"train": train.where(np.invert(taken)), split: train.where(taken)}


def _split_rows(name: str, file: TaskFile, split: str, folder: Path) -> Iterator[Row] | None:
    """The rows of a split, expanded; None if its file may be absent and is."""
    columns: list[str] = [] if file.expand else [*file.columns]
    optional = None if file.expand else [file.label]
    if _needs_label(split) and not file.expand and split not in file.label_files:
        columns.append(file.label)
    place = file.files[split]
    if file.hub:
        rows = hub_rows(file.hub, place, columns, optional)
    else:
        paths = sorted(glob.glob(place, root_dir=folder)) if "*" in place else [place]
        found = [folder / path for path in paths if (folder / path).is_file()]
        if not found:
            if split in file.optional:
                return None
            raise DataError(
                f"{folder / place}: the {split} split of {name} must be a file there, got none. "
                "Check prepare.path and the names in the task file."
            )
        rows = (row for path in found for row in read_rows(path, file.read, columns, optional))
    if split in file.label_files:
        return _labelled(rows, folder / file.label_files[split], file)
    return expand_rows(rows, name, file, file.columns)


def _needs_label(split: str) -> bool:
    return split in ("train", "tune", "validation")


def _labelled(rows: Iterable[Row], path: Path, file: TaskFile) -> Iterator[Row]:
    """The rows with the labels of another file, line by line."""
    layout = replace(file.read, format=None, header=None, pattern=f"{{{file.label}}}")
    plain = path.suffix not in FORMATS
    labels = read_rows(path, layout if plain else Layout(), [file.label])
    for number, (row, label) in enumerate(zip_longest(rows, labels)):
        if row is None or label is None:
            place, lacking = (label.where, "text") if row is None else (row.where, "label")
            raise DataError(
                f"{path}: it must hold one label for each row of the texts, got {number} pairs and then no "
                f"{lacking} for {place}. Check that both files are whole."
            )
        if plain and file.read.pattern and _line(row) != _line(label):  # blank lines are no rows
            raise DataError(
                f"{label.where}: the label's line must be that of its text, got {row.where}. "
                "Remove blank lines from both files."
            )
        if file.label in row.values:
            raise DataError(
                f"{row.where}: labels must stand in one file, got {file.label!r} here and in {path}. "
                "Remove label_files, or name the right column as label."
            )
        yield Row(row.where, {**row.values, file.label: label.values[file.label]})


def _line(row: Row) -> str:
    return row.where.rpartition(":")[2]


def expand_rows(rows: Iterable[Row], name: str, file: TaskFile, columns: Sequence[str]) -> Iterator[Row]:
    """Turn the rows of a file into those of its examples, by what ``expand`` of the task file names.

    Args:
        rows: as the file has them.
        name: the task's, for messages.
        file: its task file.
        columns: those that every row must have then.

    Raises:
        DataError: a row that is none of the task's.
    """
    if not file.expand:
        yield from rows
        return
    expand = EXPANDERS[file.expand]
    for where, values in rows:
        try:
            expanded = list(expand(values))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise DataError(
                f"{where}: the row must be one of {name}, got {shorten(values)} "
                f"({type(error).__name__}: {error}). Repair or remove it."
            ) from None
        for part in expanded:
            check_columns(where, list(part), columns)
            yield Row(where, part)


def _inferred_labels(file: TaskFile, train: Iterable[Row]) -> dict[str, str]:
    """The labels of train, sorted; numbers by value."""
    found: dict[str, str] = {}
    for row in train:
        value = row.values.get(file.label)
        label = spell_label(value)
        if not label:
            raise DataError(
                f"{row.where}: {file.label} must be a label (text, a whole number, true or false), "
                f"got {shorten(value)}. Label the row, or move it into the split unlabelled."
            )
        found.setdefault(label, row.where)
    if len(found) < 2:
        raise DataError(
            f"{next(iter(found.values()))}: train must hold at least 2 labels, got only {', '.join(found)}. "
            "Check the column that label names."
        )
    numeric = all(label.removeprefix("-").isdecimal() for label in found)
    labels = sorted(found, key=lambda label: (int(label) if numeric else 0, label))
    if file.choices and not (numeric and int(labels[-1]) - int(labels[0]) + 1 == len(file.choices)):
        raise DataError(
            f"{next(iter(found.values()))}: the labels of {len(file.choices)} choices must be as many "
            f"numbers in a row, or listed in the order of choices, got {name_some(labels)}. "
            "Add labels to the task file."
        )
    return {label: label for label in labels}


def _examples(file: TaskFile, split: str, rows: Iterable[Row], labels: Sequence[str]) -> Iterator[Example]:
    indices = {label: index for index, label in enumerate(labels)}
    with_label = 0
    for number, row in enumerate(rows, start=1):
        label = -1 if split == "unlabelled" else _label(file, split, row, indices)
        with_label += split == "unlabelled" and not _is_none(row.values.get(file.label))
        yield _example(file, split, row, _row_id(file, row, number), label)
    if with_label:
        print(
            f"{file.files[split]}: {with_label} rows of unlabelled have a label, which is not read. To learn "
            "from these labels, move the rows to the file of train.", file=sys.stderr,
        )  # fmt: skip


def _repeated(file: TaskFile, split: str, rows: Iterable[Row], twice: Set[str]) -> DataError:
    """Say where an id stands again, and where it stood first; ``twice`` holds those that do."""
    first: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        row_id = _row_id(file, row, number)
        if row_id in first:
            return DataError(
                f"{row.where}: {file.id} must be unique, got {shorten(row_id)} again "
                f"(first at {first[row_id]}). Renumber the rows."
            )
        if f"{split}-{row_id}" in twice:
            first[row_id] = row.where
    return DataError(f"{file.files[split]}: it must not change while it is read, but did. Try again.")


def _example(file: TaskFile, split: str, row: Row, row_id: str, label: int) -> Example:
    text, text_pair, choices = render(file, row)
    return Example(
        example_id=f"{split}-{row_id}",
        label=label,
        group=_cell(row, file.group) if file.group else value_digest([text, text_pair, *choices])[:16],
        text=text,
        text_pair=text_pair,
        choices=choices,
        unit=f"{split}-{_cell(row, file.unit)}" if file.unit else "",
        candidate=_cell(row, file.candidate) if file.candidate else "",
        answers=_answers(row, file.answers, label) if file.answers else (),
    )


def _label(file: TaskFile, split: str, row: Row, indices: Mapping[str, int]) -> int:
    value = row.values.get(file.label)
    label = spell_label(value)
    if label in indices:
        return indices[label]
    if not _needs_label(split) and _is_none(value):
        return -1
    origin = "of the task file" if file.labels else "of train"
    remedy = "" if file.labels else " Or list all labels in the task file."
    raise DataError(
        f"{row.where}: {file.label} must be one of the {len(indices)} labels {origin}, "
        f"got {shorten(label if label and isinstance(value, float) else value)}. "
        f"{nearest(label, indices)}{remedy}"
    )


def _is_none(value: Any) -> bool:
    """Whether a cell says that the row has no label, as files of any format do."""
    if isinstance(value, float):
        return value == -1 or math.isnan(value)
    return value in (None, -1) or (isinstance(value, str) and value.strip() in ("", "-1"))


def _row_id(file: TaskFile, row: Row, number: int) -> str:
    """A row's id, its number where there is none; several numbers, as of passage and question, are joined."""
    column = file.id
    if not column:
        return str(number)
    value = row.values[column]
    parts = list(map(str, value.values())) if isinstance(value, Mapping) else [_cell(row, column)]
    if file.submission is not None and not all(part.isdecimal() for part in parts):
        raise DataError(f"{row.where}: {column} must be a whole number, got {shorten(value)}.")
    return "-".join(parts)


def _answers(row: Row, column: str, label: int) -> tuple[str, ...]:
    value = row.values[column]
    if not isinstance(value, list) or not all(isinstance(answer, str) for answer in value):
        raise DataError(f"{row.where}: {column} must be a list of texts, got {shorten(value)}.")
    if label >= 0 and not value:
        raise DataError(f"{row.where}: {column} of a row with a label must hold an answer, got none.")
    return tuple(value)


def _cell(row: Row, column: str) -> str:
    """An id or a group as text; it may be a number, and must not be null."""
    value = row.values[column]
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        raise DataError(f"{row.where}: {column} must not be empty, got {shorten(value)}. Give the row one.")
    return str(value)
