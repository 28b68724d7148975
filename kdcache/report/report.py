"""What the students of all tasks did → reports/: index.html, results.md, results.json and figures."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import kdcache
from kdcache.cache.location import Location
from kdcache.cache.manifest import read_manifest
from kdcache.digests import file_digest
from kdcache.errors import DataError, ParamsError, nearest
from kdcache.project import Project, place, require, write_json
from kdcache.report.charts import arm_styles
from kdcache.report.cost import live_table, savings
from kdcache.report.figures import draw_headline, draw_results, draw_shares
from kdcache.report.findings import Findings, Record, find
from kdcache.report.numbers import numbers
from kdcache.report.page import page_html, page_markdown
from kdcache.report.roles import Recipe
from kdcache.report.sections import build_sections, headline
from kdcache.report.summary import Table

READ_BESIDE = ("example_id", "group", "unit", "candidate", "answers")  # of a validation row


@dataclass(frozen=True)
class ReportParams:
    """Section ``report``.

    Args:
        comparisons: pairs [arm, over] of a study's plan. The first is its primary comparison, the
            others are corrected together (Holm). Empty takes the standing questions.
    """

    comparisons: tuple[tuple[str, ...], ...] = ()


def report(project: Project) -> None:
    """Write the page, its tables and numbers, and the figures.

    Raises:
        ParamsError: a comparison of arms that are not there.
        DataError: a task was not distilled yet, or its predictions do not belong together.
        CacheError: its cache is gone.
    """
    recipes, method = _read_arms(project)
    planned = _read_planned(project, recipes)
    findings = find([_read_record(project, task) for task in project.tasks], recipes, method, planned)
    sections = build_sections(findings, _commands(project), _shared_identities(project))
    made = project.scratch(__name__, project.tasks)
    shutil.rmtree(made)
    made.mkdir()
    title = f"Distilled prompts on {', '.join(project.tasks)}"
    (made / "index.html").write_text(page_html(sections, title), encoding="utf-8")
    (made / "results.md").write_text(page_markdown(sections, findings), encoding="utf-8")
    write_json(numbers(findings), made / "results.json")
    draw_results(findings.metrics, made / "results.svg")
    draw_shares({record.name: record.curves for record in findings.records}, made / "shares.svg")
    _draw_headline(findings, made / "headline.svg")
    place(made, Path(project.paths.reports))


def read_timings(project: Project) -> list[dict[str, Any]]:
    """Wall times of the stages as last run on this machine, in order of their names.

    Raises:
        ParamsError: no stage has run here.
    """
    files = sorted(Path(project.paths.timings).glob("*.json"))
    if not files:
        raise ParamsError("timings: a stage must have run on this machine, got none. Run: dvc repro")
    return [json.loads(path.read_text(encoding="utf-8")) for path in files]


def read_live_costs(project: Project, timings: Sequence[Mapping[str, Any]]) -> Table:
    """When the cache has paid for itself on this machine, against a teacher in every step."""
    return live_table(
        savings([_read_metrics(project, task) for task in project.tasks], _read_arms(project)[0]), timings
    )


def _read_arms(project: Project) -> tuple[Mapping[str, Recipe | None], str]:
    """As the parameters have them: checking them would import every loss, and ``distill`` has done it."""
    section = project.raw.get("distill") or {}
    return section.get("arms") or {}, section.get("method", "prefix")


def _read_planned(project: Project, arms: Mapping[str, Recipe | None]) -> list[tuple[str, str]]:
    planned = []
    for k, pair in enumerate(project.section("report", ReportParams).comparisons):
        where = f"report.comparisons[{k}]"
        if len(pair) != 2 or pair[0] == pair[1]:
            raise ParamsError(
                f"{where}: it must be [arm, over], two arms, got {list(pair)}. Correct it or leave it out."
            )
        for name in pair:
            if name not in arms:
                raise ParamsError(
                    f"{where}: it must name arms of distill.arms, got {name!r}. {nearest(name, arms)}"
                )
        planned.append((pair[0], pair[1]))
    return planned


def _read_record(project: Project, task: str) -> Record:
    paths, again = project.paths, f"dvc repro distill@{task}"
    metrics = _read_metrics(project, task)
    curves = require(Path(paths.curves) / f"{task}.csv", "the curves", again, DataError)
    predictions = require(Path(paths.predictions) / f"{task}.parquet", "the predictions", again, DataError)
    rows = require(
        Path(paths.data) / task / "validation.parquet",
        "the validation split",
        f"kdcache prepare --task {task}",
        DataError,
    )
    manifest = read_manifest(Location.parse(paths.cache, task))
    split = pd.read_parquet(rows)
    return Record(
        metrics=metrics,
        curves=pd.read_csv(curves),
        predictions=pd.read_parquet(predictions),
        rows=split[[name for name in READ_BESIDE if name in split]],
        labels=manifest.identity["labels"],
        identity={
            "teacher, sha256": manifest.teacher_digest,
            "cache, sha256": manifest.digest,
            "cache format": str(manifest.format_version),
            "template": str(manifest.identity.get("template", "")),
        },
    )


def _read_metrics(project: Project, task: str) -> dict[str, Any]:
    path = Path(project.paths.metrics) / f"{task}.json"
    require(path, "the metrics", f"dvc repro distill@{task}", DataError)
    return json.loads(path.read_text(encoding="utf-8"))


def _shared_identities(project: Project) -> dict[str, str]:
    weights = Path(project.paths.backbone) / "model.safetensors"
    backbone = {"student backbone, sha256": file_digest(weights)} if weights.is_file() else {}
    return backbone | {"kdcache": kdcache.__version__, "libraries": "constraints.txt"}


def _commands(project: Project) -> list[str]:
    """What makes the same again: the pipeline beside reports/, a study's own or the project's."""
    pipeline = Path(project.paths.reports).parent / "dvc.yaml"
    own = not pipeline.is_absolute() and pipeline != Path("dvc.yaml")
    repro = f"dvc repro {pipeline.as_posix()}" if own else "dvc repro"
    return ['pip install -e ".[sample]" -c constraints.txt', repro]


def _draw_headline(findings: Findings, path: Path) -> None:
    styles = arm_styles(findings.arms, findings.roles.head)
    panels = headline(findings, styles)
    draw_headline(
        {title: rows for title, rows, _ in panels},
        {title: [(style.colour, style.marker) for style in of_rows] for title, _, of_rows in panels},
        path,
    )
