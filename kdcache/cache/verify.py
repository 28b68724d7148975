"""Is a cache what it says? Every check that needs no model, one row group in memory at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from kdcache.cache.ids import name_some
from kdcache.cache.location import Location
from kdcache.cache.manifest import MANIFEST, Manifest, read_manifest
from kdcache.cache.reader import open_file
from kdcache.cache.rows import CacheRows
from kdcache.cache.schema import MEAN_OF_FOLDS, MEMBER
from kdcache.digests import RowsDigest
from kdcache.errors import CacheError

ROUNDING = 1e-4  # of a mean of float32 logits


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        what: the thing.
        problem: what is wrong with it; empty where it is sound.
    """

    what: str
    problem: str = ""


def verify_cache(path: Location | Path | str, data: Mapping[str, pa.Table] | None = None) -> list[Check]:
    """Check a cache from its bytes to its numbers.

    The manifest's own digest; of each file length, sha256, page checksums, schema and ids; that
    every number is finite and every label and fold a possible one; that an ensemble's logits are the
    mean of its members'; the digest of the rows; how many rows the logits get right. Beside the
    data: ids, texts and labels too.

    Args:
        path: the cache.
        data: split → prepared rows (example_id, content_hash, label), where they are at hand.

    Returns:
        One check per thing; nothing is raised.
    """
    location = Location.parse(path)
    try:
        manifest = read_manifest(location)
    except CacheError as error:
        return [Check(MANIFEST, str(error))]
    checks = [Check(MANIFEST)]
    for name in _stray_files(location, manifest):
        checks.append(
            Check(name, f"{location}/{name}: the manifest must list every file, got none so named.")
        )
    for split in sorted({*manifest.data, *(name.removesuffix(".parquet") for name in manifest.files)}):
        name = f"{split}.parquet"
        try:
            file = open_file(location, manifest, name)
            checks.append(Check(f"{name}: bytes, schema, ids"))
            checks += _check_rows(file, manifest, split)
        except CacheError as error:
            checks.append(Check(name, str(error)))
            continue
        except (OSError, pa.ArrowException) as error:  # a page whose checksum is not its own
            checks.append(Check(name, f"{location}/{name}: its pages must be whole, got: {error}."))
            continue
        if data is not None and split in data:
            checks.append(Check(f"{name}: against the data", _against(data[split], file, split)))
    return checks


def _stray_files(location: Location, manifest: Manifest) -> list[str]:
    infos = location.filesystem.get_file_info(pafs.FileSelector(location.path))
    return sorted(info.base_name for info in infos if info.base_name not in {MANIFEST, *manifest.files})


def _check_rows(file: pq.ParquetFile, manifest: Manifest, split: str) -> Iterator[Check]:
    """What the numbers say, in one pass."""
    name = f"{split}.parquet"
    num_labels = manifest.schema.field("logits").type.list_size
    entry = manifest.files[name]
    digest, correct, labelled = RowsDigest(), 0, 0
    not_finite: list[str] = []
    impossible: list[str] = []
    no_mean: list[str] = []
    has_members = f"{MEMBER}0" in manifest.schema.names
    for group in range(file.num_row_groups):
        rows = CacheRows.from_table(file.read_row_group(group))
        digest.update(rows.example_id, rows.content_hash, rows.label)
        finite = np.ones(len(rows), bool)
        for values in rows.vectors.values():
            finite &= np.isfinite(values).all(axis=1)
        possible = (rows.label >= -1) & (rows.label < num_labels)
        possible &= (rows.fold >= MEAN_OF_FOLDS) & (rows.fold < max(1, manifest.num_folds))
        not_finite += [rows.example_id[i] for i in np.flatnonzero(~finite)]
        impossible += [rows.example_id[i] for i in np.flatnonzero(~possible)]
        if has_members:
            away = np.abs(np.mean(rows.members, axis=0) - rows.logits)
            no_mean += [rows.example_id[i] for i in np.flatnonzero((away > ROUNDING).any(axis=1))]
        correct += rows.num_correct
        labelled += int((rows.label >= 0).sum())

    def check(what: str, wrong: bool, problem: str) -> Check:
        return Check(f"{name}: {what}", f"{name}: {problem}. {manifest.rebuild}" if wrong else "")

    yield check(
        "finite", bool(not_finite), f"every number must be finite, got others in {name_some(not_finite)}"
    )
    yield check(
        "labels, folds", bool(impossible),
        f"label and fold must be possible ones, got others in {name_some(impossible)}",
    )  # fmt: skip
    if has_members:
        yield check(
            "mean of the ensemble", bool(no_mean),
            f"logits must be the mean of the members', got others in {name_some(no_mean)}",
        )  # fmt: skip
    found, wanted = digest.hexdigest(), manifest.data.get(split)
    yield check(
        "digest of the rows", found != wanted, f"the digest of its rows must be {wanted}, got {found}"
    )
    counts = f"{correct} of {labelled}"
    stored = f"{entry.get('correct')} of {entry.get('labelled')}"
    accuracy = manifest.metrics.get(split, {}).get("accuracy")
    if counts == stored and accuracy is not None and abs(accuracy - correct / max(1, labelled)) > 1e-12:
        stored = f"an accuracy of {accuracy}"
    yield check("accuracy", counts != stored, f"the logits must get {stored} right, got {counts}")


def _against(data: pa.Table, file: pq.ParquetFile, split: str) -> str:
    """How the cached rows differ from the prepared ones; empty where they don't."""
    names = ["example_id", "content_hash", "label"]
    ours = zip(*(file.read(columns=names)[name].to_pylist() for name in names), strict=True)
    theirs = zip(*(data[name].to_pylist() for name in names), strict=True)
    cached = {example_id: rest for example_id, *rest in ours}
    prepared = {example_id: rest for example_id, *rest in theirs}
    shared = [i for i in prepared if i in cached]
    absent = [i for i in prepared if i not in cached]
    unknown = [i for i in cached if i not in prepared]
    texts, labels = ([i for i in shared if prepared[i][k] != cached[i][k]] for k in (0, 1))
    for what, ids in (
        ("every example must be in the cache, got none of", absent),
        ("every row must be in the data, got unknown", unknown),
        ("the text must be the data's, got another for", texts),
        ("the label must be the data's, got another for", labels),
    ):
        if ids:
            return f"{split}.parquet: {what} {name_some(ids)}."
    return ""
