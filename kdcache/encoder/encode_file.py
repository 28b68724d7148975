"""Tokenising a prepared split, of which a few rows are in memory at a time."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kdcache.data.splits import sequences
from kdcache.data.task import Task
from kdcache.encoder.batching import Encoded, encode_parts

READ_AT_ONCE = 1024  # rows


def encode_file(
    tokenizer: Any, file: pq.ParquetFile, task: Task, max_length: int, folder: Path | None
) -> Encoded:
    """Tokenise a prepared split.

    Args:
        tokenizer: a fast transformers tokenizer.
        file: the split, see ``splits.open_split``.
        task: whose split it is.
        max_length: in tokens, special ones included.
        folder: for many tokens, see ``on_disk``; None holds all in memory.

    Raises:
        As ``batching.encode``.
    """
    parts = (sequences(pa.Table.from_batches([rows]), task) for rows in file.iter_batches(READ_AT_ONCE))
    return encode_parts(tokenizer, parts, max_length, task.truncate, task.num_choices, folder)
