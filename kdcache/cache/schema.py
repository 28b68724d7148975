"""What a row of the cache is: the columns of its files, and how they are written."""

import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

FORMAT_VERSION = 1

# Values of the column ``fold`` beside 0 … k − 1 (the fold whose teacher never saw the row).
ALL_ROWS_TEACHER = -1
MEAN_OF_FOLDS = -2

ROW_GROUP_ROWS = 8192
MEMBER = "logits_member_"  # then the member's number, from 0

# How every file is written; docs/cache-format.md has the table that chose it.
PARQUET: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": False,
    "write_page_checksum": True,
}

_SCALARS = {"example_id": "string", "label": "int64", "content_hash": "string", "fold": "int8"}
_KINDS = {"logits": "float32", "features": "float16"}


def cache_schema(num_labels: int, dims: Mapping[str, int]) -> pa.Schema:
    """Return the Arrow schema: no column is nullable, logits float32, features float16.

    Args:
        num_labels: length of each row's logits.
        dims: column → length of each row's vector: ``features`` and perhaps further
            ``features_<layer>``, where the teacher shows them; ``logits_plain``; ``logits_member_<m>``.
    """
    widths = {"logits": num_labels, **{name: dims[name] for name in sorted(dims)}}
    kinds = {name: f"{_KINDS[name.split('_')[0]]}[{width}]" for name, width in widths.items()}
    return parse_columns([[name, kind] for name, kind in (_SCALARS | kinds).items()])


def describe_columns(schema: pa.Schema) -> list[list[str]]:
    """The schema as the manifest holds it: (name, type) in order.

    >>> describe_columns(cache_schema(2, {}))[-1]
    ['logits', 'float32[2]']
    """

    def kind(column: pa.DataType) -> str:
        if not pa.types.is_fixed_size_list(column):
            return str(column)
        return f"{column.value_type.to_pandas_dtype().__name__}[{column.list_size}]"

    return [[field.name, kind(field.type)] for field in schema]


def parse_columns(columns: list[list[str]]) -> pa.Schema:
    """The opposite of ``describe_columns``.

    Raises:
        ValueError: a column or type that this format does not know, or one too few.
    """
    fields = []
    for name, kind in columns:
        vector = re.fullmatch(r"(float32|float16)\[([1-9]\d*)\]", kind)
        base = re.fullmatch(r"(logits)(?:_plain|_member_\d+)?|(features)(?:_\w+)?", name)
        if vector and base and vector[1] == _KINDS[base[1] or base[2]]:
            item = pa.field("item", pa.type_for_alias(vector[1]), nullable=False)
            fields.append(pa.field(name, pa.list_(item, int(vector[2])), nullable=False))
        elif _SCALARS.get(name) == kind:
            fields.append(pa.field(name, pa.type_for_alias(kind), nullable=False))
        else:
            raise ValueError(f"column {name} of type {kind}")
    if [field.name for field in fields[:5]] != [*_SCALARS, "logits"]:
        raise ValueError("columns missing")
    members = {field.name: field.type for field in fields if field.name.startswith(MEMBER)}
    if members != {f"{MEMBER}{m}": fields[4].type for m in range(len(members))}:
        raise ValueError(f"columns {', '.join(members)}")
    return pa.schema(fields)
