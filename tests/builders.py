"""Small caches for the tests of this folder: rows whose every number follows from their id."""

from pathlib import Path
from typing import Any

import numpy as np

from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.manifest import Manifest
from kdcache.cache.writer import write_cache

IDENTITY = {
    "task": "wic", "template": "wic/1", "labels": ["false", "true"], "num_labels": 2, "max_length": 64,
    "model": "tiny", "weights_sha256": "a", "config_sha256": "b", "tokenizer_sha256": "c", "folds_sha256": [],
}  # fmt: skip


def rows(count: int = 10, seed: int = 0, dim: int = 5, split: str = "train") -> CacheRows:
    rng = np.random.default_rng(seed)
    return CacheRows(
        [f"{split}-{i}" for i in range(count)], [f"hash-{i}" for i in range(count)],
        rng.integers(0, 2, count), np.full(count, -1, np.int8),
        rng.normal(size=(count, 2)).astype(np.float32), rng.normal(size=(count, dim)).astype(np.float16),
    )  # fmt: skip


def write(folder: Path | str, scratch: Path, split: CacheRows | None = None, **facts: Any) -> Manifest:
    split = split or rows()
    counts = {"train": {"accuracy": split.num_correct / len(split), "rows": len(split)}}
    facts = {"identity": IDENTITY, "metrics": counts, "cost": {"forward_examples": 10}} | facts
    return write_cache(folder, scratch / "scratch", {"train": split}, **facts)
