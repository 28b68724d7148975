"""What all commands share: their common options, the project, one-line errors."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from kdcache.errors import ParamsError, printable
from kdcache.places import require_task_name
from kdcache.project import Project, errors_in_one_line, require, require_task


class _Plain(Console):
    """Shows text of data and models as it is: brackets are no markup, control characters are spelt out."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


console = _Plain(highlight=False, markup=False, emoji=False)

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
Engines = Annotated[
    Literal["local", "ray"] | None,
    typer.Option("--engine", help="Workers of this machine, or of a Ray cluster; else as in params.yaml."),
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Workers that share the work; else as in params.yaml.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback instead of one line.")]


@contextlib.contextmanager
def open_project(
    overrides: list[str] | None, debug: bool, tasks: list[str] | None = None, several: bool = False
) -> Iterator[Project]:
    """The project in the current folder; expected failures inside the block become one line.

    Task files among ``tasks``, such as ``path/to/mine.toml``, join it under the file's name. For ``several``
    see ``errors_in_one_line``.
    """
    with errors_in_one_line(debug, several):
        project = Project.load(overrides or ())
        files = [Path(task) for task in tasks or () if Path(task).suffix]
        for path in files:
            require(path, "the task file", f"kdcache tasks check {path}", ParamsError)
            require_task_name(path.stem, "--task")
        names = dict.fromkeys([*project.tasks, *(path.stem for path in files)])
        yield replace(project, tasks=tuple(names), task_files=tuple(files))


def project_here() -> Project | None:
    """The project in the current folder; None where there is none, or another program's params.yaml."""
    if not Path("params.yaml").is_file():
        return None
    try:
        return Project.load()
    except ParamsError as error:
        typer.echo(f"No project is read here. {printable(str(error)).splitlines()[0]}", err=True)
        return None


def chosen_tasks(project: Project, tasks: list[str] | None) -> list[str]:
    """The tasks asked for, all checked before the first one runs."""
    chosen = [Path(task).stem for task in tasks or project.tasks]
    for task in chosen:
        require_task(project, task)
    return chosen


def refuse_beside(what: str, options: Mapping[str, Any]) -> None:
    """Refuse options that have no meaning beside another, where they were given.

    Args:
        what: the other option or argument.
        options: name → value; None and empty ones were not given.
    """
    for name, value in options.items():
        if value is not None and value != []:
            raise ParamsError(f"{name} has no meaning with {what}. Remove it.")


def with_engine(overrides: list[str] | None, engine: str | None, workers: int | None) -> list[str]:
    """The overrides, and those that the options of the engine stand for."""
    chosen = {"engine": engine, "workers": workers}
    return [*(overrides or ()), *(f"{key}={value}" for key, value in chosen.items() if value is not None)]


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Read ``I/N``: share I of N, from 0."""
    if text is None:
        return None
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ParamsError(f"--shard: it must be I/N with I from 0 to N - 1, got {text!r}. For example: 0/4")
    return int(number), int(count)
