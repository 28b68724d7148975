"""manifest.json: written last, so that a folder without one is not a cache.

Holds the teacher's identity, the digest of the data it read, and sha256 and size of every
file; its own digest is over its canonical bytes, so that a changed manifest shows too.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from kdcache.cache.location import Location
from kdcache.cache.schema import FORMAT_VERSION, parse_columns
from kdcache.digests import value_digest
from kdcache.errors import CacheCorrupt, CacheMissing, CacheStale, ParamsError, nearest

MANIFEST = "manifest.json"
EXTERNAL = "external"  # identity["kind"] of a teacher that kdcache did not run


@dataclass(frozen=True)
class Manifest:
    """What is in a cache and what made it.

    Args:
        identity: of the teacher, as train_teacher wrote it, or of an imported file.
        data: split → ``digests.RowsDigest`` of the rows.
        files: file name → rows, bytes, sha256, labelled, correct: the last two count rows
            with a label and those among them that the logits get right.
        columns: (name, type) of every file, in order; see ``schema.describe_columns``.
        dtype: what the teacher computed in.
        tolerance: how far a recomputed logit may lie from the cached one.
        drift: where ``dtype`` is not float32, how far it moved the logits of some rows.
        metrics: split → metric → value of the cached logits; labelled splits only.
        all_rows_teacher: the same for the teacher on all rows, where the cached logits
            are cross-fitted; else equal to ``metrics``.
        cost: counts of the teacher's training, of the forward passes, and of the rows that lost
            tokens to its ``max_length``.
    """

    identity: dict[str, Any]
    data: dict[str, str]
    files: dict[str, dict[str, Any]]
    columns: list[list[str]]
    dtype: str = "float32"
    tolerance: float = 0.0
    drift: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    all_rows_teacher: dict[str, dict[str, float]] = field(default_factory=dict)
    cost: dict[str, int] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def digest(self) -> str:
        """sha256 of the canonical bytes; names the cache as a whole."""
        return value_digest(vars(self))

    @property
    def splits(self) -> list[str]:
        """Names of the splits."""
        return sorted(self.data)

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of every file."""
        return parse_columns(self.columns)

    @property
    def num_folds(self) -> int:
        """How many teachers the cross-fitted logits come from; 0 where there is one teacher."""
        return len(self.identity.get("folds_sha256", ()))

    @property
    def teacher_digest(self) -> str:
        """sha256 of the teacher's weights, or of the file it was imported from."""
        return self.identity.get("weights_sha256") or self.identity.get("source_sha256", "")

    @property
    def rebuild(self) -> str:
        """The command that makes such a cache anew."""
        task = self.identity.get("task")
        if self.identity.get("kind") == EXTERNAL:
            return f"Run: kdcache import FILE --task {task}"
        return f"Run: kdcache cache --task {task}"

    def to_bytes(self) -> bytes:
        """The file's bytes; there is one spelling of a manifest."""
        return _spell(vars(self) | {"digest": self.digest})

    def write(self, path: Path) -> None:
        """Write the manifest with its own digest."""
        path.write_bytes(self.to_bytes())


def read_manifest(location: Location | Path | str) -> Manifest:
    """Read and check the manifest of a cache.

    Args:
        location: ``cache/<task>``.

    Raises:
        CacheMissing: no folder, or a folder without a manifest.
        CacheCorrupt: not the canonical bytes of a manifest with that digest.
        CacheStale: another format version.
    """
    location = Location.parse(location)
    path = f"{location}/{MANIFEST}"
    remedy = f"Run: kdcache cache --task {location.name}"
    if not location.exists(MANIFEST):
        raise CacheMissing(f"{location}: the cache must hold {MANIFEST}, got none there. {remedy}")
    found = location.read(MANIFEST)
    try:
        body = json.loads(found)
        digest = body.pop("digest")
        version = body["format_version"]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CacheCorrupt(f"{path}: it must be a whole manifest, got other bytes. {remedy}") from None
    if version != FORMAT_VERSION:
        raise CacheStale(f"{path}: format_version must be {FORMAT_VERSION}, got {version!r}. {remedy}")
    if (own := value_digest(body)) != digest:
        raise CacheCorrupt(f"{path}: its digest must be {digest}, got {own}. {remedy}")
    try:
        manifest = Manifest(**body)
        parse_columns(manifest.columns)
    except (TypeError, ValueError) as error:
        raise CacheCorrupt(f"{path}: it must have this format's fields, got: {error}. {remedy}") from None
    if _spell(body | {"digest": digest}) != found:
        raise CacheCorrupt(f"{path}: it must be in canonical form, got the same values otherwise. {remedy}")
    return manifest


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
        teacher: identity of the teacher beside the cache, if there is one; it says nothing
            about an imported cache, which was put there on purpose.
        expect: field → value that the caller insists on, for a shared cache.

    Raises:
        CacheStale: naming the field, the cache's value and the expected one.
        ParamsError: ``expect`` names a field that no identity has.
    """
    identity = manifest.identity

    def refuse(name: str, found: Any, wanted: Any, cure: str = manifest.rebuild) -> None:
        if found != wanted:
            raise CacheStale(
                f"cache of {task_name}: {name} must be {wanted!r}, got {found!r} in the cache. {cure}"
            )

    refuse("task", identity.get("task"), task_name, f"Run: kdcache cache --task {task_name}")
    refuse("labels", identity.get("labels"), list(label_names))
    for split, digest in data.items():
        refuse(f"data.{split}", manifest.data.get(split), digest)
    if identity.get("kind") != EXTERNAL:
        for name in sorted(teacher or {}):
            refuse(f"teacher {name}", identity.get(name), (teacher or {})[name])
    for name, wanted in expect.items():
        if name not in identity:
            raise ParamsError(
                f"distill.expect: {name} must be a field of the identity, got none of that name. "
                f"{nearest(name, identity)}"
            )
        refuse(
            f"distill.expect {name}", identity[name], wanted,
            "Use the cache that was meant, or change distill.expect.",
        )  # fmt: skip


def _spell(body: dict[str, Any]) -> bytes:
    return (json.dumps(body, indent=2, sort_keys=True) + "\n").encode()
