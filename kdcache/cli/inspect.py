"""``kdcache inspect``: what a cache holds, before any student."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from kdcache.cli.caches import Where, show_cache
from kdcache.cli.options import Debug, Overrides, Tasks, chosen_tasks, console, open_project
from kdcache.errors import ParamsError
from kdcache.project import errors_in_one_line

if TYPE_CHECKING:
    from kdcache.analysis.analyse import CacheAnalysis, LabelAnalysis, Share
    from kdcache.project import Project

# split → example id → what the teacher read.
Texts = dict[str, dict[str, list[str]]]

MAX_CLASSES = 20  # of a table with a row for each


def inspect(
    cache: Where = None,
    task: Tasks = None,
    texts: Annotated[
        int,
        typer.Option(
            "--texts",
            min=0,
            metavar="N",
            help="The N most confident mistakes per split, with text.",
        ),
    ] = 0,
    figure: Annotated[
        Path | None,
        typer.Option("--figure", metavar="FILE", help="Draw reliability and entropies into an .svg file."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the analysis as JSON instead.")] = False,
    set_: Overrides = None,
    debug: Debug = False,
) -> None:
    """Show a cache before any student: how right, how sure and how honest it is, and what made it."""
    with errors_in_one_line(debug):
        if cache and texts:
            raise ParamsError(
                f"--texts: the cache must be a task's, whose data is at hand, got {cache}. Use: --task TASK"
            )
        if figure and figure.suffix != ".svg":
            raise ParamsError(f"--figure: the file must end in .svg, got {figure}. Call it FILE.svg.")
        from kdcache.analysis.analyse import analyse_cache
        from kdcache.analysis.words import read_analysis
        from kdcache.cache.location import Location
        from kdcache.cache.manifest import read_manifest

        project = None
        if cache:
            locations = [Location.parse(cache)]
        else:
            with open_project(set_, debug, task) as project:
                names = chosen_tasks(project, task)
                locations = [Location.parse(project.paths.cache, name) for name in names]
        if figure and len(locations) > 1:
            raise ParamsError(f"--figure: the task must be one, got {', '.join(names)}. Add: --task TASK")
        as_json = {}
        for location in locations:
            manifest, analysis = read_manifest(location), analyse_cache(location)
            read = _read_texts(project, location.name, analysis, texts) if project and texts else {}
            if figure:
                from kdcache.report.figures import draw_cache

                figure.parent.mkdir(parents=True, exist_ok=True)
                draw_cache(analysis, figure)
            facts = {"digest": manifest.digest, "reading": read_analysis(analysis)}
            as_json[str(location)] = facts | asdict(analysis) | {"texts": read}
            if not json_:
                show_cache(location, manifest)
                _show_analysis(analysis)
                _show_texts(analysis, read)
                console.print(facts["reading"], markup=False, soft_wrap=True)
        if json_:
            typer.echo(json.dumps(as_json, indent=2, ensure_ascii=False))


def _read_texts(project: "Project", task: str, analysis: "CacheAnalysis", count: int) -> Texts:
    from kdcache.analysis.texts import read_texts

    texts = {}
    for split, found in analysis.splits.items():
        if found.labels:
            ids = [mistake.example_id for mistake in found.labels.mistakes[:count]]
            texts[split] = read_texts(project, task, split, ids)
    return texts


def _show_analysis(analysis: "CacheAnalysis") -> None:
    table = Table("split", title="The cached logits", title_justify="left")
    for column in ("accuracy\n% [95 %]", "ECE, %\n(by chance)", "entropy\n(% log C)", "margin\n5 50 95 %"):
        table.add_column(column, justify="right")
    table.add_column("noise?", justify="right")
    for split, found in analysis.splits.items():
        margins = " ".join(f"{found.margins[q]:.1f}" for q in (0.05, 0.5, 0.95))
        cells = ["—", "—", f"{found.entropy:.2f} ({100 * found.entropy_share:.0f})", margins, "—"]
        if found.labels:
            cells[0] = _percent(found.labels.accuracy)
            cells[1] = f"{100 * found.labels.ece:.1f} ({100 * found.labels.ece_by_chance:.1f})"
            cells[4] = "—" if found.labels.suspects is None else str(found.labels.suspects)
        table.add_row(split, *cells)
    console.print(table)
    by_split = {split: found.labels for split, found in analysis.splits.items() if found.labels}
    if by_split and len(analysis.labels) <= MAX_CLASSES:
        _show_classes(analysis.labels, by_split)

    lines = []
    for split, fit in analysis.temperatures.items():
        high = "∞" if fit.high is None else f"{fit.high:.2f}"
        lines.append(
            f"temperature of least NLL on {split}, {fit.rows} rows: {fit.value:.2f} [{fit.low:.2f}, {high}], "
            f"{fit.nll:.3f} → {fit.nll_scaled:.3f} nats"
        )
    if analysis.folds:
        each = ", ".join(f"{fold}: {_percent(share)}" for fold, share in analysis.folds.items())
        lines.append(f"fold teachers, each on its held-out rows, %: {each}")
    if analysis.agreement:
        shares = (f"{100 * both.same:.1f} % of {split}" for split, both in analysis.agreement.items())
        lines.append(f"the teacher on all rows and the fold teachers predict the same on {', '.join(shares)}")
    for split, seeds in analysis.seeds.items():
        line = f"{split}: teachers of other seeds predict the same on {100 * seeds.same:.1f} %, two by two, "
        line += f"all of them on {100 * seeds.unanimous:.1f} %"
        if seeds.mean is not None:
            each = ", ".join(f"{100 * value:.1f}" for value in seeds.members)
            line += f"; right are {each} %, the ensemble {100 * seeds.mean:.1f} %"
        lines.append(line)
    for line in lines:
        console.print(f"  {line}", markup=False, soft_wrap=True)


def _show_classes(names: tuple[str, ...], by_split: "dict[str, LabelAnalysis]") -> None:
    table = Table("class", title="Accuracy by class, % (rows)", title_justify="left")
    for split in by_split:
        table.add_column(split, justify="right")
    for k, name in enumerate(names):
        shares = [labels.classes.get(k) for labels in by_split.values()]
        table.add_row(name, *("—" if s is None else f"{100 * s.value:.1f} ({s.rows})" for s in shares))
    console.print(table)


def _show_texts(analysis: "CacheAnalysis", texts: Texts) -> None:
    for split, of_id in texts.items():
        labels = analysis.splits[split].labels
        assert labels is not None
        lines = [f"{split}, the {len(of_id)} most confident of {len(labels.mistakes)} mistakes:"]
        for mistake in labels.mistakes[: len(of_id)]:
            said, given = analysis.labels[mistake.prediction], analysis.labels[mistake.label]
            suspect = " (suspect)" if mistake.suspect else ""
            lines.append(
                f"  {mistake.example_id}: {said} {100 * mistake.confidence:.1f} %, labelled {given}{suspect}"
            )
            lines += [f"    {text}" for text in of_id[mistake.example_id]]
        for line in lines:
            console.print(line, markup=False, soft_wrap=True)


def _percent(share: "Share") -> str:
    return f"{100 * share.value:.1f} [{100 * share.low:.0f}, {100 * share.high:.0f}]"
