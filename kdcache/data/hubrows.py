"""Rows of any data set on the hub, for a task file that names one; ``datasets`` is imported here alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdcache.data.rows import Row, check_columns
from kdcache.data.taskfile import Hub
from kdcache.errors import DataError

TIMEOUT_S = 5


def read_hub_rows(hub: Hub, split: str, columns: Sequence[str], optional: Sequence[str] = ()) -> list[Row]:
    """Read the rows of one split, in its order.

    Args:
        hub: which data set; its name may be a folder in a layout that ``datasets`` reads.
        split: the data set's name of it.
        columns: those that every row must have.
        optional: those to read too where they are.

    Returns:
        At least one row. A class label comes as its name, and as None where the data set has −1.

    Raises:
        DataError: ``datasets`` is not installed, the hub is out of reach (one line, within 10
            seconds), or there is no such data set, configuration, split or column.
    """
    try:
        import datasets
    except ModuleNotFoundError:
        raise DataError(
            f"{hub.name}: a hub's data set must be read by the package datasets, got none of that name. "
            'Run: pip install "kdcache[hub]"'
        ) from None
    where = f"{hub.name} {split}"
    datasets.disable_progress_bars()
    try:
        if not Path(hub.name).is_dir():
            _reach(hub)
        data = datasets.load_dataset(hub.name, hub.config, split=split, revision=hub.revision)
    except Exception as error:  # datasets and the hub client raise many unrelated types
        lines = str(error).strip().splitlines() or [""]
        raise DataError(
            f"{where}: it must be a split of a data set within reach, got {type(error).__name__}: "
            f"{lines[0][:120]}. Check hub and splits in the task file, or save the rows as files."
        ) from None
    check_columns(where, data.column_names, columns)
    data = data.select_columns([c for c in data.column_names if c in columns or c in optional])
    names = {c: kind.names for c, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)}
    rows = [Row(f"{where} row {i}", _named(values, names)) for i, values in enumerate(data, start=1)]
    if not rows:
        raise DataError(f"{where}: the split must hold at least one row, got none.")
    return rows


def _reach(hub: Hub) -> None:
    """Ask once with a short time-out: loading straight away retries for half a minute."""
    from huggingface_hub import HfApi

    HfApi().dataset_info(hub.name, revision=hub.revision, timeout=TIMEOUT_S)


def _named(values: dict[str, Any], names: dict[str, list[str]]) -> dict[str, Any]:
    labels = {c: None if values[c] in (None, -1) else known[values[c]] for c, known in names.items()}
    return values | labels
