"""The layout of SuperGLUE on the hub: ``<task>/<split>-*.parquet``, flat rows, labels as class indices."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from kdcache.data.readers import ask_hub
from kdcache.data.taskfile_schema import Files, TaskFile
from kdcache.errors import DataError, reason_of

HUB_ID = "aps/super_glue"
HUB_REVISION = "3de24cf8022e94f4ee4b9d55a6f539891524d646"


def hub_layout(name: str, file: TaskFile, place: str) -> tuple[TaskFile, Path]:
    """Point a task file at the hub's files instead of the official ones.

    Args:
        name: the task.
        file: its task file, for the official layout.
        place: ``HUB_ID``, which is read at ``HUB_REVISION``, or a folder in the same layout.

    Returns:
        The task file for the hub's layout, and the folder that its files are in. Ids and labels are those
        of the official layout.

    Raises:
        DataError: no such folder, the hub is out of reach (within 10 seconds), or a file has its classes in
            another order.
    """
    configs = [name, *file.diagnostics]
    folder = Path(place) if Path(place).is_dir() else _fetch(place, configs)
    for config in configs:
        for path in sorted((folder / config).glob("*.parquet")):
            _check_classes(path, file.label_names)
    return replace(
        file,
        splits=Files(**{split: f"{name}/{split}-*.parquet" for split in file.splits.named}),
        labels={str(index): label for index, label in enumerate(file.label_names)},
        diagnostics={
            split: replace(extra, file=f"{split}/test-*.parquet") for split, extra in file.diagnostics.items()
        },
    ), folder


def _fetch(place: str, configs: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    def snapshot(config: str, local: bool) -> Path:
        return Path(
            snapshot_download(
                place, repo_type="dataset", revision=HUB_REVISION,
                allow_patterns=f"{config}/*.parquet", local_files_only=local,
            )
        )  # fmt: skip

    if place != HUB_ID:
        raise DataError(
            f"prepare.path: it must be {HUB_ID} or a folder in its layout, got {place}. "
            "Read other data sets with a task file."
        )
    try:
        folders = [snapshot(config, local=True) for config in configs]
        if all(
            any((folder / config).glob("*.parquet")) for folder, config in zip(folders, configs, strict=True)
        ):
            return folders[0]
    except Exception:  # nothing there yet; the hub client raises many unrelated types
        pass
    try:
        ask_hub(place, HUB_REVISION)
        folders = [snapshot(config, local=False) for config in configs]
    except Exception as error:
        raise DataError(
            f"{place}: the data set must be cached or the hub within reach, got neither "
            f"({type(error).__name__}). Name a folder with prepare.path, or go online once."
        ) from None
    return folders[0]  # the same snapshot


def _check_classes(path: Path, labels: tuple[str, ...]) -> None:
    """Where a file names its classes, they must be the task's, in the same order."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: it must be a Parquet file, got: {reason_of(error)}.") from None
    about = json.loads(metadata.get(b"huggingface", b"{}"))
    names = about.get("info", {}).get("features", {}).get("label", {}).get("names")
    if names is not None and tuple(name.lower() for name in names) != labels:
        raise DataError(
            f"{path}: the labels must be {', '.join(labels)} in this order, got {', '.join(names)}."
        )
