"""A task file → its task and examples; every defect of a row names file, line and value."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcache.data.hubrows import read_hub_rows
from kdcache.data.rows import PLACE, Row, read_rows
from kdcache.data.splits import hold_out
from kdcache.data.task import Example, Task
from kdcache.data.taskfile import TaskFile, places, read_task_file
from kdcache.digests import value_digest
from kdcache.errors import DataError, nearest, shorten


def read_own(path: Path, folder: Path) -> tuple[Task, dict[str, list[Example]]]:
    """Read a task file and all rows it names.

    Args:
        path: the task file.
        folder: what the files' names are relative to.

    Returns:
        The task, and split → examples in file order, ``validation`` among them.

    Raises:
        ParamsError: see ``taskfile.read_task_file``.
        DataError: see ``rows.read_rows``; a label that is none or, where they are inferred, that
            train lacks; a text that is null or blank; an id twice.
    """
    file = read_task_file(path)
    rows = {split: _read_split(file, split, folder) for split in file.splits.named}
    known = _labels(file, rows["train"])
    task = Task(
        name=path.stem,
        labels=tuple(known.values()),
        template=file.template(path.stem),
        metrics=tuple(dict.fromkeys([*file.metrics, "accuracy"])),
    )
    examples = {split: _examples(file, split, part, known) for split, part in rows.items()}
    if file.holdout:
        train = examples["train"]
        held_out = hold_out(
            [e.label for e in train], [e.group for e in train], file.holdout.fraction, file.holdout.seed
        )
        for split, part in (("train", ~held_out), ("validation", held_out)):
            examples[split] = [e for e, taken in zip(train, part, strict=True) if taken]
    return task, examples


def _read_split(file: TaskFile, split: str, folder: Path) -> list[Row]:
    needs_label = split not in ("test", "unlabelled")
    columns = (*file.columns, file.label) if needs_label else file.columns
    optional = (file.label,) if split == "test" else ()
    place = file.splits.named[split]
    if file.hub:
        return read_hub_rows(file.hub, place, columns, optional)
    return read_rows(folder / place, file.read, columns, optional)


def _labels(file: TaskFile, train: Sequence[Row]) -> dict[str, str]:
    """Label as the files spell it → name, in index order."""
    if isinstance(file.labels, dict):
        return {_spell(label): name for label, name in file.labels.items()}  # YAML's 0 is a number
    if file.labels is not None:
        return {spelt: spelt for spelt in map(_spell, file.labels)}
    found = {_inferred(row, file.label) for row in train}
    numeric = all(label.removeprefix("-").isdecimal() for label in found)
    if len(found) < 2:
        raise DataError(
            f"{train[0].where}: train must hold at least 2 labels, got only {', '.join(found)}. "
            "Check the column that label names."
        )
    return {label: label for label in sorted(found, key=lambda label: (int(label) if numeric else 0, label))}


def _inferred(row: Row, column: str) -> str:
    value = row.values[column]
    label = _spell(value)
    if not label.strip():
        raise DataError(
            f"{row.where}: {column} must be a label (text, a whole number, true or false), "
            f"got {shorten(value)}. Label the row, or move it into the split unlabelled."
        )
    return label


def _spell(value: Any) -> str:
    """A label as text, "" where it is none: 1 is "1", True is "true"."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (str, int)) else ""


def _examples(file: TaskFile, split: str, rows: Sequence[Row], known: Mapping[str, str]) -> list[Example]:
    indices = {label: index for index, label in enumerate(known)}
    seen: dict[str, str] = {}
    examples = []
    for number, row in enumerate(rows, start=1):
        text = _render(file.text, row)
        text_pair = _render(file.text_pair, row) if file.text_pair else ""
        row_id = str(number) if file.id is None else _cell(row, file.id)
        if row_id in seen:
            raise DataError(
                f"{row.where}: {file.id} must be unique, got {shorten(row_id)} again "
                f"(first at {seen[row_id]}). Renumber the rows."
            )
        seen[row_id] = row.where
        examples.append(
            Example(
                example_id=f"{split}-{row_id}",
                label=-1 if split == "unlabelled" else _label(file, split, row, indices),
                group=_cell(row, file.group) if file.group else value_digest([text, text_pair])[:16],
                text=text,
                text_pair=text_pair,
            )
        )
    return examples


def _label(file: TaskFile, split: str, row: Row, indices: Mapping[str, int]) -> int:
    value = row.values.get(file.label)
    if value is None and split == "test":
        return -1
    label = _spell(value)
    if label not in indices:
        origin = "of the task file" if file.labels else "of train"
        remedy = "" if file.labels else " Or list all labels in the task file."
        raise DataError(
            f"{row.where}: {file.label} must be one of the {len(indices)} labels {origin}, "
            f"got {shorten(value)}. {nearest(label, indices)}{remedy}"
        )
    return indices[label]


def _render(template: str, row: Row) -> str:
    """Fill a template; at least one of its columns must hold more than blanks."""
    values = {name: row.values[name] for name in places(template)}
    for name, value in values.items():
        if not isinstance(value, str):
            raise DataError(
                f"{row.where}: {name} must be text, got {shorten(value)}. Remove the row or give it one."
            )
    if not any(value.strip() for value in values.values()):
        name, value = next(iter(values.items()))
        raise DataError(
            f"{row.where}: {name} must not be empty, got {shorten(value)}. Remove the row or give it a text."
        )
    return PLACE.sub(lambda found: values[found[1]], template) if PLACE.search(template) else values[template]


def _cell(row: Row, column: str) -> str:
    """An id or a group: text or a number, never null."""
    value = row.values[column]
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        raise DataError(f"{row.where}: {column} must not be empty, got {shorten(value)}. Give the row one.")
    return str(value)
