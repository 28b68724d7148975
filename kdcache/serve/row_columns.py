"""Rows of a file or a pipe → requests: by the columns of prepared data, or by those of the task's own files.

Own columns are rendered by the code of ``prepare``, so a student reads the same text as in training. A row
that could be read in both ways is refused: one of the two would give wrong labels in silence.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from kdcache.data.examples import expand_rows
from kdcache.data.parsers import Row, check_columns
from kdcache.data.render import render
from kdcache.data.taskfile_schema import TaskFile
from kdcache.errors import DataError, nearest, shorten
from kdcache.serve.mixed_batches import LoadedStudent, Request
from kdcache.serve.pool import StudentPool

RowColumns = Literal["task", "prepared"]
PREPARED = ("text", "text_pair", "choices")


def read_requests(
    rows: Iterable[Row],
    pool: StudentPool,
    files: Mapping[str, TaskFile],
    columns: RowColumns | None = None,
    quoted: bool = False,
) -> Iterator[tuple[Row, Request]]:
    """Read rows as they come.

    Args:
        rows: of any tasks of the pool.
        pool: the students. Where there are several, a row names its ``task`` or ``student``.
        files: task → task file, where it is known.
        columns: which ones the rows have; None goes by their names.
        quoted: whether quotes enclosed the rows' cells.

    Yields:
        A row and its request. A row that its task expands comes as several.

    Raises:
        DataError: a bad row; those before it have been yielded.
    """
    for row in rows:
        student = _student(row, pool)
        file = None if columns == "prepared" else files.get(student.task.name)
        if quoted and file and not file.read.quotes and row.values.keys() & set(file.text_columns):
            remedy = "Add --columns task if they are text here, --columns prepared if they enclose cells"
            if columns == "task":
                remedy = "Give each student a file of its own"
            raise DataError(
                f"{row.where}: quotes must be text, as in the files of {student.task.name}, got a file whose "
                f"quotes enclose cells. {remedy}, or give JSON lines."
            )
        if file is None or not (columns == "task" or _has_own_columns(row, student, file)):
            yield row, _prepared(row, student, file)
            continue
        yield from _own(row, student, file)


def _student(row: Row, pool: StudentPool) -> LoadedStudent:
    if len(pool.students) == 1:
        return next(iter(pool.students.values()))
    name = row.values.get("student") or row.values.get("task")
    if name is None:
        raise DataError(f"{row.where}: With several students, a row names its task. Add a column: task")
    return pool.find(name, row.where)


def _has_own_columns(row: Row, student: LoadedStudent, file: TaskFile) -> bool:
    """Whether the row has the columns of the task's own files, and none of prepared data that differs."""
    marked = {span.column for span in file.spans}
    templates = {"text": file.text, "text_pair": file.text_pair}
    same = {name for name, t in templates.items() if t in (name, f"{{{name}}}") and name not in marked}
    filled = {name for name, value in row.values.items() if value not in (None, "")}
    own = [name for name in file.text_columns if name in filled - same]
    prepared = [name for name in PREPARED if name in filled - same]
    if own and prepared:
        raise DataError(
            f"{row.where}: a row must have either the columns of the task {student.task.name} or those of "
            f"prepared data, whose texts are rendered, got {', '.join(dict.fromkeys([*own, *prepared]))}. "
            "Remove one kind, or add --columns task or --columns prepared."
        )
    if own or filled & set(PREPARED):
        return bool(own)
    return file.expand is not None or row.values.keys() >= set(file.text_columns)


def _own(row: Row, student: LoadedStudent, file: TaskFile) -> Iterator[tuple[Row, Request]]:
    task = student.task
    if (template := file.template(task.name)) != task.template:
        raise DataError(
            f"{row.where}: the task file must render texts as the student learned them, {task.template}, got "
            f"{template}. Put back the task file, or give rendered texts with --columns prepared."
        )
    if not file.expand:
        _require_columns(row, student, file, file.text_columns)
    try:
        parts = list(expand_rows([row], task.name, file, file.text_columns))
    except DataError as error:
        prepared = ", ".join(_prepared_columns(student))
        raise DataError(f"{error} Or give {prepared}, as prepared data has.") from None
    for part in parts:
        text, text_pair, choices = render(file, part)
        yield part, student.request(text, choices or text_pair, part.where)


def _prepared(row: Row, student: LoadedStudent, file: TaskFile | None) -> Request:
    """Read the columns of prepared data. A cell holds choices as a JSON list."""
    wanted, other = ("choices", "text_pair") if student.task.num_choices > 1 else ("text_pair", "choices")
    needed = _prepared_columns(student)
    _require_columns(row, student, file, needed)
    if row.values.get(other) not in (None, ""):
        raise DataError(
            f"{row.where}: {other} must be empty for a student of {student.task.name}, got "
            f"{shorten(row.values[other])}. Remove it, or name another student."
        )
    return student.request(row.values["text"], _parsed(wanted, row.values.get(wanted)), row.where)


def _prepared_columns(student: LoadedStudent) -> tuple[str, ...]:
    if student.task.num_choices > 1:
        return "text", "choices"
    return ("text", "text_pair") if student.task.pairs else ("text",)


def _parsed(column: str, value: Any) -> Any:
    if column == "choices" and isinstance(value, str):
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(value)
    return value


def _require_columns(
    row: Row, student: LoadedStudent, file: TaskFile | None, columns: tuple[str, ...]
) -> None:
    """Refuse a row that lacks a column, by a message that names both kinds of columns."""
    name, prepared = student.task.name, _prepared_columns(student)
    if file is None:
        hint = f" In a project that has the task file of {name}, its own columns do as well."
        check_columns(row.where, list(row.values), columns, hint)
        return
    lacking = [column for column in columns if column not in row.values]
    if lacking:
        raise DataError(
            f"{row.where}: a row must have {', '.join(file.text_columns)}, as the files of {name} have, or "
            f"{', '.join(prepared)}, as prepared data has, got no {lacking[0]}. "
            f"{nearest(lacking[0], row.values)}"
        )
