"""Comparison of two caches of one task: their origins, their shared rows, how far the logits moved."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kdcache.cache.join import join_keys, pick
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.reader import CachedSplit, load_cache
from kdcache.cache.schema import ROW_GROUP_ROWS, top_k_of
from kdcache.cache.top_logits import kept_labels, share_rest
from kdcache.errors import CacheStale
from kdcache.store.location import Location

BLOCK_BYTES = 128 * 2**20  # of logits, held at a time


@dataclass(frozen=True)
class SplitDiff:
    """The difference between two caches in one split.

    Args:
        rows: number of shared ids.
        only_a, only_b: ids that only one of the caches holds.
        texts, labels: shared ids with different content hashes or labels.
        max_abs, mean_abs: distance between the logits of shared rows, label by label; 0 if there are none,
            None if the caches do not have the same labels. The labels that one of two caches of the largest
            logits does not keep share their mass in both.
        flips: number of shared rows with different predictions.
    """

    rows: int
    only_a: list[str]
    only_b: list[str]
    texts: list[str]
    labels: list[str]
    max_abs: float | None
    mean_abs: float | None
    flips: int


@dataclass(frozen=True)
class CacheDiff:
    """The difference between two caches.

    Args:
        fields: dotted name → (value in a, value in b) of the manifest's fields that differ; None for
            a field that one of them lacks. Digests and sizes of files are left out, since ``splits``
            compares their content.
        splits: split → difference, for the splits that both hold.
        same: whether the manifests are equal, digests of files and all.
    """

    fields: dict[str, tuple[Any, Any]]
    splits: dict[str, SplitDiff]
    same: bool


def diff_caches(a: Location | Path | str, b: Location | Path | str) -> CacheDiff:
    """Compare two verified caches.

    Raises:
        CacheError: one of them is missing or damaged, or they are of two tasks.
    """
    manifest_a, manifest_b = read_manifest(a), read_manifest(b)
    tasks = [manifest.identity["task"] for manifest in (manifest_a, manifest_b)]
    if tasks[0] != tasks[1]:
        raise CacheStale(
            f"{a} and {b}: both must be of one task, got {tasks[0]} and {tasks[1]}. Take two of one."
        )
    facts_a, facts_b = _facts(manifest_a), _facts(manifest_b)
    fields = {name: (facts_a.get(name), facts_b.get(name)) for name in sorted({*facts_a, *facts_b})}
    changed = {name: pair for name, pair in fields.items() if pair[0] != pair[1]}
    shared = [split for split in manifest_a.splits if split in manifest_b.data]
    names = manifest_a.identity["labels"], manifest_b.identity["labels"]
    known = list(dict.fromkeys([*names[0], *names[1]]))
    # A label of b has the index that a gives it; those that only b has come last.
    index_of_b = np.array([known.index(name) for name in names[1]])
    splits = {s: _diff_split(load_cache(a, s), load_cache(b, s), index_of_b) for s in shared}
    return CacheDiff(changed, splits, manifest_a == manifest_b)


def _facts(manifest: Manifest) -> dict[str, Any]:
    """The manifest's fields by dotted name, without those of its files."""
    facts = vars(manifest) | {"columns": dict(manifest.columns)}
    del facts["files"]
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _diff_split(a: CachedSplit, b: CachedSplit, index_of_b: np.ndarray) -> SplitDiff:
    """Compare a split; labels of b have other indices where the two caches list them in another order."""

    def keys_of_b() -> Iterator[pa.RecordBatch]:
        for batch in b.keys():  # noqa: SIM118 (a cached split is no dict)
            label = batch["label"].to_numpy()
            label = pa.array(np.where(label < 0, label, index_of_b[label]), batch["label"].type)
            yield batch.set_column(batch.schema.get_field_index("label"), "label", label)

    found = join_keys(a.keys, keys_of_b)
    rows, most, total, flips = int((found.row >= 0).sum()), 0.0, 0.0, 0
    comparable = a.num_logits == b.num_logits == index_of_b.max() + 1
    for ours, theirs in _paired_logits(a, b, found.row):
        flips += int((ours.argmax(1) != index_of_b[theirs.argmax(1)]).sum())
        if comparable:
            theirs = theirs[:, np.argsort(index_of_b)]
            ours, theirs = _alike(ours, theirs, [top_k_of(one.manifest.schema) for one in (a, b)])
            moved = np.abs(ours - theirs)
            most, total = max(most, float(moved.max())), total + float(moved.sum(dtype=np.float64))
    return SplitDiff(
        rows=rows,
        only_a=list(pick(a.keys, found.only_a)), only_b=list(pick(b.keys, found.only_b)),
        texts=list(pick(a.keys, found.texts)), labels=list(pick(a.keys, found.labels)),
        max_abs=most if comparable else None,
        mean_abs=total / max(1, rows * a.num_logits) if comparable else None, flips=flips,
    )  # fmt: skip


def _paired_logits(
    a: CachedSplit, b: CachedSplit, row: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Logits of the same ids. Of b a block of rows is held, and a is read once for each block."""
    size = max(ROW_GROUP_ROWS, BLOCK_BYTES // (4 * b.num_logits))
    for low in range(0, len(b), size):
        block = b.logits(low, min(low + size, len(b)))
        start = 0
        for part in a.stream(("logits",)):
            of_b = row[start : start + len(part)]
            start += len(part)
            here = np.flatnonzero((of_b >= low) & (of_b < low + size))
            if len(here):
                yield part.logits[here], block[of_b[here] - low]


def _alike(a: np.ndarray, b: np.ndarray, top_k: Sequence[int | None]) -> tuple[np.ndarray, np.ndarray]:
    """Let the labels that one of two caches does not keep share their mass in both."""
    kept = [kept_labels(logits) for logits, k in zip((a, b), top_k, strict=True) if k]
    if not kept:
        return a, b
    both = np.logical_and.reduce(kept)
    return share_rest(a, both), share_rest(b, both)
