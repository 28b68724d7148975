"""Verbs as functions: frames with the numbers that the commands print."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, run
from notebook import run_notebook

import kdcache
from kdcache.errors import ParamsError


def test_distill_and_compare_return_what_the_commands_print(distilled_project):
    project = kdcache.Project.load(["distill.arms={head: {method: head}, ce: {}}"])
    frame = kdcache.distill(project, "cb", ["ce"], [0, 1])
    assert list(frame.index) == ["majority class", "ce", "teacher"]
    assert frame.loc["ce", "seeds"] == 2
    told = json.loads(Path("runs/metrics/cb.json").read_text())["arms"]["ce"]["validation"]["accuracy"]
    assert frame.loc["ce", "accuracy"] == pytest.approx(100 * told["mean"])
    assert frame.loc["ce", "accuracy_sd"] == pytest.approx(100 * told["sd"])
    assert pd.isna(frame.loc["teacher", "seeds"])
    found = kdcache.compare("ce", "teacher", project=project)
    code, out, error = run("compare", "ce", "teacher")
    assert code == 0, error
    (cell,) = re.findall(r"cb +\S? *([+−]?[\d.]+) \(", out)
    assert float(cell.replace("−", "-")) == pytest.approx(found.loc["cb", "effect"], abs=0.051)
    assert found.loc["cb", "low"] <= found.loc["cb", "at_least"] <= found.loc["cb", "effect"]
    with pytest.raises(ParamsError, match="different"):
        kdcache.compare("ce", "ce", project=project)


def test_the_only_teacher_is_one_to_compare_with(built_project):
    arm = "distill --task cb --arm head"
    built_project("prepare", "teach --task cb", "cache --task cb", "shrink", arm, train_teacher={"folds": 0})
    project = kdcache.Project.load()
    over = [kdcache.compare("head", name, project=project) for name in ("teacher", "teacher_cached")]
    assert over[0].equals(over[1])


def test_evaluate_returns_what_is_written(distilled_project):
    project = kdcache.Project.load()
    frame = kdcache.evaluate(project, "cb", ["head"], "validation")
    (look,) = json.loads(Path("evaluations/cb-validation.json").read_text())["looks"]
    for arm, metric in (("head", "accuracy"), ("teacher", "macro_f1")):
        assert frame.loc[(arm, metric), "percent"] == look["scores"][arm][metric]["points"]
    assert frame.attrs == {"look": 1, "looks": 1}
    assert kdcache.evaluate(project, "cb", ["head"], "validation").equals(frame)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_goes_from_a_csv_to_a_compared_student(tmp_path):
    path = ROOT / "examples/csv_to_student.ipynb"
    kept = json.loads(path.read_text())
    done, names = run_notebook(path, tmp_path)
    for before, after in zip(kept["cells"], done["cells"], strict=True):
        assert before["source"] == after["source"]
        kinds = [[one["output_type"] for one in cell.get("outputs", [])] for cell in (before, after)]
        assert kinds[0] == kinds[1], after["source"]
    assert str(names["student"]).startswith("<letters: ")
    assert (tmp_path / "letters/runs/reports/index.html").is_file()
