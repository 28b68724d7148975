"""The command ``kdcache``. One module per group of commands."""

import io
import re
import sys
from typing import Annotated, Any, get_type_hints

import typer
from rich.markup import escape
from typer.core import TyperCommand

import kdcache
from kdcache.cli.caches import clean, diff, export, import_, verify
from kdcache.cli.compare import compare
from kdcache.cli.evaluate import evaluate
from kdcache.cli.export_student import export_student
from kdcache.cli.init import TEMPLATE, init
from kdcache.cli.inspect import inspect
from kdcache.cli.losses import losses
from kdcache.cli.pipeline import cache, distill, prepare, report, run, teach
from kdcache.cli.plan import plan
from kdcache.cli.select import select
from kdcache.cli.share import pull, push
from kdcache.cli.shrink import shrink
from kdcache.cli.students import predict
from kdcache.cli.tasks import app as tasks

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Distil a larger teacher into small prompt-tuned students, through cached logits. "
        "`kdcache init` starts a project; the other commands run in its folder and read its params.yaml. "
        "The order is run (prepare, shrink, teach, cache, inspect), distill, report; "
        "`dvc repro` runs all stages."
    ),
)


def _show_all_characters() -> None:
    """Spell out what the terminal's encoding lacks, such as → in ASCII, instead of failing there."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"kdcache {kdcache.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    _show_all_characters()


class Stage(TyperCommand):
    """A command whose help ends with the parameters of its section, as params.yaml has them."""

    section = ""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        text = (TEMPLATE / "params.yaml").read_text(encoding="utf-8")
        (block,) = re.findall(rf"^{self.section}:\n((?:  .*\n)+)", text, flags=re.MULTILINE)
        lines = [line.strip() for line in block.splitlines() if line[2] != " "]
        title = f"Parameters, for --set {self.section}.KEY=VALUE, as a new project has them:"
        self.epilog = "\n\n".join(escape(line) for line in (title, *lines))
        super().format_help(ctx, formatter)


def _stage(section: str) -> type[TyperCommand]:
    return type(section, (Stage,), {"section": section})


SECTIONS = {
    prepare: "prepare", teach: "train_teacher", cache: "cache_teacher", shrink: "student_backbone",
    distill: "distill", report: "report",
}  # fmt: skip
for command in (
    init, prepare, plan, teach, cache, shrink, select, distill, predict, report, evaluate, export_student,
    push, pull, run, compare, inspect, verify, diff, import_, export, clean, losses,
):  # fmt: skip
    for hint in get_type_hints(command, include_extras=True).values():
        for option in getattr(hint, "__metadata__", ()):
            option.readable = False  # typer's own check of a path would be an error in another form
    kind = _stage(SECTIONS[command]) if command in SECTIONS else None
    app.command(command.__name__.rstrip("_").replace("_", "-"), cls=kind)(command)
app.add_typer(tasks, name="tasks")
