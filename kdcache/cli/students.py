"""Commands on trained students."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kdcache.cli.options import Debug, Overrides, Tasks, chosen_tasks, open_project
from kdcache.errors import ParamsError


class Format(StrEnum):
    """Of a predictions file."""

    csv = "csv"
    jsonl = "jsonl"
    superglue = "superglue"


def predict(
    task: Tasks = None,
    split: Annotated[str, typer.Option("--split", help="A prepared split.")] = "test",
    arm: Annotated[str | None, typer.Option("--arm", help="The pipeline's student, first seed.")] = None,
    student: Annotated[Path | None, typer.Option("--student", help="A student's folder.")] = None,
    form: Annotated[
        Format, typer.Option("--format", help="superglue: the benchmark's submission file.")
    ] = Format.csv,
    zip_: Annotated[
        bool, typer.Option("--zip", help="Also the diagnostics, and all submission files in a zip.")
    ] = False,
    set_: Overrides = None,
    debug: Debug = False,
) -> None:
    """Write a student's predictions: labels with probabilities, or SuperGLUE's files → runs/predictions/."""
    with open_project(set_, debug, task) as project:
        chosen = chosen_tasks(project, task)
        if (arm is None) == (student is None):
            raise ParamsError(
                "predict: one of --arm and --student must be given, got none or both. Give one."
            )
        if student is not None and len(chosen) > 1:
            raise ParamsError(f"--student: the task must be one, got {', '.join(chosen)}. Add: --task TASK")
        if zip_ and form is not Format.superglue:
            raise ParamsError(f"--zip: the format must be superglue, got {form}. Add: --format superglue")
        from kdcache.stages import predict as stage

        for name in chosen:
            folder = student or stage.student_folder(project, name, arm or "")
            for part in [split, *(stage.diagnostics(project, name) if zip_ else ())]:
                typer.echo(stage.predict(project, name, part, folder, form.value))
        if zip_:
            path, missing = stage.write_zip(project)
            lacks = f" without {', '.join(missing)}" if missing else ""
            typer.echo(f"{path}{lacks}")
