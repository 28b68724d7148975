"""Command inspect: it shows the numbers of the analysis, for every task and any teacher."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import fails, run
from scipy.special import log_softmax

from kdcache.data.metrics import accuracy_interval
from kdcache.data.superglue import SUPERGLUE

FIXTURES = Path(__file__).parents[1] / "fixtures" / "superglue"


def import_teacher(task: str, *options: str) -> dict[str, np.ndarray]:
    """Prepare a task and import a random teacher of it; returns id → logits."""
    assert run("prepare", "--task", task, *options)[0] == 0
    rng = np.random.default_rng(0)
    num_labels = len(json.loads(Path(f"data/{task}/task.json").read_text())["labels"])
    logits = {
        example_id: rng.normal(size=num_labels).round(3)
        for path in sorted(Path(f"data/{task}").glob("*.parquet"))
        for example_id in pq.read_table(path)["example_id"].to_pylist()
    }
    with open("teacher.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["example_id", *(f"logit_{k}" for k in range(num_labels))])
        rows.writerows([example_id, *values] for example_id, values in logits.items())
    assert run("import", "teacher.csv", "--task", task, *options)[0] == 0
    return logits


def test_own_cross_fitted_cache_is_read(built_project):
    built_project("prepare", "teach --task cb", "cache --task cb")
    code, out, _ = run("inspect", "--task", "cb", "--texts", "2", "--figure", "look/cb.svg")
    assert code == 0
    for shown in (
        "The cached logits", "Accuracy by class, % (rows)", "entailment", "accuracy of each fold's teacher",
        "the fold teachers and the teacher on all rows predict the same", "train, the 2 most confident of ",
    ):  # fmt: skip
        assert shown in out
    assert Path("look/cb.svg").read_bytes().startswith(b"<?xml")

    cache = pq.read_table("cache/cb/train.parquet").to_pydict()
    logits, labels = np.array(cache["logits"], np.float64), np.array(cache["label"])
    code, out, _ = run("inspect", "cache/cb", "--json")
    found = json.loads(out)["cache/cb"]
    train = found["splits"]["train"]
    assert train["held_out"] is True
    assert train["labels"]["accuracy"]["value"] == (logits.argmax(axis=1) == labels).mean()
    p = log_softmax(logits, axis=1)
    assert train["entropy"] == pytest.approx(-(np.exp(p) * p).sum(axis=1).mean())
    manifest = json.loads(Path("cache/cb/manifest.json").read_text())
    assert found["digest"] == manifest["digest"]
    assert found["labels"] == manifest["identity"]["labels"]
    assert set(found["folds"]) == {"0", "1"}
    assert found["agreement"]["tune"]["all_rows"] == manifest["all_rows_teacher"]["tune"]["accuracy"]
    assert found["description"].startswith("The teacher's accuracy is ")
    assert found["texts"] == {}


def test_probes_of_the_frozen_models_stand_beside_the_teacher(built_project):
    built_project("prepare", "teach --task cb", "cache --task cb", "shrink")
    base = json.loads(Path("models/teacher/cb/probe.json").read_text())
    backbone = json.loads(Path("models/backbone/shrink.json").read_text())["probes"]["cb"]["cut"]
    found = json.loads(run("inspect", "--task", "cb", "--json")[1])["cache/cb"]
    assert found["probes"] == {
        "tune": {"teacher": base["tune"]["accuracy"], "backbone": backbone, "stale": False},
        "validation": {"teacher": base["validation"]["accuracy"], "backbone": None, "stale": False},
    }
    out = run("inspect", "--task", "cb")[1]
    shares = f"{100 * base['tune']['accuracy']:.1f}", f"{100 * backbone:.1f}"
    assert f"of the teacher's model {shares[0]}, of the students' backbone {shares[1]}; the teacher " in out
    alone = json.loads(run("inspect", "cache/cb", "--json")[1])["cache/cb"]  # of no project
    assert alone["probes"]["tune"]["backbone"] is None

    tune = found["splits"]["tune"]["labels"]["accuracy"]["value"], found["agreement"]["tune"]["all_rows"]
    low, _ = accuracy_interval(max(tune), found["splits"]["tune"]["labels"]["accuracy"]["rows"])
    told = (" to distil." in found["description"], "fine-tuning " in found["description"])
    assert any(told) == (max(base["tune"]["accuracy"], backbone) >= low)


def test_a_probe_of_the_backbone_on_other_rows_is_left_out_and_said(built_project):
    """One cache, and a backbone made before its rows were prepared, after, and again."""
    built_project("prepare", "teach --task cb", "cache --task cb", "shrink")

    def probe() -> tuple[float | None, bool]:
        found = json.loads(run("inspect", "--task", "cb", "--json")[1])["cache/cb"]
        of_tune = found["probes"]["tune"]
        assert ("of other rows than this cache" in found["description"]) == of_tune["stale"]
        line = re.search(r"of the students' backbone \d", run("inspect", "--task", "cb")[1])
        assert (line is None) == of_tune["stale"]
        return of_tune["backbone"], of_tune["stale"]

    known = probe()
    assert known[0] is not None
    other = ("--set", "prepare.seed=7")
    assert run("prepare", *other)[0] == 0
    assert probe() == known  # both are of the rows from before
    assert run("shrink")[0] == 0
    assert probe() == (None, True)
    assert run("prepare")[0] == 0
    assert probe() == (None, True)
    assert run("shrink")[0] == 0
    assert probe() == known
    path = Path("models/backbone/shrink.json")
    record = json.loads(path.read_text())
    del record["probes"]["cb"]["data"]  # as an older version wrote it
    path.write_text(json.dumps(record))
    assert probe() == (None, True)


@pytest.mark.parametrize("name", [name for name in SUPERGLUE if name not in ("axb", "axg")])
def test_every_task_of_an_imported_teacher_is_read(project, name):
    """COPA's slots, groups of MultiRC and ReCoRD, diagnostics, test rows without labels."""
    project(prepare={"source": "superglue", "path": str(FIXTURES), "max_rows": None, "tune_fraction": 0})
    options = ("--set", f"tasks=[{name}]")
    logits = import_teacher(name, *options)
    code, out, _ = run("inspect", "--task", name, "--texts", "3", "--json", *options)
    assert code == 0
    (found,) = json.loads(out).values()
    assert found["external"] is True
    assert (found["temperatures"], found["folds"], found["agreement"]) == ({}, {}, {})
    for split, analysis in found["splits"].items():
        table = pq.read_table(f"data/{name}/{split}.parquet").to_pylist()
        assert analysis["rows"] == len(table)
        if analysis["labels"]:
            wrong = [row for row in table if logits[row["example_id"]].argmax() != row["label"]]
            named = {mistake["example_id"] for mistake in analysis["labels"]["mistakes"]}
            assert named == {row["example_id"] for row in wrong}
            texts = found["texts"][split]
            assert len(texts) == min(3, len(wrong))
            for row in wrong:
                if row["example_id"] in texts:
                    others = row.get("choices") or [row["text_pair"]]
                    assert texts[row["example_id"]] == [row["text"], *filter(None, others)]
        else:
            assert all(row["label"] == -1 for row in table)
    if name == "copa":
        assert run("inspect", "--task", name, "--figure", "x.svg", *options)[0] == 0


def test_mistakes_are_shown_with_their_text(project):
    project()
    logits = import_teacher("wic")
    out = run("inspect", "--task", "wic", "--texts", "1")[1]
    train = {row["example_id"]: row for row in pq.read_table("data/wic/train.parquet").to_pylist()}
    gap = {i: np.ptp(logits[i]) for i, row in train.items() if logits[i].argmax() != row["label"]}
    first = train[max(gap, key=gap.__getitem__)]
    prediction = ("false", "true")[1 - first["label"]]
    shown = out.split("most confident of ")[1].splitlines()
    assert shown[1].startswith(f"  {first['example_id']}: {prediction} ")
    assert shown[1].endswith(f"%, labelled {('false', 'true')[first['label']]}")
    assert shown[2:4] == [f"    {first['text']}", f"    {first['text_pair']}"]


def test_mistaken_commands_are_one_line(project):
    project()
    assert fails("inspect", "--task", "wic").endswith("Run: kdcache cache --task wic")
    import_teacher("wic")
    assert fails("inspect", "cache/wic", "--texts", "2") == (
        "--texts: the texts are in a task's prepared data, which cache/wic does not name. Use: --task TASK"
    )
    assert fails("inspect", "cache/wic", "--task", "cb").startswith("--task")
    assert fails("inspect", "--task", "wic", "--figure", "x.png") == (
        "--figure: the file must end in .svg, got x.png."
    )
    assert fails("inspect", "--figure", "x.svg") == (
        "--figure: there must be one task, got wic, cb. Add: --task TASK"
    )
    # Texts of other data than the teacher read are not shown as if it had.
    assert run("prepare", "--task", "wic", "--set", "prepare.seed=7")[0] == 0
    assert run("inspect", "--task", "wic")[0] == 0
    message = fails("inspect", "--task", "wic", "--texts", "2")
    assert message.startswith("cache of wic: data.train must be '")
    assert message.endswith("Run: kdcache import FILE --task wic")
    path = Path("cache/wic/train.parquet")
    path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    assert "cache/wic/train.parquet: its sha256 must be" in fails("inspect", "--task", "wic")
