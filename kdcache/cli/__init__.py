"""People's door: the command ``kdcache``. One module per group of commands."""

import typer

from kdcache.cli.caches import clean, diff, export, import_, inspect, verify
from kdcache.cli.pipeline import cache, distill, prepare, report, shrink, teach

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
for command in (
    prepare,
    teach,
    cache,
    shrink,
    distill,
    report,
    inspect,
    verify,
    diff,
    import_,
    export,
    clean,
):
    app.command(command.__name__.rstrip("_"))(command)
