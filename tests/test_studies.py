"""Studies are projects like any user's, and what docs quote of them is what they found."""

import dataclasses
import json
import re
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, tiny_params
from six_tasks import write_powered
from smoke import dvc, make_project
from test_dvc import stages_run

from kdcache.backbone.student_backbone import StudentBackboneParams
from kdcache.data.prepare import PrepareParams
from kdcache.params import read_params
from kdcache.project import TEACHERS, Project
from kdcache.report.report import ReportParams
from kdcache.spread import Engine
from kdcache.students.arms import DistillParams
from kdcache.teacher.cache_teacher import CacheTeacherParams
from kdcache.teacher.fine_tune import TrainTeacherParams
from kdcache.teacher.import_teacher import check_teachers

STUDIES = sorted(path.parent for path in (ROOT / "studies").glob("*/params.yaml"))
ARCHIVE = sorted(ROOT.glob("studies/archive/*.json"))
LARGER = ROOT / "studies" / "larger_teacher.json"
AGAIN = ROOT / "studies" / "clinc150.json"
ALL_LABELS = ROOT / "studies" / "all_labels.json"
COPA = ROOT / "studies" / "all_labels_copa.json"
AG_NEWS = ROOT / "studies" / "all_labels_ag_news.json"
MRPC = ROOT / "studies" / "all_labels_mrpc.json"
CB = ROOT / "studies" / "all_labels_cb.json"
MPNET_PROMPTS = ROOT / "studies" / "mpnet_prompts.json"
SITTINGS = (LARGER, AGAIN, ALL_LABELS, COPA, AG_NEWS, MRPC, CB, MPNET_PROMPTS)
FEW_EFFECTS = ["head+kl` over `head", "kl` over `ce"]
ALL_EFFECTS = ["kl` over `ce", "kl+gram` over `kl"]
# Tables of a page: the heading above it, columns of effects, file, regime, what names of tasks end with.
TABLES = [
    ("README.md", "### On real data", FEW_EFFECTS, LARGER, "few labels", ""),
    ("docs/results.md", "## Few labels", FEW_EFFECTS, LARGER, "few labels", ""),
    ("docs/results.md", "## Few labels", FEW_EFFECTS, AGAIN, "few labels", ", again"),
    ("docs/results.md", "## Many labels, no unlabelled rows", ALL_EFFECTS, LARGER, "all labels", ""),
    ("docs/results.md", "## Many labels, no unlabelled rows", ALL_EFFECTS, ALL_LABELS, "all labels", ""),
    ("docs/results.md", "## Many labels, no unlabelled rows", ALL_EFFECTS, COPA, "all labels", ""),
    ("docs/results.md", "## Many labels, no unlabelled rows", ALL_EFFECTS, AG_NEWS, "all labels", ""),
    ("docs/results.md", "## Many labels, no unlabelled rows", ALL_EFFECTS, MRPC, "all labels", ""),
    ("docs/results.md", "## Many labels, no unlabelled rows", ALL_EFFECTS, CB, "all labels", ""),
]
PROJECTS = {
    "few labels": ("few_labels", "few_per_class"),
    "all labels": ("all_labels",),
    "few labels, MPNet-base as student": ("mpnet_prompts",),
    "relation": ("relation",),
}
SECTIONS = {
    "prepare": PrepareParams,
    "train_teacher": TrainTeacherParams,
    "cache_teacher": CacheTeacherParams,
    "student_backbone": StudentBackboneParams,
    "distill": DistillParams,
    "report": ReportParams,
}


@pytest.mark.parametrize("folder", [ROOT, *STUDIES], ids=lambda path: path.name)
def test_parameters_are_valid_in_every_section(folder, monkeypatch):
    monkeypatch.chdir(folder)
    project = Project.load()
    engine = {field.name for field in dataclasses.fields(Engine)}  # may be left out
    assert project.raw.keys() - engine == {
        "tasks",
        "fine_tune",
        "threads",
        "paths",
        "import_teacher",
        *SECTIONS,
    }
    Engine.of(project.raw)
    check_teachers(project)
    for name, params in SECTIONS.items():
        project.section(name, params)


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_a_study_is_a_project_of_its_own(study):
    assert (study / "dvc.yaml").read_bytes() == (ROOT / "dvc.yaml").read_bytes()
    assert (study / "pipeline").resolve() == ROOT / "pipeline"
    params = read_params(study / "params.yaml")
    assert not any(Path(path).is_absolute() or ".." in path for path in params["paths"].values())
    if params["prepare"]["source"] == "files":
        for task in params["tasks"]:
            assert (study / params["paths"]["tasks"] / f"{task}.toml").is_file()


@pytest.mark.parametrize("path", SITTINGS, ids=lambda path: path.stem)
def test_results_are_of_tasks_and_arms_of_the_projects(path):
    results = json.loads(path.read_text(encoding="utf-8"))
    made_by = results.pop("made_by")
    assert {"kdcache", "commit", "date", "machine", "note"} == made_by.keys()
    for regime, found in results.items():
        params = [read_params(ROOT / "studies" / name / "params.yaml") for name in PROJECTS[regime]]
        arms = [arm for project in params for arm in project["distill"]["arms"]]
        planned = {*arms, *(arm.partition("@")[0] for arm in arms), *TEACHERS}
        for task, facts in found["tasks"].items():
            (project,) = (p for p in params if task in p["tasks"])
            assert facts["arms"].keys() <= planned | {"SetFit", "SetFit distilled", "logistic regression"}
            assert facts["classes"].keys() - set(TEACHERS) <= project["distill"]["arms"].keys()
            assert {f"{arm}@{rate}" for arm, rate in facts.get("rates", {}).items()} <= project["distill"][
                "arms"
            ].keys()
            for comparison in found["comparisons"]:
                arm, over, effects = comparison["arm"], comparison["over"], comparison["tasks"]
                if task in effects:
                    difference = facts["arms"][arm]["points"] - facts["arms"][over]["points"]
                    assert effects[task]["points"] == pytest.approx(difference, abs=1e-3)
                    assert effects[task]["low"] < effects[task]["points"] < effects[task]["high"]


@pytest.mark.parametrize("path", ARCHIVE, ids=lambda path: path.stem)
def test_archived_results_say_what_made_them_and_agree_with_themselves(path):
    results = json.loads(path.read_text(encoding="utf-8"))
    assert results["study"] == path.stem
    assert {"kdcache", "commit", "date", "machine", "rerun", "note"} == results["made_by"].keys()
    for task in results["tasks"].values():
        for arm in task["arms"].values():
            values = list(arm[task["metric"]]["seeds"].values())
            assert arm[task["metric"]]["mean"] == pytest.approx(sum(values) / len(values), abs=0.02)
    for comparison in results["comparisons"]:
        arm, over = comparison["arm"], comparison["over"]
        for name, effect in comparison.get("tasks", {}).items():
            assert effect["low"] <= effect["points"] <= effect["high"]
            scores = results["tasks"][name]["arms"]
            same_rows = (
                arm in scores and over in scores and not {"rows"} & (scores[arm].keys() | scores[over].keys())
            )
            if same_rows and not over.startswith("ce@2"):
                metric = results["tasks"][name]["metric"]
                difference = scores[arm][metric]["mean"] - scores[over][metric]["mean"]
                assert effect["points"] == pytest.approx(difference, abs=0.06)


# "+3.1 (95% CI 1.8 to 4.5)", "−0.2 points (95% CI −0.6 to 0.2)"
QUOTED = re.compile(r"[+]?(−?\d+\.\d)(?: points)? \(95% CI (−?\d+\.\d) to (−?\d+\.\d)\)")


def shown(number: float) -> str:
    return f"{round(number, 1) or 0:.1f}".replace("-", "−")


def intervals(value: object) -> Iterator[tuple[str, ...]]:
    """Every estimate with an interval in a JSON file, as docs write it."""
    if isinstance(value, dict):
        numbers = [value.get(key) for key in ("points", "low", "high")]
        if None not in numbers:
            yield tuple(shown(number) for number in numbers)
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from intervals(part)


@pytest.mark.parametrize(
    "name", ["README.md", "docs/results.md", "docs/log.md", "docs/concepts/cross-fitting.md"]
)
def test_each_interval_that_is_quoted_was_found(name):
    text = " ".join((ROOT / name).read_text(encoding="utf-8").split())  # an interval may span two lines
    quoted = set(QUOTED.findall(text))
    known = {
        interval
        for path in [*ARCHIVE, *SITTINGS, ROOT / "reports" / "results.json"]
        for interval in intervals(json.loads(path.read_text(encoding="utf-8")))
    }
    assert quoted - known == set()
    assert "95% CI" not in QUOTED.sub("", text)  # none is written in a form that is not checked
    if name == "docs/results.md":
        assert len(quoted) > 8


def test_what_setfit_reached_again_is_what_the_page_says():
    text = " ".join((ROOT / "docs/results.md").read_text(encoding="utf-8").split())
    found = sorted(ROOT.glob("studies/*/peers/again/*.json"))
    assert [path.stem for path in found] == [
        "ag_news",
        "cb",
        "mrpc",
        "rte",
        "subj",
        "wic",
        "banking77",
        "clinc150",
    ]
    for path in found:
        seeds = json.loads(path.read_text(encoding="utf-8"))["accuracy"]["SetFit"]
        assert f"{shown(sum(seeds) / len(seeds))} on {path.stem}" in text


@pytest.mark.parametrize(
    ("page", "heading", "wanted", "path", "regime", "suffix"),
    TABLES,
    ids=lambda value: getattr(value, "stem", None),
)
def test_table_of_results_shows_the_results(page, heading, wanted, path, regime, suffix):
    text = (ROOT / page).read_text(encoding="utf-8").partition(f"{heading}\n")[2]
    header = re.search(r"^\| task \| labels \|.*\|$", text, flags=re.MULTILINE)
    assert header
    text = text[: text.find("\n\n", header.end())]
    columns = [name.strip("` ") for name in header[0].strip("| ").split("|")]
    found = json.loads(path.read_text(encoding="utf-8"))[regime]
    effects = {f"{c['arm']}` over `{c['over']}": c["tasks"] for c in found["comparisons"]}
    assert [name for name in columns if name in effects] == wanted
    check_rows(text, columns, found["tasks"], effects, suffix)


def check_rows(
    text: str, columns: list[str], tasks: dict[str, Any], effects: dict[str, dict[str, Any]], suffix: str
) -> None:
    for task, facts in tasks.items():
        row = re.search(rf"^\| {task}{suffix} \| (.*) \|$", text, flags=re.MULTILINE)
        assert row, task
        cells = dict(zip(columns, [task, *row[1].split(" | ")], strict=True))
        wanted = {arm: facts["arms"][arm]["points"] for arm in facts["arms"] if arm in columns}
        wanted |= {"teacher": facts["teacher"]["points"], "teacher's probe": facts["teacher_probe"]}
        wanted |= {"majority": facts["majority"]} if "majority" in columns else {}
        assert {name: cells[name] for name in wanted} == {
            name: shown(value) for name, value in wanted.items()
        }
        assert int(cells["labels"]) == facts["rows"]["train"]
        for name in columns:
            if name in effects:
                assert QUOTED.findall(cells[name]) == list(intervals(effects[name].get(task)))


@pytest.mark.slow
def test_picture_of_results_is_drawn_from_the_results(tmp_path):
    picture = runpy.run_path(str(ROOT / "studies" / "picture.py"))
    picture["draw"](tmp_path / "results.svg")
    # Positions may differ on another CPU, words and numbers may not.
    drawn, kept = (
        re.findall(r"<text[^>]*>([^<]+)</text>", path.read_text(encoding="utf-8"))
        for path in (tmp_path / "results.svg", ROOT / "docs" / "results.svg")
    )
    assert "+3.5" in kept
    assert drawn == kept
    assert (ROOT / "docs" / "results.svg").stat().st_size < 60_000
    with pytest.raises(SystemExit, match="kl with head"):
        picture["read_effects"]({"comparisons": []}, "kl", "head")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_study_runs_in_its_own_folder(tmp_path: Path):
    """A study is a folder below the project; its pipeline and tasks are symbolic links."""
    project = make_project(tmp_path / "project")
    study = project / "studies" / "two"
    study.mkdir(parents=True)
    write_powered(project / "studies" / "data")
    shutil.copytree(ROOT / "studies" / "tasks", project / "studies" / "tasks")
    shutil.copy(ROOT / "dvc.yaml", study)
    (study / "pipeline").symlink_to("../../pipeline")
    (study / "tasks").symlink_to("../tasks")
    source = read_params(ROOT / "studies" / "few_labels" / "params.yaml")
    tiny = tiny_params(str(project / "tiny"))
    kept = ("head", "ce@3e-2", "full", "kl@3e-2", "kl+gram@3e-2")
    arms = {name.partition("@")[0]: source["distill"]["arms"][name] for name in kept}
    params = {
        **tiny, "tasks": ["cola", "mrpc"], "fine_tune": ["cola", "mrpc"], "paths": source["paths"],
        "report": {**source["report"], "baseline": "ce", "comparisons": [["kl+gram", "kl"]]},
        "prepare": {
            **source["prepare"], "max_rows": {"train": 32}, "tune_fraction": 0.25,
        },
        "train_teacher": {**tiny["train_teacher"], "folds": 0, "ensemble": 2},
        "distill": {**tiny["distill"], "arms": arms, "seeds": [0]},
    }  # fmt: skip
    (study / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    run = {stage.rpartition(":")[2] for stage in stages_run(dvc(study, "repro"))}
    for stage in ("prepare", "train_teacher", "cache_teacher", "distill"):
        assert {f"{stage}@cola", f"{stage}@mrpc"} <= run
    table = (study / "reports" / "results.md").read_text()
    assert "cola matthews" in table
    assert "mrpc accuracy" in table

    # The comment changes the task file and no row: nothing after prepare runs.
    with (study / "tasks" / "cola.toml").open("a") as file:
        file.write("# a comment\n")
    again = {stage.rpartition(":")[2] for stage in stages_run(dvc(study, "repro"))}
    assert "prepare@cola" in again
    assert {stage.partition("@")[0] for stage in again} <= {"prepare", "code"}
