"""Commands on trained students."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kdcache.cli.options import Debug, Overrides, Tasks, chosen_tasks, open_project
from kdcache.errors import ParamsError
from kdcache.project import errors_in_one_line


class Format(StrEnum):
    """Of a predictions file."""

    csv = "csv"
    jsonl = "jsonl"
    superglue = "superglue"


def predict(
    task: Tasks = None,
    split: Annotated[str, typer.Option("--split", help="A prepared split.")] = "test",
    arm: Annotated[str | None, typer.Option("--arm", help="The pipeline's student, first seed.")] = None,
    student: Annotated[
        list[Path] | None,
        typer.Option("--student", help="A student's folder; repeatable with --input, for mixed tasks."),
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option("--format", help="superglue: the benchmark's submission file.", show_default="csv"),
    ] = None,
    zip_: Annotated[
        bool, typer.Option("--zip", help="Also the diagnostics, and all submission files in a zip.")
    ] = False,
    input_: Annotated[
        str | None,
        typer.Option(
            "--input", metavar="FILE|-",
            help="Rows of text instead of a split: .jsonl, .csv, .tsv, or - for JSON lines from a pipe. "
            "Columns text, text_pair or choices; with several students task or student.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="With --input: a .jsonl or .csv file to write.")
    ] = None,
    chunk: Annotated[
        int, typer.Option(min=1, help="With --input: rows read before the first are answered.")
    ] = 512,
    set_: Overrides = None,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Label a prepared split → runs/predictions/, or with --input rows of text as they come → --output."""
    students = student or []
    if input_ is not None:
        with errors_in_one_line(debug):
            project_options = {"--task": task, "--arm": arm, "--zip": zip_, "--set": set_}
            for option in (name for name, value in project_options.items() if value):
                raise ParamsError(
                    f"--input: it must go without {', '.join(project_options)}, got {option}. Remove it."
                )
            _serve(students, input_, output, form, chunk)
        return
    with open_project(set_, debug, task) as project:
        chosen = chosen_tasks(project, task)
        form = form or Format.csv
        if (arm is None) == (not students):
            raise ParamsError(
                "predict: one of --arm and --student must be given, got none or both. Give one."
            )
        if len(students) > 1 or output is not None:
            which = "--output" if output else "more than one --student"
            raise ParamsError(f"predict: {which} must go with --input, got none. Add: --input FILE")
        if students and len(chosen) > 1:
            raise ParamsError(f"--student: the task must be one, got {', '.join(chosen)}. Add: --task TASK")
        if zip_ and form is not Format.superglue:
            raise ParamsError(f"--zip: the format must be superglue, got {form}. Add: --format superglue")
        from kdcache.serve import prepared as stage

        for name in chosen:
            folder = students[0] if students else stage.student_folder(project, name, arm or "")
            for part in [split, *(stage.diagnostics(project, name) if zip_ else ())]:
                typer.echo(stage.predict(project, name, part, folder, form.value))
        if zip_:
            path, missing = stage.write_zip(project)
            lacks = f" without {', '.join(missing)}" if missing else ""
            typer.echo(f"{path}{lacks}")


def _serve(students: list[Path], source: str, output: Path | None, form: Format | None, chunk: int) -> None:
    if not students:
        raise ParamsError("--input: a student must be named, got none. Add: --student FOLDER")
    if form is Format.superglue:
        raise ParamsError("--format superglue: it must go with --split, got --input. Use csv or jsonl.")
    from kdcache.serve.files import serve

    serve(students, source, output, form and form.value, chunk)
