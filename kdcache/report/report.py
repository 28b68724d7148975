"""The stage ``report``: metrics, curves and predictions of all tasks → reports/."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import kdcache
from kdcache.cache.manifest import read_manifest
from kdcache.digests import check_seal, file_digest, value_digest
from kdcache.errors import DataError, ParamsError
from kdcache.places import check_place, place
from kdcache.project import Paths, Project, require, write_json
from kdcache.report.cost import savings, timed_saving_table
from kdcache.report.figures import draw_results
from kdcache.report.findings import Record, ReportParams, compute_findings
from kdcache.report.page import build_sections, page_html, page_json, page_markdown, score_panels
from kdcache.report.tables import Table, score_table
from kdcache.store.location import Location
from kdcache.students.curves import read_curves

READ_BESIDE = ("example_id", "group", "unit", "candidate", "answers")  # columns of a validation row


def report(project: Project) -> None:
    """Do what ``write_report`` does, and print the table of scores and where the page is.

    Raises:
        As ``write_report``.
    """
    folder = write_report(project)
    control = project.section("report", ReportParams).control
    table = score_table([_read_metrics(project, task) for task in project.tasks], control)
    print("\n".join([*table.markdown(), "", f"{table.caption}.", f"page: {folder / 'index.html'}"]))


def write_report(project: Project) -> Path:
    """Write the page as index.html, results.md and results.json, and its picture results.svg.

    A task's students are those of ``Project.outputs``. The folder is returned.

    Raises:
        ParamsError: a comparison is not of two arms.
        DataError: a task was not distilled yet, or its predictions do not belong together.
        CacheError: its cache is gone.
    """
    params = project.section("report", ReportParams)
    for paths in (project.paths, project.paths.explored):
        check_place(Path(paths.reports), "reports")
    target = _report_folder(project)
    findings = compute_findings([_read_record(project, task) for task in project.tasks], params)
    commands = [*dict.fromkeys(_command(project, _outputs(project, task), task) for task in project.tasks)]
    sections = build_sections(findings, commands, _shared_identities(project))
    title = f"Distilled prompts on {', '.join(project.tasks)}"
    with project.alone(target):
        made = project.scratch(__name__, project.tasks, target.as_posix(), goes_on=False)
        shutil.rmtree(made)
        made.mkdir()
        (made / "index.html").write_text(page_html(sections, title), encoding="utf-8")
        (made / "results.md").write_text(page_markdown(sections), encoding="utf-8")
        write_json(page_json(findings), made / "results.json")
        draw_results(score_panels(findings), made / "results.svg")
        place(made, target)
    return target


def _report_folder(project: Project) -> Path:
    """Return where the report goes: beside the pipeline's outputs if all tasks lie there, else in runs/."""
    of_pipeline = all(_outputs(project, task) == project.paths for task in project.tasks)
    return Path((project.paths if of_pipeline else project.paths.explored).reports)


def read_timings(project: Project) -> list[dict[str, Any]]:
    """Read the wall times of the stages as last run on this machine, in order of their names.

    Raises:
        ParamsError: no stage has run here.
    """
    files = sorted(Path(project.paths.timings).glob("*.json"))
    if not files:
        raise ParamsError("No wall times: no stage has run on this machine. Run: dvc repro")
    return [json.loads(path.read_text(encoding="utf-8")) for path in files]


def read_timed_savings(project: Project, timings: Sequence[Mapping[str, Any]]) -> Table:
    """Tabulate what the cache saved on this machine, against a teacher that runs in every step."""
    return timed_saving_table(savings([_read_metrics(project, task) for task in project.tasks]), timings)


def _read_record(project: Project, task: str) -> Record:
    import pandas as pd

    paths = _outputs(project, task)
    again = _command_of_students(project, paths, task)
    metrics = _read_metrics(project, task)
    curves = require(Path(paths.curves) / f"{task}.csv", "the curves", again, DataError)
    predictions = require(Path(paths.predictions) / f"{task}.parquet", "the predictions", again, DataError)
    beside = {"curves": curves, "predictions": predictions}
    for name, wanted in metrics.get("sha256", {}).items():
        _require_digest(beside[name], file_digest(beside[name]), wanted, again)
    rows = require(
        Path(paths.data) / task / "validation.parquet",
        "the validation split",
        f"kdcache prepare --task {task}",
        DataError,
    )
    check_seal(rows, f"Run: kdcache prepare --task {task}", DataError)
    manifest = read_manifest(Location.parse(paths.cache, task))
    if "cache" in metrics:  # metrics did not have it before
        path = Path(paths.metrics) / f"{task}.json"
        _require_digest(path, manifest.digest, metrics["cache"], again, "cache")
    split = pd.read_parquet(rows)
    return Record(
        metrics=metrics,
        curves=read_curves(curves),
        predictions=pd.read_parquet(predictions),
        rows=split[[name for name in READ_BESIDE if name in split]],
        identity={
            "teacher, sha256": manifest.teacher_digest,
            "cache, sha256": manifest.digest,
            "cache format": str(manifest.format_version),
            "template": str(manifest.identity.get("template", "")),
        },
    )


def _read_metrics(project: Project, task: str) -> dict[str, Any]:
    paths = _outputs(project, task)
    path = Path(paths.metrics) / f"{task}.json"
    again = _command_of_students(project, paths, task)
    try:
        metrics = json.loads(path.read_bytes())
        wanted = metrics.pop("digest", None)
    except (ValueError, AttributeError):
        metrics, wanted = {}, "that of JSON"
    if wanted or "sha256" in metrics:  # metrics had neither before
        _require_digest(path, value_digest(metrics), wanted, again)
    return metrics


def _outputs(project: Project, task: str) -> Paths:
    paths = project.outputs(task)
    if paths is None:
        raise DataError(f"{task}: it must have students, got none. Run: kdcache distill --task {task}")
    return paths


def _command(project: Project, paths: Paths, task: str) -> str:
    """Return what makes all outputs of a task."""
    return "dvc repro" if paths == project.paths else f"kdcache distill --task {task}"


def _command_of_students(project: Project, paths: Paths, task: str) -> str:
    """Return what makes the students of a task again."""
    return f"dvc repro distill@{task}" if paths == project.paths else f"kdcache distill --task {task}"


def _require_digest(path: Path, found: str, wanted: Any, command: str, whose: str = "") -> None:
    if wanted != found:
        raise DataError(
            f"{path}: {f'the digest of its {whose}' if whose else 'its digest'} must be {wanted}, as distill "
            f"wrote it, got {found}. Run: {command}"
        )


def _shared_identities(project: Project) -> dict[str, str]:
    weights, pinned = Path(project.paths.backbone) / "model.safetensors", Path("constraints.txt")
    found = {"student backbone, sha256": file_digest(weights)} if weights.is_file() else {}
    found["kdcache"] = kdcache.__version__
    return found | ({"libraries": pinned.name} if pinned.is_file() else {})
