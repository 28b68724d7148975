"""The one reader of rows: from a file, from a stream that need not end, or from a data set on the hub.

Rows come one at a time, each with its place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from kdcache.data.parsers import FORMATS, Layout, Row, check_columns, parse_rows
from kdcache.errors import DataError

Kind = Literal["jsonl", "csv", "tsv"]  # what can be read as a stream
DATA_SET_TIMEOUT_S = 5


@dataclass(frozen=True)
class Hub:
    """A data set on the hub, pinned to a revision.

    Args:
        name: such as ``aps/super_glue``, or a folder that ``datasets`` can load.
        revision: a commit.
        config: the configuration, for a data set that has several.
    """

    name: str
    revision: str
    config: str | None = None


def read_rows(
    path: Path, layout: Layout, columns: Sequence[str], optional: Sequence[str] | None = ()
) -> Iterator[Row]:
    """Read the rows of one file in order.

    Args:
        path: the file.
        layout: how it is written.
        columns: those that every row must have.
        optional: those of Parquet to read as well; None reads all.

    Yields:
        At least one row. Values are text, except in JSON lines and Parquet.

    Raises:
        DataError: no such file, no row, or a row that does not fit the layout.
    """
    if not path.is_file():
        raise DataError(f"{path}: it must be a file, got no such file. Check the path.")
    kind = "lines" if layout.pattern else layout.format or FORMATS.get(path.suffix)
    if kind is None:
        raise DataError(
            f"{path}: its ending must be one of {', '.join(FORMATS)}, got {path.suffix!r}. "
            "Rename it, or set read.format or read.pattern in the task file."
        )
    empty = True
    with path.open("rb") as file:
        for row in parse_rows(file, str(path), kind, layout, columns, optional):
            empty = False
            yield row
    if empty:
        raise DataError(f"{path}: the file must hold at least one row, got none.")


def stream_rows(file: BinaryIO, name: str, kind: Kind, layout: Layout) -> Iterator[Row]:
    """Read rows from an open file or a pipe that need not end; at most one row is held.

    Args:
        file: open, in binary.
        name: of the file, for messages.
        kind: how it is written.
        layout: more of how.

    Raises:
        DataError: a row that does not fit its format; the rows before it have been yielded.
    """
    return parse_rows(file, name, kind, layout, (), whole=False)


def hub_rows(
    hub: Hub, split: str, columns: Sequence[str], optional: Sequence[str] | None = ()
) -> Iterator[Row]:
    """Read the rows of one split of a data set on the hub in order; needs the package ``datasets``.

    Args:
        hub: the data set.
        split: its name of the split.
        columns: those that every row must have.
        optional: those to read as well; None reads all.

    Yields:
        At least one row. A class label comes as its name, and as None where the data set has −1.

    Raises:
        DataError: ``datasets`` is not installed, the hub is out of reach (within 10 seconds), or there
            is no such data set, configuration, split or column.
    """
    try:
        import datasets
    except ModuleNotFoundError:
        raise DataError(
            f'{hub.name}: reading from the hub needs the package datasets. Run: pip install "kdcache[hub]"'
        ) from None
    where = f"{hub.name} {split}"
    datasets.disable_progress_bars()
    try:
        if not (Path(hub.name).is_dir() or datasets.config.HF_HUB_OFFLINE):
            ask_hub(hub.name, hub.revision)
        data = datasets.load_dataset(hub.name, hub.config, split=split, revision=hub.revision)
    except Exception as error:  # datasets and the hub client raise many unrelated types
        lines = str(error).strip().splitlines() or [""]
        raise DataError(
            f"{where}: it must be a split of a data set within reach, got {type(error).__name__}: "
            f"{lines[0][:120]}. Check hub and splits in the task file, or save the rows as files."
        ) from None
    there = data.column_names
    check_columns(where, there, columns)
    data = data.select_columns([c for c in there if optional is None or c in columns or c in optional])
    names = {c: kind.names for c, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)}
    if not len(data):
        raise DataError(f"{where}: the split must hold at least one row, got none.")
    for number, values in enumerate(data, start=1):
        for column, known in names.items():
            label = values[column]
            values[column] = None if label in (None, -1) else known[label]
        yield Row(f"{where} row {number}", values)


def ask_hub(name: str, revision: str) -> None:
    """Ask for a data set once, with a short time-out: downloading right away retries for most of a minute."""
    from huggingface_hub import HfApi

    HfApi().dataset_info(name, revision=revision, timeout=DATA_SET_TIMEOUT_S)
