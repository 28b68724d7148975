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
from collections.abc import Iterable
from typing import Any

EXTRAS = {  # a package that only some commands need → the extra of kdcache that installs it
    "dvc": "pipeline", "sklearn": "pipeline", "scipy": "pipeline", "threadpoolctl": "pipeline",
    "pandas": "pipeline",
    "matplotlib": "report", "jinja2": "report", "markupsafe": "report",
    "datasets": "hub",
    "onnx": "onnx", "onnxruntime": "onnx", "onnxscript": "onnx",
}  # fmt: skip


class KdcacheError(Exception):
    """The root: ``except KdcacheError`` catches all that kdcache raises on purpose."""


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
    text = repr(value.rstrip("\n") if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
