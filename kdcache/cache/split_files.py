"""The files of a split: one, or several that follow each other."""

from collections.abc import Iterable, Mapping, Sequence

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from kdcache.cache.schema import ROW_GROUP_ROWS
from kdcache.errors import shorten
from kdcache.places import FILE_OF_SPLIT


@with_config(ConfigDict(extra="forbid"))
class FileEntry(TypedDict):
    """One file of a cache.

    Args:
        rows: how many it has.
        bytes: its length.
        sha256: its digest.
        labelled: rows with a label. This and the next are 0 in the split test, which nothing scores but
            ``kdcache evaluate``.
        correct: labelled rows whose largest logit is that of the label.
    """

    rows: int
    bytes: int
    sha256: str
    labelled: int
    correct: int


def name_files(split: str, count: int) -> list[str]:
    """Name the files of a split, in the order of their rows.

    >>> name_files("train", 1), name_files("train", 2)
    (['train.parquet'], ['train-00000-of-00002.parquet', 'train-00001-of-00002.parquet'])
    """
    if count == 1:
        return [f"{split}.parquet"]
    return [f"{split}-{number:05}-of-{count:05}.parquet" for number in range(count)]


def split_of(name: str) -> str:
    """Return the split to which a file belongs, by its name."""
    stem = name.removesuffix(".parquet")
    part = FILE_OF_SPLIT.fullmatch(stem)
    return part[1] if part else stem


def name_span(names: Sequence[str]) -> str:
    """Name all files of a split in a few words.

    >>> name_span(name_files("train", 1)), name_span(name_files("train", 3))
    ('train.parquet', 'train-00000-of-00003.parquet …')
    """
    return names[0] if len(names) == 1 else f"{names[0]} …"


def check_files(files: Mapping[str, FileEntry], splits: Iterable[str]) -> None:
    """Refuse a manifest whose files are not those of its splits, without gaps.

    All files of a split but the last have as many rows, in whole row groups. So the row groups of a split are
    the same in one file as in several.

    Args:
        files: of the manifest.
        splits: names of all.

    Raises:
        ValueError: names a file or a split.
    """
    of: dict[str, list[str]] = {split: [] for split in splits}
    for name in sorted(files):
        if split_of(name) not in of:
            raise ValueError(f"file {shorten(name)} of no split in data")
        of[split_of(name)].append(name)
    for split, names in of.items():
        if not names or names != name_files(split, len(names)):
            raise ValueError(f"of the split {shorten(split)} the files {', '.join(names) or 'none'}")
        *full, last = (files[name]["rows"] for name in names)
        if full and ({*full} != {full[0]} or full[0] % ROW_GROUP_ROWS or not 0 < last <= full[0]):
            counts = ", ".join(str(files[name]["rows"]) for name in names)
            raise ValueError(f"of the split {shorten(split)} files of {counts} rows")
