"""``kdcache compare``: one arm over another, of the same run or of two."""

from typing import Annotated, Literal

import typer
from rich.table import Table

from kdcache.cli.options import Debug, console
from kdcache.errors import DataError, ParamsError, nearest
from kdcache.project import errors_in_one_line


def compare(
    arm: Annotated[
        str,
        typer.Argument(
            metavar="[FOLDER:]ARM", help="The arm that should be better, in predictions or FOLDER."
        ),
    ],
    over: Annotated[
        str, typer.Argument(metavar="[FOLDER:]OVER", help="The arm it is compared with; teacher, too.")
    ],
    task: Annotated[
        list[str] | None, typer.Option("--task", help="Task; repeatable. All that both have when left out.")
    ] = None,
    metric: Annotated[
        Literal["accuracy", "macro_f1", "matthews", "f1a"],
        typer.Option("--metric", help="One that needs labels and logits alone."),
    ] = "accuracy",
    debug: Debug = False,
) -> None:
    """Compare two arms, of this project or of two studies on the same rows: points with 95 % intervals.

    Paired by seed and example (docs/statistics.md). "At least" is the one-sided 95 % bound: above −1, the
    arm is less than a point worse.
    """
    with errors_in_one_line(debug):
        from kdcache.stats.across import Side, common_tasks, read_across
        from kdcache.stats.estimates import effect, mean_estimate

        sides = Side.parse(arm), Side.parse(over)
        if sides[0] == sides[1]:
            raise ParamsError(f"compare: there must be two arms, got {arm} twice. Name another one.")
        tasks = common_tasks(*sides)
        for name in task or ():
            if name not in tasks:
                raise DataError(
                    f"--task: both folders must hold predictions of it, got {name!r}. {nearest(name, tasks)}"
                )
        effects = {}
        for name in task or tasks:
            runs, other = read_across(*sides, name, metric)
            effects[name] = effect(runs, sides[0].arm, other)
        if len(effects) > 1:
            effects["mean"] = mean_estimate(list(effects.values()))
        title = f"{sides[0]} over {sides[1]}, points of {metric}; p as for one planned comparison"
        table = Table(title=title, title_justify="left")
        table.add_column("task")
        for header in ("effect [95 %]", "at least", "p", "seeds", "groups of rows"):
            table.add_column(header, justify="right")
        for name, one in effects.items():
            bound = f"{one.interval(0.90)[0]:+.1f}"
            table.add_row(name, str(one), bound, f"{one.p:.2g}", str(one.seeds), str(one.groups))
        console.print(table)
