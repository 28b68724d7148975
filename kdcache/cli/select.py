"""Choosing a parameter on folds of train."""

from dataclasses import replace
from typing import Annotated

import typer
from rich.table import Table

from kdcache.cli.options import Debug, Overrides, chosen_tasks, console, open_project
from kdcache.errors import ParamsError
from kdcache.project import Project


def select(
    grid: Annotated[
        str, typer.Option("--grid", metavar="distill.KEY=A,B", help="The parameter and its values.")
    ],
    task: Annotated[str, typer.Option("--task", help="The task.")],
    arm: Annotated[str, typer.Option("--arm", help="The arm of params.yaml to train.")] = "kl",
    folds: Annotated[int, typer.Option("--folds", min=2, help="Parts of train.")] = 5,
    set_: Overrides = None,
    debug: Debug = False,
) -> None:
    """Try values of a student's parameter on k folds of train; for tasks under 1000 rows.

    Examples:

        kdcache select --task reviews --grid distill.lr=1e-2,3e-2
    """
    with open_project(set_, debug, [task]) as project:
        (name,) = chosen_tasks(project, [task])
        key, _, values = grid.partition("=")
        if not key.startswith("distill.") or len(set(values.split(","))) < 2:
            raise ParamsError(
                f"--grid: it must be distill.KEY and at least two values, got {grid}. "
                "For example: --grid distill.lr=1e-2,3e-2"
            )
        tried = {
            value: replace(Project.load([*(set_ or ()), f"{key}={value}"]), tasks=project.tasks)
            for value in values.split(",")
        }
        from kdcache.students.select import rank
        from kdcache.students.select import select as stage

        scores = stage(tried, name, arm, folds)
        ranked = rank(scores)
        table = Table(key, "mean, %", "each fold, %", "behind the best, in standard errors")
        for value, mean, gap in ranked:
            each = ", ".join(f"{100 * score:.1f}" for score in scores[value])
            table.add_row(value, f"{100 * mean:.1f}", each, "" if gap is None else f"{gap:.1f}")
        console.print(table)
        near = [value for value, _, gap in ranked[1:] if gap is not None and gap < 2]
        if near:
            typer.echo(f"Not told apart from {ranked[0][0]} by these folds: {', '.join(near)}.")
