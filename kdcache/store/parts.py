"""Parts of a build: arrays or files that took long to make, each whole under the sha256 of its own bytes.

Any number of processes may store the same part at once. On a disk each writes a file of its own name and
renames it; on an object store each puts one object.
"""

import contextlib
import hashlib
import io
import os
import platform
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from kdcache.digests import value_digest
from kdcache.errors import CacheError, DataError, KdcacheError
from kdcache.places import replacing
from kdcache.store.lease import Lease
from kdcache.store.location import Location, one_line
from kdcache.store.machine import one_machine_kind

# Arrays of the same rows, by name.
Arrays = dict[str, np.ndarray]
# A folder of parts, beside others.
_BUILD = re.compile(r"(training|cache_teacher|recompute|grid)-[0-9a-f]{16}")
_READABLE = "the parts must be readable and writable"


class Parts:
    """The parts of one build.

    On an object store they lie in a folder per kind of machine, so that a process that should have ended
    can leave none of another kind among them.

    Args:
        scratch: the folder of the build.
        location: of what they are for, in messages.
        root: a folder or URI that all workers see, where the parts lie in a folder of the same name. None for
            the folder of the build itself, which then is on a disk that all workers see.
    """

    def __init__(self, scratch: Path, location: object, root: str | None = None) -> None:
        self.scratch, self.location, self.root = scratch, location, root
        self.place = Location.parse(root, scratch.name) if root else Location.parse(scratch)
        self._kind = ""
        self._lease: Lease | None = None
        if root and self.place.folder:
            self.place.folder.mkdir(parents=True, exist_ok=True)

    @property
    def folder(self) -> Path | None:
        """Of the parts' files; None on an object store."""
        return self.place.folder and self.place.folder / "parts"

    def read(self, name: str) -> Arrays | None:
        """Return a part; None if it is not there, or was damaged and is removed.

        Raises:
            CacheError: the object store cannot be read.
        """
        if self.folder is None:
            return self._get(name)
        for path in self.folder.glob(f"{name}.*.npz"):
            content = path.read_bytes()
            if path.name == f"{name}.{_digest(content)}.npz":
                return _arrays(content)
            path.unlink(missing_ok=True)
        return None

    def store(self, name: str, part: Arrays) -> None:
        """Store a part, whole or not at all.

        Raises:
            CacheError: the disk is full or read-only, or the object store cannot be written.
        """
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **part)
        content = buffer.getvalue()
        if self.folder is None:
            with self._one_line(), self.place.create(f"{self._below(name)}/{_digest(content)}.npz") as file:
                file.write(content)
            return
        unfinished = self.folder / f"{name}.{uuid.uuid4().hex}.unfinished"
        with self._one_line():
            self.folder.mkdir(exist_ok=True)
            try:
                unfinished.write_bytes(content)
                to_disk(unfinished)
                os.replace(unfinished, self.folder / f"{name}.{_digest(content)}.npz")
            except OSError:
                with contextlib.suppress(OSError):
                    unfinished.unlink(missing_ok=True)
                raise

    def store_files(self, name: str, folder: Path, files: Iterable[Path]) -> None:
        """Store files as one part, in memory at once.

        Args:
            name: of the part.
            folder: that the files are in, at any depth.
            files: the last says that all are there.

        Raises:
            CacheError: see ``store``.
        """
        self.store(name, {path.relative_to(folder).as_posix(): np.fromfile(path, np.uint8) for path in files})

    def fetch_files(self, name: str, folder: Path) -> bool:
        """Write the files of a part into a folder, in their order; return whether there is such a part.

        Raises:
            CacheError: see ``read``; or a file would lie outside the folder.
            KdcacheError: what lies in scratch is of another kind of machine.
        """
        files = self.read(name)
        if files is not None and self.root:
            one_machine_kind(self.scratch, self._machine(), str(self.location))
        for relative, content in (files or {}).items():
            path = folder / relative
            if not path.resolve().is_relative_to(folder.resolve()):
                raise CacheError(
                    f"{self.place}: files must lie in {folder}, got {relative}. Remove that part."
                )
            with replacing(path) as unfinished:
                unfinished.write_bytes(content.tobytes())  # whose error says what is wrong
        return files is not None

    @contextlib.contextmanager
    def leased(self) -> Iterator[None]:
        """Keep ``clean`` and a second first process away, where there are no locks.

        Raises:
            CacheError: see ``Lease``.
        """
        if not self.root:
            yield
            return
        with Lease(self.root, self.place.name, self.location) as self._lease:
            yield

    def require_lease(self) -> None:
        """Check that no other process has taken over, before what is finished is put in place.

        Raises:
            CacheError: see ``Lease.require``.
        """
        if self._lease:
            self._lease.require()

    def unseen(self, name: object) -> CacheError:
        """Return the error of a part that a worker stored and this process does not see."""
        remedy = "Check that place" if self.root else "Set paths.parts to a place that all of them share"
        return CacheError(
            f"{self.place}: what workers store must be seen here, got nothing of {name}. "
            f"{remedy}, then run this again."
        )

    def require_machine_of_files(self, kind: str) -> None:
        """Let one kind of machine make all files, also those that lie in scratch; see ``require_machine``.

        Raises:
            KdcacheError: another kind has begun, here or elsewhere.
        """
        self.require_machine(kind)
        if self.root:
            one_machine_kind(self.scratch, kind, str(self.location))

    def require_machine(self, kind: str) -> None:
        """Let one kind of machine compute all parts: the first to come decides.

        On an object store each kind puts an object, then looks for others. Of two that come at the same
        moment both may be refused; never do both go on. Who is refused takes its object back.

        Raises:
            KdcacheError: another kind has begun.
        """
        with self._one_line():
            if self.place.folder:
                one_machine_kind(self.place.folder, kind, str(self.location))
                return
            own = value_digest(kind)[:16]
            found = self.place.names(below="machine")
            if asks := not found:
                with self.place.create(f"machine/{own}") as file:
                    file.write(kind.encode())
                found = self.place.names(below="machine")
            for other in found:
                if other != own:
                    before = self.place.read(f"machine/{other}").decode()
                    if asks:
                        self.place.remove(f"machine/{own}")
                    raise KdcacheError(
                        f"{self.location}: one kind of machine must compute all of it, got {kind} here and "
                        f"{before} before. Go on with that kind, or run kdcache clean to start anew."
                    )
            self._kind = own

    def remove(self) -> None:
        """Remove the parts, and then what says which kind of machine computed them."""
        if self.place.folder:
            shutil.rmtree(self.place.folder / "parts", ignore_errors=True)
            shutil.rmtree(self.place.folder, ignore_errors=True)
            return
        with self._one_line():
            self.place.remove_below("parts")
            self.place.remove_below("")

    def _get(self, name: str) -> Arrays | None:
        """Read a part on an object store."""
        with self._one_line():
            below = self._below(name)
            for file in self.place.names(below=below):
                try:
                    content = self.place.read(f"{below}/{file}")
                except FileNotFoundError:  # removed meanwhile
                    continue
                if file == f"{_digest(content)}.npz":
                    return _arrays(content)
                self.place.remove(f"{below}/{file}")
        return None

    def _machine(self) -> str:
        """Return the kind of machine that computed the parts that were read."""
        with self._one_line():
            if self.place.folder:
                return (self.place.folder / "machine").read_text(encoding="utf-8")
            return self.place.read(f"machine/{self._kind}").decode()

    def _below(self, name: str) -> str:
        """The folder of a part on an object store: so all that is stored of it has one prefix."""
        if not self._kind and (decided := self.place.names(below="machine")):
            self._kind = decided[0]
        return f"parts/{self._kind or 'any'}/{name}"

    def _one_line(self) -> contextlib.AbstractContextManager[None]:
        return one_line(self.location) if self.place.folder else one_line(self.place, _READABLE)


def clean_parts(root: str) -> int:
    """Remove the parts of all unfinished builds, and nothing else: others may use the place.

    Args:
        root: a folder or URI of parts. The caller holds the lease on everything there.

    Returns:
        How many bytes were freed.
    """
    place, freed = Location.parse(root), 0
    with one_line(place, _READABLE):
        for name in place.names():
            here = place.folder and place.folder / name
            if not _BUILD.fullmatch(name) or (here and (here.is_symlink() or not here.is_dir())):
                continue
            if {*place.names(below=name)} <= {"parts", "machine"}:
                freed += sum(place.size(f"{name}/{file}") for file in place.names(recursive=True, below=name))
                Parts(Path(name), place, root).remove()
    return freed


def require_same_build(own: str, first: str, what: str, files: str) -> None:
    """Refuse to work on a node whose files or packages are not those of the first process.

    Args:
        own, first: names of the build, which hold all that decides it: here, and in the first process.
        what: is built, for the message.
        files: that it is built from, for the message.

    Raises:
        DataError: the names differ.
    """
    if own != first:
        raise DataError(
            f"{what}: each node must have {files} and the packages of the first process, got others on "
            f"{platform.node()}. Copy them there, then run this again."
        )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _arrays(content: bytes) -> Arrays:
    return dict(np.load(io.BytesIO(content), allow_pickle=False))


def to_disk(path: Path) -> None:
    """Wait until a file's bytes are on the disk, so that they are there before the rename."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
