"""The place of a cache: a local folder, or any URI that pyarrow or fsspec opens."""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
from fsspec.core import url_to_fs

from kdcache.digests import stream_digest
from kdcache.errors import CacheError, reason_of
from kdcache.places import check_place, place

SCHEME = re.compile(r"[a-z][a-z0-9+.-]+")  # of a URI


@dataclass(frozen=True)
class Location:
    """A folder on some file system. It prints as the user wrote it.

    Args:
        uri: a path, or a URI such as ``s3://bucket/cache/wic`` or ``memory://cache/wic``.
        filesystem: the file system that holds the folder.
        path: of the folder, as that file system spells it.
    """

    uri: str
    filesystem: pafs.FileSystem
    path: str

    @classmethod
    def parse(cls, uri: "str | Path | Location", *names: str) -> "Location":
        """Open a path or URI, and a folder below it.

        Raises:
            CacheError: neither pyarrow nor fsspec knows that kind of URI.
        """
        if isinstance(uri, Location):
            return uri
        scheme, _, rest = str(uri).partition(":")
        if SCHEME.fullmatch(scheme) and rest.startswith("/") and not rest.strip("/").partition("?")[0]:
            raise CacheError(
                f"{uri}: a URI must name a place, got none after {scheme}://. Add a bucket or folder."
            )
        if SCHEME.fullmatch(scheme) and rest.startswith("/") and not rest.startswith("//"):
            raise CacheError(f"{uri}: a URI must have two slashes after {scheme}:, got one. Add the other.")
        if "://" not in str(uri):
            path = Path(uri, *names).as_posix()
            return cls(path, pafs.LocalFileSystem(), path)
        base, question, options = str(uri).partition("?")
        text = "/".join([base.rstrip("/"), *names]) + question + options
        try:
            return cls(text, *_open_uri(text))
        except (ValueError, ImportError, OSError, TypeError, NotImplementedError) as error:
            raise CacheError(
                f"{text}: it must be a folder or a URI that pyarrow or fsspec opens, "
                f"got: {reason_of(error)}. Check its scheme, or install what fsspec needs for it."
            ) from None

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """The last part of the path, which is the task's name."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def folder(self) -> Path | None:
        """The local folder; None on any other file system."""
        return Path(self.path) if isinstance(self.filesystem, pafs.LocalFileSystem) else None

    def exists(self, name: str) -> bool:
        """Return whether the folder holds a file of that name."""
        return self.filesystem.get_file_info(self._file(name)).type == pafs.FileType.File

    def names(self, recursive: bool = False, below: str = "") -> list[str]:
        """Names of everything in the folder, sorted; empty if there is no folder.

        Args:
            recursive: names of all files below instead, such as ``kl-0/student.json``.
            below: a folder in it, whose names are listed instead.
        """
        if isinstance(self.filesystem, pafs.PyFileSystem):
            self.filesystem.handler.fs.invalidate_cache()  # fsspec may remember what was there
        path = self._file(below).rstrip("/")
        selector = pafs.FileSelector(path, allow_not_found=True, recursive=recursive)
        found = self.filesystem.get_file_info(selector)
        if not recursive:
            return sorted(info.base_name for info in found)
        root = len(path) + 1
        return sorted(info.path[root:] for info in found if info.type == pafs.FileType.File)

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return self.filesystem.get_file_info(self._file(name)).size

    def open(self, name: str) -> Any:
        """Open a file for reading at any position."""
        return self.filesystem.open_input_file(self._file(name))

    def create(self, name: str) -> Any:
        """Open a new file for writing; folders are made on the way."""
        path = self._file(name)
        self.filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        return self.filesystem.open_output_stream(path)

    def read(self, name: str) -> bytes:
        """All bytes of a file."""
        with self.open(name) as file:
            return file.read()

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(self._file(name))

    def remove_below(self, below: str) -> None:
        """Remove a folder in this one with all that is in it, if it is there; "" for this one."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_dir(self._file(below).rstrip("/"))

    def digest(self, name: str) -> str:
        """sha256 of a file."""
        with self.filesystem.open_input_stream(self._file(name), buffer_size=0) as file:
            return stream_digest(file)

    def require_writable(self) -> None:
        """Check a local folder before hours of work are spent on what goes there.

        Raises:
            CacheError: the nearest existing parent folder is read-only.
            ParamsError: something else lies there.
        """
        if self.folder is None:
            return
        check_place(self.folder, "cache")
        parent = self.folder.absolute().parent
        while not parent.exists():
            parent = parent.parent
        if not os.access(parent, os.W_OK):
            raise CacheError(
                f"{self}: the folder must be writable, got a read-only {parent}. "
                "Set paths.cache to one that is."
            )

    def publish(self, made: Path, last: str) -> None:
        """Put a finished folder here: by one rename if the place is local, else file by file.

        Args:
            made: the folder; moved if the place is local.
            last: the file that makes a folder a cache. On an object store the old one is deleted
                before anything else, and the new one is uploaded after everything else.
        """
        if self.folder is None:
            self._upload(made, last)
            return
        place(made, self.folder)

    def _upload(self, made: Path, last: str) -> None:
        self.filesystem.create_dir(self.path, recursive=True)
        if self.exists(last):
            self.filesystem.delete_file(self._file(last))
        names = sorted(path.name for path in made.iterdir() if path.name != last)
        for name in self.names():
            if name not in names and self.exists(name):
                self.filesystem.delete_file(self._file(name))
        for name in (*names, last):
            pafs.copy_files(
                str(made / name), self._file(name),
                source_filesystem=pafs.LocalFileSystem(), destination_filesystem=self.filesystem,
            )  # fmt: skip

    def _file(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"


@contextlib.contextmanager
def one_line(place: object, must: str = "it must fit where it is written") -> Iterator[None]:
    """Turn an error of the operating system, or of a store, into one line.

    Args:
        place: where it happened.
        must: what must be.

    Raises:
        CacheError: names the place.
    """
    try:
        yield
    except (OSError, pa.ArrowException, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or reason_of(error)
        raise CacheError(
            f"{place}: {must}, got: {reason}. "
            "Fix that, then run the same command again. Finished parts are kept."
        ) from None


def _open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    if uri.startswith("file://"):
        return pafs.LocalFileSystem(), url_to_fs(uri)[1]
    try:
        # pyarrow needs no further package for S3 and GCS, and reads options after a "?".
        return pafs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid:
        filesystem, path = url_to_fs(uri)
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path
