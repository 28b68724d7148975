"""What a row of the cache is."""

import pyarrow as pa

FORMAT_VERSION = 1

# Values of the column ``fold`` beside 0 … k − 1 (the fold whose teacher never saw the row).
ALL_ROWS_TEACHER = -1
MEAN_OF_FOLDS = -2

ROW_GROUP_ROWS = 8192


def cache_schema(num_labels: int, dim: int) -> pa.Schema:
    """Return the Arrow schema: no column is nullable, logits float32, features float16.

    Args:
        num_labels: length of each row's logits.
        dim: length of each row's features.
    """

    def vector(kind: pa.DataType, length: int) -> pa.DataType:
        return pa.list_(pa.field("item", kind, nullable=False), length)

    columns = {
        "example_id": pa.string(),
        "label": pa.int64(),
        "content_hash": pa.string(),
        "fold": pa.int8(),
        "logits": vector(pa.float32(), num_labels),
        "features": vector(pa.float16(), dim),
    }
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])
