"""manifest.json: written last, so that a folder without one is not a cache.

Holds the teacher's identity, the digest of the data it read, and sha256 and size of every
file; its own digest is over its canonical bytes, so that a changed manifest shows too.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdcache.cache.schema import FORMAT_VERSION
from kdcache.digests import value_digest
from kdcache.errors import CacheCorrupt, CacheMissing, CacheStale, ParamsError, nearest

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What is in a cache and what made it.

    Args:
        identity: of the teacher, as train_teacher wrote it.
        data: split → ``tasks.splits.split_digest`` of the rows.
        files: file name → rows, bytes, sha256.
        dim: length of the features.
        dtype: what the teacher computed in.
        metrics: split → metric → value of the cached logits; labelled splits only.
        all_rows_teacher: the same for the teacher on all rows, where the cached logits
            are cross-fitted; else equal to ``metrics``.
        cost: counts of the teacher's training, of the forward passes, and of the rows that lost
            tokens to its ``max_length``.
    """

    identity: dict[str, Any]
    data: dict[str, str]
    files: dict[str, dict[str, Any]]
    dim: int
    dtype: str
    metrics: dict[str, dict[str, float]]
    all_rows_teacher: dict[str, dict[str, float]]
    cost: dict[str, int]
    format_version: int = FORMAT_VERSION

    @property
    def digest(self) -> str:
        """sha256 of the canonical bytes; names the cache as a whole."""
        return value_digest(asdict(self))

    def write(self, path: Path) -> None:
        """Write the manifest with its own digest."""
        body = asdict(self) | {"digest": self.digest}
        path.write_text(json.dumps(body, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_manifest(folder: Path, task_name: str) -> Manifest:
    """Read and check the manifest of a cache.

    Args:
        folder: ``cache/<task>``.
        task_name: for the remedy.

    Raises:
        CacheMissing: no folder, or a folder without a manifest.
        CacheCorrupt: not JSON, fields missing, or not the bytes that were digested.
        CacheStale: another format version.
    """
    path = folder / MANIFEST
    remedy = f"Run: kdcache cache --task {task_name}"
    if not path.is_file():
        raise CacheMissing(f"{folder}: the cache must hold {MANIFEST}, got none there. {remedy}")
    try:
        body = json.loads(path.read_bytes())
        digest = body.pop("digest")
        version = body["format_version"]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CacheCorrupt(f"{path}: it must be a whole manifest, got other bytes. {remedy}") from None
    if version != FORMAT_VERSION:
        raise CacheStale(f"{path}: format_version must be {FORMAT_VERSION}, got {version!r}. {remedy}")
    found = value_digest(body)
    if found != digest:
        raise CacheCorrupt(f"{path}: its digest must be {digest}, got {found}. {remedy}")
    return Manifest(**body)


def check_identity(
    manifest: Manifest,
    task_name: str,
    label_names: tuple[str, ...],
    data: Mapping[str, str],
    teacher: Mapping[str, Any] | None,
    expect: Mapping[str, Any],
) -> None:
    """Refuse a cache that was made of other data or by another teacher.

    Args:
        manifest: of the cache.
        task_name: what the caller trains.
        label_names: of the task, in index order.
        data: split → digest of the caller's own rows.
        teacher: identity of the teacher beside the cache, if there is one.
        expect: field → value that the caller insists on, for a shared cache.

    Raises:
        CacheStale: naming the field, the cache's value and the expected one.
        ParamsError: ``expect`` names a field that no identity has.
    """
    remedy = f"Run: kdcache cache --task {task_name}"
    identity = manifest.identity

    def refuse(field: str, found: Any, wanted: Any, cure: str = remedy) -> None:
        if found != wanted:
            raise CacheStale(
                f"cache of {task_name}: {field} must be {wanted!r}, got {found!r} in the cache. {cure}"
            )

    refuse("task", identity.get("task"), task_name)
    refuse("labels", identity.get("labels"), list(label_names))
    for split, digest in data.items():
        refuse(f"data.{split}", manifest.data.get(split), digest)
    for field in sorted(teacher or {}):
        refuse(f"teacher {field}", identity.get(field), (teacher or {})[field])
    for field, wanted in expect.items():
        if field not in identity:
            raise ParamsError(
                f"distill.expect: {field} must be a field of the identity, got none of that name. "
                f"{nearest(field, identity)}"
            )
        refuse(
            f"distill.expect {field}", identity[field], wanted,
            "Use the cache that was meant, or change distill.expect.",
        )  # fmt: skip
