"""Command inspect: the analysis of a cache before any student is trained."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from kdcache.cli.caches import Where, show_cache
from kdcache.cli.options import Debug, Overrides, Tasks, chosen_tasks, console, open_project, refuse_beside
from kdcache.errors import ParamsError
from kdcache.places import replacing
from kdcache.project import errors_in_one_line

if TYPE_CHECKING:
    from kdcache.analysis.analyse import CacheAnalysis, LabelAnalysis, Proportion
    from kdcache.project import Project

# split → example id → the texts that the teacher read.
Texts = dict[str, dict[str, list[str]]]

MAX_CLASSES = 20  # more classes get no table


def inspect(
    cache: Where = None,
    task: Tasks = None,
    texts: Annotated[
        int,
        typer.Option(
            "--texts",
            min=0,
            metavar="N",
            help="Show the N most confident mistakes per split with their texts.",
        ),
    ] = 0,
    figure: Annotated[
        Path | None,
        typer.Option("--figure", metavar="FILE", help="Draw reliability and entropies to an .svg file."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the analysis as JSON instead.")] = False,
    set_: Overrides = None,
    debug: Debug = False,
) -> None:
    """Show a cache's accuracy, entropy, calibration, suspected label noise and origin.

    Examples:

        kdcache inspect --task reviews --texts 3
    """
    with errors_in_one_line(debug):
        if cache:
            refuse_beside("CACHE", {"--task": task, "--set": set_})
        if cache and texts:
            raise ParamsError(
                f"--texts: the texts are in a task's prepared data, which {cache} does not name. "
                "Use: --task TASK"
            )
        if figure and figure.suffix != ".svg":
            raise ParamsError(f"--figure: the file must end in .svg, got {figure}.")
        from kdcache.analysis.analyse import analyse_cache
        from kdcache.analysis.describe import describe_analysis
        from kdcache.cache.manifest import read_manifest
        from kdcache.cache.schema import top_k_of
        from kdcache.store.location import Location

        project = None
        if cache:
            locations = [Location.parse(cache)]
        else:
            with open_project(set_, debug, task) as project:
                names = chosen_tasks(project, task)
                locations = [Location.parse(project.paths.cache, name) for name in names]
        if figure and len(locations) > 1:
            raise ParamsError(f"--figure: there must be one task, got {', '.join(names)}. Add: --task TASK")
        as_json = {}
        for location in locations:
            backbone = Path(project.paths.backbone) if project else None
            manifest, analysis = read_manifest(location), analyse_cache(location, backbone)
            of_mistakes = _read_texts(project, location.name, analysis, texts) if project and texts else {}
            if figure:
                from kdcache.report.figures import draw_cache

                with replacing(figure) as part:
                    draw_cache(analysis, part)
            facts: dict[str, Any] = {"digest": manifest.digest, "description": describe_analysis(analysis)}
            if top_k := top_k_of(manifest.schema):
                facts["top_k"] = top_k
            as_json[str(location)] = facts | asdict(analysis) | {"texts": of_mistakes}
            if not json_:
                console.print(f"{location}: {facts['description']}\n", soft_wrap=True)
                show_cache(location, manifest)
                _show_analysis(analysis)
                if top_k:
                    console.print(
                        f"  of a row the {top_k} largest logits are kept; the other labels count as equally "
                        "likely, in the entropy and where a row's label is one of them", soft_wrap=True,
                    )  # fmt: skip
                _show_texts(analysis, of_mistakes)
        if json_:
            typer.echo(json.dumps(as_json, indent=2, ensure_ascii=False))


def _read_texts(project: "Project", task: str, analysis: "CacheAnalysis", count: int) -> Texts:
    from kdcache.analysis.mistake_texts import read_texts

    texts = {}
    for split, found in analysis.splits.items():
        if found.labels:
            ids = [mistake.example_id for mistake in found.labels.mistakes[:count]]
            texts[split] = read_texts(project, task, split, ids)
    return texts


def _show_analysis(analysis: "CacheAnalysis") -> None:
    table = Table("split", title="The cached logits", title_justify="left")
    for column in (
        "accuracy, %\n(95% CI)", "ECE, %\n(by chance)", "entropy\n(% of log C)",
        "margin at\n5, 50, 95%", "suspect\nlabels",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for split, found in analysis.splits.items():
        margins = ", ".join(f"{found.margins[q]:.1f}" for q in (0.05, 0.5, 0.95))
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
    for split, probes in analysis.probes.items():
        frozen = {"the teacher's model": probes.teacher, "the students' backbone": probes.backbone}
        each = ", of ".join(f"{of} {100 * share:.1f}" for of, share in frozen.items() if share is not None)
        if not each:
            continue
        labels = analysis.splits[split].labels if split in analysis.splits else None
        beside = f"; the teacher {100 * labels.accuracy.value:.1f}" if labels else ""
        lines.append(f"accuracy on {split} of a linear probe, %, before any training, of {each}{beside}")
    for split, fit in analysis.temperatures.items():
        high = "∞" if fit.high is None else f"{fit.high:.2f}"
        lines.append(
            f"temperature of least NLL on {split}, {fit.rows} rows: {fit.value:.2f} "
            f"(95% CI {fit.low:.2f} to {high}), {fit.nll:.3f} → {fit.nll_scaled:.3f} nats"
        )
    if analysis.folds:
        each = ", ".join(f"{fold}: {_percent(share)}" for fold, share in analysis.folds.items())
        lines.append(f"accuracy of each fold's teacher on its fold, %: {each}")
    if analysis.agreement:
        shares = (f"{100 * both.same:.1f}% of {split}" for split, both in analysis.agreement.items())
        lines.append(f"the fold teachers and the teacher on all rows predict the same on {', '.join(shares)}")
    for split, members in analysis.members.items():
        line = f"{split}: two members of the ensemble predict the same on {100 * members.same:.1f}% on "
        line += f"average, all of them on {100 * members.unanimous:.1f}%"
        if members.ensemble is not None:
            each = ", ".join(f"{100 * value:.1f}" for value in members.accuracies)
            line += f"; their accuracies are {each}%, the ensemble's {100 * members.ensemble:.1f}%"
        lines.append(line)
    for line in lines:
        console.print(f"  {line}", soft_wrap=True)


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
        mistakes = labels.mistakes if labels else ()
        lines = [f"{split}, the {len(of_id)} most confident of {labels.wrong if labels else 0} mistakes:"]
        for mistake in mistakes[: len(of_id)]:
            prediction, label = analysis.labels[mistake.prediction], analysis.labels[mistake.label]
            suspect = " (suspect)" if mistake.suspect else ""
            confidence = f"{100 * mistake.confidence:.1f}%"
            lines.append(f"  {mistake.example_id}: {prediction} {confidence}, labelled {label}{suspect}")
            lines += [f"    {text}" for text in of_id[mistake.example_id]]
        for line in lines:
            console.print(line, soft_wrap=True)


def _percent(share: "Proportion") -> str:
    return f"{100 * share.value:.1f} ({100 * share.low:.0f} to {100 * share.high:.0f})"
