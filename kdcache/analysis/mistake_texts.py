"""Texts of cached rows, from the prepared data."""

from collections.abc import Iterable
from pathlib import Path

from kdcache.cache.manifest import check_identity, read_manifest
from kdcache.data.splits import read_split, table_digest
from kdcache.data.task import read_task
from kdcache.project import Project
from kdcache.store.location import Location


def read_texts(project: Project, task_name: str, split: str, ids: Iterable[str]) -> dict[str, list[str]]:
    """Read the texts of some rows of a cache from the prepared data.

    Args:
        project: the project.
        task_name: the task.
        split: of the cache.
        ids: example ids of that split.

    Returns:
        id → the text and, if the task has them, the second text or the choices; in the order of ``ids``.

    Raises:
        DataError: the split was not prepared.
        CacheStale: the cache was made from other data.
    """
    data = Path(project.paths.data) / task_name
    task = read_task(data, task_name)
    table = read_split(data, split, task)
    manifest = read_manifest(Location.parse(project.paths.cache, task_name))
    check_identity(manifest, task_name, task.labels, {split: table_digest(table)}, None, {})
    row_of = {example_id: row for row, example_id in enumerate(table["example_id"].to_pylist())}
    texts = {}
    for example_id in ids:
        row = table.slice(row_of[example_id], 1).to_pylist()[0]
        others = row["choices"] if task.num_choices > 1 else [row["text_pair"]]
        texts[example_id] = [row["text"], *(other for other in others if other)]
    return texts
