"""The schema of a cached row: the columns of each file, and the options of its Parquet files."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from kdcache.data.parquet_claims import SLACK, FooterClaims

FORMAT_VERSIONS = (1, 2)

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
# A file of several of one split, without its ending: the split, its number from 0, and how many there are.
FILE_OF_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})")
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
_KINDS = {"logits": "float32", "features": "float16"}


def cache_schema(num_labels: int, dims: Mapping[str, int]) -> pa.Schema:
    """Return the Arrow schema: no column is nullable, logits float32, features float16.

    Args:
        num_labels: length of each row's logits.
        dims: column → length of each row's vector, for the optional columns: ``features``,
            ``features_<layer>``, ``logits_plain``, ``logits_member_<m>``.
    """
    widths = {"logits": num_labels, **{name: dims[name] for name in sorted(dims)}}
    kinds = {name: f"{_KINDS[name.split('_')[0]]}[{width}]" for name, width in widths.items()}
    return parse_columns([[name, kind] for name, kind in (SCALARS | kinds).items()])


def format_version(files: Iterable[str]) -> int:
    """Return the first version of the format that has what a cache uses; the cache has no other.

    So a cache that needs nothing new stays readable to what was written before.

    Args:
        files: their names. Version 2 has several of a split.

    >>> format_version(["train.parquet"]), format_version(["train-00000-of-00002.parquet"])
    (1, 2)
    """
    return 2 if any(FILE_OF_SPLIT.fullmatch(name.removesuffix(".parquet")) for name in files) else 1


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
            return str(column)
        return f"{column.value_type.to_pandas_dtype().__name__}[{column.list_size}]"

    return [[field.name, kind(field.type)] for field in schema]


def parse_columns(columns: list[list[str]]) -> pa.Schema:
    """Return the schema of what ``describe_columns`` made.

    Raises:
        ValueError: a column or type is unknown to this format, or a column is missing.
    """
    fields = []
    for name, kind in columns:
        vector = re.fullmatch(r"(float32|float16)\[([1-9]\d*)\]", kind)
        base = re.fullmatch(r"(logits)(?:_plain|_member_\d+)?|(features)(?:_\w+)?", name)
        if vector and base and vector[1] == _KINDS[base[1] or base[2]]:
            item = pa.field("item", pa.type_for_alias(vector[1]), nullable=False)
            fields.append(pa.field(name, pa.list_(item, int(vector[2])), nullable=False))
        elif SCALARS.get(name) == kind:
            fields.append(pa.field(name, pa.type_for_alias(kind), nullable=False))
        else:
            raise ValueError(f"column {name} of type {kind}")
    if [field.name for field in fields[:5]] != [*SCALARS, "logits"]:
        raise ValueError("columns missing")
    members = {field.name: field.type for field in fields if field.name.startswith(MEMBER_PREFIX)}
    if members != {f"{MEMBER_PREFIX}{m}": fields[4].type for m in range(len(members))}:
        raise ValueError(f"columns {', '.join(members)}")
    return pa.schema(fields)
