"""Comparison of two caches of one task: their origins, their shared rows, how far the logits moved."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.cache.location import Location
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.reader import CachedSplit, load_cache


@dataclass(frozen=True)
class SplitDiff:
    """The difference between two caches in one split.

    Args:
        rows: number of shared ids.
        only_a, only_b: ids that only one of the caches holds.
        texts, labels: shared ids with different content hashes or labels.
        max_abs, mean_abs: distance between the logits of shared rows; 0 if there are none.
        flips: number of shared rows with different predictions.
    """

    rows: int
    only_a: list[str]
    only_b: list[str]
    texts: list[str]
    labels: list[str]
    max_abs: float
    mean_abs: float
    flips: int


@dataclass(frozen=True)
class CacheDiff:
    """The difference between two caches.

    Args:
        fields: dotted name → (value in a, value in b) of the manifest's fields that differ; None for
            a field that one of them lacks. Digests and sizes of files are left out, since ``splits``
            compares their content.
        splits: split → difference, for the splits that both hold.
    """

    fields: dict[str, tuple[Any, Any]]
    splits: dict[str, SplitDiff]


def diff_caches(a: Location | Path | str, b: Location | Path | str) -> CacheDiff:
    """Compare two verified caches.

    Raises:
        CacheError: one of them is missing or damaged.
    """
    manifest_a, manifest_b = read_manifest(a), read_manifest(b)
    facts_a, facts_b = _facts(manifest_a), _facts(manifest_b)
    fields = {name: (facts_a.get(name), facts_b.get(name)) for name in sorted({*facts_a, *facts_b})}
    changed = {name: pair for name, pair in fields.items() if pair[0] != pair[1]}
    shared = [split for split in manifest_a.splits if split in manifest_b.data]
    return CacheDiff(changed, {s: _diff_split(load_cache(a, s), load_cache(b, s)) for s in shared})


def _facts(manifest: Manifest) -> dict[str, Any]:
    """The manifest's fields by dotted name, without those of its files."""
    facts = vars(manifest) | {"columns": dict(manifest.columns)}
    del facts["files"]
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _diff_split(a: CachedSplit, b: CachedSplit) -> SplitDiff:
    ids = [i for i in a.rows.example_id if i in b]
    rows_a, rows_b = a.align(ids), b.align(ids)
    comparable = len(ids) and rows_a.logits.shape == rows_b.logits.shape
    moved = np.abs(rows_a.logits - rows_b.logits) if comparable else np.zeros((1, 1))
    flips = (rows_a.logits.argmax(1) != rows_b.logits.argmax(1)).sum() if ids else 0
    hashes = zip(ids, rows_a.content_hash, rows_b.content_hash, strict=True)
    labels = zip(ids, rows_a.label, rows_b.label, strict=True)
    return SplitDiff(
        rows=len(ids),
        only_a=[i for i in a.rows.example_id if i not in b],
        only_b=[i for i in b.rows.example_id if i not in a],
        texts=[i for i, x, y in hashes if x != y],
        labels=[i for i, x, y in labels if x != y],
        max_abs=float(moved.max()), mean_abs=float(moved.mean()), flips=int(flips),
    )  # fmt: skip
