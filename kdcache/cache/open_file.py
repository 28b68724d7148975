"""Opening a file of a cache: nothing is read of it before it is what the manifest says."""

from typing import Any

import pyarrow.parquet as pq

from kdcache.cache.location import Location
from kdcache.cache.manifest import Manifest
from kdcache.cache.schema import describe_columns, find_unlawful
from kdcache.data.ids import name_some, repeated_in_file
from kdcache.data.parquet_claims import NOT_WHOLE, find_impossible, read_claims
from kdcache.errors import CacheCorrupt
from kdcache.on_disk import open_parquet


def open_file(location: Location, manifest: Manifest, name: str) -> pq.ParquetFile:
    """Open a file of the cache, and verify its bytes, schema, row count and ids.

    Raises:
        CacheCorrupt: one of them is not what the manifest says.
    """

    def refuse(what: str, wanted: Any, found: Any) -> None:
        if wanted != found:
            raise CacheCorrupt(f"{location}/{name}: {what} must be {wanted}, got {found}. {manifest.rebuild}")

    entry = manifest.files.get(name)
    if entry is None:
        raise CacheCorrupt(f"{location}/{name}: the manifest must list the file. {manifest.rebuild}")
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
        reason = str(error).splitlines()[0]
        raise CacheCorrupt(
            f"{location}/{name}: it must be a Parquet file, got: {reason}. {manifest.rebuild}"
        ) from None
    if schema != manifest.schema:
        refuse("its columns", manifest.schema.names, schema.names)
        refuse("its column types", manifest.columns, describe_columns(schema))
    refuse("its number of rows", entry["rows"], file.metadata.num_rows)
    if problem := find_impossible(claims) or find_unlawful(claims, schema):
        refuse("its footer", "what the format allows", problem)
    try:
        twice = repeated_in_file(file)
    except NOT_WHOLE as error:
        refuse("its pages", "whole", str(error).splitlines()[0])
    if twice:
        raise CacheCorrupt(
            f"{location}/{name}: ids must be unique, got twice {name_some(twice)}. {manifest.rebuild}"
        )
    return file
