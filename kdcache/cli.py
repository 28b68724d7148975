"""People's door. Imports a stage only when it runs it, so that --help costs nothing."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from kdcache.errors import CacheError, ParamsError
from kdcache.stages.workspace import Project, errors_in_one_line, require, require_task

if TYPE_CHECKING:
    from kdcache.cache.manifest import Manifest

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=(
        "Distil a larger teacher into small prompt-tuned students, through cached logits. "
        "The order is prepare, teach, cache, shrink, distill, report; `dvc repro` runs them all. "
        "Run it in a project folder: parameters come from its params.yaml."
    ),
)
console = Console(highlight=False)

Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", help="Task name; repeatable. All tasks of params.yaml when left out."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a parameter; repeatable."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback instead of one line.")]


@contextlib.contextmanager
def _project(overrides: list[str] | None, debug: bool) -> Iterator[Project]:
    with errors_in_one_line(debug):
        yield Project.load(overrides or ())


def _chosen(project: Project, tasks: list[str] | None) -> list[str]:
    """The tasks asked for, all checked before the first one runs."""
    chosen = tasks or list(project.tasks)
    for task in chosen:
        require_task(project, task)
    return chosen


@app.command()
def prepare(task: Tasks = None, set_: Overrides = None, debug: Debug = False) -> None:
    """Read and check the source, cut the tune split: source → data/TASK/."""
    with _project(set_, debug) as project:
        from kdcache.stages.prepare import prepare as stage

        for name in _chosen(project, task):
            with project.timed("prepare", name):
                stage(project, name)


@app.command()
def teach(task: Tasks = None, set_: Overrides = None, debug: Debug = False) -> None:
    """Fine-tune the teacher, and one per fold: data/TASK/ → models/teacher/TASK/."""
    with _project(set_, debug) as project:
        chosen = _chosen(project, task)
        from kdcache.stages.train_teacher import train_teacher as stage

        for name in chosen:
            with project.timed("train_teacher", name):
                stage(project, name)


@app.command()
def cache(task: Tasks = None, set_: Overrides = None, debug: Debug = False) -> None:
    """Keep the teacher's logits and features: data + teacher → cache/TASK/."""
    with _project(set_, debug) as project:
        chosen = _chosen(project, task)
        from kdcache.stages.cache_teacher import cache_teacher as stage

        for name in chosen:
            with project.timed("cache_teacher", name):
                stage(project, name)


@app.command()
def shrink(set_: Overrides = None, debug: Debug = False) -> None:
    """Make the students' backbone: a model's first layers, healed → models/backbone/."""
    with _project(set_, debug) as project:
        from kdcache.stages.student_backbone import student_backbone as stage

        with project.timed("student_backbone"):
            stage(project)


@app.command()
def distill(
    task: Tasks = None,
    arm: Annotated[
        list[str] | None, typer.Option("--arm", help="Arm of params.yaml; repeatable. All when left out.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", help="Seed; repeatable. Those of params.yaml when left out.")
    ] = None,
    set_: Overrides = None,
    debug: Debug = False,
) -> None:
    """Train students from the cache into runs/TASK/ARM-SEED/, to explore; `dvc repro` trains the table's."""
    with _project(set_, debug) as project:
        chosen = _chosen(project, task)
        from kdcache.report import results_markdown
        from kdcache.stages.distill import explore

        for name in chosen:
            with project.timed("explore", name):
                summary = explore(project, name, arm or (), seed or ())
            typer.echo(results_markdown([summary]))
            typer.echo(f"students: {project.paths.runs}/{name}/")


@app.command()
def inspect(task: Tasks = None, set_: Overrides = None, debug: Debug = False) -> None:
    """Show a cache: rows, teacher accuracy per split, and what made it."""
    with _project(set_, debug) as project:
        from kdcache.cache.manifest import read_manifest

        for name in _chosen(project, task):
            folder = Path(project.paths.cache) / name
            require(folder, "the cache", f"kdcache cache --task {name}", CacheError)
            _show_cache(folder, read_manifest(folder, name))


def _show_cache(folder: Path, manifest: "Manifest") -> None:
    metrics = list(next(iter(manifest.metrics.values()), {"accuracy": 0.0}))
    metrics = [name for name in metrics if name != "rows"]
    crossed = bool(manifest.identity["folds_sha256"])
    table = Table(title=f"{folder.as_posix()}, format {manifest.format_version}", title_justify="left")
    table.add_column("split", no_wrap=True)
    table.add_column("rows", justify="right")
    table.add_column("bytes/row", justify="right")
    for metric in metrics:
        table.add_column(f"{metric}, cached", justify="right")
        if crossed:
            table.add_column(f"{metric}, teacher on all rows", justify="right")
    for name, entry in manifest.files.items():
        split = name.removesuffix(".parquet")
        cells = [split, str(entry["rows"]), f"{entry['bytes'] / max(1, entry['rows']):.0f}"]
        for metric in metrics:
            for scores in (manifest.metrics, manifest.all_rows_teacher)[: 1 + crossed]:
                value = scores.get(split, {}).get(metric)
                cells.append("—" if value is None else f"{100 * value:.1f} %")
        table.add_row(*cells)
    console.print(table)
    for field, value in manifest.identity.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        console.print(f"  {field:18} {shown or '—'}", markup=False, soft_wrap=True)
    console.print(f"  {'manifest':18} {manifest.digest}", markup=False, soft_wrap=True)


@app.command()
def report(
    task: Tasks = None,
    timings: Annotated[bool, typer.Option("--timings", help="Also show this machine's wall times.")] = False,
    set_: Overrides = None,
    debug: Debug = False,
) -> None:
    """Write reports/ from the metrics of all tasks, and print the table."""
    with _project(set_, debug) as project:
        from kdcache.stages.report import read_timings
        from kdcache.stages.report import report as stage

        if task:
            project = project.only(_chosen(project, task))
        stage(project)
        table = Path(project.paths.reports) / "results.md"
        typer.echo(table.read_text(encoding="utf-8"))
        if timings:
            _show_timings(read_timings(project))


def _show_timings(entries: list[dict[str, object]]) -> None:
    if not entries:
        raise ParamsError("timings: a stage must have run on this machine, got none. Run: dvc repro")
    table = Table("stage", "task", title="Wall time of the last run", title_justify="left")
    table.add_column("seconds", justify="right")
    table.add_column("threads", justify="right")
    for entry in entries:
        table.add_row(*(str(entry[key]) for key in ("stage", "task", "seconds", "threads")))
    console.print(table)
