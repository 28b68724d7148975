"""The command line: help is cheap and explains, and every mistake is one line and an exit code."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, fails, run
from save_every import save_every
from typer.testing import CliRunner

from kdcache.cli import app
from kdcache.params import read_params

FIXTURES = Path(__file__).parents[1] / "fixtures" / "superglue"
COMMANDS = [
    "prepare", "teach", "cache", "shrink", "distill", "predict", "run", "select", "report",
    "compare", "inspect", "verify", "diff", "import", "export", "clean", "plan",
]  # fmt: skip


def test_help_imports_neither_torch_nor_transformers():
    code = (
        "import sys\nfrom kdcache.cli import app\ntry:\n    app(['--help'])\nexcept SystemExit: pass\n"
        "bad = {'torch', 'transformers', 'peft', 'pandas', 'sklearn', 'dvc'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert command in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert ("--set" in out) == (command not in ("diff", "compare"))
    assert ("--task" in out) == (command not in ("shrink", "diff", "clean"))


def test_whole_chain_by_hand(cached_project):
    """The fixture has run prepare, shrink, teach and cache."""
    folder = cached_project("cb")
    code, out, _ = run("distill", "--task", "cb", "--arm", "head", "--arm", "kl+gram", "--seed", "3")
    assert code == 0
    assert "kl+gram" in out
    assert sorted(p.name for p in (folder / "runs" / "cb").iterdir()) == ["head-3", "kl+gram-3"]
    card = (folder / "runs" / "cb" / "kl+gram-3" / "README.md").read_text()
    assert "1 · kl (T = 2) + 1 · gram (T = 1)" in card
    assert not list((folder / ".kdcache").glob("grid-*"))

    code, out, _ = run("inspect", "--task", "cb")
    assert code == 0
    manifest = json.loads((folder / "cache" / "cb" / "manifest.json").read_text())
    for shown in ("train", "tune", "validation", "24", "32", manifest["identity"]["weights_sha256"]):
        assert shown in out

    # A cache made by another teacher.
    assert (
        run("teach", "--task", "cb", "--set", "train_teacher.seed=5", "--set", "train_teacher.folds=0")[0]
        == 0
    )
    message = fails("distill", "--task", "cb")
    assert message.startswith("cache of cb: teacher folds_sha256 must be [")
    assert message.endswith("in the cache. Run: kdcache cache --task cb")

    # Other data under the same cache.
    assert run("prepare", "--task", "cb", "--set", "prepare.seed=7")[0] == 0
    assert "cache of cb: data.train must be '" in fails("distill", "--task", "cb")

    # A damaged cache.
    path = folder / "cache" / "cb" / "train.parquet"
    path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    assert "cache/cb/train.parquet: its sha256 must be" in fails("distill", "--task", "cb")
    assert "cache/cb/train.parquet: its sha256 must be" in fails("verify", "cache/cb")


@pytest.mark.parametrize(
    "name",
    [
        name if name == "copa" else pytest.param(name, marks=pytest.mark.slow)
        for name in ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc")
    ],
)
def test_each_task_runs_from_rows_to_a_submission_file(project, name):
    """Diagnostics flow into the cache, the metrics and the students."""
    folder = project(
        prepare={"source": "superglue", "path": str(FIXTURES), "tune_fraction": 0.0},
        train_teacher={"folds": 0}, student_backbone={"num_layers": "all"},
    )  # fmt: skip
    only = ["--set", f"tasks=[{name}]"]
    for command in ("prepare", "teach", "cache", "shrink"):
        assert run(command, *only)[0] == 0
    assert run("distill", "--arm", "kl+gram", "--seed", "0", *only)[0] == 0
    student = ["--student", f"runs/{name}/kl+gram-0"]
    split = "test" if (folder / "data" / name / "test.parquet").is_file() else "validation"
    assert run("predict", *student, *only, "--split", split, "--format", "superglue")[0] == 0
    if name == "rte":
        scores = json.loads((folder / "cache" / "rte" / "manifest.json").read_text())["metrics"]
        assert set(scores["axb"]) == {"matthews", "rows"}
        assert set(scores["axg"]) == {"accuracy", "gender_parity", "rows"}
        result = json.loads((folder / "runs" / "rte" / "kl+gram-0" / "result.json").read_text())
        assert set(result["diagnostics"]["axg"]) == {"accuracy", "gender_parity", "rows", "agreement"}
        assert result["diagnostics"]["axb"]["rows"] == 4


def test_missing_upstream_names_the_command(project):
    project()
    assert fails("teach", "--task", "wic").endswith("Run: kdcache prepare --task wic")
    assert fails("cache", "--task", "wic").endswith("Run: kdcache teach --task wic")
    assert fails("inspect", "--task", "wic").endswith("Run: kdcache cache --task wic")
    assert fails("distill", "--task", "wic").endswith("Run: kdcache shrink")
    assert fails("report").endswith("Run: kdcache distill --task wic")
    assert fails("shrink").endswith("Run: kdcache prepare --task wic")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distill", "--task", "nope"], "tasks: it must list the task, got 'nope'. Known: cb, wic."),
        (["prepare", "--set", "tasks=[wik]"], "task: it must be a known task, got 'wik'. Did you mean wic?"),
        (
            ["distill", "--task", "wic", "--set", "tasks=[cb]"],
            "tasks: it must list the task, got 'wic'. Known: cb.",
        ),
        (
            ["distill", "--task", "wic", "--set", "distill.lrr=1"],
            "distill.lrr: the key must be a known parameter, got 'lrr'. Did you mean lr?",
        ),
        (
            ["distill", "--task", "wic", "--set", "distill.epochs=three"],
            "distill.epochs: it must be a whole number, got 'three'.",
        ),
        (
            ["distill", "--task", "wic", "--set", "distill.arms.kl.inter_class.name=kll"],
            "distill.arms.kl.inter_class.name: it must be a loss of that family, got 'kll'. Did you mean kl?",
        ),
        (
            ["prepare", "--task", "wic", "--set", "prepare.path=nowhere"],
            "prepare.path: it must be a folder in the official SuperGLUE layout, got nowhere "
            "(no such folder). Set prepare.path to where the data lies.",
        ),
    ],
)
def test_mistake_is_one_clear_line(project, arguments, message):
    project()
    assert fails(*arguments) == message


def test_model_that_does_not_exist_is_one_clear_line(project):
    project()
    message = fails("teach", "--task", "wic", "--set", "train_teacher.model=nobody/no-such-model")
    assert re.fullmatch(
        r"nobody/no-such-model: it must be a folder or a model on the hub, got neither \(\w+\). "
        r"Name a folder, package:NAME/PATH, or a hub id that is cached or can be reached.",
        message,
    )


def test_unknown_arm_names_the_nearest(cached_project):
    folder = cached_project("cb")
    assert (
        fails("distill", "--task", "cb", "--arm", "kl-gram")
        == "distill.arms: unknown arm 'kl-gram'. Did you mean kl+gram?"
    )
    assert not (folder / "runs").exists()


def test_broken_line_leaves_nothing_half_written(project, write_jsonl):
    folder = project()
    assert run("prepare", "--task", "cb")[0] == 0
    before = {path.name: path.read_bytes() for path in (folder / "data" / "cb").iterdir()}
    write_jsonl(folder / "mine" / "CB" / "train.jsonl", ['{"premise": '])
    write_jsonl(folder / "mine" / "CB" / "val.jsonl", [])
    message = fails(
        "prepare", "--task", "cb", "--set", "prepare.source=superglue", "--set", "prepare.path=mine"
    )
    assert message.startswith("mine/CB/train.jsonl:1: the line must be a JSON object, got '{")
    assert {path.name: path.read_bytes() for path in (folder / "data" / "cb").iterdir()} == before


def test_debug_shows_the_traceback(project):
    project()
    result = CliRunner().invoke(app, ["distill", "--task", "nope", "--debug"])
    assert "ParamsError" in repr(result.exception)


def test_outside_a_project_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert fails("distill").startswith("params.yaml: the parameters file must exist, got nothing there.")


def test_interrupted_distill_goes_on_and_equals_an_uninterrupted_one(cached_project, monkeypatch):
    """Ctrl-C in the second student: one line, exit 130, nothing done twice, the outcome the same."""
    from kdcache.project import Project
    from kdcache.students import distill as stage
    from kdcache.students import loop as train
    from kdcache.students.run import Run

    save_every(4, train, monkeypatch.setattr)
    arms = {"kl": {"inter_class": {"name": "kl"}}}
    section = {"seeds": [0, 1, 2], "arms": arms, "steps": 20, "epochs": None}
    folder = cached_project(name="interrupted", distill=section)
    shutil.copytree(folder, folder.parent / "whole")
    arguments = ["distill", "--task", "cb"]

    taken: list[tuple[int, int]] = []
    next_batch = Run.next_batch

    def stop_in_the_second(student_run):
        if student_run.seed == 1 and student_run.step == 13 and (1, 13) not in taken:
            taken.append((1, 13))
            raise KeyboardInterrupt
        taken.append((student_run.seed, student_run.step))
        return next_batch(student_run)

    monkeypatch.setattr(Run, "next_batch", stop_in_the_second)
    code, _, error = run(*arguments)
    assert code == 130
    assert error.splitlines()[-1].startswith("Interrupted: finished work is kept")
    assert not (folder / "runs").exists()
    assert run(*arguments)[0] == 0
    assert not (folder / "timings/explore-cb.json").exists()
    for seed, first in ((0, 0), (1, 12), (2, 0)):  # the first was done, the second went on at step 12
        steps = [step for some, step in taken if some == seed]
        assert steps.count(5) == 1, seed
        assert steps.count(first) == (2 if seed == 1 else 1), seed

    monkeypatch.chdir(folder.parent / "whole")
    assert run(*arguments)[0] == 0
    assert Path("timings/explore-cb.json").exists()
    for name in ("kl-0", "kl-1", "kl-2"):
        for file in sorted((folder / "runs" / "cb" / name).iterdir()):
            assert (
                file.read_bytes() == (folder.parent / "whole" / "runs" / "cb" / name / file.name).read_bytes()
            )

    # The pipeline's stage gives the same students as the command line.
    stage.distill(Project.load(), "cb")
    students = folder.parent / "whole" / "models" / "students" / "cb"
    adapter = "adapter_model.safetensors"
    assert (students / "kl-0" / adapter).read_bytes() == (
        folder / "runs" / "cb" / "kl-0" / adapter
    ).read_bytes()


def test_cross_fitted_rows_come_from_a_teacher_that_never_saw_them(cached_project):
    """Recompute a training row's cached logits with the fold teacher the cache names."""
    import numpy as np
    import pyarrow.parquet as pq
    import torch

    from kdcache.cache.reader import load_cache
    from kdcache.encoder.batching import encode
    from kdcache.encoder.forward import extract
    from kdcache.encoder.load import load_classifier, load_tokenizer

    folder = cached_project("cb", train_teacher={"batch_size": 8})  # two steps each: the first has rate 0
    teacher = folder / "models" / "teacher" / "cb"
    rows = pq.read_table(folder / "data" / "cb" / "train.parquet").to_pydict()
    cached = load_cache(folder / "cache" / "cb", "train")
    aligned = cached.align(rows["example_id"], rows["content_hash"])
    assert set(aligned.fold.tolist()) == {0, 1}
    by_group: dict[str, set[int]] = {}
    for group, fold in zip(rows["group"], aligned.fold.tolist(), strict=True):
        by_group.setdefault(group, set()).add(fold)
    assert all(len(folds) == 1 for folds in by_group.values())
    encoded = encode(load_tokenizer(teacher), rows["text"], rows["text_pair"], 64)
    for fold in (0, 1):
        model = load_classifier(teacher / f"fold-{fold}", 3, seed=0)
        logits, _ = extract(model, encoded, 3, 8, torch.device("cpu"))
        held_out = aligned.fold == fold
        assert np.abs(logits[held_out] - aligned.logits[held_out]).max() < 1e-5
        assert np.abs(logits[~held_out] - aligned.logits[~held_out]).max() > 1e-4
    validation = load_cache(folder / "cache" / "cb", "validation")
    assert set(validation.rows.fold.tolist()) == {-2}


def test_passes_of_other_students_do_not_share_a_checkpoint(cached_project, monkeypatch):
    """Interrupted with two students, then asked for three in one pass: nothing of the first is mistaken."""
    from kdcache.students import loop as train
    from kdcache.students.run import Run

    save_every(2, train, monkeypatch.setattr)
    section = {"seeds": [0], "students_per_pass": 3, "steps": 10, "epochs": None}
    folder = cached_project(distill=section)
    next_batch = Run.next_batch

    def stop(student_run):
        if student_run.step == 7:
            raise KeyboardInterrupt
        return next_batch(student_run)

    monkeypatch.setattr(Run, "next_batch", stop)
    two = ["distill", "--task", "cb", "--arm", "ce", "--arm", "kl"]
    assert run(*two)[0] == 130
    assert list((folder / ".kdcache").rglob("*.pt"))
    monkeypatch.setattr(Run, "next_batch", next_batch)
    assert run(*two, "--arm", "kl+gram")[0] == 0
    assert len(list((folder / "runs" / "cb").iterdir())) == 3


def test_help_names_examples_and_the_parameters_of_a_stage():
    keys = read_params(ROOT / "params.yaml")
    for command, section in (
        ("teach", "train_teacher"),
        ("shrink", "student_backbone"),
        ("report", "report"),
    ):
        code, out, _ = run(command, "--help")
        assert code == 0
        assert f"kdcache {command}" in out.split("Options")[0].split("Examples:")[1]
        assert all(f"{key}:" in out for key in keys[section])
    code, out, _ = run("--help")
    assert "--show-completion" in out
