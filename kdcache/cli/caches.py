"""Commands on caches: verify, diff, import, export, clean."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import yaml
from rich.table import Table

from kdcache.cli.options import (
    Debug,
    Engines,
    Overrides,
    Tasks,
    Workers,
    chosen_tasks,
    console,
    open_project,
    refuse_beside,
    with_engine,
)
from kdcache.errors import ParamsError
from kdcache.params import build
from kdcache.plain_yaml import parse_yaml
from kdcache.project import errors_in_one_line

if TYPE_CHECKING:
    from kdcache.cache.diff import SplitDiff
    from kdcache.cache.manifest import Manifest
    from kdcache.cache.verify import Check
    from kdcache.store.location import Location

Task = Annotated[str, typer.Option("--task", help="Task name, or task file.")]
Where = Annotated[
    str | None,
    typer.Argument(help="Folder or URI of a cache. Default: the caches of --task.", metavar="[CACHE]"),
]


def verify(
    cache: Where = None,
    task: Tasks = None,
    teacher_rows: Annotated[
        int | None,
        typer.Option(min=0, show_default="8", help="Random rows per split that the teacher computes again."),
    ] = None,
    engine: Engines = None,
    workers: Workers = None,
    set_: Overrides = None,
    debug: Debug = False,
) -> None:
    """Check a cache from its bytes to its numbers. The exit code is 1 if anything is wrong.

    Examples:

        kdcache verify --task reviews

        kdcache verify --task reviews --teacher-rows 100000 --workers 8

        kdcache verify s3://bucket/reviews-teacher
    """
    if cache:
        with errors_in_one_line(debug):
            others = {"--task": task, "--teacher-rows": teacher_rows, "--set": set_}
            refuse_beside("CACHE", others | {"--engine": engine, "--workers": workers})
            from kdcache.cache.verify import verify_cache

            sound = _show_checks(cache, verify_cache(cache))
    else:
        with open_project(with_engine(set_, engine, workers), debug, task) as project:
            chosen = chosen_tasks(project, task)
            from kdcache.teacher.verify_against_data import verify_task

            rows = 8 if teacher_rows is None else teacher_rows
            sound = all([_show_checks(name, verify_task(project, name, rows)) for name in chosen])
    if not sound:
        raise typer.Exit(1)


def diff(
    a: Annotated[str, typer.Argument(help="Folder or URI of a cache.")],
    b: Annotated[str, typer.Argument(help="Folder or URI of another cache of the same task.")],
    debug: Debug = False,
) -> None:
    """Show the differences between two caches: their origins, their rows, how far the logits moved.

    Examples:

        kdcache diff cache/reviews ../other/cache/reviews
    """
    with errors_in_one_line(debug):
        from kdcache.cache.diff import diff_caches

        found = diff_caches(a, b)
        for name, values in found.fields.items():
            text = " → ".join(_format(value) for value in values)
            console.print(f"  {name}: {text}", soft_wrap=True)
        for split, rows in found.splits.items():
            console.print(f"{split}: {_describe(rows)}", soft_wrap=True)
        if found.same:
            typer.echo("The two caches are the same.")


def clean(set_: Overrides = None, debug: Debug = False) -> None:
    """Empty the scratch folder and paths.parts, which hold what interrupted runs resume from."""
    with open_project(set_, debug) as project:
        from kdcache.project import clean as clean_scratch

        scratch, parts = project.paths.scratch, project.paths.parts
        if not parts:
            typer.echo(f"{scratch}: freed {clean_scratch(project) / 1e6:.1f} MB")
            return
        from kdcache.store.lease import EVERYTHING, Lease
        from kdcache.store.parts import clean_parts

        with Lease(parts, EVERYTHING, parts):
            for place, freed in ((scratch, clean_scratch(project)), (parts, clean_parts(parts))):
                typer.echo(f"{place}: freed {freed / 1e6:.1f} MB")


def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help="A .csv, .jsonl, .parquet or .npz file, or a folder with one per teacher, to average them."
        ),
    ],
    task: Task,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            "--weight",
            metavar="NAME=NUMBER",
            help="Weight of the folder's NAME.csv or the like; repeatable. All alike when left out.",
        ),
    ] = None,
    missing_mass: Annotated[
        Literal["refuse", "renormalise", "spread"],
        typer.Option(help="Policy for rows whose probabilities do not sum to 1."),
    ] = "refuse",
    id_column: Annotated[str, typer.Option(help="Name of the column of example ids.")] = "example_id",
    set_: Overrides = None,
    debug: Debug = False,
) -> None:
    """Make a cache from a file of any teacher's logits, probabilities or log-probabilities.

    A folder holds a file per teacher; the cache then has the mean of their probabilities.

    Examples:

        kdcache import scores.csv --task reviews
    """
    with open_project(set_, debug, [task]) as project:
        from kdcache.store.location import Location
        from kdcache.teacher.import_teacher import ImportTeacherParams, read_import
        from kdcache.teacher.outside_cache import import_cache

        (task,) = chosen_tasks(project, [task])
        if read_import(project, task):
            raise ParamsError(
                f"{file}: a task must have one teacher, got {task} under import_teacher in params.yaml too. "
                f"Change the path there, and run: kdcache cache --task {task}"
            )
        given = {
            "path": str(file), "weights": _parse_weights(weight or ()),
            "missing_mass": missing_mass, "id_column": id_column,
        }  # fmt: skip
        params = build(ImportTeacherParams, given, "import")
        manifest = import_cache(project, task, file, missing_mass, id_column, params.weights)
        show_cache(Location.parse(project.paths.cache, task), manifest)
        defaults = vars(ImportTeacherParams(""))
        entry = {task: {key: value for key, value in given.items() if value != defaults[key]}}
        shown = yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=10**6).strip()
        typer.echo(
            f"dvc repro takes it too, with this in params.yaml, and {task} not in fine_tune:\n"
            f"import_teacher: {shown}"
        )


def _parse_weights(texts: Sequence[str]) -> dict[str, Any]:
    weights: dict[str, Any] = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        if not equals:
            raise ParamsError(f"--weight {text}: it must be NAME=NUMBER, got no '='.")
        if name in weights:
            raise ParamsError(f"--weight {text}: a teacher must have one weight, got two. Leave one of them.")
        weights[name] = parse_yaml(number, f"--weight {text}")
    return weights


def export(
    file: Annotated[Path, typer.Argument(help="The .csv, .jsonl, .parquet or .npz file to write.")],
    task: Task,
    split: Annotated[list[str] | None, typer.Option(help="A split; may be repeated. Default: all.")] = None,
    set_: Overrides = None,
    debug: Debug = False,
) -> None:
    """Write the ids, labels and logits of a cache to a file, which import reads.

    Examples:

        kdcache export logits.parquet --task reviews
    """
    with open_project(set_, debug, [task]) as project:
        from kdcache.teacher.outside_cache import export_cache

        (task,) = chosen_tasks(project, [task])
        typer.echo(f"{file}: {export_cache(project, task, split or [], file)} rows")


def show_cache(location: "Location", manifest: "Manifest") -> None:
    """Print a cache's splits, their metrics and the teacher's identity."""
    from kdcache.data.splits import TEST

    metrics = list(next(iter(manifest.metrics.values()), {"accuracy": 0.0}))
    metrics = [name for name in metrics if name != "rows"]
    cross_fitted = bool(manifest.num_folds)
    table = Table(title=f"{location}, format {manifest.format_version}", title_justify="left")
    table.add_column("split", no_wrap=True)
    table.add_column("rows", justify="right")
    table.add_column("bytes/row", justify="right")
    for metric in metrics:
        table.add_column(f"{metric}, cached", justify="right")
        if cross_fitted:
            table.add_column(f"{metric}, teacher on all rows", justify="right")
    for split in manifest.data:
        rows = manifest.sum_of(split, "rows")
        cells = [split, str(rows), f"{manifest.sum_of(split, 'bytes') / max(1, rows):.0f}"]
        for metric in metrics:
            for scores in (manifest.metrics, manifest.all_rows_teacher)[: 1 + cross_fitted]:
                value = None if split == TEST else scores.get(split, {}).get(metric)
                cells.append("—" if value is None else f"{100 * value:.1f}%")
        table.add_row(*cells)
    console.print(table)
    columns = ", ".join(f"{name} {kind}" for name, kind in manifest.columns[4:])
    facts = {**manifest.identity, "dtype": manifest.dtype, **_prefixed("drift", manifest.drift)}
    for field, value in {**facts, "columns": columns, "manifest": manifest.digest}.items():
        console.print(f"  {field:18} {_format(value)}", soft_wrap=True)


def _show_checks(name: str, checks: "list[Check]") -> bool:
    """Print the checks. Problems go to standard error, one line each."""
    problems = [check.problem for check in checks if check.problem]
    for problem in problems:
        typer.echo(problem, err=True)
    sound = [check.what for check in checks if not check.problem]
    typer.echo(f"{name}: {len(sound)} checks passed, {len(problems)} failed")
    for what in sound:
        typer.echo(f"  {what}")
    return not problems


def _describe(rows: "SplitDiff") -> str:
    parts = [f"{rows.rows} shared rows"]
    for what, ids in (
        ("only in the first", rows.only_a), ("only in the second", rows.only_b),
        ("with different texts", rows.texts), ("with different labels", rows.labels),
    ):  # fmt: skip
        parts += [f"{len(ids)} {what}"] if ids else []
    if rows.max_abs is not None:
        parts += [f"logits moved by {rows.max_abs:.3g} at most, {rows.mean_abs:.3g} on average"]
    return ", ".join([*parts, f"{rows.flips} argmax flips"])


def _prefixed(prefix: str, values: dict[str, float]) -> dict[str, str]:
    return {prefix: ", ".join(f"{name} {value:g}" for name, value in values.items())} if values else {}


def _format(value: object) -> str:
    if value in (None, "", []):
        return "—"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
