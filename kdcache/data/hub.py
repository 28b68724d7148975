"""Rows of the hub's layout: ``<folder>/<task>/<split>-*.parquet``, one flat row per example."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from kdcache.data.source import LABELLED_SPLITS, Source, unique
from kdcache.data.task import Example
from kdcache.errors import DataError, shorten

HUB_ID = "aps/super_glue"
HUB_REVISION = "3de24cf8022e94f4ee4b9d55a6f539891524d646"
HUB_TIMEOUT_S = 5
SPLITS = ("train", "validation", "test")


def read_hub(place: str, source: Source) -> dict[str, list[Example]]:
    """Read all splits of a task.

    Args:
        place: ``HUB_ID``, read at ``HUB_REVISION``, or a folder in the same layout.
        source: which task, and how its rows read.

    Returns:
        split name → examples in file order; ids and labels as from the official layout.

    Raises:
        DataError: no such folder, or the hub cannot be reached (one line, within 10 seconds);
            a split is missing, or a row malformed or twice there.
    """
    splits = _read_config(place, source.task.name, source, {split: split for split in SPLITS})
    for split in LABELLED_SPLITS:
        if split not in splits:
            raise DataError(
                f"{place}: the {split} split of {source.task.name} must be a file "
                f"{source.task.name}/{split}-*.parquet there, got none. Point prepare.path at a whole copy."
            )
    for extra in source.diagnostics:
        splits |= _read_config(
            place, extra.split, replace(source, expand=extra.expand), {"test": extra.split}
        )
    return splits


def _read_config(place: str, config: str, source: Source, names: dict[str, str]) -> dict[str, list[Example]]:
    folder = Path(place) / config if Path(place).is_dir() else _fetch(place, config) / config
    splits = {}
    for split, name in names.items():
        if files := sorted(folder.glob(f"{split}-*.parquet")):
            splits[name] = list(unique(_read_files(files, source, name), name))
    return splits


def _fetch(place: str, config: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    def snapshot(local: bool) -> Path:
        return Path(
            snapshot_download(
                place, repo_type="dataset", revision=HUB_REVISION,
                allow_patterns=f"{config}/*.parquet", local_files_only=local,
            )
        )  # fmt: skip

    if place != HUB_ID:
        raise DataError(
            f"prepare.path: it must be {HUB_ID} or a folder in its layout, got {place}. "
            "Own data sets are read by a task file."
        )
    try:
        if any(((folder := snapshot(local=True)) / config).glob("*.parquet")):
            return folder
    except Exception:  # nothing there yet; the hub client raises many unrelated types
        pass
    try:
        # Ask once with a short time-out: downloading straight away retries for most of a minute.
        HfApi().dataset_info(place, revision=HUB_REVISION, timeout=HUB_TIMEOUT_S)
        return snapshot(local=False)
    except Exception as error:
        raise DataError(
            f"{place}: the data set must be cached or the hub within reach, got neither "
            f"({type(error).__name__}). Name a folder with prepare.path, or go online once."
        ) from None


def _read_files(files: list[Path], source: Source, split: str) -> Iterator[tuple[str, Example]]:
    for path in files:
        number = 0
        try:
            file = pq.ParquetFile(path)
            _check_labels(file, source, path)
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    where = f"{path}:{number}"
                    label = _label(row.pop("label", -1), source, split, where)
                    for example in source.examples(row, label, split, where):
                        yield where, example
        except (pa.ArrowInvalid, OSError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{path}: it must be a Parquet file, got: {reason}.") from None


def _check_labels(file: pq.ParquetFile, source: Source, path: Path) -> None:
    """Where the file names its classes, they must be the task's, in the same order."""
    about = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
    names = about.get("info", {}).get("features", {}).get("label", {}).get("names")
    if names is not None and tuple(name.lower() for name in names) != source.task.labels:
        raise DataError(
            f"{path}: the labels must be {', '.join(source.task.labels)} in this order, "
            f"got {', '.join(names)}."
        )


def _label(value: object, source: Source, split: str, where: str) -> int:
    if not source.labels:
        return -1
    low = 0 if split in LABELLED_SPLITS else -1
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value < source.task.num_labels:
        raise DataError(
            f"{where}: label must be a class of {source.task.name}, {low} to "
            f"{source.task.num_labels - 1}, got {shorten(value)}."
        )
    return value
