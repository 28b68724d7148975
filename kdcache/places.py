"""Where things may be put: names that are no paths, folders that are ours, files replaced whole."""

import contextlib
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import filelock

from kdcache.digests import value_digest
from kdcache.errors import KdcacheError, ParamsError, shorten, system_error

# The file in a teacher's folder that identifies it. Its fields are copied into the cache's manifest.
IDENTITY = "identity.json"
ABOUT = "student.json"  # in a student's folder, says what it is
CARD = "README.md"  # of a student, an export or a shared cache
# What lies in a folder of each kind that kdcache puts in place; of students, in each folder within.
MARKS = {
    "data": "task.json", "teacher": IDENTITY, "backbone": "shrink.json", "cache": "manifest.json",
    "reports": "results.json", "students": "*/result.json", "student": "result.json",
}  # fmt: skip

# Locks in the scratch folder: of each place that a process writes, and of its emptying.
LOCKS, CLEANING = f"*-{'[0-9a-f]' * 8}.lock", "clean.lock"

_HOST = value_digest(platform.node())[:8]  # several machines may write on one disk

# A name that becomes part of a path: never a path itself, nor what a shell or a file system reads otherwise.
PLAIN_NAME = re.compile(r"(?!(?i:con|nul|aux|prn)$)\w[\w+=,.@-]{0,99}")
RUN_FOLDERS = ("metrics", "predictions", "curves", "reports", "trackers")  # of runs/, beside those of tasks
# A file of several of one split, without its ending: the split, its number from 0, and how many there are.
FILE_OF_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})")
SPLIT_LETTERS = 77  # of a split's name; -00000-of-00002.parquet after it makes 100


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


def require_task_name(name: str, where: str) -> None:
    """Refuse a task's name that is not plain, or that of a folder beside those of tasks.

    Args:
        name: of the task.
        where: for the message.

    Raises:
        ParamsError: it cannot name a task.
    """
    require_plain(name, where)
    if name in RUN_FOLDERS:
        raise ParamsError(f"{where}: a task cannot be called {name}, as a folder of runs/ is. Rename it.")


def require_split(name: str, where: str) -> None:
    """Refuse a name of a split that would give its files no plain names, or names that tell another split.

    Args:
        name: of the split.
        where: for the message.

    Raises:
        ParamsError: it is not plain, too long, or that of a file.
    """
    require_plain(name, where)
    if len(name) > SPLIT_LETTERS or name.endswith(".parquet") or FILE_OF_SPLIT.fullmatch(name):
        raise ParamsError(
            f"{where}: the name of a split must have at most {SPLIT_LETTERS} letters and not be that of a "
            f"file, got {shorten(name)}. Rename it."
        )


def check_place(target: Path, kind: str) -> None:
    """Refuse a place where something lies that kdcache did not put there.

    Args:
        target: the folder to replace.
        kind: of the folder, a key of ``MARKS``.

    Raises:
        ParamsError: a folder that is neither empty nor of that kind.
    """
    if target.is_dir():
        ours = not any(target.iterdir()) or any(target.glob(MARKS[kind]))
    else:
        ours = not target.exists()
    if not ours:
        raise ParamsError(
            f"{target}: it must be new, empty or a {kind} folder of kdcache, got something else there. "
            "Move it away, or choose another place under paths in params.yaml."
        )


def link_tree(source: Path, target: Path) -> Path:
    """Give the files of a folder second names in another one, since weights may be large.

    They are copied where a disk knows no second names.

    Args:
        source: the folder; it stays.
        target: may exist; other files in it stay.

    Returns:
        ``target``.
    """

    def link(name: str, other: str) -> None:
        Path(other).unlink(missing_ok=True)
        try:
            os.link(name, other)
        except OSError:
            shutil.copyfile(name, other)

    return shutil.copytree(source, target, copy_function=link, dirs_exist_ok=True)


def kind_of(folder: Path) -> str:
    """Return the kind of a folder that is to be put in place."""
    return next(kind for kind, mark in MARKS.items() if any(folder.glob(mark)))


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the operating system inside the block name a path, where it names none.

    Raises:
        OSError: also for what libraries raise in its place.
    """
    try:
        yield
    except Exception as error:
        if (found := system_error(error, path)) is None:
            raise
        raise found from error


@contextlib.contextmanager
def alone(scratch: Path, *targets: Path) -> Iterator[None]:
    """Keep other processes from writing the same places, and from emptying the scratch folder.

    The system releases the locks when the process ends, however it ends.

    Args:
        scratch: the project's scratch folder. An error of the system without a path names it.
        targets: what is written.

    Raises:
        KdcacheError: another process writes one of them.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        with filelock.FileLock(scratch / CLEANING):
            for target in targets:
                try:
                    held.enter_context(_lock(scratch, target).acquire(timeout=0))
                except filelock.Timeout:
                    raise KdcacheError(
                        f"{target}: only one process may write it at a time, got another at work. "
                        "Wait for it to end, then run this again."
                    ) from None
        with naming(scratch):
            yield


def in_turn(scratch: Path, target: Path) -> contextlib.AbstractContextManager[object]:
    """Wait until no other process writes a place, and keep others waiting: for what takes a moment.

    Args:
        scratch: the project's scratch folder, which the caller keeps from being emptied: see ``alone``.
        target: what is written.
    """
    return _lock(scratch, target)


def _lock(scratch: Path, target: Path) -> filelock.BaseFileLock:
    where = target.resolve()
    return filelock.FileLock(scratch / f"{where.name[:100]}-{value_digest(where.as_posix())[:8]}.lock")


def place(made: Path, target: Path) -> None:
    """Move a finished file or folder into place; what was there before goes only then.

    Where the place is on another disk, the files are copied beside it first. A link there stays a link.

    Raises:
        ParamsError: see ``check_place``.
        OSError: the place cannot be written; what was there stays.
    """
    target = target.resolve()
    if target.is_dir():
        check_place(target, kind_of(made))
    with naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        new = made
        if made.stat().st_dev != target.parent.stat().st_dev:  # between disks nothing moves in one go
            new = target.with_name(f".{target.name}.part")
            _remove(new)
            (shutil.copytree if made.is_dir() else shutil.copy2)(made, new)
        old = target.with_name(f".{target.name}.replaced")
        if target.is_dir():
            _remove(old)
            os.replace(target, old)
        os.replace(new, target)
        _remove(old)  # also what a killed process left of it
        if new is not made:
            _remove(made)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file beside its place, and rename it when the block ends; on an error the old one stays.

    A folder is written so too, where there is none. What a killed process left beside it goes.

    Yields:
        Where to write: of the same ending. What is no file, such as /dev/stdout, is written itself.

    Raises:
        OSError: with the path.
    """
    path = path.resolve()  # a link stays a link
    if path.exists() and not path.is_file():
        yield path
        return
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{_literal(path.stem)}.*.part{_literal(path.suffix)}"):
            if not _runs(left.name.removesuffix(path.suffix).split(".")[-2]):
                _remove(left)
        part = path.with_name(f".{path.stem}.{os.getpid()}@{_HOST}.part{path.suffix}")
        try:
            yield part
            os.replace(part, path)
        finally:
            _remove(part)


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _runs(process: str) -> bool:
    """Whether there is a process of that number; also if nobody can tell, as of another machine's."""
    number, _, host = process.partition("@")
    if os.name != "posix" or (host and host != _HOST):  # elsewhere a signal 0 is none
        return True
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError, OverflowError):
        return True
    return True
