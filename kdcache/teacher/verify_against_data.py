"""Verification of a task's cache against its own manifest, the prepared data and the teacher."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from kdcache.cache.join import Batches, batches_of
from kdcache.cache.manifest import OUTSIDE, Manifest, check_identity, read_identity_of, read_manifest
from kdcache.cache.reader import load_cache
from kdcache.cache.schema import top_k_of
from kdcache.cache.split_files import name_span
from kdcache.cache.top_logits import kept_labels, share_rest
from kdcache.cache.verify import Check, verify_cache
from kdcache.data.ids import name_some
from kdcache.data.splits import digest_of, open_tables, rows_at
from kdcache.data.task import Task
from kdcache.errors import CacheError
from kdcache.project import Project, require_task
from kdcache.store.location import Location
from kdcache.teacher.recompute import recompute


def verify_task(project: Project, task_name: str, teacher_rows: int = 0) -> list[Check]:
    """Verify the cache of a task with the data and the teacher, as far as they are in the project.

    Args:
        project: the project.
        task_name: the task.
        teacher_rows: number of random rows per split whose logits the teacher computes again, by the
            project's engine.

    Returns:
        One entry per check.

    Raises:
        ParamsError: there is no such task.
        DataError: the prepared data are broken.
    """
    require_task(project, task_name)
    task: Task | None = None
    tables: dict[str, Batches] = {}
    if (Path(project.paths.data) / task_name).is_dir():
        task, files = open_tables(project.paths.data, task_name)
        tables = {split: batches_of(file) for split, file in files.items()}
    location = Location.parse(project.paths.cache, task_name)
    checks = verify_cache(location, tables)
    if any(check.problem for check in checks):
        return checks
    manifest = read_manifest(location)
    cached = {split: table for split, table in tables.items() if split in manifest.data}
    teacher = read_identity_of(Path(project.paths.teacher) / task_name)
    digests = {split: digest_of(table()) for split, table in cached.items()}
    try:
        labels = task.labels if task else tuple(manifest.identity["labels"])
        check_identity(manifest, task_name, labels, digests, teacher, {})
        checks.append(Check("identity" if teacher else "identity, without a teacher in the project"))
    except CacheError as error:
        return [*checks, Check("identity", str(error))]
    if teacher_rows and teacher and manifest.identity.get("kind") != OUTSIDE and task and "train" in cached:
        there = {split: files[split] for split in cached}
        checks += _recompute(project, task, manifest, there, digests["train"], teacher_rows)
    return checks


def _recompute(
    project: Project, task: Task, manifest: Manifest, files: dict[str, pq.ParquetFile], train_rows: str,
    count: int,
) -> Iterator[Check]:  # fmt: skip
    """Compute some rows of each split again."""
    rng = np.random.default_rng()  # other rows each time
    chosen = {split: np.sort(rng.permutation(f.metadata.num_rows)[:count]) for split, f in files.items()}
    tables = {split: rows_at(file, chosen[split]) for split, file in files.items()}
    computed = recompute(project, task, manifest.dtype, tables, train_rows)
    location = Location.parse(project.paths.cache, task.name)
    for split, table in tables.items():
        ids = table["example_id"].to_pylist()
        cached = load_cache(location, split).align(ids)
        members = computed[split]["members"].swapaxes(0, 1)
        # Not strict: the cache of a single teacher has no columns of members.
        pairs = [(members.mean(axis=0), cached.logits), *zip(members, cached.members, strict=False)]
        if cached.logits_plain is not None:
            pairs.append((computed[split]["plain"], cached.logits_plain))
        if top_k_of(manifest.schema):  # by what is cached: the labels kept, and the others together
            pairs = [(share_rest(again, kept_labels(before)), before) for again, before in pairs]
        moved = np.max([np.abs(again - before).max(axis=1) for again, before in pairs], axis=0)
        far = [i for i, distance in zip(ids, moved, strict=True) if not distance <= manifest.tolerance]
        name = name_span(manifest.files_of(split))
        problem = (
            f"{name}: the teacher must give its logits again within {manifest.tolerance:g}, "
            f"got up to {moved.max():.3g} away for {name_some(far)}. {manifest.rebuild}"
        )
        yield Check(f"{name}: {len(ids)} rows by the teacher", problem if far else "")
