"""Test rows: scored once, by one command, and counted."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import fails, run

from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import load_cache
from kdcache.places import alone
from kdcache.store.location import Location

TASK = """
text = "text"
label = "label"
labels = ["no", "yes"]
metrics = ["accuracy", "macro_f1"]

[splits]
train = "../rows/train.jsonl"
validation = "../rows/validation.jsonl"
test = "../rows/test.jsonl"
unlabelled = "../rows/unlabelled.jsonl"
"""


@pytest.fixture
def own_task(project, write_jsonl):
    """A task of three splits whose test rows have labels, cached."""
    folder = project(train_teacher={"folds": 0}, prepare={"max_rows": None})
    words = [["the river is wide", "a boat on water"], ["my bill is wrong", "the charge was high"]]
    rng = np.random.default_rng(0)
    for split, count in (("train", 60), ("validation", 40), ("test", 40), ("unlabelled", 5)):
        labels = rng.integers(2, size=count)
        rows = [
            {"text": f"{words[label][k % 2]} {k} {split}", "label": ["no", "yes"][label]}
            for k, label in enumerate(labels.tolist())
        ]
        write_jsonl(folder / "rows" / f"{split}.jsonl", rows)
    (folder / "tasks").mkdir()
    (folder / "tasks" / "own.toml").write_text(TASK)
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("tasks:\n- wic\n- cb", "tasks:\n- own"))
    for command in ("prepare", "teach", "cache", "shrink", "distill --arm head --arm kl"):
        code, out, error = run(*command.split())
        assert code == 0, (command, out, error)
    return folder


def test_test_is_scored_by_evaluate_alone_and_counted(own_task):
    manifest = read_manifest(Location.parse("cache", "own"))
    assert "test" in manifest.splits
    assert "test" not in manifest.metrics
    assert "test" not in manifest.all_rows_teacher
    counts = {name: (entry["labelled"], entry["correct"]) for name, entry in manifest.files.items()}
    assert counts["test.parquet"] == (0, 0)
    assert counts["validation.parquet"][0] == 40
    code, out, error = run("verify", "--task", "own")
    assert code == 0, error
    assert "validation.parquet: accuracy" in out
    assert "test.parquet: accuracy" not in out
    assert "test" not in json.loads(Path("models/teacher/own/probe.json").read_text())
    code, out, _ = run("inspect", "--task", "own", "--json")
    assert code == 0
    assert json.loads(out)["cache/own"]["splits"]["test"]["labels"] is None

    code, out, error = run("evaluate", "--task", "own", "--arm", "kl")
    assert code == 0, error
    assert "look 1 of 1" in out
    path = Path("evaluations/own-test.json")
    (look,) = json.loads(path.read_text())["looks"]
    rows = load_cache("cache/own", "test").rows
    right = float((rows.logits.argmax(1) == rows.label).mean())
    assert look["scores"]["teacher"]["accuracy"]["points"] == pytest.approx(100 * right, abs=1e-3)
    assert set(look["scores"]) == {"teacher", "kl"}
    assert look["scores"]["kl"]["macro_f1"]["seeds"] == 2
    for found in (*look["scores"]["kl"].values(), look["over_teacher"]["kl"]):
        assert found["low"] < found["points"] + 1e-9 < found["high"] + 2e-9
    before = path.read_bytes()
    assert "on record" in run("evaluate", "--task", "own", "--arm", "kl")[1]
    assert path.read_bytes() == before, "the same question is one look"
    with alone(Path(".kdcache"), path):
        assert path.name in fails("evaluate", "--task", "own", "--arm", "head"), "another process looks"
    assert "look 2 of 2" in run("evaluate", "--task", "own", "--arm", "head")[1]
    assert "look 1 of 2" in run("evaluate", "--task", "own", "--arm", "kl")[1]

    assert "Did you mean test?" in fails("evaluate", "--task", "own", "--arm", "kl", "--split", "tset")
    assert "kdcache distill --task own --arm ce" in fails("evaluate", "--task", "own", "--arm", "ce")
    assert "got 0" in fails("evaluate", "--task", "own", "--arm", "kl", "--split", "unlabelled")
    assert "trained on" not in error
    for split, learned in (("train", True), ("tune", True), ("validation", False)):
        code, _, error = run("evaluate", "--task", "own", "--arm", "kl", "--split", split)
        assert (code, "trained on" in error) == (0, learned)

    task = own_task / "tasks" / "own.toml"
    task.write_text(task.read_text().replace('["accuracy", "macro_f1"]', '["macro_f1"]'))
    assert run("prepare", "--task", "own")[0] == 0
    assert "look 3 of 3" in run("evaluate", "--task", "own", "--arm", "kl")[1], "another metric is asked for"


def test_seeds_of_other_settings_are_no_arm(own_task):
    again = ("distill", "--task", "own", "--arm", "kl", "--seed", "1", "--set", "distill.lr=0.3")
    assert run(*again)[0] == 0
    code, _, error = run("evaluate", "--task", "own", "--arm", "kl")
    assert (code, "kl-0" in error) == (0, True)
    (look,) = json.loads(Path("evaluations/own-test.json").read_text())["looks"]
    assert look["scores"]["kl"]["accuracy"]["seeds"] == 1


def test_students_are_not_compared_with_a_teacher_of_others(own_task):
    assert run("cache", "--task", "own", "--set", "cache_teacher.dtype=bfloat16")[0] == 0
    code, _, error = run("evaluate", "--task", "own", "--arm", "kl")
    assert (code, "not compared" in error) == (0, False), "the same teacher, cached anew"
    assert run("teach", "--task", "own", "--set", "train_teacher.seed=7")[0] == 0
    assert run("cache", "--task", "own")[0] == 0
    code, _, error = run("evaluate", "--task", "own", "--arm", "kl", "--arm", "head")
    told = [line for line in error.splitlines() if "not compared" in line]
    assert (code, len(told)) == (0, 1)
    assert "kl" in told[0]
    assert "head" not in told[0]
    look = json.loads(Path("evaluations/own-test.json").read_text())["looks"][-1]
    assert set(look["over_teacher"]) == {"head"}
    assert set(look["scores"]) == {"teacher", "head", "kl"}


def test_students_of_other_rows_are_not_scored(own_task):
    """One row more deals all rows anew, so old students may have been trained on those to score."""

    def append(split):
        with (own_task / "rows" / f"{split}.jsonl").open("a") as file:
            file.write(json.dumps({"text": f"one more boat of {split}", "label": "no"}) + "\n")

    append("test")
    for command in ("prepare", "cache"):
        assert run(command, "--task", "own")[0] == 0
    code, _, error = run("evaluate", "--task", "own", "--arm", "kl")
    assert (code, "left out" in error) == (0, False), "no student learned from test"
    append("train")
    assert run("prepare", "--task", "own")[0] == 0
    assert "others in train" in fails("evaluate", "--task", "own", "--arm", "kl")
    for command in ("teach", "cache"):
        assert run(command, "--task", "own")[0] == 0
    message = fails("evaluate", "--task", "own", "--arm", "kl")
    remedy = message.rpartition("Run: kdcache ")[2].split()
    assert run(*remedy)[0] == 0
    assert run("evaluate", "--task", "own", "--arm", "kl")[0] == 0


def test_labels_that_are_not_read_are_named(own_task):
    rows = own_task / "rows" / "unlabelled.jsonl"
    assert "5 rows of unlabelled have a label" in run("prepare", "--task", "own")[2]
    rows.write_text(re.sub(r'"label": "\w+"', '"label": ""', rows.read_text()))
    assert "have a label" not in run("prepare", "--task", "own")[2]
