"""Verification of a cache: every check that needs no model, with one row group in memory at a time."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.join import Batches, join_keys, name_chosen
from kdcache.cache.manifest import MANIFEST, read_manifest
from kdcache.cache.open_file import OpenSplit, open_files
from kdcache.cache.reader import find_faults
from kdcache.cache.schema import MEMBER_PREFIX
from kdcache.cache.split_files import name_span
from kdcache.data.ids import name_some
from kdcache.data.splits import TEST
from kdcache.digests import RowsDigest
from kdcache.errors import CacheError
from kdcache.places import CARD
from kdcache.store.location import Location

ROUNDING = 1e-4  # of a mean of float32 logits


@dataclass(frozen=True)
class Check:
    """One check and its result.

    Args:
        what: was checked.
        problem: one line; empty if the check passed.
    """

    what: str
    problem: str = ""

    def __post_init__(self) -> None:
        """Bound what a stranger's manifest says, as all messages are."""
        object.__setattr__(self, "problem", str(CacheError(self.problem)))


def verify_cache(path: Location | Path | str, data: Mapping[str, Batches] | None = None) -> list[Check]:
    """Check a cache from its bytes to its numbers.

    The checks cover the manifest's own digest; the length, sha256, page checksums, schema and ids
    of each file; that every number is finite and every label and fold is possible; that an
    ensemble's logits are the mean of its members'; the digest of the rows; and, but for the split test, the
    number of correct predictions. With ``data``, ids, texts and labels are compared too.

    Args:
        path: of the cache.
        data: split → opens the prepared rows (example_id, content_hash, label), such as ``table.to_batches``.

    Returns:
        One entry per check; faults of the cache are not raised.

    Raises:
        CacheError, OSError: the place cannot be reached.
    """
    location = Location.parse(path)
    try:
        manifest = read_manifest(location)
    except CacheError as error:
        return [Check(MANIFEST, str(error))]
    checks = [Check(MANIFEST)]
    for name in location.names():
        if name not in {MANIFEST, CARD, *manifest.files} and not name.startswith("."):
            problem = f"{location}/{name}: the manifest does not list this file. Remove it."
            checks.append(Check(name, problem))
    for split in manifest.splits:
        name = name_span(manifest.files_of(split))
        try:
            opened = open_files(location, manifest, split)
            checks.append(Check(f"{name}: bytes, schema, ids"))
            checks += _check_rows(opened, split)
        except CacheError as error:
            checks.append(Check(name, str(error)))
            continue
        if data is not None and split in data:
            checks.append(Check(f"{name}: against the data", _compare_with_data(opened, data[split], name)))
    return checks


def _check_rows(opened: OpenSplit, split: str) -> Iterator[Check]:
    """Check the numbers in one pass."""
    manifest = opened.manifest
    names = manifest.files_of(split)
    name, file_rows = name_span(names), manifest.files[names[0]]["rows"]
    digest, correct, labelled = RowsDigest(), Counter[str](), Counter[str]()
    faults: dict[str, tuple[str, list[str]]] = {}
    not_mean: list[str] = []
    has_members = f"{MEMBER_PREFIX}0" in manifest.schema.names  # with top_k each keeps labels of its own
    num_labels = len(manifest.identity["labels"])

    def parts() -> Iterator[tuple[str, CacheRows]]:
        for start, table in opened.groups():
            for rows in CacheRows.parts_of(table, num_labels, name):
                yield names[start // file_rows], rows

    for file, rows in parts():
        digest.update(rows.example_id, rows.content_hash, rows.label)
        for what, (fault, rows_with_it) in find_faults(rows, manifest).items():
            ids = faults.setdefault(what, (fault, []))[1]
            ids += [rows.example_id[i] for i in np.flatnonzero(rows_with_it)]
        if has_members:
            distance = np.abs(np.mean(rows.members, axis=0) - rows.logits)
            not_mean += [rows.example_id[i] for i in np.flatnonzero((distance > ROUNDING).any(axis=1))]
        correct[file] += rows.num_correct
        labelled[file] += int((rows.label >= 0).sum())

    def check(what: str, wrong: bool, problem: str) -> Check:
        return Check(f"{name}: {what}", f"{name}: {problem}. {manifest.rebuild}" if wrong else "")

    for what, (fault, ids) in faults.items():
        yield check(what, bool(ids), f"{fault} {name_some(ids)}")
    if has_members:
        yield check(
            "mean of the ensemble", bool(not_mean),
            f"logits must be the mean of the members', not so in {name_some(not_mean)}",
        )  # fmt: skip
    found, wanted = digest.hexdigest(), manifest.data.get(split)
    yield check(
        "digest of the rows", found != wanted, f"the digest of its rows must be {wanted}, got {found}"
    )
    if split == TEST:
        return  # no score of it is written or shown; manifests of older versions have one
    accuracy = manifest.metrics.get(split, {}).get("accuracy")
    share = correct.total() / max(1, labelled.total())
    problem = ""
    if accuracy is not None and abs(accuracy - share) > 1e-12:
        problem = f"{name}: the manifest's accuracy must be that of the logits, got {accuracy}"
    for file in names:
        listed = manifest.files[file]
        if (listed["correct"], listed["labelled"]) != (correct[file], labelled[file]):
            problem = (
                f"{file}: {listed['correct']} of {listed['labelled']} predictions must be correct, "
                f"got {correct[file]} of {labelled[file]}"
            )
    yield Check(f"{name}: accuracy", f"{problem}. {manifest.rebuild}" if problem else "")


def _compare_with_data(opened: OpenSplit, data: Batches, name: str) -> str:
    """Say how the cached rows differ from the prepared ones; empty if they don't."""
    found = join_keys(data, opened.keys)
    for what, table, rows in (
        ("every example must be in the cache, got none for", data, found.only_a),
        ("every row must be in the data, got unknown", opened.keys, found.only_b),
        ("the text must be that of the data, got another for", data, found.texts),
        ("the label must be that of the data, got another for", data, found.labels),
    ):
        if rows.any():
            return f"{name}: {what} {name_chosen(table, rows)}."
    return ""
