"""cache/<task>/ against everything that is at hand: its own manifest, the data, the teacher."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from kdcache.cache.ids import name_some
from kdcache.cache.location import Location
from kdcache.cache.manifest import EXTERNAL, Manifest, check_identity, read_manifest
from kdcache.cache.reader import load_cache
from kdcache.cache.schema import ALL_ROWS_TEACHER
from kdcache.cache.verify import Check, verify_cache
from kdcache.data.splits import existing_splits, read_split, table_digest
from kdcache.data.task import Task, read_task
from kdcache.errors import CacheError
from kdcache.params import build
from kdcache.project import IDENTITY, Project, require_task


def verify(project: Project, task_name: str, teacher_rows: int = 0) -> list[Check]:
    """Verify the cache of a task.

    Args:
        project: the project.
        task_name: the task.
        teacher_rows: how many random rows per split to compute again, where the teacher is there.

    Returns:
        One check per thing that was looked at.

    Raises:
        ParamsError: no such task.
        DataError: prepared data that are broken; without any, the cache is checked alone.
    """
    require_task(project, task_name)
    data = Path(project.paths.data) / task_name
    task = read_task(data, task_name) if data.is_dir() else None
    tables = {split: read_split(data, split, task) for split in existing_splits(data, task)} if task else {}
    location = Location.parse(project.paths.cache, task_name)
    checks = verify_cache(location, tables)
    if any(check.problem for check in checks):
        return checks
    manifest = read_manifest(location)
    cached = {split: table for split, table in tables.items() if split in manifest.data}
    identity_path = Path(project.paths.teacher) / task_name / IDENTITY
    teacher = json.loads(identity_path.read_text(encoding="utf-8")) if identity_path.is_file() else None
    digests = {split: table_digest(table) for split, table in cached.items()}
    try:
        labels = task.labels if task else tuple(manifest.identity["labels"])
        check_identity(manifest, task_name, labels, digests, teacher, {})
        checks.append(Check("identity" if teacher else "identity, without a teacher at hand"))
    except CacheError as error:
        return [*checks, Check("identity", str(error))]
    ours = teacher and manifest.identity.get("kind") != EXTERNAL
    if teacher_rows and ours and task and "train" in cached:
        checks += _recompute(project, task, manifest, cached, teacher_rows)
    return checks


def _recompute(
    project: Project, task: Task, manifest: Manifest, tables: dict[str, pa.Table], count: int
) -> Iterator[Check]:
    """Ask the teacher again about some rows of each split; only this needs torch."""
    from kdcache.teacher.cache_teacher import CacheTeacherParams, open_teacher

    params = build(
        CacheTeacherParams, project.raw["cache_teacher"] | {"dtype": manifest.dtype}, "cache_teacher"
    )
    teacher = open_teacher(project, task, params, tables)
    rng = np.random.default_rng()  # other rows each time
    for split, table in tables.items():
        rows = np.sort(rng.permutation(len(table))[:count])
        ids = [table["example_id"][int(row)].as_py() for row in rows]
        cached = load_cache(Location.parse(project.paths.cache, task.name), split).align(ids)
        said = teacher.recompute(split, rows)
        # not strict: one teacher, and an ensemble's cache without these columns, has no members
        pairs = [(said.mean(axis=0), cached.logits), *zip(said, cached.members, strict=False)]
        if cached.logits_plain is not None:
            plain = teacher.logits(split, ALL_ROWS_TEACHER, rows).mean(axis=0)
            pairs.append((plain, cached.logits_plain))
        moved = np.max([np.abs(now - kept).max(axis=1) for now, kept in pairs], axis=0)
        far = [i for i, distance in zip(ids, moved, strict=True) if distance > manifest.tolerance]
        problem = (
            f"{split}.parquet: the teacher must give its logits again within {manifest.tolerance:g}, "
            f"got up to {moved.max():.3g} away for {name_some(far)}. {manifest.rebuild}"
        )
        yield Check(f"{split}.parquet: {len(ids)} rows by the teacher", problem if far else "")
