"""Every error that kdcache raises on purpose, and nothing else.

    KdcacheError
    ├── ParamsError(ValueError)   a key or value of params.yaml, --set or a keyword argument
    ├── DataError                 source rows, prepared splits
    ├── ModelError                model references, weights, backbones that cannot learn
    ├── ShapeError(ValueError)    tensors that do not fit each other
    ├── CacheError
    │   ├── CacheMissing          nothing there, or a folder without a manifest
    │   ├── CacheStale            whole, but made of other data or by another teacher
    │   └── CacheCorrupt          bytes that are not those the manifest describes
    └── TrainingDiverged          a loss that is no longer finite

Each message is one line: ``<where>: <what> must be <constraint>, got <value>. <remedy>``.
The command line prints that line and exits 1.
"""

import difflib
import errno
import os
import re
import reprlib
import unicodedata
from collections.abc import Iterable
from typing import Any

EXTRAS = {  # a package that only some commands need → the extra of kdcache that installs it
    "dvc": "pipeline", "sklearn": "pipeline", "scipy": "pipeline", "threadpoolctl": "pipeline",
    "pandas": "pipeline",
    "matplotlib": "report", "jinja2": "report", "markupsafe": "report",
    "datasets": "hub",
    "onnx": "onnx", "onnxruntime": "onnx", "onnxscript": "onnx",
    "ray": "cluster",
}  # fmt: skip


# What the operating system refused → what must be, and what to do.
_FULL = "there must be room for it", "Free some space, or choose another place"
_CLOSED = "kdcache must be allowed to read and write it", "Change its permissions, or choose another place"
_KIND = "it must be a file where a file is wanted and a folder where a folder is", "Check what lies there"
SYSTEM_ERRORS = {
    errno.ENOSPC: _FULL, errno.EDQUOT: _FULL, errno.EFBIG: _FULL,
    errno.EACCES: _CLOSED, errno.EPERM: _CLOSED, errno.EROFS: _CLOSED,
    errno.ENOENT: ("it must be there", "Check the path"),
    errno.ENOTDIR: _KIND, errno.EISDIR: _KIND, errno.EEXIST: _KIND, errno.ENOTEMPTY: _KIND,
    errno.ENAMETOOLONG: ("its name must fit the file system", "Shorten it"),
    errno.ELOOP: ("its links must lead somewhere", "Repair them"),
    errno.EBUSY: ("it must be free to be replaced", "Choose a folder below it"),
    errno.EMFILE: ("it must be open beside all others", "Raise the limit: ulimit -n 4096"),
}  # fmt: skip
_OTHER = "it must be readable and writable", "Check the disk"
_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
# How libraries in Rust, C++ and PyTorch spell an error of the operating system in an error of their own.
_AS_TEXT = re.compile(
    r"\(os error (\d+)\)|\[[Ee]rrno (\d+)\]|PytorchStreamWriter failed|unexpected pos \d+ vs"
)
MAX_LINE = 2000  # characters of one line of a message
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxother, _SHORT.maxstring, _SHORT.maxlong = 3, 60, 60, 60


class KdcacheError(Exception):
    """The root: ``except KdcacheError`` catches all that kdcache raises on purpose.

    Its message can be printed: what a file holds of control characters is spelt out, and no line is long.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable("\n".join(_bounded(line) for line in message.split("\n"))))


class ParamsError(KdcacheError, ValueError):
    """A parameter is unknown, missing, of the wrong type or out of range."""


class DataError(KdcacheError):
    """Source rows or prepared splits are missing, malformed or contradict each other."""


class ModelError(KdcacheError):
    """A model reference does not resolve, or the model cannot do what is asked of it."""


class ShapeError(KdcacheError, ValueError):
    """Two tensors do not fit each other."""


class CacheError(KdcacheError):
    """Anything that makes a cache unusable."""


class CacheMissing(CacheError):
    """No cache at that place; a folder without a manifest is not a cache."""


class CacheStale(CacheError):
    """The cache is whole, but belongs to other data or another teacher."""


class CacheCorrupt(CacheError):
    """The bytes on disk are not the bytes the manifest describes."""


class TrainingDiverged(KdcacheError):
    """A loss became NaN or infinite."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a remedy for a mistyped name: the closest known one, or the whole list.

    Args:
        name: what was given.
        known: the names that exist.

    Returns:
        One sentence without a final blank.

    >>> nearest("wik", ["wic", "cb"])
    'Did you mean wic?'
    >>> nearest("xyz", ["wic", "cb"])
    'Known: cb, wic.'
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]}?" if close else f"Known: {', '.join(known)}."


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """Return the line that says how to install a missing package, and None for one that no extra has.

    >>> missing_extra(ModuleNotFoundError(name="jinja2"))
    'The package jinja2 is not installed. Run: pip install "kdcache[report]"'
    """
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    name = {"sklearn": "scikit-learn"}.get(package, package)
    return f'The package {name} is not installed. Run: pip install "kdcache[{EXTRAS[package]}]"'


def shorten(value: Any) -> str:
    """Return a value as messages show it: its repr without the line's end, at most 60 characters.

    >>> shorten("a b\\n")
    "'a b'"
    """
    text = repr(value[:80].rstrip("\n")) if isinstance(value, str) else _SHORT.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def system_error(error: BaseException, path: object = None) -> OSError | None:
    """Return what the operating system said, with the path; None for any other error.

    Args:
        error: its own, or that of a library that put it into words.
        path: where, if the error does not say.
    """
    if isinstance(error, OSError):
        number, name, reason = error.errno, error.filename, error.strerror
        if number is None:  # of a library: a list of several, or text
            found = _AS_TEXT.search(str(error))
            number = int(found[1] or found[2] or errno.EIO) if found else None
    elif not isinstance(error, KdcacheError) and (found := _AS_TEXT.search(str(error))):
        number, name, reason = int(found[1] or found[2] or errno.EIO), None, None
    else:
        return None
    if not reason:
        reason = (
            os.strerror(number) if number else (str(error).strip().splitlines() or ["no reason"])[0][:200]
        )
    return OSError(number, reason, str(name if name is not None else path or ""))


def system_line(error: OSError) -> str:
    """Return an error of the operating system as one line: the path, the reason, what to do.

    >>> system_line(OSError(errno.ENOSPC, "No space left on device", "runs/x"))
    'runs/x: there must be room for it, got: No space left on device. Free some space, or choose another \
place, then run the same command again.'
    """
    must, remedy = SYSTEM_ERRORS.get(error.errno or 0, _OTHER)
    where = _bounded(os.fsdecode(error.filename)) if error.filename else "The disk"
    return f"{where}: {must}, got: {error.strerror}. {remedy}, then run the same command again."


def reason_of(error: BaseException) -> str:
    """Return the first line of what a library said, or the name of its error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500].rstrip(".")


def printable(text: str) -> str:
    r"""Return text that a terminal only shows: its control characters are spelt out, but for ends of lines.

    Those of direction are too, as they show a text in another order than it is read.

    >>> printable("a\x1b[31mb\u202e")
    'a\\x1b[31mb\\u202e'
    """

    def spelt(char: str) -> str:
        hidden = unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char in _DIRECTIONS
        return char.encode("unicode_escape").decode() if hidden and char not in "\n\t" else char

    return "".join(map(spelt, text))


def _bounded(line: str) -> str:
    return line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}..."
