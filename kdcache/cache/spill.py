"""Vectors of many rows on disk: written in the order they come, read in any order."""

import os
import tempfile
from pathlib import Path

import numpy as np


class Spill:
    """A file without a name, which is gone with the process.

    Args:
        folder: on the disk that holds it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self._width = 0

    def append(self, rows: np.ndarray) -> None:
        """Add rows: a float32 array of shape (rows, width), the width being that of the first."""
        self._width = rows.shape[1]
        content = memoryview(np.ascontiguousarray(rows, np.float32).tobytes())
        while content:
            content = content[self._file.write(content) :]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return rows by their numbers: float32 of shape (rows, width)."""
        found = np.empty((len(rows), self._width), np.float32)
        if not self._width or not len(rows):
            return found
        order, size = np.argsort(rows, kind="stable"), 4 * self._width
        placed = rows[order]
        for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(placed) != 1) + 1):
            content = os.pread(self._file.fileno(), len(run) * size, int(placed[run[0]]) * size)
            found[order[run]] = np.frombuffer(content, np.float32).reshape(len(run), self._width)
        return found

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
