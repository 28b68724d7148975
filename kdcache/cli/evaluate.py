"""``kdcache evaluate``: the one look at test."""

from typing import Annotated

import typer

from kdcache.cli.options import Debug, Overrides, chosen_tasks, open_project


def evaluate(
    task: Annotated[str, typer.Option("--task", help="Task name.")],
    arm: Annotated[
        list[str], typer.Option("--arm", help="Arm whose students are scored, of all seeds; repeatable.")
    ],
    split: Annotated[str, typer.Option("--split", help="A prepared split with labels.")] = "test",
    set_: Overrides = None,
    debug: Debug = False,
) -> None:
    """Score the teacher and chosen students on a split that chose nothing, and count the looks.

    Choose on validation first: a choice made by test has no test left. The result goes to
    evaluations/TASK-SPLIT.json. The same question again is answered from there.

    Examples:

        kdcache evaluate --task reviews --arm kl
    """
    with open_project(set_, debug, [task]) as project:
        (name,) = chosen_tasks(project, [task])
        from kdcache.report.evaluate import evaluate as score
        from kdcache.report.evaluate import evaluation_table

        found = score(project, name, split, arm)
        table = evaluation_table(found)
        known = ", which is on record" if found.again else ""
        typer.echo(f"{name} {split}: look {found.number} of {len(found.looks)}{known}.")
        if len(found.looks) > 1:
            typer.echo("An arm that was chosen by an earlier look scores too well in a later one.")
        typer.echo("\n".join([*table.markdown(), "", f"{table.caption}.", f"written: {found.path}"]))
