"""Arrays and tables of many rows in files without a name, mapped into memory: what is being read is held.

Such a file is gone with what is made of it, or with the process. What is smaller than ``SMALL`` is held in
memory, and so is all for which no folder is named.
"""

import contextlib
import io
import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdcache.places import naming

SMALL = 2**24  # bytes
PIECE_ROWS = 16  # read of arrays on disk: for each row, Linux may map 2 MiB of a file
_MAPPED: "weakref.WeakSet[mmap.mmap]" = weakref.WeakSet()


def empty(shape: Sequence[int], dtype: Any, folder: Path | None) -> np.ndarray:
    """Return an array whose values are still to be put there.

    Args:
        shape, dtype: of the array.
        folder: for its file; None holds it in memory.

    Raises:
        OSError: there is no room for it.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if folder is None or size < SMALL or not size:
        return np.empty(shape, dtype)
    with naming(folder), tempfile.TemporaryFile(dir=folder) as file:
        # All of it at once: a disk that fills up under a mapped file ends the process without a word.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        return np.frombuffer(_map(file.fileno(), size), dtype).reshape(shape)


class Growing:
    """An array of one dimension that grows at its end.

    Args:
        dtype: of the array.
        folder: see ``empty``.
    """

    def __init__(self, dtype: Any, folder: Path | None) -> None:
        self._dtype, self._folder, self._file = np.dtype(dtype), folder, _open(folder)

    def append(self, values: np.ndarray) -> None:
        """Add values."""
        with naming(self._folder or Path()):
            self._file.write(np.ascontiguousarray(values, self._dtype).tobytes())

    def whole(self) -> np.ndarray:
        """Return the array, which grows no more."""
        with naming(self._folder or Path()):
            return np.frombuffer(_contents(self._file, self._folder), self._dtype)


def join_arrays(parts: Sequence[np.ndarray], folder: Path | None) -> np.ndarray:
    """Put arrays one after the other.

    Args:
        parts: of one type, that agree in all lengths but the first.
        folder: see ``empty``.
    """
    whole = empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype, folder)
    start = 0
    for part in parts:
        step = max(1, SMALL * len(part) // max(1, part.nbytes))
        for row in range(0, len(part), step):
            some = part[row : row + step]
            whole[start + row : start + row + len(some)] = some
            release()
        start += len(part)
    return whole


def put_table(batches: Iterable[pa.RecordBatch], schema: pa.Schema, folder: Path | None) -> pa.Table:
    """Put batches into a table.

    Args:
        batches: its rows.
        schema: of the table.
        folder: see ``empty``.
    """
    with contextlib.ExitStack() as unfinished:
        file = unfinished.enter_context(_open(folder))
        writer = pa.ipc.new_file(pa.PythonFile(file, "w"), schema)
        for batch in batches:  # whose own errors have places of their own
            with naming(folder or Path()):
                writer.write_batch(batch)
        with naming(folder or Path()):
            writer.close()
            unfinished.pop_all()
            return pa.ipc.open_file(pa.py_buffer(_contents(file, folder))).read_all()


def open_parquet(source: Any, hold: bool = False) -> pq.ParquetFile:
    """Open a Parquet file.

    Args:
        source: a path or an open file.
        hold: let Arrow hold, packed, all that it has read of the file, as it does by itself. From another
            machine it then reads much at once.
    """
    return pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=hold)


def pieces(rows: Any) -> Iterator[Any]:
    """Cut numbers of rows, so that what is read of arrays on disk by one piece is let go before the next.

    Args:
        rows: an array or a tensor, whose first axis is cut.

    >>> np.concatenate([np.arange(100)[some] for some in pieces(np.array([7, 3]))]).tolist()
    [7, 3]
    """
    step = PIECE_ROWS if _MAPPED else max(1, len(rows))
    for start in range(0, max(1, len(rows)), step):
        yield rows[start : start + step]
        release()


def release() -> None:
    """Let go of the memory that holds what was read or written of arrays on disk; they stay as they are."""
    for mapped in list(_MAPPED):
        mapped.madvise(mmap.MADV_DONTNEED)


def _open(folder: Path | None) -> Any:
    if folder is None:
        return io.BytesIO()
    return tempfile.SpooledTemporaryFile(max(1, SMALL), dir=str(folder))


def _contents(file: Any, folder: Path | None) -> Any:
    """Return a buffer of all bytes of a file; a large one stays on disk, mapped."""
    if folder is None:
        return file.getbuffer()
    with file:
        size = file.tell()
        if size < SMALL or not size:
            file.seek(0)
            return bytearray(file.read())
        number = file.fileno()  # on disk from here on, if it was not
        file.flush()
        return _map(number, size)


def _map(number: int, size: int) -> mmap.mmap:
    mapped = mmap.mmap(number, size)
    _MAPPED.add(mapped)
    return mapped
