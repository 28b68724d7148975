"""Predictions: the benchmark's own spelling and nesting, from every task end to end."""

import csv
import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import fails, run, superglue_task

from kdcache.data.superglue import SUPERGLUE
from kdcache.data.task import Task
from kdcache.errors import ParamsError
from kdcache.serve.submissions import SUBMISSION_NAMES, submission_name, superglue_text, zip_bytes

FIXTURES = Path(__file__).parent / "fixtures" / "superglue"


def lines(text: str) -> list:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("boolq", ["true", "false"]),
        ("cb", ["contradiction", "entailment"]),
        ("copa", [1, 0]),
        ("rte", ["not_entailment", "entailment"]),
        ("wic", ["true", "false"]),
        ("wsc", ["True", "False"]),
    ],
)
def test_labels_are_spelt_as_the_benchmark_does(name, expected):
    task = superglue_task(name)
    logits = np.eye(task.num_labels)[[1, 0]]
    text = superglue_text(task, "test", ["test-7", "test-3"], logits, {})
    assert lines(text) == [{"idx": 7, "label": expected[0]}, {"idx": 3, "label": expected[1]}]


def test_multirc_is_nested_by_passage_and_question():
    ids = ["test-5-0-0", "test-5-0-1", "test-5-1-2", "test-6-2-3"]
    logits = np.eye(2)[[1, 0, 0, 1]]
    text = superglue_text(superglue_task("multirc"), "test", ids, logits, {})
    assert lines(text) == [
        {"idx": 5, "passage": {"questions": [
            {"idx": 0, "answers": [{"idx": 0, "label": 1}, {"idx": 1, "label": 0}]},
            {"idx": 1, "answers": [{"idx": 2, "label": 0}]},
        ]}},
        {"idx": 6, "passage": {"questions": [{"idx": 2, "answers": [{"idx": 3, "label": 1}]}]}},
    ]  # fmt: skip


def test_record_names_the_chosen_candidate_of_each_query():
    ids = ["test-4-90-0", "test-4-90-1", "test-4-91-0"]
    columns = {"unit": ["test-4-90"] * 2 + ["test-4-91"], "candidate": ["Åse", "Oslo", "Riga"]}
    logits = np.array([[0.0, 1.0], [0.0, 3.0], [5.0, 0.0]])
    text = superglue_text(superglue_task("record"), "test", ids, logits, columns)
    assert lines(text) == [{"idx": 90, "label": "Oslo"}, {"idx": 91, "label": "Riga"}]


def test_every_task_and_diagnostic_has_a_submission_file():
    files = {"BoolQ", "CB", "COPA", "MultiRC", "ReCoRD", "RTE", "WiC", "WSC", "AX-b", "AX-g"}
    assert {*SUBMISSION_NAMES.values()} == files
    assert {*SUBMISSION_NAMES} == {*SUPERGLUE, "axb", "axg"}
    with pytest.raises(ParamsError, match=r"one of SuperGLUE's, got 'mine'. Use --format csv or jsonl."):
        submission_name("mine", "test")


def test_zip_is_the_same_bytes_whatever_the_order():
    files = {"WiC.jsonl": "b\n", "CB.jsonl": "a\n"}
    assert zip_bytes(files) == zip_bytes(dict(reversed(files.items())))
    with zipfile.ZipFile(io.BytesIO(zip_bytes(files))) as archive:
        assert {name: archive.read(name).decode() for name in archive.namelist()} == files


def official_idx(name: str, split: str) -> list:
    """What the benchmark's server looks for, read straight from the official file."""
    path = FIXTURES / SUBMISSION_NAMES[name] / {"validation": "val.jsonl", "test": "test.jsonl"}[split]
    rows = lines(path.read_text(encoding="utf-8"))
    return (
        [q["idx"] for row in rows for q in row["qas"]] if name == "record" else [row["idx"] for row in rows]
    )


@pytest.fixture
def student(project, tiny_model):
    """Make a project on the fixtures with one trained student of a task."""

    def make(name: str) -> Path:
        folder = project(
            prepare={"source": "superglue", "path": str(FIXTURES), "tune_fraction": 0.0},
            train_teacher={"folds": 0}, student_backbone={"num_layers": "all"},
            distill={"probe_epochs": 1},
        )  # fmt: skip
        settings = ["--set", f"tasks=[{name}]"]
        for command in ("prepare", "teach", "cache", "shrink"):
            assert run(command, *settings)[0] == 0
        assert run("distill", "--arm", "feature_mse", "--arm", "kl+gram", "--seed", "0", *settings)[0] == 0
        return folder

    return make


@pytest.mark.parametrize("name", SUPERGLUE)
def test_each_task_runs_from_rows_to_a_submission_file(student, name):
    folder = student(name)
    split = "test" if (folder / "data" / name / "test.parquet").is_file() else "validation"
    arguments = [
        "predict",
        "--set",
        f"tasks=[{name}]",
        "--student",
        f"runs/{name}/kl+gram-0",
        "--split",
        split,
    ]
    code, out, _ = run(*arguments, "--format", "superglue", *(["--zip"] if split == "test" else []))
    assert code == 0
    path = folder / "runs" / "predictions" / f"{SUBMISSION_NAMES[name]}.jsonl"
    assert [line["idx"] for line in lines(path.read_text(encoding="utf-8"))] == official_idx(name, split)
    if name == "rte":
        assert "superglue.zip without BoolQ.jsonl, CB.jsonl, " in out
        with zipfile.ZipFile(folder / "runs" / "predictions" / "superglue.zip") as archive:
            assert archive.namelist() == ["AX-b.jsonl", "AX-g.jsonl", "RTE.jsonl"]
            assert {line["label"] for line in lines(archive.read("AX-b.jsonl").decode())} <= {
                "entailment", "not_entailment",
            }  # fmt: skip

    code, _, progress = run(*arguments)
    assert code == 0
    assert re.search(rf"{name} predictions: 100%.* (\d+)/\1 ", progress)
    assert run(*arguments, "--format", "jsonl")[0] == 0
    predictions = folder / "runs" / "predictions"
    rows = list(csv.DictReader((predictions / f"{name}-{split}.csv").read_text().splitlines()))
    labels = superglue_task(name).labels
    for row in rows:
        probabilities = {label: float(row[label]) for label in labels}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert probabilities[row["label"]] == max(probabilities.values())
    again = lines((predictions / f"{name}-{split}.jsonl").read_text(encoding="utf-8"))
    assert [(row["example_id"], row["label"]) for row in again] == [
        (row["example_id"], row["label"]) for row in rows
    ]


def test_diagnostics_flow_into_cache_metrics_and_students(student):
    folder = student("rte")
    manifest = json.loads((folder / "cache" / "rte" / "manifest.json").read_text())
    assert set(manifest["metrics"]["axb"]) == {"matthews", "rows"}
    assert set(manifest["metrics"]["axg"]) == {"accuracy", "gender_parity", "rows"}
    result = json.loads((folder / "runs" / "rte" / "kl+gram-0" / "result.json").read_text())
    assert set(result["diagnostics"]["axg"]) == {"accuracy", "gender_parity", "rows", "agreement"}
    assert result["diagnostics"]["axb"]["rows"] == 4


def test_mistakes_are_one_clear_line(student):
    student("cb")
    cb = ["--set", "tasks=[cb]"]
    assert fails("predict", *cb) == (
        "predict: one of --arm and --student must be given, got none or both. Give one."
    )
    assert fails("predict", *cb, "--arm", "kl") == (
        "models/students/cb/kl-0: the student must exist, got nothing there. Run: dvc repro distill@cb"
    )
    assert fails("predict", *cb, "--arm", "kll").endswith("got 'kll'. Did you mean kl?")
    student_option = ["--student", "runs/cb/kl+gram-0"]
    assert fails("predict", *cb, *student_option, "--split", "tset") == (
        "data/cb: the split must be a prepared one, got 'tset'. Did you mean test?"
    )
    assert fails("predict", *cb, *student_option, "--zip") == (
        "--zip: the format must be superglue, got csv. Add: --format superglue"
    )
    assert fails("predict", "--set", "tasks=[cb,wic]", *student_option) == (
        "--student: the task must be one, got cb, wic. Add: --task TASK"
    )
    assert run("prepare", "--set", "tasks=[wic]")[0] == 0
    assert fails("predict", "--set", "tasks=[wic]", *student_option) == (
        "runs/cb/kl+gram-0: the student must be one of wic, got one of cb. Name a student of this task."
    )


def test_a_task_without_a_submission_file_is_refused_before_the_work(student, monkeypatch):
    from kdcache.data import task as schema
    from kdcache.serve import prepared as stage

    folder = student("cb")
    (folder / "data" / "cb").rename(folder / "data" / "mine")
    task = schema.read_task(folder / "data" / "mine", "mine")
    schema.write_task(Task(**{**task.__dict__, "name": "mine"}), folder / "data" / "mine")
    monkeypatch.setattr(stage, "_logits", lambda *_: pytest.fail("ran the student"))
    message = fails(
        "predict", "--set", "tasks=[mine]", "--student", "runs/cb/kl+gram-0", "--format", "superglue"
    )
    assert message.startswith("--format superglue: the task must be one of SuperGLUE's, got 'mine'.")
