"""The command ``kdcache predict``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from kdcache.cli.options import (
    Debug,
    Overrides,
    Tasks,
    chosen_tasks,
    open_project,
    project_here,
    refuse_beside,
)
from kdcache.errors import ParamsError
from kdcache.project import errors_in_one_line


def predict(
    student: Annotated[
        list[Path] | None,
        typer.Option(
            "--student", metavar="FOLDER",
            help="A student's folder. With --input, repeat it for several tasks over one backbone.",
        ),
    ] = None,
    arm: Annotated[
        str | None,
        typer.Option("--arm", metavar="NAME", help="Instead of --student: this arm's student of each task, "
                     "lowest seed, of the pipeline or else in runs/."),
    ] = None,
    input_: Annotated[
        str | None,
        typer.Option(
            "--input", metavar="FILE",
            help="A .csv, .tsv or .jsonl file with the columns of the task's own files, or text and, where "
            "the task needs them, text_pair or choices. With several students, also task or student. "
            "- reads JSON lines from standard input.",
        ),
    ] = None,
    columns: Annotated[
        Literal["task", "prepared"] | None,
        typer.Option("--columns", help="Which of the two --input has, where names do not tell: the task's "
                     "own, to be rendered, or text as prepared data has it."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE",
                     help="The .csv or .jsonl file that the rows of --input go to. "
                     "Standard output when left out."),
    ] = None,
    task: Tasks = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="The prepared split to label, without --input.", show_default="test"),
    ] = None,
    form: Annotated[
        Literal["csv", "jsonl", "superglue"] | None,
        typer.Option(
            "--format",
            help="superglue writes the benchmark's submission file, for --split test also those "
            "of its diagnostics, and superglue.zip with all of them. By default csv, or as --output or "
            "--input.",
        ),
    ] = None,
    set_: Overrides = None,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Label a prepared split, or your own rows.

    Rows come out as example_id, prediction, probability_<label> per label,
    and their other columns.

    A prepared split goes to runs/predictions/. The rows of --input go to
    --output. Rows with the columns of prepared data need no project; those with
    the columns of a task's own files do. A pipe is labelled as its rows arrive.

    Examples:

        kdcache predict --arm kl --task wic --split validation

        kdcache predict --student models/students/wic/kl-0 --input rows.csv

        cat rows.jsonl | kdcache predict --student runs/wic/kl-0 --input -

        kdcache predict --arm kl --format superglue
    """
    students = student or []
    if input_ is not None:
        with errors_in_one_line(debug):
            refuse_beside("--input", {"--task": task, "--split": split, "--arm": arm, "--set": set_})
            if not students:
                raise ParamsError("--input needs a student. Add: --student FOLDER")
            if form == "superglue":
                raise ParamsError("--format superglue is for prepared splits. Use csv or jsonl with --input.")
            from kdcache.serve.files import label_file

            tasks = {} if columns == "prepared" else _own_tasks()
            label_file(students, input_, output, form, tasks, columns)
        return
    with open_project(set_, debug, task) as project:
        if columns is not None:
            raise ParamsError("--columns needs --input. A prepared split is rendered.")
        if (arm is None) == (not students):
            raise ParamsError("Name one student: by --arm NAME or by --student FOLDER.")
        if output is not None:
            raise ParamsError("--output needs --input. The predictions of a split go to runs/predictions/.")
        if len(students) > 1:
            raise ParamsError("Several students need --input. Give one --student for a split.")
        if students and task is None:
            from kdcache.students.about import read_about

            task = [read_about(students[0]).task.name]
        chosen = chosen_tasks(project, task)
        if students and len(chosen) > 1:
            raise ParamsError(f"A student has one task, got {', '.join(chosen)}. Remove --task.")
        from kdcache.serve import prepared_split as prepared

        split = split or "test"
        for name in chosen:
            folder = students[0] if students else prepared.student_folder(project, name, arm or "")
            also = prepared.diagnostics(project, name) if form == "superglue" and split == "test" else ()
            for part in (split, *also):
                typer.echo(prepared.label_split(project, name, part, folder, form or "csv"))
            if arm:
                typer.echo(f"{name}: labelled by {folder}", err=True)
        if form == "superglue" and split == "test":
            path, missing = prepared.write_zip(project)
            typer.echo(f"{path}{' without ' if missing else ''}{', '.join(missing)}")


def _own_tasks() -> dict[str, Path]:
    """The task files that the project in the current folder knows; none outside of one.

    Outside, a task of the same name may be another one, whose texts are rendered in another way.
    """
    from kdcache.data.superglue import SUPERGLUE
    from kdcache.data.taskfile import own_tasks

    project = project_here()
    return SUPERGLUE | own_tasks(Path(project.paths.tasks)) if project else {}
