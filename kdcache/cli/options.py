"""What all commands share: their common options, the project, one-line errors."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from kdcache.errors import ParamsError
from kdcache.stages.workspace import Project, errors_in_one_line, require, require_task

console = Console(highlight=False)

Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task", help="Task name, or task file; repeatable. All tasks of params.yaml when left out."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a parameter; repeatable."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback instead of one line.")]


@contextlib.contextmanager
def open_project(overrides: list[str] | None, debug: bool) -> Iterator[Project]:
    """The project in the current folder; expected failures inside the block become one line."""
    with errors_in_one_line(debug):
        yield Project.load(overrides or ())


def chosen_tasks(project: Project, tasks: list[str] | None) -> tuple[Project, list[str]]:
    """The tasks asked for, all checked before the first one runs, and the project that knows them.

    A task file, such as ``path/to/mine.toml``, joins the project under the file's name.
    """
    files = [Path(task) for task in tasks or () if Path(task).suffix]
    for path in files:
        require(path, "the task file", f"kdcache tasks check {path}", ParamsError)
    project = replace(
        project,
        tasks=tuple(dict.fromkeys([*project.tasks, *(path.stem for path in files)])),
        task_files=tuple(files),
    )
    chosen = [Path(task).stem for task in tasks or project.tasks]
    for task in chosen:
        require_task(project, task)
    return project, chosen
