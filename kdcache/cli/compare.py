"""``kdcache compare``: one arm over another, of one project or of two."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from kdcache.cli.options import Debug, console
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

    Examples:

        kdcache compare kl ce

        kdcache compare kl teacher --task reviews
    """
    with errors_in_one_line(debug):
        from kdcache.report.frames import compare as compared
        from kdcache.stats.estimates import decimal

        project = Project.load() if Path("params.yaml").is_file() else None
        frame = compared(arm, over, [Path(name).stem for name in task or ()], metric, project)
        title = f"{arm} over {over}, points of {metric} (95% CI); p is not corrected"
        table = Table(title=title, title_justify="left")
        table.add_column("task")
        for header in ("effect (95% CI)", "at least", "p", "seeds", "groups of rows"):
            table.add_column(header, justify="right")
        for name, one in frame.iterrows():
            effect = f"{decimal(one.effect, '+')} ({decimal(one.low)} to {decimal(one.high)})"
            bound = decimal(one.at_least, "+")
            table.add_row(str(name), effect, bound, f"{one.p:.2g}", f"{one.seeds:.0f}", f"{one.groups:.0f}")
        console.print(table)
