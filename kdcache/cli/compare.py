"""``kdcache compare``: one arm over another, of one project or of two."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from kdcache.cli.options import Debug, console
from kdcache.errors import DataError, ParamsError, nearest
from kdcache.project import Project, errors_in_one_line


def compare(
    arm: Annotated[
        str,
        typer.Argument(
            metavar="[FOLDER:]ARM",
            help="The arm that should be better, of the pipeline or else in runs/; "
            "FOLDER is another project or holds its predictions.",
        ),
    ],
    over: Annotated[
        str, typer.Argument(metavar="[FOLDER:]OVER", help="The arm it is compared with, or teacher.")
    ],
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="Task; repeatable. Default: all that both have."),
    ] = None,
    metric: Annotated[
        Literal["accuracy", "macro_f1", "matthews", "f1a"],
        typer.Option("--metric", help="A metric that needs only labels and logits."),
    ] = "accuracy",
    debug: Debug = False,
) -> None:
    """Compare two arms on the same rows, of one project or of two: points with 95% intervals.

    Runs are paired by seed and example (docs/reference/statistics.md). "At least" is the one-sided 95%
    lower bound: if it is above −1, the arm is less than a point worse.
    """
    with errors_in_one_line(debug):
        from kdcache.report.cautions import few_seeds
        from kdcache.stats.estimates import decimal, effect, mean_estimate
        from kdcache.stats.two_projects import OWN_FOLDERS, Side, common_tasks, read_across

        folders: tuple[Path, ...] = OWN_FOLDERS
        if Path("params.yaml").is_file():
            folders = tuple(Path(paths.predictions) for paths in Project.load().paths.lookup)
        sides = Side.parse(arm, folders), Side.parse(over, folders)
        if str(sides[0]) == str(sides[1]):
            raise ParamsError(f"Both arms are {sides[0]}. Name two different arms.")
        tasks = common_tasks(*sides)
        for name in task or ():
            if name not in tasks:
                raise DataError(
                    f"--task {name}: The two folders have no common predictions of it. {nearest(name, tasks)}"
                )
        effects = {}
        for name in task or tasks:
            runs, other = read_across(*sides, name, metric)
            effects[name] = effect(runs, sides[0].arm, other)
        if len(effects) > 1:
            effects["mean"] = mean_estimate(list(effects.values()))
        if caution := few_seeds(min(one.seeds for one in effects.values())):
            typer.echo(caution)
        title = f"{sides[0]} over {sides[1]}, points of {metric} (95% CI); p is not corrected"
        table = Table(title=title, title_justify="left")
        table.add_column("task")
        for header in ("effect (95% CI)", "at least", "p", "seeds", "groups of rows"):
            table.add_column(header, justify="right")
        for name, one in effects.items():
            bound = decimal(one.interval(0.90)[0], "+")
            table.add_row(name, one.cell, bound, f"{one.p:.2g}", str(one.seeds), str(one.groups))
        console.print(table)
