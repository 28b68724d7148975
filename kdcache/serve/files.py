"""Rows of a file or a pipe, labelled as they come."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from tqdm import tqdm

from kdcache.data.parsers import Layout, Row
from kdcache.data.readers import Kind, stream_rows
from kdcache.data.taskfile import read_task_file
from kdcache.data.taskfile_schema import TaskFile
from kdcache.errors import DataError, ParamsError
from kdcache.places import replacing
from kdcache.serve.mixed_batches import Request, predict_requests
from kdcache.serve.output import Form, LabelledWriter
from kdcache.serve.pool import StudentPool
from kdcache.serve.row_columns import RowColumns, read_requests

STDIN = "-"
KINDS: dict[str, Kind] = {".jsonl": "jsonl", ".csv": "csv", ".tsv": "tsv"}
CHUNK = 512  # rows that are read before they are labelled, at most
PIPE_BYTES = 65536  # what a pipe holds on Linux


def label_file(
    folders: Sequence[Path],
    source: str,
    output: Path | None,
    form: Form | None,
    tasks: Mapping[str, Path] | None = None,
    columns: RowColumns | None = None,
) -> int:
    """Label rows of text, and write each row with its label.

    Args:
        folders: of students. Where there are several, each row names its ``task`` or ``student``.
        source: a .jsonl, .csv or .tsv file, or - for JSON lines from standard input. It has the columns of
            prepared data, ``text`` and, where the task needs it, ``text_pair`` or ``choices``; or those of
            the task's own files.
        output: the file to write; None is standard output.
        form: of the output; None goes by the ending of ``output``, else of ``source``.
        tasks: name → task file; needed where the source has the columns of a task's own files.
        columns: which of the two the source has; None goes by their names, and refuses what fits both. With
            ``task``, one student's file is also read as ``read`` of its task file says.

    Returns:
        How many rows were labelled.

    Raises:
        ParamsError: an unknown ending, the output would overwrite the source, or a bad or no task file.
        ModelError: see ``StudentPool``.
        DataError: a bad row. Those before it are written; where there are none, an output in place stays.
    """
    kind = _kind(source)
    form = form or _form(output, kind)
    if output is not None and output.exists() and source != STDIN and output.samefile(source):
        raise ParamsError(f"--output would overwrite the input {output}. Name another file.")
    pool = StudentPool(folders, "cuda" if torch.cuda.is_available() else "cpu")
    known = _task_files(pool, tasks or {}, columns)
    layout = Layout()
    if columns == "task" and len(known) == 1:
        layout = replace(next(iter(known.values())).read, format=None)
    quoted = kind != "jsonl" and layout.quotes
    with contextlib.ExitStack() as stack:
        if output is None:
            out = sys.stdout.buffer
        else:
            out = stack.enter_context(stack.enter_context(replacing(output)).open("wb"))
        bar = stack.enter_context(_progress(source, output))
        if source == STDIN:
            pipe = Pipe(sys.stdin.buffer)
            rows = stream_rows(pipe, "standard input", kind, layout)  # type: ignore[arg-type]
            chunks = _chunks(read_requests(rows, pool, known, columns, quoted), lambda: pipe.has_line)
        else:
            file = stack.enter_context(Path(source).open("rb"))
            rows = stream_rows(file, source, kind, layout)
            chunks = _chunks(read_requests(rows, pool, known, columns, quoted), lambda: True)
        writer = LabelledWriter(out, form, pool.labels)
        count, bad = 0, None
        try:
            for chunk in chunks:
                predictions = predict_requests([request for _, request in chunk])
                for (row, _), prediction in zip(chunk, predictions, strict=True):
                    writer.write(row, prediction)
                    count += 1
                out.flush()
                bar.set_postfix(rows=count, refresh=False)
                bar.update(len(chunk) if source == STDIN else file.tell() - bar.n)
        except DataError as error:
            if not count:
                raise
            bad = error
        if not count:
            writer.write_header()
    if bad:
        raise DataError(f"{bad} {output or 'The output'} has the {count} rows before it.")
    return count


class Pipe:
    """Lines of a pipe, and whether a whole one has already come.

    A pipe's own ``readline`` does not tell whether the next call will wait. So rows that came
    would have to wait, unlabelled, for rows that a live producer has not sent.

    Args:
        pipe: open for reading, in binary.
    """

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self._held = bytearray()

    def readline(self, size: int) -> bytes:
        """Read a line, or ``size`` bytes of a longer one."""
        while (end := self._held.find(b"\n", 0, size) + 1) == 0 and len(self._held) < size:
            arrived = self._pipe.read1(PIPE_BYTES)  # type: ignore[attr-defined]
            if not arrived:
                break
            self._held += arrived
        line = bytes(self._held[: end or size])
        del self._held[: len(line)]
        return line

    @property
    def has_line(self) -> bool:
        """Whether a line that is not blank can be read without waiting."""
        return b"\n" in self._held.lstrip()


def _kind(source: str) -> Kind:
    if source == STDIN:
        return "jsonl"
    path = Path(source)
    if not path.is_file():
        raise DataError(f"There is no input file {source}. Check the path.")
    if path.suffix not in KINDS:
        raise ParamsError(
            f"--input takes files that end in {', '.join(KINDS)}, got {source}. Convert it, or rename it."
        )
    return KINDS[path.suffix]


def _form(output: Path | None, kind: Kind) -> Form:
    if output is None:
        return "jsonl" if kind == "jsonl" else "csv"
    if output.suffix not in (".csv", ".jsonl"):
        raise ParamsError(
            f"--output takes a file that ends in .csv or .jsonl, got {output}. Rename it, or add --format."
        )
    return "csv" if output.suffix == ".csv" else "jsonl"


def _task_files(
    pool: StudentPool, tasks: Mapping[str, Path], columns: RowColumns | None
) -> dict[str, TaskFile]:
    """The task files of the pool's tasks, where they are known."""
    names = {student.task.name for student in pool.students.values()}
    if columns == "task" and (lacking := sorted(names - tasks.keys())):
        raise ParamsError(
            f"--columns: task needs the task file of {lacking[0]}, got none. Run in the project that has it."
        )
    return {name: read_task_file(tasks[name]) for name in names & tasks.keys()}


def _chunks(
    requests: Iterator[tuple[Row, Request]], has_more: Callable[[], bool]
) -> Iterator[list[tuple[Row, Request]]]:
    """Cut a stream where it would wait, or after ``CHUNK`` rows; the rows before a bad one come first."""
    chunk: list[tuple[Row, Request]] = []
    try:
        for request in requests:
            chunk.append(request)
            if len(chunk) == CHUNK or not has_more():
                yield chunk
                chunk = []
    except DataError:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def _progress(source: str, output: Path | None) -> Any:
    """A bar in bytes of a file or rows of a pipe; hidden where the rows themselves are shown."""
    size = None if source == STDIN else os.path.getsize(source)
    shown = output is None and sys.stdout.isatty()
    hidden = shown or (size is None and not sys.stderr.isatty())
    unit = "row" if size is None else "B"
    return tqdm(total=size, desc="predict", unit=unit, unit_scale=size is not None, disable=hidden)
