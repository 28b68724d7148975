"""The grid from the command line: passes, transfer, targets, and a student that diverges."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import fails, run


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


def test_an_arm_has_a_batch_size_and_a_warm_up_of_its_own(cached: Path):
    """Each takes the steps of its own settings; in passes of three, other batches stay apart."""
    own = {"ce": (4, 2), "kl": (8, 3)}  # arm → batch_size, probe_epochs
    values = {f"distill.arms.{arm}.batch_size": size for arm, (size, _) in own.items()}
    values |= {f"distill.arms.{arm}.probe_epochs": epochs for arm, (_, epochs) in own.items()}
    settings = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    arms = ["distill", "--task", "cb", "--arm", "ce", "--arm", "kl", "--arm", "kl+gram"]
    assert run(*arms, *settings)[0] == 0
    section = yaml.safe_load((cached / "params.yaml").read_text())["distill"]
    shared = section["batch_size"], section["probe_epochs"]
    rows = pq.read_metadata(cached / "data" / "cb" / "train.parquet").num_rows
    for arm in ("ce", "kl", "kl+gram"):
        result = json.loads((cached / "runs" / "cb" / f"{arm}-0" / "result.json").read_text())
        size, epochs = own.get(arm, shared)
        assert result["probe_steps"] == epochs * -(-rows // size)
        assert result["steps"] == section["epochs"] * -(-rows // size)
    alone = {arm: logits(cached, f"{arm}-0") for arm in own}
    assert run(*arms, *settings, "--set", "distill.students_per_pass=3")[0] == 0
    for arm, wanted in alone.items():
        assert np.allclose(logits(cached, f"{arm}-0"), wanted, atol=1e-3)


def test_a_diverged_student_is_named_and_the_others_are_kept(cached: Path):
    huge = ("--set", "distill.arms.ce.lr=1e30")
    code, _, error = run("distill", "--task", "cb", "--arm", "ce", "--arm", "kl", *huge)
    assert code == 0
    assert "distill: cb ce, seed 0: the loss must stay finite, got none at step" in error
    assert "Lower distill.lr (now 1e+30)." in error
    assert sorted(path.name for path in (cached / "runs" / "cb").iterdir()) == ["kl-0"]
    code, _, error = run("distill", "--task", "cb", "--arm", "ce", *huge)
    assert code == 1
    assert error.splitlines()[-1] == (
        "distill: a student's loss must stay finite, got none among ce-0. "
        "Lower the learning rate that is named above."
    )


def test_a_student_that_never_had_a_finite_loss_is_told_of_the_rate_at_work(cached: Path):
    huge = ("--set", "distill.arms.kl.inter_class.weight=1e308")
    code, _, error = run("distill", "--task", "cb", "--arm", "ce", "--arm", "kl", *huge)
    assert code == 0
    assert "got none at step 1 (last finite: none). Lower distill.probe_lr (now 0.003)." in error
    code, _, _ = run("distill", "--task", "cb", "--arm", "kl", *huge)
    assert code == 1
    (result,) = (cached / ".kdcache").glob("grid-*/students/kl-0/result.json")
    assert json.loads(result.read_text(), parse_constant=pytest.fail)["diverged"] == {
        "step": 1, "last_finite_loss": None,
    }  # fmt: skip


def test_a_prompt_is_transferred_from_another_student(cached: Path):
    assert run("distill", "--task", "cb", "--arm", "ce")[0] == 0
    plain = logits(cached, "ce-0")
    (cached / "runs" / "cb" / "ce-0").rename(cached / "donor")
    assert run("distill", "--task", "cb", "--arm", "ce", "--set", "distill.init=student:donor")[0] == 0
    assert logits(cached, "ce-0") != plain
    assert fails("distill", "--task", "cb", "--arm", "ce", "--set", "distill.init=donor") == (
        "distill.arms.head.init: it must be separators, words or student:FOLDER, got 'donor'. "
        "Leave it out for distill.init."
    )


def test_all_rows_targets_are_those_of_the_teacher_on_all_rows(cached: Path):
    assert run("distill", "--task", "cb", "--arm", "kl")[0] == 0
    crossed = logits(cached, "kl-0")
    assert run("distill", "--task", "cb", "--arm", "kl", "--set", "distill.arms.kl.targets=all_rows")[0] == 0
    assert logits(cached, "kl-0") != crossed
    card = (cached / "runs" / "cb" / "kl-0" / "README.md").read_text()
    assert "targets of the teacher on all rows" in card
    about = json.loads((cached / "runs" / "cb" / "kl-0" / "student.json").read_text())
    assert about["task"]["name"] == "cb"
