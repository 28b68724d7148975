"""Opening the files of a split: nothing is read of them before they are what the manifest says."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kdcache.cache.join import batches_of
from kdcache.cache.manifest import Manifest
from kdcache.cache.schema import describe_columns, find_unlawful
from kdcache.cache.split_files import name_span
from kdcache.data.ids import name_some, repeated_in_parts
from kdcache.data.parquet_claims import NOT_WHOLE, find_impossible, read_claims
from kdcache.errors import CacheCorrupt, reason_of
from kdcache.on_disk import open_parquet
from kdcache.store.location import Location


@dataclass(frozen=True)
class OpenSplit:
    """The open files of a split, read one after the other as if they were one.

    Args:
        location: of the cache.
        manifest: of the cache.
        files: name → file, in the order of their rows.
    """

    location: Location
    manifest: Manifest
    files: dict[str, pq.ParquetFile]

    def groups(
        self, columns: Sequence[str] | None = None, rows: range | None = None
    ) -> Iterator[tuple[int, pa.Table]]:
        """Yield (number of the first row, table) of one row group at a time.

        Args:
            columns: to read; None reads all.
            rows: leaves out row groups that have none of them; None reads all.

        Raises:
            CacheCorrupt: a page is not whole.
        """
        start = 0
        for name, file in self.files.items():
            with self._whole(name):
                for group in range(file.num_row_groups):
                    stop = start + file.metadata.row_group(group).num_rows
                    if rows is None or (stop > rows.start and start < rows.stop):
                        yield start, file.read_row_group(group, columns=columns)
                    start = stop

    def keys(self) -> Iterator[pa.RecordBatch]:
        """Yield id, content hash and label of the rows; see ``groups``."""
        for name, file in self.files.items():
            with self._whole(name):
                yield from batches_of(file)()

    @contextlib.contextmanager
    def _whole(self, name: str) -> Iterator[None]:
        try:
            yield
        except NOT_WHOLE as error:
            raise CacheCorrupt(
                f"{self.location}/{name}: its pages must be whole, got: {reason_of(error)}. "
                f"{self.manifest.rebuild}"
            ) from None


def open_files(location: Location, manifest: Manifest, split: str) -> OpenSplit:
    """Open the files of a split, and verify their bytes, schema and row counts, and the ids of all.

    Raises:
        CacheCorrupt: one of them is not what the manifest says.
    """
    files = {name: _open_file(location, manifest, name) for name in manifest.files_of(split)}
    opened = OpenSplit(location, manifest, files)
    twice = repeated_in_parts(
        lambda: (table["example_id"].to_pylist() for _, table in opened.groups(["example_id"]))
    )
    if twice:
        raise CacheCorrupt(
            f"{location}/{name_span(list(files))}: ids must be unique, got twice {name_some(twice)}. "
            f"{manifest.rebuild}"
        )
    return opened


def _open_file(location: Location, manifest: Manifest, name: str) -> pq.ParquetFile:
    """Open a file, and verify its bytes, schema and row count."""

    def refuse(what: str, wanted: Any, found: Any) -> None:
        if wanted != found:
            raise CacheCorrupt(f"{location}/{name}: {what} must be {wanted}, got {found}. {manifest.rebuild}")

    entry = manifest.files[name]
    if not location.exists(name):
        raise CacheCorrupt(
            f"{location}/{name}: the file must be there, as the manifest says, got none. {manifest.rebuild}"
        )
    refuse("its length in bytes", entry["bytes"], location.size(name))
    refuse("its sha256", entry["sha256"], location.digest(name))
    try:
        source = location.open(name)
        file = open_parquet(source, hold=location.folder is None)
        schema, claims = file.schema_arrow, read_claims(source)
    except NOT_WHOLE as error:
        raise CacheCorrupt(
            f"{location}/{name}: it must be a Parquet file, got: {reason_of(error)}. {manifest.rebuild}"
        ) from None
    if schema != manifest.schema:
        refuse("its columns", manifest.schema.names, schema.names)
        refuse("its column types", manifest.columns, describe_columns(schema))
    refuse("its number of rows", entry["rows"], file.metadata.num_rows)
    if problem := find_impossible(claims) or find_unlawful(claims, schema):
        refuse("its footer", "what the format allows", problem)
    return file
