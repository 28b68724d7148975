"""The one schema of ``kdcache predict``: rows with their labels, as CSV or JSON lines.

A labelled row holds ``example_id``, ``prediction`` (the name of the most likely label),
``probability_<label>`` for each label, and the input's other columns unchanged, in this order.
"""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any, BinaryIO, Literal

from kdcache.data.parsers import Row
from kdcache.errors import DataError, shorten
from kdcache.serve.mixed_batches import Prediction

Form = Literal["csv", "jsonl"]

EXAMPLE_ID, PREDICTION, PROBABILITY = "example_id", "prediction", "probability_"
DIGITS = 6


class LabelledWriter:
    """Writes labelled rows as they come.

    A row's id is its ``example_id``, else its ``id``, else its number from 1. In CSV, the columns
    are those of the first row, and labels of other tasks stay blank. JSON lines leave these out.

    Args:
        out: where to, open in binary.
        form: ``csv`` or ``jsonl``.
        labels: of all tasks that rows can belong to.
    """

    def __init__(self, out: BinaryIO, form: Form, labels: Sequence[str]) -> None:
        self._out = out
        self._form = form
        self._probabilities = {label: f"{PROBABILITY}{label}" for label in labels}
        self._own = {PREDICTION, *self._probabilities.values()}
        self._columns: list[str] = []  # of CSV
        self._count = 0

    def write(self, row: Row, prediction: Prediction) -> None:
        """Write one row.

        Raises:
            DataError: the row has a column that the schema needs for itself, an id that is neither a
                text nor a number, or, in CSV, a column that the first row lacks.
        """
        self._count += 1
        for name in row.values:
            if name in self._own:
                raise DataError(
                    f"{row.where}: The column {shorten(name)} is written by kdcache predict. Rename yours."
                )
        others = {name: value for name, value in row.values.items() if name != EXAMPLE_ID}
        shares = {self._probabilities[label]: share for label, share in prediction.probabilities.items()}
        ours = {EXAMPLE_ID: _example_id(row, self._count), PREDICTION: prediction.label}
        if self._form == "jsonl":
            rounded = {name: round(share, DIGITS) for name, share in shares.items()}
            text = json.dumps({**ours, **rounded, **others}, ensure_ascii=False) + "\n"
        else:
            written = {name: f"{share:.{DIGITS}f}" for name, share in shares.items()}
            text = self._csv_lines(row.where, {**ours, **written}, others)
        # JSON can spell half a character, which UTF-8 cannot: it is written as JSON spells it.
        self._out.write(text.encode("utf-8", "backslashreplace"))

    def write_header(self) -> None:
        """Write the columns of labelled rows, where there is no row to tell the others; CSV only."""
        if self._form == "csv":
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerow(
                [EXAMPLE_ID, PREDICTION, *self._probabilities.values()]
            )
            self._out.write(text.getvalue().encode())

    def _csv_lines(self, where: str, ours: dict[str, str], others: dict[str, Any]) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self._columns:
            self._columns = [EXAMPLE_ID, PREDICTION, *self._probabilities.values(), *others]
            writer.writerow(self._columns)
        for name in others:
            if name not in self._columns:
                raise DataError(
                    f"{where}: The first row has no column {shorten(name)}, and CSV takes its columns from "
                    "there. Add: --format jsonl"
                )
        cells = {**ours, **others}
        writer.writerow([_cell(cells.get(name)) for name in self._columns])
        return text.getvalue()


def _example_id(row: Row, number: int) -> str:
    for name in (EXAMPLE_ID, "id"):
        value = row.values.get(name)
        if isinstance(value, str | int | float) and value != "":
            return str(value)
        if value is not None and value != "":
            raise DataError(f"{row.where}: {name} must be a text or a number, got {shorten(value)}.")
    return str(number)


def _cell(value: Any) -> str:
    """Write a JSON value in CSV: nothing for null, and JSON for lists and the like."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)
