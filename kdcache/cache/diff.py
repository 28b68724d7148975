"""Two caches of one task: what made them, which rows they share, how far the logits moved."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.cache.location import Location
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.reader import load_cache


@dataclass(frozen=True)
class SplitDiff:
    """How one split of two caches differs.

    Args:
        rows: ids that both hold.
        only_a, only_b: ids that one of them holds.
        texts, labels: shared ids whose content hash or label differs.
        max_abs, mean_abs: distance between the logits of shared rows; 0 without any.
        flips: shared rows whose largest logit is another one.
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
    """How two caches differ.

    Args:
        fields: dotted name → (value in a, value in b) of what the manifests tell apart; None
            stands for a field that one of them lacks. Digests and sizes of files are left out:
            the splits say what is in them.
        splits: split → difference, of the splits that both hold.
    """

    fields: dict[str, tuple[Any, Any]]
    splits: dict[str, SplitDiff]


def diff_caches(a: Location | Path | str, b: Location | Path | str) -> CacheDiff:
    """Compare two verified caches.

    Raises:
        CacheError: one of them is none, or damaged.
    """
    facts_a, facts_b = (_facts(read_manifest(path)) for path in (a, b))
    names = sorted({*facts_a, *facts_b})
    fields = {name: (facts_a.get(name), facts_b.get(name)) for name in names}
    changed = {name: pair for name, pair in fields.items() if pair[0] != pair[1]}
    shared = sorted({*read_manifest(a).data} & {*read_manifest(b).data})
    return CacheDiff(changed, {split: _diff_split(a, b, split) for split in shared})


def _facts(manifest: Manifest) -> dict[str, Any]:
    facts = dict(vars(manifest))
    columns = {name: kind for name, kind in facts.pop("columns")}
    del facts["files"]
    flat: dict[str, Any] = {}
    for name, value in (facts | {"columns": columns}).items():
        flat |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _diff_split(a: Location | Path | str, b: Location | Path | str, split: str) -> SplitDiff:
    rows_a, rows_b = load_cache(a, split).rows, load_cache(b, split)
    ids = [i for i in rows_a.example_id if i in rows_b]
    kept = set(ids)
    ours = rows_a.take([row for row, i in enumerate(rows_a.example_id) if i in kept])
    theirs = rows_b.align(ids)
    comparable = len(ids) and ours.logits.shape == theirs.logits.shape
    moved = np.abs(ours.logits - theirs.logits) if comparable else np.zeros((1, 1))
    flips = (ours.logits.argmax(1) != theirs.logits.argmax(1)).sum() if ids else 0
    return SplitDiff(
        rows=len(ids),
        only_a=[i for i in rows_a.example_id if i not in kept],
        only_b=[i for i in rows_b.rows.example_id if i not in kept],
        texts=[i for i, x, y in zip(ids, ours.content_hash, theirs.content_hash, strict=True) if x != y],
        labels=[i for i, x, y in zip(ids, ours.label, theirs.label, strict=True) if x != y],
        max_abs=float(moved.max()), mean_abs=float(moved.mean()), flips=int(flips),
    )  # fmt: skip
