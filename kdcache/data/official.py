"""Rows of the official SuperGLUE layout: ``<folder>/<Task>/{train,val,test}.jsonl``.

Every defect of a row is an error that names file, line and value: a row dropped in silence
is a row of the cache that belongs to nobody.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdcache.data.rows import parse_whole
from kdcache.data.source import LABELLED_SPLITS, Row, Source, unique
from kdcache.data.task import Example
from kdcache.errors import DataError, nearest, shorten

OFFICIAL_FILES = {"train": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"}
SAMPLE = Path(__file__).parent.parent / "sample"  # the shipped corpus, in the same layout


def read_official(folder: Path, source: Source) -> dict[str, list[Example]]:
    """Read all splits of a task.

    Args:
        folder: the folder that holds one folder per task.
        source: which one, and how its rows read.

    Returns:
        split name → examples in file order. ``test`` and diagnostics are there if their files are.

    Raises:
        DataError: a file is missing, or a row malformed, of an unknown label or twice there.
    """
    files = {split: (folder / source.folder / name, source) for split, name in OFFICIAL_FILES.items()}
    for extra in source.diagnostics:
        files[extra.split] = (folder / extra.file, replace(source, expand=extra.expand))
    splits = {}
    for split, (path, rows_of) in files.items():
        if not path.is_file():
            if split not in LABELLED_SPLITS:
                continue
            raise DataError(
                f"{path}: the {split} split of {source.task.name} must be a file there, got none. "
                f"Point prepare.path at a folder in the official SuperGLUE layout."
            )
        splits[split] = list(unique(_read_rows(path, rows_of, split), split))
        if not splits[split]:
            raise DataError(f"{path}: the file must hold at least one row, got none.")
    return splits


def _read_rows(path: Path, source: Source, split: str) -> Iterator[tuple[str, Example]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                where = f"{path}:{number}"
                for example in _read_line(line, source, split, where):
                    yield where, example
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: the text must be UTF-8, got byte {error.object[error.start]:#04x}. "
            "Convert the file, for example with iconv."
        ) from None


def _read_line(line: str, source: Source, split: str, where: str) -> Iterator[Example]:
    parsed = parse_whole(line, where)
    try:
        rows = list(source.flatten(parsed))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{where}: the line must be nested as in the official {source.folder}, got "
            f"{shorten(parsed)} ({type(error).__name__}: {error}). Repair or remove the line."
        ) from None
    for row in rows:
        label = _label(row, source, split, where)
        yield from source.examples(row, label, split, where)


def _label(row: Row, source: Source, split: str, where: str) -> int:
    if not source.labels or ("label" not in row and split not in LABELLED_SPLITS):
        return -1
    value: Any = row.get("label")
    if type(value) is not type(source.labels[0]) or value not in source.labels:
        names = source.task.labels
        hint = nearest(value, names) if isinstance(value, str) else f"Known: {', '.join(names)}."
        raise DataError(
            f"{where}: label must be one of the {len(names)} labels of {source.task.name}, "
            f"got {shorten(value)}. {hint}"
        )
    return source.labels.index(value)
