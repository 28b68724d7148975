"""The verbs after ``kdcache distill``: report, compare and predict on the students in runs/."""

import json
import re
import shutil
import threading
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pandas as pd
from conftest import fails, run

from kdcache.errors import KdcacheError
from kdcache.places import in_turn
from kdcache.project import Project, load_stage
from kdcache.students import distill, grid
from kdcache.students.curves import read_curves

COMMANDS = ("prepare", "teach --task cb", "cache --task cb", "shrink")
ONE_WORKER = ("--set", "distill.workers=1")
HEAD_KL = "distill --task cb --arm head --arm kl"


def arms_of(task: str, folder: str = "runs") -> dict[str, list[str]]:
    """Arm → seeds, as the metrics have them."""
    metrics = json.loads(Path(folder, "metrics", f"{task}.json").read_text())
    return {arm: list(of["validation"]["accuracy"]["seeds"]) for arm, of in metrics["arms"].items()}


def test_students_in_runs_are_reported_compared_and_used(built_project):
    built_project(*COMMANDS, HEAD_KL)
    code, out, error = run("report")
    assert code == 0, error
    assert "kdcache distill --task cb" in out
    assert "| kl |" in out
    assert "runs/reports/index.html" in out
    assert Path("runs/reports/index.html").is_file()
    assert not Path("reports").exists()
    assert run("-h")[0] == 0
    with redirect_stdout(StringIO()) as printed:
        load_stage("report")(Project.load().only(["cb"]))
    last = printed.getvalue().splitlines()
    assert last[-1] == "page: runs/reports/index.html", "what dvc repro ends with"
    assert any(line.startswith("| kl |") for line in last)
    for pair in (("kl", "head"), ("kl", "teacher"), ("runs:kl", "runs:head"), (".:kl", "head")):
        code, out, error = run("compare", *pair)
        assert (code, error) == (0, "")
        assert "distill.seeds" in out.splitlines()[0], "two seeds cannot tell"
        assert "cb" in out
    code, out, error = run("predict", "--arm", "kl", "--task", "cb", "--split", "validation")
    assert code == 0, error
    assert len(pd.read_csv(out.strip())) == 32
    assert "runs/cb/kl-0" in error


def test_a_student_of_older_settings_labels_no_more(built_project):
    built_project(*COMMANDS, HEAD_KL)
    again = ("distill", "--task", "cb", "--arm", "kl", "--seed", "1", "--set", "distill.lr=1e-3")
    assert run(*again)[0] == 0
    code, out, error = run("predict", "--arm", "kl", "--task", "cb", "--split", "validation")
    assert code == 0, error
    assert "runs/cb/kl-1" in error
    arm = Path(out.strip()).read_bytes()
    assert run("predict", "--student", "runs/cb/kl-1", "--split", "validation")[0] == 0
    assert Path(out.strip()).read_bytes() == arm


def test_students_whose_outputs_found_no_place_are_not_trained_again(built_project, monkeypatch):
    """Neither those of a command nor those of the stage."""
    arms = {"kl": {"ce_weight": 0, "inter_class": {"name": "kl"}}}
    built_project(*COMMANDS, distill={"arms": arms, "workers": 1})
    trained: list[int] = []

    def stage() -> int:
        try:
            load_stage("distill")(Project.load(), "cb")
        except (KdcacheError, OSError):
            return 1
        return 0

    fit = grid.train_students
    monkeypatch.setattr(grid, "train_students", lambda runs, *more: trained.append(1) or fit(runs, *more))
    for place, train in (
        ("runs/curves", lambda: run("distill", "--task", "cb")[0]),
        ("curves", stage),
    ):
        trained.clear()
        Path(place).parent.mkdir(exist_ok=True)
        Path(place).write_text("in the way")
        assert train() != 0
        assert trained
        Path(place).unlink()
        trained.clear()
        assert train() == 0
        assert not trained
    assert arms_of("cb") == {"kl": ["0", "1"]}
    assert Path("models/students/cb/kl-0/result.json").is_file()


def test_arms_keep_names_that_look_like_something_else(built_project):
    built_project(*COMMANDS, distill={"arms": {"1e-2": {}, "null": {}, "True": {}}, "seeds": [0, 1]})
    assert run("distill", "--task", "cb")[0] == 0
    code, out, error = run("report")
    assert code == 0, error
    curves = read_curves(Path("runs/curves/cb.csv"))
    assert set(curves["arm"]) == {"1e-2", "null", "True"}
    assert all(f"| {arm} |" in out for arm in ("1e-2", "null", "True"))
    assert "Both arms" in fails("compare", "1e-2", "runs/predictions:1e-2")


def test_later_students_join_earlier_ones_if_they_are_comparable(built_project):
    built_project(*COMMANDS, HEAD_KL)
    assert arms_of("cb") == {"head": ["0", "1"], "kl": ["0", "1"]}
    assert run("distill", "--task", "cb", "--arm", "ce", "--seed", "7")[0] == 0
    assert arms_of("cb") == {"head": ["0", "1"], "ce": ["7"], "kl": ["0", "1"]}
    code, _, error = run("distill", "--task", "cb", "--arm", "kl", "--seed", "0", "--set", "distill.lr=1e-3")
    assert code == 0
    assert "kl-1" in error
    assert "head-0" not in error
    assert arms_of("cb") == {"head": ["0", "1"], "ce": ["7"], "kl": ["0"]}
    labelled = run("predict", "--arm", "ce", "--task", "cb", "--split", "validation")
    assert labelled[0] == 0, "the seed that there is"
    for key in ("dropout=0.3", "dtype=bfloat16"):  # of the section, not of an arm
        other = run("distill", "--task", "cb", "--arm", "ce", "--seed", "8", "--set", f"distill.{key}")
        assert other[0] == 0
        assert arms_of("cb")["ce"] == ["8"], key


def test_metrics_are_of_the_students_in_runs_however_often_it_is_called(built_project):
    """A student that diverges with other settings puts none out, at once and later."""
    built_project(*COMMANDS, "distill --task cb --arm kl --seed 0")
    huge = ("--set", "distill.arms.kl.lr=1e38")
    assert run("distill", "--task", "cb", "--arm", "head", "--arm", "kl", "--seed", "0", *huge)[0] == 0
    assert arms_of("cb") == {"head": ["0"], "kl": ["0"]}
    assert run("distill", "--task", "cb", "--arm", "kl", "--seed", "1")[0] == 0
    assert arms_of("cb") == {"head": ["0"], "kl": ["0", "1"]}
    assert run("distill", "--task", "cb", "--arm", "head", "--seed", "0")[0] == 0
    assert arms_of("cb") == {"head": ["0"], "kl": ["0", "1"]}
    for path, content in (("head-0/student.json", None), ("kl-1/result.json", "{")):
        path = Path("runs/cb", path)
        path.write_text(content) if content else path.unlink()
    shutil.copytree("runs/cb/kl-0", "runs/cb/kl-0-copy")
    error = run("distill", "--task", "cb", "--arm", "ce", "--seed", "0")[2]
    told = next(line for line in error.splitlines() if "left out" in line)
    assert told.endswith(": head-0, kl-0-copy, kl-1"), "what cannot be read, or is called otherwise"
    assert arms_of("cb") == {"ce": ["0"], "kl": ["0"]}


def test_students_of_this_call_are_kept_however_old_they_are(built_project, monkeypatch):
    """A call is interrupted after it has trained them, and goes on when one of other settings has ended."""
    built_project(*COMMANDS)
    both = ("distill", "--task", "cb", "--arm", "kl", "--arm", "ce", "--seed", "0", *ONE_WORKER)
    write = grid.write_student

    def stop_at_ce(student_run, *arguments):
        if student_run.spec.name == "ce":
            raise KeyboardInterrupt
        write(student_run, *arguments)

    monkeypatch.setattr(grid, "write_student", stop_at_ce)
    assert run(*both)[0] == 130
    monkeypatch.setattr(grid, "write_student", write)
    assert run("distill", "--task", "cb", "--arm", "kl", "--seed", "7", "--set", "distill.lr=0.3")[0] == 0
    code, _, error = run(*both)
    assert (code, "kl-7" in error) == (0, True)
    assert arms_of("cb") == {"ce": ["0"], "kl": ["0"]}
    times = {path.parent.name: path.stat().st_mtime for path in Path("runs/cb").glob("kl-*/result.json")}
    assert times["kl-0"] > times["kl-7"], "for others too they are the newest"


def test_a_backbone_of_its_own_is_one_more_setting(built_project):
    """A student that diverged over another backbone is not among the diverged of this one."""
    built_project(*COMMANDS)
    huge = ("--set", "distill.arms.kl.lr=1e38")
    assert run("distill", "--task", "cb", "--arm", "head", "--arm", "kl", "--seed", "0", *huge)[0] == 0
    path = Path("runs/metrics/cb.json")
    assert [one["arm"] for one in json.loads(path.read_text())["diverged"]] == ["kl"]
    assert run("shrink", "--set", "student_backbone.num_layers=2")[0] == 0
    assert run("distill", "--task", "cb", "--arm", "ce", "--seed", "0")[0] == 0
    assert arms_of("cb") == {"ce": ["0"]}
    assert json.loads(path.read_text())["diverged"] == []


def test_a_folder_without_its_student_is_told_in_one_line(built_project):
    built_project(*COMMANDS)
    Path("runs/cb/kl-0").mkdir(parents=True)
    error = fails("predict", "--arm", "kl", "--task", "cb", "--split", "validation")
    assert "Run: kdcache distill --task cb --arm kl" in error


def test_two_calls_that_end_at_once_write_one_after_the_other(built_project, monkeypatch):
    """Another process puts a student there while this one wants to: the metrics are of all three."""
    built_project(*COMMANDS, "distill --task cb --arm ce --seed 7")
    aside, there = Path("aside"), Path("runs/cb/ce-7")
    there.rename(aside)
    held, trained, put = threading.Event(), threading.Event(), []

    def other() -> None:
        with in_turn(Path(".kdcache"), Path("runs/cb")):
            held.set()
            trained.wait(60)
            time.sleep(0.3)  # would be enough to read what lies there, and to write without it
            put.append(sorted(path.name for path in there.parent.iterdir()))
            aside.rename(there)

    warn = distill._warn_of_unfinished
    monkeypatch.setattr(distill, "_warn_of_unfinished", lambda *a: (warn(*a), trained.set()))
    thread = threading.Thread(target=other)
    thread.start()
    held.wait(60)
    assert run("distill", "--task", "cb", "--arm", "head", "--arm", "kl", "--seed", "0")[0] == 0
    thread.join()
    assert put == [[]], "nothing of ours was there before it was our turn"
    assert arms_of("cb") == {"head": ["0"], "ce": ["7"], "kl": ["0"]}


def test_the_pipelines_outputs_come_first(built_project):
    built_project(*COMMANDS, HEAD_KL)
    for name in ("metrics", "curves", "predictions"):
        shutil.copytree(f"runs/{name}", name)
    shutil.copytree("runs/cb", "models/students/cb")
    assert run("distill", "--task", "cb", "--arm", "ce", "--seed", "0")[0] == 0
    code, out, error = run("report")
    assert code == 0, error
    assert "| ce |" not in out
    assert "reports/index.html" in out
    assert not Path("runs/reports").exists()
    assert run("compare", "ce", "kl")[0] == 0, "an arm that is only in runs"
    assert "runs/" not in run("predict", "--arm", "kl", "--task", "cb", "--split", "validation")[2]


def test_a_report_of_another_cache_is_refused(built_project):
    built_project(*COMMANDS, HEAD_KL)
    assert run("cache", "--task", "cb", "--set", "cache_teacher.dtype=bfloat16")[0] == 0
    assert "kdcache distill --task cb" in fails("report")


def test_compare_says_where_the_caches_are_not_one(built_project):
    built_project(*COMMANDS, HEAD_KL)
    shutil.copytree("runs", "before/runs")
    assert "cache" not in run("compare", "before/runs:kl", "kl")[1], "one cache"
    assert run("cache", "--task", "cb", "--set", "cache_teacher.dtype=bfloat16")[0] == 0
    code, out, _ = run("compare", "kl", "head")
    assert code == 0
    told = [line for line in out.splitlines() if "another cache" in line]
    assert [re.findall("of (kl|head) are", line) for line in told] == [["kl"]], "head learns from no teacher"
    told = [line for line in run("compare", "kl", "teacher")[1].splitlines() if "another cache" in line]
    assert [re.findall("of (kl|teacher) are", line) for line in told] == [["kl"], ["teacher"]]
    assert "another cache" in run("compare", str(Path("runs").resolve()) + ":kl", "head")[1]
    assert run("distill", "--task", "cb", "--arm", "kl")[0] == 0
    assert "another cache" not in run("compare", "kl", "teacher")[1]
    told = [line for line in run("compare", "before/runs:kl", "kl")[1].splitlines() if "two caches" in line]
    assert len(told) == 1
    assert {"cb:", "before/runs/predictions:kl", "runs/predictions:kl"} < set(told[0].split())
    Path("cache/cb/manifest.json").write_text("{")
    code, _, error = run("compare", "kl", "teacher")
    assert (code, error) == (0, ""), "it reads no cache"


def test_compare_refuses_predictions_that_are_not_those_of_the_metrics(built_project):
    built_project(*COMMANDS, HEAD_KL)
    path = Path("runs/predictions/cb.parquet")
    rows = pd.read_parquet(path)
    rows[rows["seed"] == 0].to_parquet(path)
    error = fails("compare", "kl", "head")
    assert path.as_posix() in error
    assert "cb again" in error


def test_errors_name_what_helps(built_project):
    built_project(*COMMANDS)
    for command in (["report"], ["compare", "kl", "ce"], ["predict", "--arm", "kl", "--task", "cb"]):
        error = fails(*command)
        assert "Run: kdcache distill" in error, "it works without DVC"
        assert "dvc repro" not in error
