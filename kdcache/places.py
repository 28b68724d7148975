"""Where things may be put: names that are no paths, folders that are ours, files replaced whole."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from kdcache.errors import ParamsError, shorten

# The file in a teacher's folder that identifies it. Its fields are copied into the cache's manifest.
IDENTITY = "identity.json"
# What lies in a folder of each kind that kdcache puts in place; of students, in each folder within.
MARKS = {
    "data": "task.json", "teacher": IDENTITY, "backbone": "shrink.json", "cache": "manifest.json",
    "reports": "results.json", "students": "*/result.json", "student": "result.json",
}  # fmt: skip

# A name that becomes part of a path: never a path itself, nor what a shell or a file system reads otherwise.
PLAIN_NAME = re.compile(r"(?!(?i:con|nul|aux|prn)$)\w[\w+=,.@-]{0,99}")


def require_plain(name: str, where: str) -> None:
    """Refuse a name that could lead a path elsewhere.

    Args:
        name: of an arm, a task or a split.
        where: for the message.

    Raises:
        ParamsError: it is not plain.
    """
    if not PLAIN_NAME.fullmatch(name):
        raise ParamsError(
            f"{where}: a name must be at most 100 letters, digits and _ + = , . @ -, and begin with a "
            f"letter, a digit or _, got {shorten(name)}. Rename it."
        )


def check_place(target: Path, kind: str) -> None:
    """Refuse a place where something lies that kdcache did not put there.

    Args:
        target: the folder to replace.
        kind: of the folder, a key of ``MARKS``.

    Raises:
        ParamsError: a folder that is neither empty nor of that kind.
    """
    if target.is_dir() and any(target.iterdir()) and not any(target.glob(MARKS[kind])):
        raise ParamsError(
            f"{target}: it must be new, empty or a {kind} folder of kdcache, got something else there. "
            "Move it away, or choose another place under paths in params.yaml."
        )


def kind_of(folder: Path) -> str:
    """Return the kind of a folder that is to be put in place."""
    return next(kind for kind, mark in MARKS.items() if any(folder.glob(mark)))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file beside its place, and rename it when the block ends; on an error the old one stays.

    Yields:
        Where to write: of the same ending. What is no file, such as /dev/stdout, is written itself.
    """
    path = path.resolve()  # a link stays a link
    if path.exists() and not path.is_file():
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
