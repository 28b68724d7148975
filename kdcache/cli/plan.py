"""Command plan: what the stages will cost, before they run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from kdcache.cli.options import Debug, Overrides, Tasks, chosen_tasks, console, open_project
from kdcache.spread import Engine

if TYPE_CHECKING:
    from kdcache.analysis.planned import Stage
    from kdcache.project import Project

COMMANDS = {
    "train_teacher": "teach",
    "cache_teacher": "cache",
    "student_backbone": "shrink",
    "distill": "distill",
}


def plan(
    task: Tasks = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, help="Also show minutes on so many workers; else as in params.yaml."
        ),
    ] = None,
    set_: Overrides = None,
    debug: Debug = False,
) -> None:
    """Show what the stages will cost, and what they took here: rows, tokens, operations, time, memory.

    It counts on the prepared rows, times the project's models for some seconds, and writes nothing.

    Examples:

        kdcache plan --set train_teacher.folds=5
    """
    with open_project(set_, debug, task) as project:
        from kdcache.analysis.plan import plan as plan_stages

        names = chosen_tasks(project, task)
        stages, rates = plan_stages(project, names)
        taken = [_taken(project, one, set(names) == set(project.tasks)) for one in stages]
        _show(project, stages, taken, workers or Engine.of(project.raw).workers)
        for name, rate in rates.items():
            console.print(
                f"{name}: {rate.flops_per_second / 1e9:.0f} GFLOP/s, measured on {rate.rows} sequences of "
                f"{rate.tokens // rate.rows} tokens", soft_wrap=True,
            )  # fmt: skip


def _taken(project: "Project", stage: "Stage", whole: bool) -> float:
    """Return the seconds that a stage last took here; 0 if it did not run, or for more tasks than these."""
    names = [stage.stage] + ["explore"] * (stage.stage == "distill")  # in the pipeline, or to explore
    paths = [Path(project.paths.timings) / f"{name}-{stage.task}.json" for name in names]
    ran = [path for path in paths if path.is_file() and (whole or stage.task != "all")]
    last = max(ran, key=lambda path: path.stat().st_mtime, default=None)
    return json.loads(last.read_bytes())["seconds"] if last else 0.0


def _show(project: "Project", stages: "list[Stage]", taken: list[float], workers: int) -> None:
    many = [f"on {workers}"] if workers > 1 else []
    table = Table("", "task", title="Planned", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("rows", "k tokens", "TFLOP", "MB", "GiB", "min", *many, "took", "ratio"):
        table.add_column(name, justify="right")
    paths = project.paths
    places = {"train_teacher": paths.teacher, "cache_teacher": paths.cache, "distill": paths.students}
    found, there = [], False
    for one, took in zip(stages, taken, strict=True):
        place = Path(places[one.stage]) / one.task if one.stage in places else Path(paths.backbone)
        there_now = place.exists() or (one.stage == "distill" and (Path(paths.runs) / one.task).exists())
        found.append([
            one.tokens / 1e3, one.flops / 1e12, one.bytes / 1e6, one.memory / 2**30, one.seconds / 60,
            *([one.on(workers) / 60] if many else []), took / 60, one.seconds / 60 if took else 0.0,
        ])  # fmt: skip
        there |= there_now
        name = COMMANDS[one.stage] + "*" * there_now
        table.add_row(name, one.task, str(one.rows), *_cells(found[-1]))
    table.add_section()
    total = [float(sum(column)) for column in zip(*found, strict=True)]
    total[3] = max(one.memory for one in stages) / 2**30
    table.add_row("all", "", "", *_cells(total))
    console.print(table)
    if there:
        console.print("*: something is in place; dvc status says whether it is up to date", soft_wrap=True)


def _cells(values: list[float]) -> list[str]:
    """Format a line; its last two are what was taken and what was planned of that."""
    tokens, flops, size, *rest, took, planned = values
    ratio = [f"{took:.1f}", f"{planned / took:.2f}"] if took else ["", ""]
    return [f"{tokens:.0f}", f"{flops:.2f}", f"{size:.1f}", *(f"{value:.1f}" for value in rest), *ratio]
