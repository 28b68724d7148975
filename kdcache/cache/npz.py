"""Arrays of an .npz file, read and written a few rows at a time."""

import contextlib
import math
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kdcache.data.ids import repeated
from kdcache.data.parquet_claims import MAX_RATIO, SLACK
from kdcache.errors import DataError, reason_of

ROWS = 1024  # held at a time
VERSIONS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# What zipfile and NumPy raise on broken files.
READ_ERRORS = (
    ValueError, OSError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError, OverflowError,
    zlib.error,
)  # fmt: skip


@dataclass
class _Array:
    """An open array: its shape per row, and what is left of it."""

    file: Any
    rows: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, count: int) -> np.ndarray:
        content = self.file.read(count * math.prod(self.shape) * self.dtype.itemsize)
        return np.frombuffer(content, self.dtype).reshape(count, *self.shape)


def read_npz(
    path: Path, wanted: Callable[[str], bool], optional: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file's arrays, by the names of the arrays.

    Args:
        path: the file.
        wanted: tells by its name whether an array is read.
        optional: names of arrays that are left out where they are no numbers, one per row.

    Raises:
        DataError: it is no such file, its arrays differ in length, or one claims more than there is.
    """
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as file:
            arrays = _open_arrays(path, file, wanted, optional)
            total = next(iter(arrays.values())).rows
            for start in range(0, total, ROWS):
                parts = {name: array.read(min(ROWS, total - start)) for name, array in arrays.items()}
                for values in zip(*parts.values(), strict=True):
                    yield dict(zip(parts, values, strict=True))
    except READ_ERRORS as error:
        raise DataError(f"{path}: the arrays cannot be read: {reason_of(error)}.") from None


def _open_arrays(
    path: Path, file: zipfile.ZipFile, wanted: Callable[[str], bool], optional: Collection[str]
) -> dict[str, _Array]:
    entries = [(info.filename.removesuffix(".npy"), info) for info in file.infolist()]
    if twice := repeated(name for name, _ in entries):
        raise DataError(f"{path}: the arrays must have different names, got {twice[0]!r} twice.")
    read = {name: info for name, info in entries if wanted(name)}
    arrays = {name: _open_array(file, info) for name, info in read.items() if name not in optional}
    for name in optional:
        with contextlib.suppress(ValueError):
            array = _open_array(file, read[name]) if name in read else None
            if array and not array.shape and array.dtype.kind in "iuf":
                arrays |= {name: array} if all(array.rows == other.rows for other in arrays.values()) else {}
    lengths = {name: array.rows if array.rows >= 0 else None for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or None in lengths.values():
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"{path}: all arrays must have one row per id, got rows: {shown or 'none'}.")
    return arrays


def _open_array(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Array:
    if info.file_size > max(SLACK, MAX_RATIO * info.compress_size):
        raise ValueError(f"{info.filename} claims {info.file_size} bytes in {info.compress_size}")
    content: BinaryIO = file.open(info)  # type: ignore[assignment]
    version = np.lib.format.read_magic(content)
    if version not in VERSIONS:
        raise ValueError(f"{info.filename} is of version {version}")
    shape, by_column, dtype = VERSIONS[version](content)
    if dtype.hasobject:
        raise ValueError(f"{info.filename} holds Python objects, which would be unpickled")
    if dtype.itemsize == 0 or any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize > info.file_size:
        raise ValueError(f"{info.filename} claims {shape} of {dtype} in {info.file_size} bytes")
    if by_column and len(shape) > 1:
        raise ValueError(f"{info.filename} is in Fortran order; save np.ascontiguousarray of it")
    return _Array(content, shape[0] if shape else -1, tuple(shape[1:]), dtype)


def write_npz(
    path: Path, rows: int, columns: dict[str, tuple[np.dtype[Any], tuple[int, ...]]],
    parts: Callable[[str], Iterable[Sequence[Any] | np.ndarray]],
) -> None:  # fmt: skip
    """Write arrays one after another, as ``numpy.savez`` does.

    Args:
        path: the file.
        rows: of each array.
        columns: name → type, and shape of one row.
        parts: name → its rows, part by part.
    """
    with zipfile.ZipFile(path, "w") as file:
        for name, (dtype, shape) in columns.items():
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
            with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array_header_1_0(entry, header | {"shape": (rows, *shape)})
                for part in parts(name):
                    entry.write(np.ascontiguousarray(part, dtype).tobytes())
