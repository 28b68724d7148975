"""Writing a cache: Parquet files, then the manifest, then all of them moved into place at once.

A killed build resumes. The teacher's outputs, which are expensive, are stored part by part in the
scratch folder or on a store, each under the sha256 of its own bytes, so that a broken part is noticed.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa
import pyarrow.parquet as pq

from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.manifest import MANIFEST, Manifest, parse_manifest
from kdcache.cache.schema import FILE_ROWS, PARQUET, ROW_GROUP_ROWS, describe_columns, format_version
from kdcache.cache.split_files import name_files
from kdcache.data.ids import name_some, repeated_in_parts
from kdcache.data.splits import TEST
from kdcache.digests import RowsDigest, file_digest, value_digest
from kdcache.errors import CacheError, ShapeError
from kdcache.on_disk import open_parquet
from kdcache.places import require_split
from kdcache.store.lease import Lease
from kdcache.store.location import Location, one_line
from kdcache.store.parts import Arrays, Parts, to_disk

PART_ROWS = 2048


class CacheWriter:
    """A context manager that writes one cache and keeps other processes from writing it.

    Args:
        location: of the cache; untouched until ``finish``.
        scratch: a local folder for builds of exactly this cache. Its name must depend on everything
            that decides the content. The lock lies next to it.
        top_k: how many logits of a row to keep; None keeps all.
        parts: a folder or URI for the parts, where other machines write too; a lease lies there beside the
            lock. None for the scratch folder.

    Raises:
        CacheError: on entering, if another process is writing or the place is read-only.

    ::

        with CacheWriter("cache/wic", scratch) as writer:
            parts = writer.resume("train", len(ids), compute)  # compute(rows) → {"logits": …}
            writer.write("train", (CacheRows(ids[rows], …, **part) for rows, part in parts))
            writer.finish(identity=…)
    """

    def __init__(
        self, location: Location | Path | str, scratch: Path, top_k: int | None = None,
        parts: str | None = None,
    ) -> None:  # fmt: skip
        self.location, self.scratch, self.top_k = Location.parse(location), scratch, top_k
        self.made, self.parts = scratch / "made", Parts(scratch, self.location, parts)
        self._files: dict[str, dict[str, Any]] = {}
        self._data: dict[str, str] = {}
        self._schema: pa.Schema | None = None
        folder, store = self.location.folder, self.location.filesystem.type_name
        where = folder.absolute().as_posix() if folder else f"{store}:{self.location.path}"
        key = f"cache-{self.location.name}-{value_digest(where)[:8]}"
        self._lock = filelock.FileLock(scratch.parent / f"{key}.lock")
        self._lease = Lease(parts, key, self.location) if parts else None

    def __enter__(self) -> "CacheWriter":
        self.location.require_writable()
        with contextlib.ExitStack() as held:
            with one_line(self.location):
                self.scratch.parent.mkdir(parents=True, exist_ok=True)
                try:
                    held.enter_context(self._lock.acquire(timeout=0))
                except filelock.Timeout:
                    raise CacheError(
                        f"{self.location}: only one process may write it at a time, got another at work. "
                        "Wait for it to end, then run this again."
                    ) from None
            if self._lease:
                held.enter_context(self._lease)
            with one_line(self.location):
                shutil.rmtree(self.made, ignore_errors=True)
                self.made.mkdir(parents=True)
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def resume(
        self, name: str, num_rows: int, compute: Callable[[slice], Arrays]
    ) -> Iterator[tuple[slice, Arrays]]:
        """Compute arrays part by part, and store each part, so that a killed build can resume.

        Args:
            name: of this sequence of parts.
            num_rows: number of rows in all parts.
            compute: rows → arrays whose first axis is these rows. It is not called for a part that
                an earlier build stored.

        Yields:
            (rows, arrays), in order.
        """
        for rows in cut_parts(num_rows):
            part = self.parts.read(name_part(name, rows.start))
            if part is None:
                part = compute(rows)
                self.parts.store(name_part(name, rows.start), part)
            yield rows, part

    def write(self, split: str, chunks: Iterable[CacheRows]) -> None:
        """Write one split into the scratch folder, in files and row groups of a fixed size.

        Args:
            split: its name.
            chunks: the rows. The sizes of the chunks do not change the bytes.

        Raises:
            ShapeError: see ``CacheRows.to_table``; or columns differ between chunks or splits, an id occurs
                twice, or there are no rows.
            ParamsError: the split cannot have that name, see ``places.require_split``.
            CacheError: the disk is full or read-only.
        """
        require_split(split, "cache rows")
        digest = RowsDigest()

        def pieces() -> Iterator[tuple[int, CacheRows, pa.Table]]:
            """Rows, and the number of the file that they belong to."""
            seen = 0
            for chunk in chunks:
                table = self._checked(split, chunk.to_table(self.top_k))
                digest.update(chunk.example_id, chunk.content_hash, chunk.label)
                start = 0
                while start < len(chunk):
                    number, row = divmod(seen, FILE_ROWS)
                    stop = min(start + FILE_ROWS - row, len(chunk))
                    yield number, chunk.between(start, stop), table.slice(start, stop - start)
                    start, seen = stop, seen + stop - start

        made: list[tuple[Path, dict[str, Any]]] = []
        for number, of_file in groupby(pieces(), lambda piece: piece[0]):
            path = self.made / f"{split}.{number}.unfinished"  # the names of several tell their number
            rows_and_tables = ((rows, table) for _, rows, table in of_file)
            made.append((path, self._write_file(path, rows_and_tables, scored=split != TEST)))
        if not made:
            raise ShapeError(f"cache rows: {split} must hold at least one row, got none.")
        if twice := repeated_in_parts(lambda: _ids_of(path for path, _ in made)):
            raise ShapeError(f"cache rows: ids of {split} must be unique, got twice {name_some(twice)}.")
        self._data[split] = digest.hexdigest()
        for (path, entry), name in zip(made, name_files(split, len(made)), strict=True):
            with one_line(self.location):
                path.rename(self.made / name)
            self._files[name] = entry

    def finish(self, identity: dict[str, Any], **facts: Any) -> Manifest:
        """Write the manifest, move everything into place, and remove the parts and the scratch folder.

        Args:
            identity: of the teacher, see ``manifest.Identity``.
            facts: further fields of ``Manifest``.

        Returns:
            The manifest as written. The same rows and facts give the same bytes.

        Raises:
            ShapeError: no split was written, or a field of the manifest is missing or of the wrong type.
            CacheError: the place is full or read-only, or another machine took over. The parts are kept.
        """
        if self._schema is None:
            raise ShapeError("cache manifest: at least one split must be written first, got none.")
        body = {"identity": identity, "data": self._data, "files": self._files, **facts}
        body["columns"] = describe_columns(self._schema)
        body["format_version"] = format_version(self._files, self._schema)
        try:
            manifest = parse_manifest(body)
        except ValueError as error:
            raise ShapeError(f"cache manifest: {error}.") from None
        with one_line(self.location):
            manifest.write(self.made / MANIFEST)
            for path in sorted(self.made.iterdir()):
                to_disk(path)
            if self._lease:
                self._lease.require()
            self.location.publish(self.made, last=MANIFEST)
        self.parts.remove()
        shutil.rmtree(self.scratch, ignore_errors=True)
        return manifest

    def _write_file(
        self, path: Path, pieces: Iterable[tuple[CacheRows, pa.Table]], scored: bool
    ) -> dict[str, Any]:
        """Write a file of at least one row, and return its entry in the manifest."""
        counts = {"rows": 0, "labelled": 0, "correct": 0}

        def tables() -> Iterator[pa.Table]:
            for rows, table in pieces:
                counts["rows"] += len(rows)
                if scored:
                    counts["labelled"] += int((rows.label >= 0).sum())
                    counts["correct"] += rows.num_correct
                yield table

        file = None
        try:
            for group in _row_groups(tables()):
                with one_line(self.location):
                    file = file or pq.ParquetWriter(path, group.schema, **PARQUET)
                    file.write_table(group, row_group_size=ROW_GROUP_ROWS)
            with one_line(self.location):
                if file:
                    file.close()
        finally:
            with contextlib.suppress(OSError):
                if file:
                    file.close()
        return {**counts, "bytes": path.stat().st_size, "sha256": file_digest(path)}

    def _checked(self, split: str, table: pa.Table) -> pa.Table:
        self._schema = self._schema or table.schema
        if table.schema != self._schema:
            wanted, found = (dict(describe_columns(schema)) for schema in (self._schema, table.schema))
            differing = sorted(wanted.items() ^ found.items())[0][0]
            raise ShapeError(
                f"cache rows: {differing} of {split} must be {wanted.get(differing, 'absent')} as before, "
                f"got {found.get(differing, 'none')}."
            )
        return table


def cut_parts(num_rows: int) -> list[slice]:
    """Cut rows into parts."""
    return [slice(start, min(start + PART_ROWS, num_rows)) for start in range(0, num_rows, PART_ROWS)]


def name_part(name: str, start: int) -> str:
    """Name the part of a sequence that begins at a row."""
    return f"{name}-{start:010d}"


def write_cache(
    location: Location | Path | str, scratch: Path, splits: dict[str, CacheRows], top_k: int | None = None,
    **facts: Any,
) -> Manifest:  # fmt: skip
    """Write a cache of rows that are already in memory.

    Args:
        location, scratch, top_k: see ``CacheWriter``.
        splits: split name → rows.
        facts: ``identity`` and further fields of ``Manifest``.
    """
    with CacheWriter(location, scratch, top_k) as writer:
        for split, rows in splits.items():
            writer.write(split, [rows])
        return writer.finish(**facts)


def _ids_of(paths: Iterable[Path]) -> Iterator[list[str]]:
    """The ids in some files, one row group at a time."""
    for path in paths:
        file = open_parquet(path)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=["example_id"])["example_id"].to_pylist()


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Cut and join tables into row groups of the format's size; the last one may be smaller."""
    pending: list[pa.Table] = []
    for table in tables:
        pending.append(table)
        while sum(map(len, pending)) >= ROW_GROUP_ROWS:
            joined = pa.concat_tables(pending)
            yield joined.slice(0, ROW_GROUP_ROWS).combine_chunks()
            pending = [joined.slice(ROW_GROUP_ROWS)]
    if sum(map(len, pending)):
        yield pa.concat_tables(pending).combine_chunks()
