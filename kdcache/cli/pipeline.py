"""The pipeline's stages as commands. A stage is imported only when it runs, so that --help costs nothing."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from kdcache.cli.inspect import inspect
from kdcache.cli.options import (
    Debug,
    Engines,
    Overrides,
    Tasks,
    Workers,
    chosen_tasks,
    console,
    open_project,
    parse_shard,
    with_engine,
)
from kdcache.params import MAX_SEED
from kdcache.project import BACKBONE_RECORD, load_stage
from kdcache.spread import Engine


def prepare(task: Tasks = None, set_: Overrides = None, debug: Debug = False) -> None:
    """Read and check the source, cut the tune split: source → data/TASK/.

    Examples:

        kdcache prepare --task reviews
    """
    _run_stage("prepare", task, set_, debug)


def teach(
    task: Tasks = None, engine: Engines = None, workers: Workers = None, set_: Overrides = None,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Fine-tune the teacher, and one per fold: data/TASK/ → models/teacher/TASK/.

    A task under import_teacher has an outside teacher, so none is trained for it.

    Examples:

        kdcache teach --task reviews --set train_teacher.folds=5 --workers 2

        torchrun --nproc-per-node 2 -m kdcache teach --task reviews
    """
    _run_stage("train_teacher", task, with_engine(set_, engine, workers), debug)


def cache(
    task: Tasks = None, engine: Engines = None, workers: Workers = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Compute the I-th of N shares, from 0, for a last run without it."),
    ] = None,
    set_: Overrides = None, debug: Debug = False,
) -> None:  # fmt: skip
    """Keep the teacher's logits and features: data + teacher → cache/TASK/.

    Of a task under import_teacher, the outputs in the files named there.

    Examples:

        kdcache cache --task reviews

        kdcache cache --task reviews --engine ray --workers 8
    """
    _run_stage("cache_teacher", task, with_engine(set_, engine, workers), debug, shard)


def _run_stage(
    name: str, task: list[str] | None, set_: list[str] | None, debug: bool, shard: str | None = None
) -> None:
    """Run a stage on the tasks asked for; module and function have its name."""
    shared = name == "train_teacher" or shard is not None
    with open_project(set_, debug, task, several=shared) as project:
        share = parse_shard(shard)
        for one in chosen_tasks(project, task):
            stage = name
            if name in ("train_teacher", "cache_teacher"):
                from kdcache.teacher.import_teacher import read_import

                if outside := read_import(project, one):
                    stage = "import_teacher"
                    if name == "train_teacher":
                        typer.echo(f"{one}: no teacher to train, its outputs are in {outside.path}")
                        continue
            if share and stage != "cache_teacher":
                typer.echo(f"{one}: its cache is imported at once, without shards")
                continue
            if share:  # its time is not that of a cache
                load_stage(stage)(project, one, share)
                continue
            with project.timed(stage, one):
                load_stage(stage)(project, one)


def distill(
    task: Tasks = None,
    arm: Annotated[
        list[str] | None, typer.Option("--arm", help="Arm of params.yaml; repeatable. All when left out.")
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(
            "--seed", min=0, max=MAX_SEED, help="Seed; repeatable. All of params.yaml when left out."
        ),
    ] = None,
    engine: Engines = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1,
            help="Processes that share `threads`, or workers of a cluster; else as in params.yaml.",
        ),
    ] = None,
    set_: Overrides = None,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Train students from the cache into runs/TASK/ARM-SEED/, to explore; `dvc repro` trains the table's.

    Examples:

        kdcache distill --task reviews --arm ce --arm kl

        kdcache distill --task reviews --arm kl --seed 0 --set distill.steps=300 --workers 1
    """
    with open_project(with_engine(set_, engine, workers), debug, task) as project:
        chosen = chosen_tasks(project, task)
        from kdcache.students.arms import DistillParams

        project.section("distill", DistillParams)
        if workers and Engine.of(project.raw).engine == "local":
            section = {**project.raw["distill"], "workers": workers}
            project = replace(project, raw={**project.raw, "distill": section})
        from kdcache.report.cost import cost_table
        from kdcache.report.findings import ReportParams
        from kdcache.report.tables import score_table
        from kdcache.students.distill import explore

        control = project.section("report", ReportParams).control
        for name in chosen:
            with project.timed("explore", name):
                summary = explore(project, name, arm or (), seed or ())
            for table in (score_table([summary], control), cost_table([summary])):
                typer.echo("\n".join([*table.markdown(), "", f"{table.caption}.", ""]))
            typer.echo(f"students: {project.paths.runs}/{name}/")
        named = (task or []) if project.tasks != tuple(chosen) else []
        typer.echo(f"Next: {' '.join(['kdcache report', *(f'--task {name}' for name in named)])}")


def run(
    task: Tasks = None,
    to: Annotated[
        Literal["prepare", "shrink", "teach", "cache", "inspect"],
        typer.Option("--to", help="The last step to take."),
    ] = "inspect",
    set_: Overrides = None,
    debug: Debug = False,
) -> None:
    """From rows to a cache to look at: prepare, shrink, teach, cache, inspect, one after the other.

    A backbone that is there already is kept, and said.

    Examples:

        kdcache run --task reviews
    """
    # The backbone comes before what takes long: a mistake in its section shows at once.
    steps: dict[str, Callable[..., None]] = {
        "prepare": prepare, "shrink": _shrink, "teach": teach, "cache": cache, "inspect": inspect,
    }  # fmt: skip
    for name, step in steps.items():
        step(task=task, set_=set_, debug=debug)
        if name == to:
            break


def _shrink(task: list[str] | None, set_: list[str] | None, debug: bool) -> None:
    """Make the backbone of params.yaml where there is none: `shrink` may have made another on purpose."""
    with open_project(set_, debug, task) as project:
        backbone = Path(project.paths.backbone)
        if backbone.exists():
            typer.echo(
                f"{backbone}: kept as it is{_what_it_is(backbone / BACKBONE_RECORD)}. kdcache shrink makes "
                "it anew from params.yaml, and probes it on each prepared task"
            )
            return
        with project.timed("student_backbone"):
            load_stage("student_backbone")(project.only(chosen_tasks(project, task)))


def _what_it_is(record: Path) -> str:
    """What a backbone was made of, to hold against params.yaml; "" of one that `shrink` did not make."""
    if not record.is_file():
        return ""
    made = json.loads(record.read_text(encoding="utf-8"))
    layers, pooling = ", ".join(map(str, made["layers"])), made.get("pooling", "cls")
    return f", layers {layers} of {made['model']}, pooling {pooling}"


def report(
    task: Tasks = None,
    timings: Annotated[
        bool,
        typer.Option("--timings", help="Also show this machine's wall times, and what the cache saved."),
    ] = False,
    set_: Overrides = None,
    debug: Debug = False,
) -> None:
    """Write reports/ (index.html, results.md, results.json, results.svg) and print results.md.

    It takes the tasks that have students, of the pipeline or else in runs/. If some are in runs/, the
    report goes to runs/reports/.

    Examples:

        kdcache report
    """
    with open_project(set_, debug, task) as project:
        from kdcache.report.report import read_timed_savings, read_timings, write_report

        trained = [name for name in project.tasks if project.outputs(name)]
        project = project.only(chosen_tasks(project, task) if task else trained or project.tasks)
        folder = write_report(project)
        typer.echo((folder / "results.md").read_text(encoding="utf-8"))
        typer.echo(f"page: {folder / 'index.html'}")
        if timings:
            entries = read_timings(project)
            header = ["stage", "task", "seconds", "threads"]
            rows = [[str(entry[key]) for key in header] for entry in entries]
            _show("Wall time of the last run", header, rows, text_columns=2)
            saved = read_timed_savings(project, entries)
            if saved.rows:
                _show(saved.caption, saved.header, saved.rows, saved.text_columns)


def _show(title: str, header: list[str], rows: list[list[str]], text_columns: int) -> None:
    table = Table(title=title, title_justify="left")
    for k, name in enumerate(header):
        table.add_column(name, justify="left" if k < text_columns else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
