"""Parts of a build: arrays that took long to compute, each stored whole under the sha256 of its own bytes.

Any number of processes may store the same part at once: each writes a file of its own name and renames it.
"""

import contextlib
import hashlib
import io
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kdcache.errors import CacheError
from kdcache.spread import one_machine_kind

# Arrays of the same rows, by name.
Arrays = dict[str, np.ndarray]


class Parts:
    """The parts of one build.

    Args:
        scratch: the folder of the build, on a disk that all workers see.
        location: of the cache that they are for, in messages.
    """

    def __init__(self, scratch: Path, location: object) -> None:
        self.scratch, self.folder, self.location = scratch, scratch / "parts", location

    def read(self, name: str) -> Arrays | None:
        """Return a part; None if it is not there, or was damaged and is removed."""
        for path in self.folder.glob(f"{name}.*.npz"):
            content = path.read_bytes()
            if path.name == _file_name(name, content):
                return dict(np.load(io.BytesIO(content), allow_pickle=False))
            path.unlink(missing_ok=True)
        return None

    def store(self, name: str, part: Arrays) -> None:
        """Store a part, whole or not at all.

        Raises:
            CacheError: the disk is full or read-only.
        """
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **part)
        content = buffer.getvalue()
        unfinished = self.folder / f"{name}.{uuid.uuid4().hex}.unfinished"
        with one_line(self.location):
            self.folder.mkdir(exist_ok=True)
            try:
                unfinished.write_bytes(content)
                to_disk(unfinished)
                os.replace(unfinished, self.folder / _file_name(name, content))
            except OSError:
                with contextlib.suppress(OSError):
                    unfinished.unlink(missing_ok=True)
                raise

    def require_machine(self, kind: str) -> None:
        """Let one kind of machine compute all parts, see ``spread.one_machine_kind``."""
        with one_line(self.location):
            one_machine_kind(self.scratch, kind, str(self.location))


def _file_name(name: str, content: bytes) -> str:
    return f"{name}.{hashlib.sha256(content).hexdigest()[:32]}.npz"


def to_disk(path: Path) -> None:
    """Wait until a file's bytes are on the disk, so that they are there before the rename."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def one_line(location: object) -> Iterator[None]:
    """Turn an error of the operating system into one line.

    Raises:
        CacheError: names the cache.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0].rstrip(".")
        raise CacheError(
            f"{location}: the cache must fit where it is written, got: {reason}. "
            "Fix that, then run the same command again. Finished parts are kept."
        ) from None
