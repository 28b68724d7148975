"""The schema of a cached row: the columns of each file, and the options of its Parquet files."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from kdcache.data.parquet_claims import SLACK, FooterClaims
from kdcache.places import FILE_OF_SPLIT

CACHE_FORMATS = (1, 2)  # that a reader knows

# Values of the column ``fold`` besides 0 … k − 1. Fold k: the row's logits come from the teacher that
# was trained without fold k, to which the row belongs.
ALL_ROWS_TEACHER = -1  # from the teacher trained on all rows
MEAN_OF_FOLDS = -2  # the mean over the teachers of all folds

# How far a logit may move if it is computed again in another batch, by dtype: measured, with a margin.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}

ROW_GROUP_ROWS = 8192
# Rows of a file before the next one begins, a multiple of the above. With 1024 features a file then has some
# 4.4 GB, within the 5 GB that S3 takes in one request; with few logits alone, some 60 MB.
FILE_ROWS = 2**21
ID_BYTES = 1000  # of an id or a hash, on average over a row group, at most
PLAIN = {"PLAIN", "RLE", "BIT_PACKED"}  # encodings of values, and of what is null
MEMBER_PREFIX = "logits_member_"  # followed by the member's number, from 0

# docs/reference/cache-format.md has the measurements behind this choice.
PARQUET: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": False,
    "write_page_checksum": True,
}

SCALARS = {"example_id": "string", "label": "int64", "content_hash": "string", "fold": "int8"}
# What stands in place of a column ``logits…`` of which the k largest are kept, each with the same ending.
TOP_COLUMNS = ("top_labels", "top_logits", "rest")
_KINDS = {"logits": "float32", "features": "float16", "top_labels": "int32", "top_logits": "float32"}


def cache_schema(num_labels: int, dims: Mapping[str, int], top_k: int | None = None) -> pa.Schema:
    """Return the Arrow schema: no column is nullable, logits float32, features float16.

    Args:
        num_labels: length of each row's logits.
        dims: column → length of each row's vector, for the optional columns: ``features``,
            ``features_<layer>``, ``logits_plain``, ``logits_member_<m>``.
        top_k: how many logits of a row are kept; None keeps all.
    """
    columns = [[name, kind] for name, kind in SCALARS.items()]
    for name, width in {"logits": num_labels, **{name: dims[name] for name in sorted(dims)}}.items():
        if top_k and name.startswith("logits"):
            kinds = (f"int32[{top_k}]", f"float32[{top_k}]", "float32")
            columns += [[column, kind] for column, kind in zip(top_columns(name), kinds, strict=True)]
        else:
            columns.append([name, f"{_KINDS[name.split('_')[0]]}[{width}]"])
    return parse_columns(columns)


def top_columns(name: str) -> list[str]:
    """Name the columns that stand in place of one of logits.

    >>> top_columns("logits_plain")
    ['top_labels_plain', 'top_logits_plain', 'rest_plain']
    """
    return [f"{column}{name.removeprefix('logits')}" for column in TOP_COLUMNS]


def row_column(name: str) -> str:
    """Name the column of rows that a column of a file belongs to.

    >>> row_column("rest_plain"), row_column("features")
    ('logits_plain', 'features')
    """
    return re.sub(f"^({'|'.join(TOP_COLUMNS)})", "logits", name)


def top_k_of(schema: pa.Schema) -> int | None:
    """Return how many logits of a row are kept; None if all are."""
    return schema.field("top_labels").type.list_size if "top_labels" in schema.names else None


def row_schema(schema: pa.Schema, num_labels: int) -> pa.Schema:
    """Return the schema of the rows that readers give: all logits, also where the largest are kept.

    Args:
        schema: of the files.
        num_labels: of the task.
    """
    return pa.schema(_all_logits(schema, num_labels))


def check_schema(schema: pa.Schema, identity: Mapping[str, Any]) -> None:
    """Check that the columns of a cache fit its manifest.

    Args:
        schema: of the files.
        identity: of the manifest.

    Raises:
        ValueError: the columns are of another number of labels.
    """
    num_labels, top_k = len(identity["labels"]), top_k_of(schema)
    width = row_schema(schema, num_labels).field("logits").type.list_size
    if not width == num_labels == identity.get("num_labels", width) or (top_k or 0) >= num_labels:
        raise ValueError(f"{num_labels} labels, and logits of {top_k or width} numbers")


def format_version(files: Iterable[str], schema: pa.Schema) -> int:
    """Return the first version of the format that has what a cache uses; the cache has no other.

    So a cache that needs nothing new stays readable to what was written before.

    Args:
        files: their names. Version 2 has several of a split.
        schema: of the files. Version 2 has the largest logits.

    >>> format_version(["train.parquet"], cache_schema(9, {})), format_version([], cache_schema(9, {}, 2))
    (1, 2)
    """
    several = any(FILE_OF_SPLIT.fullmatch(name.removesuffix(".parquet")) for name in files)
    return 2 if several or top_k_of(schema) else 1


def find_unlawful(claims: FooterClaims, schema: pa.Schema) -> str | None:
    """Say what a file's footer has that the format forbids; None where it has nothing of the kind.

    Row groups of a fixed size and plain values bound what a reader of one row group must hold.

    Args:
        claims: of the file.
        schema: of its columns.
    """
    sizes = [group.rows for group in claims.groups]
    if any(rows != ROW_GROUP_ROWS for rows in sizes[:-1]) or not 0 < sum(sizes[-1:]) <= ROW_GROUP_ROWS:
        return f"row groups of {', '.join(map(str, sizes[:5])) or 'no'} rows, not of {ROW_GROUP_ROWS}"
    for group in claims.groups:
        if len(group.columns) != len(schema):
            return f"{len(group.columns)} columns in a row group, not {len(schema)}"
        for field, column in zip(schema, group.columns, strict=True):
            listed = getattr(field.type, "list_size", 1)
            width = 8 * listed if pa.types.is_fixed_size_list(field.type) else ID_BYTES
            if not set(column.encodings) <= PLAIN or column.dictionary:
                return f"{field.name} in the encodings {', '.join(column.encodings)}, not PLAIN"
            if column.values != group.rows * listed:
                return f"{column.values} values of {field.name} in {group.rows} rows"
            if column.outside > SLACK + group.rows * width:
                return f"{column.outside} bytes of {field.name} in {group.rows} rows"
    return None


def describe_columns(schema: pa.Schema) -> list[list[str]]:
    """Return the schema as the manifest lists it: (name, type) in order.

    >>> describe_columns(cache_schema(2, {}))[-1]
    ['logits', 'float32[2]']
    """

    def kind(column: pa.DataType) -> str:
        if not pa.types.is_fixed_size_list(column):
            return "float32" if column == pa.float32() else str(column)
        return f"{column.value_type.to_pandas_dtype().__name__}[{column.list_size}]"

    return [[field.name, kind(field.type)] for field in schema]


def parse_columns(columns: list[list[str]]) -> pa.Schema:
    """Return the schema of what ``describe_columns`` made.

    Raises:
        ValueError: a column or type is unknown to this format, or a column is missing.
    """
    fields = []
    for name, kind in columns:
        vector = re.fullmatch(r"(float32|float16|int32)\[([1-9]\d{0,8})\]", kind)
        base = re.fullmatch(
            r"(features)(?:_\w+)?|(logits|top_labels|top_logits|rest)(?:_plain|_member_\d+)?", name
        )
        which = (base[1] or base[2]) if base else ""
        if vector and vector[1] == _KINDS.get(which):
            item = pa.field("item", pa.type_for_alias(vector[1]), nullable=False)
            fields.append(pa.field(name, pa.list_(item, int(vector[2])), nullable=False))
        elif SCALARS.get(name) == kind or (which, kind) == ("rest", "float32"):
            fields.append(pa.field(name, pa.type_for_alias(kind), nullable=False))
        else:
            raise ValueError(f"column {name} of type {kind}")
    rows = _all_logits(fields, num_labels=1)
    if [field.name for field in rows[:5]] != [*SCALARS, "logits"]:
        raise ValueError("columns missing")
    names, top = [field.name for field in fields], [f for f in fields if f.name.startswith(TOP_COLUMNS)]
    wanted = [
        column
        for name in [*SCALARS, "logits", *sorted(field.name for field in rows[5:])]
        for column in (top_columns(name) if top and name.startswith("logits") else [name])
    ]
    widths = {field.type.list_size for field in top if pa.types.is_fixed_size_list(field.type)}
    if names != wanted or len(widths) > 1:
        raise ValueError(f"columns {', '.join(names)} in this order, or of these lengths")
    members = {field.name: field.type for field in rows if field.name.startswith(MEMBER_PREFIX)}
    if members != {f"{MEMBER_PREFIX}{m}": rows[4].type for m in range(len(members))}:
        raise ValueError(f"columns {', '.join(members)}")
    return pa.schema(fields)


def _all_logits(fields: Iterable[pa.Field], num_labels: int) -> list[pa.Field]:
    """Put a column of all logits in place of each three columns of the largest."""
    kind = pa.list_(pa.field("item", pa.float32(), nullable=False), num_labels)
    found = {}
    for field in fields:
        name = row_column(field.name)
        found[name] = field if name == field.name else pa.field(name, kind, nullable=False)
    return list(found.values())
