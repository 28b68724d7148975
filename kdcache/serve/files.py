"""students + rows of text → labels and probabilities, as the rows come; needs no project's parameters."""

import contextlib
import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import torch
from tqdm import tqdm

from kdcache.data.formats import Row
from kdcache.data.readers import Kind, stream_rows
from kdcache.errors import DataError, ParamsError, shorten
from kdcache.serve.pool import StudentPool, load_student
from kdcache.serve.requests import LoadedStudent, Prediction, Request, predict

STDIN = "-"
KINDS: dict[str, Kind] = {".jsonl": "jsonl", ".csv": "csv", ".tsv": "tsv"}
PREDICTION, PROBABILITIES, PROBABILITY = "prediction", "probabilities", "probability_"


def serve(folders: Sequence[Path], source: str, output: Path | None, form: str | None, chunk: int) -> int:
    """Label rows of text, and write each row with its label behind it.

    Args:
        folders: of students; with several of one backbone each row names its ``task`` or ``student``.
        source: a .jsonl, .csv or .tsv file, or - for JSON lines from standard input; columns
            ``text``, ``text_pair`` or ``choices``, others pass through.
        output: a file to write; None is standard output.
        form: of the output, ``csv`` or ``jsonl``; None goes by the output's ending, else by the source's.
        chunk: rows that are read before the first are answered.

    Returns:
        Rows that were answered.

    Raises:
        ParamsError: an ending that says no format, or the output would overwrite the source.
        ModelError: see ``load_student`` and ``StudentPool``.
        DataError: a bad row; what stands before it is written.
    """
    kind = _kind(source)
    form = form or _form(output, kind)
    if output is not None and output.exists() and source != STDIN and output.samefile(source):
        raise ParamsError(f"--output: it must be another file than the input, got {output}. Name another.")
    served = _load(folders)
    labels = [label for student in _students(served) for label in student.labels]
    with contextlib.ExitStack() as stack:
        file = sys.stdin.buffer if source == STDIN else stack.enter_context(Path(source).open("rb"))
        out = sys.stdout.buffer if output is None else stack.enter_context(output.open("wb"))
        write = _csv_writer(out, list(dict.fromkeys(labels))) if form == "csv" else _jsonl_writer(out)
        bar = stack.enter_context(_progress(source, output))
        rows = stream_rows(file, "standard input" if source == STDIN else source, kind, ["text"])
        count = 0
        for some in _chunks(_requests(rows, served), chunk):
            predictions = predict([request for _, request in some])
            for (row, _), prediction in zip(some, predictions, strict=True):
                write(row, prediction)
            out.flush()
            count += len(some)
            bar.set_postfix(rows=count, refresh=False)
            bar.update(len(some) if source == STDIN else file.tell() - bar.n)
        return count


def _kind(source: str) -> Kind:
    if source == STDIN:
        return "jsonl"
    path = Path(source)
    if not path.is_file():
        raise DataError(f"{source}: the input must be a file, got nothing there. Check the path.")
    if path.suffix not in KINDS:
        raise ParamsError(f"--input: the file must end in {', '.join(KINDS)}, got {source}. Rename it.")
    return KINDS[path.suffix]


def _form(output: Path | None, kind: Kind) -> str:
    if output is None:
        return "jsonl" if kind == "jsonl" else "csv"
    if output.suffix not in (".csv", ".jsonl"):
        raise ParamsError(f"--output: the file must end in .csv or .jsonl, got {output}. Rename it.")
    return "csv" if output.suffix == ".csv" else "jsonl"


def _load(folders: Sequence[Path]) -> LoadedStudent | StudentPool:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_student(folders[0], device) if len(folders) == 1 else StudentPool(folders, device)


def _students(served: LoadedStudent | StudentPool) -> list[LoadedStudent]:
    return [served] if isinstance(served, LoadedStudent) else list(served.students.values())


def _requests(rows: Iterator[Row], served: LoadedStudent | StudentPool) -> Iterator[tuple[Row, Request]]:
    for row in rows:
        student = served if isinstance(served, LoadedStudent) else _named(row, served)
        yield row, student.request(row.values["text"], _second(row, student), row.where)


def _named(row: Row, pool: StudentPool) -> LoadedStudent:
    name = row.values.get("student") or row.values.get("task")
    if name is None:
        raise DataError(
            f"{row.where}: the row must name its task or student, got neither. Add a column task."
        )
    return pool.find(name, row.where)


def _second(row: Row, student: LoadedStudent) -> Any:
    """The second sequence, or the choices; a cell holds choices as a JSON list."""
    if student.task.num_choices == 1:
        return row.values.get("text_pair")
    choices = row.values.get("choices")
    if isinstance(choices, str):
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(choices)
    return choices


def _chunks(requests: Iterator[tuple[Row, Request]], size: int) -> Iterator[list[tuple[Row, Request]]]:
    """Cut an endless stream; what stands before a bad row is passed on before its error."""
    while True:
        some: list[tuple[Row, Request]] = []
        try:
            for request in islice(requests, size):
                some.append(request)  # one by one: kept where the next is bad
        except DataError:
            if some:
                yield some
            raise
        if not some:
            return
        yield some


def _progress(source: str, output: Path | None) -> Any:
    """In bytes of a file, in rows of a pipe; none where the rows themselves are shown."""
    size = None if source == STDIN else os.path.getsize(source)
    shown = output is None and sys.stdout.isatty()
    hidden = shown or (size is None and not sys.stderr.isatty())
    unit = "row" if size is None else "B"
    return tqdm(total=size, desc="predict", unit=unit, unit_scale=size is not None, disable=hidden)


def _jsonl_writer(out: BinaryIO) -> Callable[[Row, Prediction], None]:
    def write(row: Row, prediction: Prediction) -> None:
        _refuse_taken(row, lambda name: name in (PREDICTION, PROBABILITIES))
        probabilities = {label: round(p, 6) for label, p in prediction.probabilities.items()}
        line = {**row.values, PREDICTION: prediction.label, PROBABILITIES: probabilities}
        out.write(_bytes(json.dumps(line, ensure_ascii=False) + "\n"))

    return write


def _csv_writer(out: BinaryIO, labels: Sequence[str]) -> Callable[[Row, Prediction], None]:
    """The first row's columns, the label, and a probability per label of any task, blank for others'."""
    columns: list[str] = []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")

    def write(row: Row, prediction: Prediction) -> None:
        if not columns:
            _refuse_taken(row, lambda name: name == PREDICTION or name.startswith(PROBABILITY))
            columns.extend(row.values)
            writer.writerow([*columns, PREDICTION, *(f"{PROBABILITY}{label}" for label in labels)])
        if more := [name for name in row.values if name not in columns]:
            raise DataError(
                f"{row.where}: the columns must be those of the first row in CSV, got {more[0]!r} too. "
                "Add: --format jsonl"
            )
        shares = [prediction.probabilities.get(label) for label in labels]
        writer.writerow(
            [*(_cell(row.values.get(name)) for name in columns), prediction.label]
            + ["" if share is None else f"{share:.6f}" for share in shares]
        )
        out.write(_bytes(text.getvalue()))
        text.seek(0)
        text.truncate()

    return write


def _refuse_taken(row: Row, taken: Callable[[str], bool]) -> None:
    for name in filter(taken, row.values):
        raise DataError(
            f"{row.where}: the columns must leave {shorten(name)} to the predictions, got one of that name. "
            "Rename it."
        )


def _cell(value: Any) -> str:
    """JSON's other values in CSV: nothing for null, JSON for lists and the like."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _bytes(text: str) -> bytes:
    """UTF-8; half a character, which JSON can spell in a column that passes through, as JSON spells it."""
    return text.encode("utf-8", "backslashreplace")
