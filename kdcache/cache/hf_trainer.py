"""Cached targets for your own training loop: ``join`` adds them to a dataset, ``KDCollator`` to batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.reader import CachedSplit
from kdcache.data.ids import name_some
from kdcache.errors import CacheStale, DataError

TARGETS = ("teacher_logits", "teacher_features")
IGNORED = -100  # the label that PyTorch's and transformers' losses leave out


def join(dataset: Any, cache: CachedSplit, id_column: str = "example_id", features: bool = False) -> Any:
    """Add the teacher's targets to a ``datasets.Dataset`` by id.

    Args:
        dataset: any subset of the cache's examples, in any order. If it has a column
            ``content_hash``, each text must be the one that the teacher read. If it has a column ``labels``
            or ``label`` of whole numbers, they must be those of the cache, since logits are in their order.
        cache: from ``load_cache``.
        id_column: name of the column of ids.
        features: add ``teacher_features`` too.

    Returns:
        The dataset with a column ``teacher_logits``, one list of float32 per row.

    Raises:
        DataError: the dataset lacks the column, or the cache lacks features.
        CacheStale: an id is not in the cache or occurs twice, or a text or a label has changed.
    """
    if id_column not in dataset.column_names:
        raise DataError(
            f"join: the dataset must have the ids in a column {id_column!r}, "
            f"got columns {', '.join(dataset.column_names)}. Name it with id_column."
        )
    hashes = list(dataset["content_hash"]) if "content_hash" in dataset.column_names else None
    rows = cache.align([str(i) for i in dataset[id_column]], hashes)
    if column := next((name for name in ("labels", "label") if name in dataset.column_names), None):
        _require_labels(rows, dataset.with_format(None)[column], cache)
    dataset = dataset.add_column("teacher_logits", list(rows.logits))
    if not features:
        return dataset
    if not rows.features.shape[1]:
        raise DataError(f"join: the cache must hold features, got {cache!r}. Leave features=True out.")
    return dataset.add_column("teacher_features", list(rows.features.astype(np.float32)))


def _require_labels(rows: CacheRows, labels: Sequence[Any], cache: CachedSplit) -> None:
    """Refuse whole numbers that are not the labels of the cached rows; −1 is none."""
    given = np.array(
        [int(one) if isinstance(one, (int, float)) and one == one // 1 else -1 for one in labels]
    )
    other = (given >= 0) & (rows.label >= 0) & (given != rows.label)
    if other.any():
        names = ", ".join(f"{k} {name}" for k, name in enumerate(cache.manifest.identity["labels"]))
        raise CacheStale(
            f"join: the column label must hold the labels of the cache, {names}, got others for "
            f"{name_some([rows.example_id[i] for i in np.flatnonzero(other)])}. Number your labels as the "
            "cache does, or make it again of the new labels."
        )


@dataclass(frozen=True)
class KDCollator:
    """A collator that pads the inputs, and stacks labels and the teacher's targets.

    It leaves out everything else in a row, such as ids and texts. A ``Trainer`` must therefore run
    with ``remove_unused_columns=False``; otherwise it silently drops the targets.

    Args:
        tokenizer: that made the rows' ``input_ids``.
    """

    tokenizer: Any

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return a batch.

        Args:
            rows: with ``input_ids`` …, ``label`` and ``teacher_logits``.

        Returns:
            The model's inputs, ``labels`` (``IGNORED`` for a row without a label), float32 ``teacher_logits``
            of shape (batch, num_labels) and, if the rows have them, ``teacher_features`` of shape
            (batch, dim).

        Raises:
            DataError: a row has no targets.
        """
        for row in rows:
            if "teacher_logits" not in row:
                raise DataError(
                    f"KDCollator: each row must hold teacher_logits, got {', '.join(row)}. Add them with "
                    "kdcache.join, and set remove_unused_columns=False in TrainingArguments."
                )
        inputs = [{k: row[k] for k in self.tokenizer.model_input_names if k in row} for row in rows]
        batch = dict(self.tokenizer.pad(inputs, return_tensors="pt"))
        found = [row.get("labels", row.get("label")) for row in rows]
        batch["labels"] = torch.tensor([IGNORED if k is None or k < 0 else k for k in found])
        for name in TARGETS:
            if name in rows[0]:
                batch[name] = torch.tensor(np.stack([row[name] for row in rows]), dtype=torch.float32)
        return batch
