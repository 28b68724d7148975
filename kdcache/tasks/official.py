"""Rows of the official SuperGLUE layout: ``<folder>/<Task>/{train,val,test}.jsonl``.

Every defect of a row is an error that names file, line and value: a row dropped in silence
is a row of the cache that belongs to nobody.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdcache.errors import DataError, nearest
from kdcache.tasks.schema import Example
from kdcache.tasks.source import Source

OFFICIAL_FILES = {"train": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"}
OPTIONAL_SPLITS = ("test",)
SAMPLE = Path(__file__).parent.parent / "sample"  # the shipped corpus, in the same layout


def read_official(folder: Path, source: Source) -> dict[str, list[Example]]:
    """Read all splits of a task.

    Args:
        folder: the folder that holds one folder per task.
        source: which one, and how its rows read.

    Returns:
        split name → examples in file order. ``test`` is there if its file is.

    Raises:
        DataError: a file is missing, or a row malformed, of an unknown label or twice there.
    """
    splits = {}
    for split, name in OFFICIAL_FILES.items():
        path = folder / source.folder / name
        if not path.is_file():
            if split in OPTIONAL_SPLITS:
                continue
            raise DataError(
                f"{path}: the {split} split of {source.task.name} must be a file there, got none. "
                f"Point prepare.path at a folder in the official SuperGLUE layout."
            )
        splits[split] = list(_read_rows(path, source, split))
        if not splits[split]:
            raise DataError(f"{path}: the file must hold at least one row, got none.")
    return splits


def _read_rows(path: Path, source: Source, split: str) -> Iterator[Example]:
    seen: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                example = _read_row(line, source, split, f"{path}:{number}")
                if example.example_id in seen:
                    raise DataError(
                        f"{path}:{number}: idx must be unique, got "
                        f"{example.example_id.removeprefix(split + '-')} again "
                        f"(first on line {seen[example.example_id]}). Renumber the rows."
                    )
                seen[example.example_id] = number
                yield example
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: the text must be UTF-8, got byte {error.object[error.start]:#04x}. "
            "Convert the file, for example with iconv."
        ) from None


def _read_row(line: str, source: Source, split: str, where: str) -> Example:
    try:
        row = json.loads(line.rstrip())
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: the line must be a JSON object, got {_shorten(line)} "
            f"({error.msg}: character {error.pos}). Repair or remove the line."
        ) from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: the line must be a JSON object, got {_shorten(line)}.")
    for field, kind in (source.fields | {"idx": int}).items():
        value = row.get(field)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise DataError(f"{where}: {field} must be {_KINDS[kind]}, got {_shorten(value)}.")
        if isinstance(value, str) and not value.strip():
            raise DataError(f"{where}: {field} must not be empty, got {value!r}.")
    try:
        text, text_pair = source.render(row)
    except ValueError as error:
        raise DataError(f"{where}: {error}.") from None
    return Example(
        example_id=f"{split}-{row['idx']}",
        label=_label(row, source, split, where),
        group=row[source.group],
        text=text,
        text_pair=text_pair,
    )


_KINDS = {str: "text", int: "a whole number"}


def _label(row: dict[str, Any], source: Source, split: str, where: str) -> int:
    if "label" not in row and split in OPTIONAL_SPLITS:
        return -1
    value = row.get("label")
    if type(value) is not type(source.labels[0]) or value not in source.labels:
        known = ", ".join(source.task.labels)
        hint = nearest(value, source.task.labels) if isinstance(value, str) else f"Known: {known}."
        raise DataError(
            f"{where}: label must be one of the {source.task.num_labels} labels of {source.task.name}, "
            f"got {_shorten(value)}. {hint}"
        )
    return source.labels.index(value)


def _shorten(value: Any) -> str:
    text = repr(value.rstrip("\n") if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
