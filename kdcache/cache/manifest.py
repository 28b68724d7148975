"""manifest.json: the description of a cache, and the check that it belongs to given data and teacher.

The manifest holds the teacher's identity, a digest of the data, and the sha256 and size of every
file. It is written last, so a folder without one is not a cache. Its own digest is over its canonical
bytes, so a changed manifest is noticed too.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NotRequired

import pyarrow as pa
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from kdcache.cache.schema import CACHE_FORMATS, TOLERANCE, check_schema, format_version, parse_columns
from kdcache.cache.split_files import FileEntry, check_files, name_files, split_of
from kdcache.digests import check_seal, value_digest
from kdcache.errors import CacheCorrupt, CacheMissing, CacheStale, ModelError, ParamsError, nearest, shorten
from kdcache.places import IDENTITY, PLAIN_NAME
from kdcache.plain_json import MAX_BYTES, parse_json
from kdcache.project import IDENTITY_DEFAULTS
from kdcache.store.location import Location

MANIFEST = "manifest.json"
OUTSIDE = "external"  # identity["kind"] of a teacher that kdcache did not run

Number = int | float  # keeps the spelling of the file: 24 stays 24, and 24.0 stays 24.0


@with_config(ConfigDict(extra="allow"))
class Identity(TypedDict):
    """The required fields of an identity, and those of the others that kdcache reads.

    Args:
        task: name of the task.
        labels: names of the classes, in index order.
        num_labels: their number.
        weights_sha256: digest of the weights of the teacher trained on all rows.
        folds_sha256: the same of each fold's teacher.
        kind: ``external`` for an imported cache.
        source_sha256: digest of the imported file, or of several files' digests and weights.
    """

    task: str
    labels: list[str]
    num_labels: NotRequired[int]
    weights_sha256: NotRequired[str]
    folds_sha256: NotRequired[list[str]]
    kind: NotRequired[str]
    source_sha256: NotRequired[str]


@with_config(ConfigDict(extra="forbid"))
class ProbeScores(TypedDict):
    """What a linear probe of the teacher's pretrained model scores, to compare the teacher with.

    Args:
        strength: C of the probe.
        tune, validation: metric → value.
    """

    strength: Number
    tune: NotRequired[dict[str, Number]]
    validation: NotRequired[dict[str, Number]]


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Manifest:
    """The content of a cache and its origin.

    Args:
        identity: of the teacher, as train_teacher wrote it, or of an imported file; see ``Identity``.
        data: split → ``digests.RowsDigest`` of the rows.
        files: file name → see ``FileEntry``.
        columns: (name, type) of every file, in order; see ``schema.describe_columns``.
        dtype: in which the teacher computed.
        tolerance: the largest distance allowed between a recomputed logit and the cached one, at most
            ``schema.TOLERANCE`` of the dtype.
        drift: how far another ``dtype`` than float32 moved the logits of some rows.
        metrics: split → metric → value of the cached logits; labelled splits only.
        all_rows_teacher: the same of the teacher trained on all rows. It equals ``metrics`` unless
            the cached logits are cross-fitted.
        cost: counts of training steps, training examples, forward passes and truncated rows.
        probe: see ``ProbeScores``; None, and absent from the file, where it is not known.
    """

    identity: dict[str, Any]
    data: dict[str, str]
    files: dict[str, FileEntry]
    columns: list[list[str]]
    dtype: str = "float32"
    tolerance: Number = 0.0
    drift: dict[str, Number] = field(default_factory=dict)
    metrics: dict[str, dict[str, Number]] = field(default_factory=dict)
    all_rows_teacher: dict[str, dict[str, Number]] = field(default_factory=dict)
    cost: dict[str, Number] = field(default_factory=dict)
    format_version: int = CACHE_FORMATS[0]
    probe: ProbeScores | None = None

    @property
    def digest(self) -> str:
        """sha256 of the canonical bytes. It names the cache as a whole."""
        return value_digest(self._body())

    @property
    def splits(self) -> list[str]:
        """Names of the splits, sorted."""
        return sorted(self.data)

    def files_of(self, split: str) -> list[str]:
        """Names of a split's files, in the order of their rows."""
        return name_files(split, sum(split_of(name) == split for name in self.files))

    def sum_of(self, split: str, name: Literal["rows", "bytes"]) -> int:
        """Sum of one field of a split's files, see ``FileEntry``."""
        return sum(self.files[file][name] for file in self.files_of(split))

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of every file."""
        return parse_columns(self.columns)

    @property
    def num_folds(self) -> int:
        """Number of fold teachers; 0 if there is one teacher."""
        return len(self.identity.get("folds_sha256", ()))

    @property
    def teacher_digest(self) -> str:
        """sha256 of the teacher's weights, or of the file it was imported from and what was changed in it."""
        source = self.identity.get("source_sha256", "")
        if (changed := self.identity.get("missing_mass", "refuse")) != "refuse":
            source = value_digest([source, changed])
        return self.identity.get("weights_sha256") or source

    @property
    def rebuild(self) -> str:
        """The command that builds this cache again, as a sentence for messages."""
        task = self.identity.get("task")
        if self.identity.get("kind") == OUTSIDE:
            return f"Run: kdcache import FILE --task {task}"
        return f"Run: kdcache cache --task {task}"

    def to_bytes(self) -> bytes:
        """The file's bytes, in the one canonical form."""
        body = self._body() | {"digest": self.digest}
        return (json.dumps(body, indent=2, sort_keys=True) + "\n").encode()

    def _body(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "probe" or value is not None}

    def write(self, path: Path) -> None:
        """Write the manifest with its own digest."""
        path.write_bytes(self.to_bytes())


def read_manifest(location: Location | Path | str) -> Manifest:
    """Read and check the manifest of a cache.

    Args:
        location: ``cache/<task>``.

    Raises:
        CacheMissing: there is no folder, or the folder has no manifest.
        CacheCorrupt: the file is not the canonical bytes of a manifest with that digest.
        CacheStale: the manifest has another format version.
    """
    location = Location.parse(location)
    path = f"{location}/{MANIFEST}"
    remedy = f"Run: kdcache cache --task {location.name}"
    if not location.exists(MANIFEST):
        raise CacheMissing(f"{location}: the cache must hold {MANIFEST}, got none there. {remedy}")
    if (size := location.size(MANIFEST)) > MAX_BYTES:
        raise CacheCorrupt(f"{path}: it must have at most {MAX_BYTES} bytes, got {size}. {remedy}")
    found = location.read(MANIFEST)
    try:
        body = parse_json(found)
        digest = body.pop("digest")
        version = body["format_version"]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CacheCorrupt(f"{path}: it must be a whole manifest, got other bytes. {remedy}") from None
    if version not in CACHE_FORMATS:
        known = " or ".join(map(str, CACHE_FORMATS))
        raise CacheStale(f"{path}: format_version must be {known}, got {shorten(version)}. {remedy}")
    if (own := value_digest(body)) != digest:
        raise CacheCorrupt(f"{path}: its digest must be {shorten(digest)}, got {own}. {remedy}")
    try:
        manifest = parse_manifest(body)
    except ValueError as error:
        raise CacheCorrupt(f"{path}: it must have this format's fields, got: {error}. {remedy}") from None
    if manifest.to_bytes() != found:  # so a value that pydantic converted is refused too
        raise CacheCorrupt(f"{path}: it must be in canonical form, got the same values otherwise. {remedy}")
    return manifest


def parse_manifest(body: dict[str, Any]) -> Manifest:
    """Return the manifest of a mapping that has its fields, with values of the right types.

    Raises:
        ValueError: it has other fields or types; the message names the first in one line.
    """
    try:
        manifest: Manifest = _adapter(Manifest).validate_python(body)
        _adapter(Identity).validate_python(manifest.identity)
    except ValidationError as error:
        last = error.errors(include_url=False, include_input=False)[-1]
        where = ".".join(str(part) for part in last["loc"]).removesuffix(".float")
        raise ValueError(f"{where}: {last['msg'][:1].lower()}{last['msg'][1:]}") from None
    check_schema(manifest.schema, manifest.identity)
    for name in [*manifest.data, *manifest.files]:
        if not PLAIN_NAME.fullmatch(name) or (name in manifest.files) != name.endswith(".parquet"):
            raise ValueError(f"a split or file called {shorten(name)}")
    check_files(manifest.files, manifest.data)
    if (version := format_version(manifest.files, manifest.schema)) != manifest.format_version:
        raise ValueError(f"format_version {manifest.format_version} of a cache of version {version}")
    if manifest.dtype not in TOLERANCE:
        raise ValueError(f"dtype {shorten(manifest.dtype)}, not one of {', '.join(TOLERANCE)}")
    largest = TOLERANCE[manifest.dtype]
    if not 0 <= manifest.tolerance <= largest:
        raise ValueError(f"tolerance {manifest.tolerance:g}, not from 0 to {largest:g} of {manifest.dtype}")
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
        task_name: the caller's task.
        label_names: of the task, in index order.
        data: split → digest of the caller's own rows.
        teacher: identity of the teacher in the project, if there is one; see ``read_identity_of``.
            It is not compared with an imported cache, which was put there on purpose.
        expect: field → value that the caller requires of a shared cache; ``digest`` is the manifest's own,
            which pins every byte.

    Raises:
        CacheStale: names the field, the cache's value and the expected one.
        ParamsError: ``expect`` names a field that the identity lacks.
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
    if teacher and identity.get("kind") != OUTSIDE:
        for name in sorted(teacher):
            what, models = f"teacher {name}", [known.get("model") for known in (teacher, identity)]
            if name.endswith("sha256") and models[0] != models[1]:  # a hash alone tells nobody which
                what += f" ({models[0]} here, {models[1]} in the cache)"
            refuse(what, identity.get(name, IDENTITY_DEFAULTS.get(name)), teacher[name])
    known = identity | {"digest": manifest.digest}
    for name, wanted in expect.items():
        if name not in known:
            raise ParamsError(
                f"distill.expect: {name} must be a field of the identity, or digest, got none of that name. "
                f"{nearest(name, known)}"
            )
        refuse(
            f"distill.expect {name}", known[name], wanted,
            "Use the cache that was meant, or change distill.expect.",
        )  # fmt: skip


def read_identity_of(teacher: Path) -> dict[str, Any] | None:
    """Read the identity in a teacher's folder; None if none is there. Raises ModelError if it has changed."""
    path = teacher / IDENTITY
    if not path.is_file():
        return None
    check_seal(path, f"Run: kdcache teach --task {teacher.name}", ModelError)
    return json.loads(path.read_text(encoding="utf-8"))


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
