"""The grid from the command line: passes, transfer, targets, and a student that diverges."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import fails, run

from kdcache.encoder.linear_probe import fit_probe, one_hot
from kdcache.project import Project
from kdcache.students.grid import Grid
from kdcache.students.probes import starting_features
from kdcache.students.run import Run


@pytest.fixture
def cached(cached_project) -> Path:
    return cached_project(distill={"seeds": [0]})


def logits(folder: Path, student: str) -> list[list[float]]:
    return pq.read_table(folder / "runs" / "cb" / student / "validation.parquet")["logits"].to_pylist()


def test_students_of_one_pass_are_those_of_many(cached: Path):
    arms = ["distill", "--task", "cb", "--arm", "ce", "--arm", "kl+gram", "--arm", "head"]
    assert run(*arms)[0] == 0
    alone = {arm: logits(cached, f"{arm}-0") for arm in ("ce", "kl+gram", "head")}
    assert run(*arms, "--set", "distill.students_per_pass=3")[0] == 0
    for arm, wanted in alone.items():
        found = logits(cached, f"{arm}-0")
        assert (
            max(abs(a - b) for x, y in zip(wanted, found, strict=True) for a, b in zip(x, y, strict=True))
            < 1e-3
        )
    assert alone["ce"] != alone["kl+gram"]


def result(folder: Path, student: str) -> dict[str, Any]:
    return json.loads((folder / "runs" / "cb" / student / "result.json").read_text())


def test_an_arm_has_a_batch_size_and_a_schedule_of_its_own(cached: Path):
    """Steps are shared by all arms but those with a schedule of their own; other batches stay apart."""
    settings = {
        "epochs": 2, "arms.ce.batch_size": 4, "arms.kl.steps": 5,
        "arms.feature_mse": "{epochs: 3, feature: {name: feature_mse}}",
    }  # fmt: skip
    options = [part for key, value in settings.items() for part in ("--set", f"distill.{key}={value}")]
    arms = ("ce", "kl", "kl+gram", "feature_mse")
    command = ["distill", "--task", "cb", "--seed", "0", *options]
    command += [part for arm in arms for part in ("--arm", arm)]
    assert run(*command)[0] == 0
    parts = [cached / "data" / "cb" / f"{split}.parquet" for split in ("train", "unlabelled")]
    rows = sum(pq.read_metadata(part).num_rows for part in parts if part.is_file())
    an_epoch = -(-rows // yaml.safe_load((cached / "params.yaml").read_text())["distill"]["batch_size"])
    steps = {arm: result(cached, f"{arm}-0")["steps"] for arm in arms}
    assert steps == {"ce": 2 * an_epoch, "kl": 5, "kl+gram": 2 * an_epoch, "feature_mse": 3 * an_epoch}
    assert result(cached, "ce-0")["examples"] == 4 * 2 * an_epoch
    alone = {arm: logits(cached, f"{arm}-0") for arm in arms}
    assert run(*command, "--set", "distill.students_per_pass=4")[0] == 0
    for arm, wanted in alone.items():
        assert np.allclose(logits(cached, f"{arm}-0"), wanted, atol=1e-3)
    assert run(*command, "--set", "distill.epochs=null", "--set", "distill.steps=3")[0] == 0
    assert {arm: result(cached, f"{arm}-0")["steps"] for arm in arms} == steps | {"ce": 3, "kl+gram": 3}


def test_the_control_is_a_probe_that_is_solved(cached: Path):
    """No steps, and what ``fit_probe`` makes of what the head reads."""
    assert (
        run("distill", "--task", "cb", "--arm", "head", "--arm", "kl", "--seed", "0", "--seed", "1")[0] == 0
    )
    head, other, kl = (result(cached, name) for name in ("head-0", "head-1", "kl-0"))
    assert (head["steps"], head["examples"], head["step"]) == (0, 0, 0)
    assert [entry["step"] for entry in head["history"]] == [0]
    assert head["head_parameters"] < kl["head_parameters"]  # the pooler learns beside the prompts only
    grid = Grid(Project.load(), "cb")
    student = grid.start("head", 0).student
    splits = grid.splits
    features, held_out = (starting_features(student, splits[s]) for s in ("train", "tune"))
    labels = one_hot(splits["train"].labels, 3)
    wanted = fit_probe(features, labels, held_out, lambda said: splits["tune"].score(said)["accuracy"])
    assert (wanted.strength, head["probe_strength"]) == (head["probe_strength"],) * 2
    said = wanted.logits(starting_features(student, splits["validation"]))
    assert np.allclose(logits(cached, "head-0"), said, atol=1e-4)
    assert other["probe_strength"] > 0


def test_without_weight_for_labels_the_probe_fits_the_teacher(cached: Path):
    kl = "{method: head, ce_weight: 0, inter_class: {name: kl}}"
    command = ("distill", "--task", "cb", "--arm", "head", "--set")
    assert run(*command, f"distill.arms.head={kl}")[0] == 0
    taught = result(cached, "head-0")["history"][0]["kl_to_teacher"]
    assert run(*command, "distill.arms.head={method: head}")[0] == 0
    assert taught < result(cached, "head-0")["history"][0]["kl_to_teacher"]
    assert fails(*command, f"distill.arms.head={kl.replace('ce_weight: 0', 'ce_weight: 1')}").startswith(
        "distill.arms.head: method head must have no loss but ce_weight"
    )


def test_a_diverged_student_is_named_and_the_others_are_kept(cached: Path):
    huge = ("--set", "distill.arms.ce.lr=1e30")
    code, _, error = run("distill", "--task", "cb", "--arm", "ce", "--arm", "kl", *huge)
    assert code == 0
    assert "distill: cb ce, seed 0: the loss must stay finite, got none at step" in error
    assert "Lower distill.arms.ce.lr (now 1e+30)." in error
    assert sorted(path.name for path in (cached / "runs" / "cb").iterdir()) == ["kl-0"]
    told = json.loads((cached / "runs" / "metrics" / "cb.json").read_text())
    assert [(student["arm"], student["seed"]) for student in told["diverged"]] == [("ce", 0)]
    assert told["arm_order"] == ["kl"]
    assert run("distill", "--task", "cb", "--arm", "head")[0] == 0
    told = json.loads((cached / "runs" / "metrics" / "cb.json").read_text())
    assert [(one["arm"], one["seed"]) for one in told["diverged"]] == [("ce", 0)], "it stays known"
    assert run("distill", "--task", "cb", "--arm", "ce", "--seed", "1")[0] == 0
    assert json.loads((cached / "runs" / "metrics" / "cb.json").read_text())["diverged"] == []
    assert run("distill", "--task", "cb", "--arm", "ce", "--arm", "head", "--seed", "0", *huge)[0] == 0
    told = json.loads((cached / "runs" / "metrics" / "cb.json").read_text())
    assert told["arm_order"] == ["head", "ce", "kl"], "a student that diverges puts no other out"
    for _ in range(2):  # the second finds in scratch what the first one left
        code, _, error = run("distill", "--task", "cb", "--arm", "ce", *huge)
        assert code == 1
        assert "Lower distill.arms.ce.lr (now 1e+30)." in error
        assert error.splitlines()[-1] == (
            "distill: a student's loss must stay finite, got none among ce-0. "
            "Lower the learning rate that is named above."
        )


def test_a_student_that_never_had_a_finite_loss_is_told_of_the_rate_at_work(cached: Path):
    huge = ("--set", "distill.arms.kl.inter_class.weight=1e308", "--set", "distill.lr=1e-2")
    code, _, error = run("distill", "--task", "cb", "--arm", "ce", "--arm", "kl", *huge)
    assert code == 0
    assert "got none at step 1 (last finite: none). Lower distill.lr (now 0.01)." in error
    code, _, _ = run("distill", "--task", "cb", "--arm", "kl", *huge)
    assert code == 1
    (result,) = (cached / ".kdcache").glob("grid-*/students/kl-0/result.json")
    assert json.loads(result.read_text(), parse_constant=pytest.fail)["diverged"] == {
        "step": 1, "last_finite_loss": None,
    }  # fmt: skip


def test_an_arm_is_not_called_as_a_teacher(cached: Path):
    assert "teacher_cached" in fails("distill", "--task", "cb", "--set", "distill.arms.teacher_cached={}")


def test_a_prompt_is_transferred_from_another_student(cached: Path):
    assert run("distill", "--task", "cb", "--arm", "ce")[0] == 0
    plain = logits(cached, "ce-0")
    (cached / "runs" / "cb" / "ce-0").rename(cached / "donor")
    assert run("distill", "--task", "cb", "--arm", "ce", "--set", "distill.init=student:donor")[0] == 0
    assert logits(cached, "ce-0") != plain
    assert fails("distill", "--task", "cb", "--arm", "ce", "--set", "distill.init=donor") == (
        "distill.arms.ce.init: it must be separators, words or student:FOLDER, got 'donor'. "
        "Leave it out for distill.init."
    )


def test_another_student_to_start_from_is_another_run(cached: Path):
    """What an interrupted run kept from the one before must not stand beside what starts from this one."""
    names = []
    for seed in (0, 1):
        assert run("distill", "--task", "cb", "--arm", "ce", "--seed", str(seed))[0] == 0
        shutil.rmtree("donor", ignore_errors=True)
        shutil.move(f"runs/cb/ce-{seed}", "donor")
        project = Project.load(["distill.init=student:donor"])
        names.append(Grid(project, "cb").scratch.name)
    assert names[0] != names[1]


def test_a_prompt_of_another_backbone_is_no_start(cached: Path):
    """It would fit by its shape, and mean nothing."""
    assert run("distill", "--task", "cb", "--arm", "ce")[0] == 0
    assert run("shrink", "--layers", "1", "--num-layers", "1")[0] == 0
    assert list(Path("models").glob("backbone-*")), "the student's own is still there"
    donor = "runs/cb/ce-0"
    told = fails("distill", "--task", "cb", "--arm", "kl", "--set", f"distill.init=student:{donor}")
    assert donor in told
    assert not Path("runs/cb/kl-0").exists()


def test_a_seed_or_an_arm_named_twice_is_trained_once(cached: Path):
    twice = ("--arm", "ce", "--arm", "ce", "--seed", "3", "--seed", "3")
    assert run("distill", "--task", "cb", *twice)[0] == 0
    assert [path.name for path in (cached / "runs" / "cb").iterdir()] == ["ce-3"]
    told = fails("distill", "--task", "cb", "--arm", "ce", "--set", "distill.seeds=[3, 3]")
    assert told.startswith("distill.seeds: ")


def test_all_rows_targets_are_those_of_the_teacher_on_all_rows(cached: Path):
    assert run("distill", "--task", "cb", "--arm", "kl")[0] == 0
    crossed = logits(cached, "kl-0")
    assert run("distill", "--task", "cb", "--arm", "kl", "--set", "distill.arms.kl.targets=all_rows")[0] == 0
    assert logits(cached, "kl-0") != crossed
    card = (cached / "runs" / "cb" / "kl-0" / "README.md").read_text()
    assert "targets of the teacher on all rows" in card
    about = json.loads((cached / "runs" / "cb" / "kl-0" / "student.json").read_text())
    assert about["task"]["name"] == "cb"


def test_an_arm_that_is_not_done_is_warned_of(cached: Path, monkeypatch):
    """On 8 rows of tune, more than an eighth above all before the last tenth of the steps."""
    rising, flat = [0.2, 0.3, 0.4, 0.5, 0.6], [0.2, 0.3, 0.4, 0.5, 0.62]
    tune = pq.read_metadata(cached / "data" / "cb" / "tune.parquet").num_rows
    assert rising[-1] - rising[-2] < 1 / tune < 0.2
    scores = iter([*rising[:-1], 0.7, *flat])
    monkeypatch.setattr(Run, "score", lambda *_: {"tune_accuracy": next(scores)})
    arms = ("--arm", "ce", "--arm", "kl", "--set", "distill.arms.ce.steps=5")
    code, _, error = run(
        "distill", "--task", "cb", *arms, "--set", "distill.epochs=null", "--set", "distill.steps=5"
    )
    assert code == 0
    (warning,) = [line for line in error.splitlines() if "not done" in line]
    assert warning.startswith("distill: cb ce is not done: ")
    assert "20.0 points above all before" in warning
    assert warning.endswith("Raise distill.arms.ce.steps (now 5).")


def test_students_are_of_one_kind_of_machine(cached: Path, monkeypatch):
    arms = ("distill", "--task", "cb", "--arm", "ce", "--arm", "kl", "--set", "distill.students_per_pass=1")
    train, trained = Grid._train_pass, []

    def stop_at_the_second(grid, names, *rest):
        if trained:
            raise KeyboardInterrupt
        trained.append(names)
        train(grid, names, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Grid, "_train_pass", stop_at_the_second)
        assert run(*arms)[0] == 130
    with monkeypatch.context() as patched:
        patched.setattr("kdcache.students.grid.machine_kind", lambda device: "another")
        code, _, error = run(*arms)
    assert code == 1
    assert "another" in error
    assert "kdcache clean" in error
    assert run(*arms)[0] == 0
