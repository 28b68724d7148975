"""Student and teacher drawn together: with ``targets: member`` each seed has a teacher of its own."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import fails, run

from kdcache.cache.reader import load_cache
from kdcache.project import Project
from kdcache.students.distill import distill
from kdcache.students.grid import Grid

KL = {"inter_class": {"name": "kl", "temperature": 2.0}}
ARMS = {"head": {"method": "head"}, "own": {**KL, "targets": "member"}, "mean": KL}
ENSEMBLE = {"ensemble": 2, "folds": 0}


def test_a_seed_learns_from_the_member_of_its_number(cached_project):
    cached_project(train_teacher=ENSEMBLE, distill={"arms": ARMS})
    grid = Grid(Project.load(), "cb")
    train = grid.splits["train"]
    for seed in (0, 1):
        learnt = grid.start("own", seed).rows.teacher_logits.numpy()
        assert (learnt == train.cached.members[seed]).all()
        assert (grid.start("mean", seed).rows.teacher_logits.numpy() == train.cached.logits).all()
    assert not np.allclose(*train.cached.members)


def test_predictions_and_metrics_hold_every_teacher(cached_project):
    cached_project(train_teacher=ENSEMBLE, distill={"arms": ARMS})
    distill(Project.load(), "cb")
    found = pd.read_parquet("predictions/cb.parquet")
    cached = load_cache(Path("cache/cb"), "validation")
    for seed in (0, 1):
        rows = found[(found["arm"] == "teacher_member") & (found["seed"] == seed)]
        said = np.array(rows["logits"].tolist())
        assert (said == cached.align(rows["example_id"].tolist()).members[seed]).all()
    accuracy = json.loads(Path("metrics/cb.json").read_text())["teacher"]["members"]["accuracy"]
    own = cached.rows
    right = [(logits.argmax(1) == own.label).mean() for logits in own.members]
    assert [accuracy["seeds"][str(m)] for m in (0, 1)] == pytest.approx(right)
    assert accuracy["mean"] == pytest.approx(np.mean(right))


def test_fidelity_is_to_the_member_that_taught(cached_project):
    cached_project(train_teacher=ENSEMBLE, distill={"arms": ARMS})
    assert run("distill", "--task", "cb", "--arm", "own", "--arm", "mean")[0] == 0
    cached = load_cache(Path("cache/cb"), "validation")
    for arm, seed in (("own", 0), ("own", 1), ("mean", 1)):
        folder = Path(f"runs/cb/{arm}-{seed}")
        rows = pd.read_parquet(folder / "validation.parquet")
        taught = cached.align(rows["example_id"].tolist())
        said = taught.members[seed] if arm == "own" else taught.logits
        same = np.array(rows["logits"].tolist()).argmax(1) == said.argmax(1)
        assert json.loads((folder / "result.json").read_text())["validation"]["agreement"] == same.mean()
    card = Path("runs/cb/own-1/README.md").read_text()
    assert ", member 1" in card
    assert "member" not in Path("runs/cb/mean-1/README.md").read_text()


def test_what_no_member_can_teach_is_refused(cached_project):
    cached_project(train_teacher=ENSEMBLE, distill={"arms": ARMS})
    assert fails("distill", "--task", "cb", "--arm", "own", "--seed", "2") == (
        "distill.arms.own.targets: with member, seeds must be below the ensemble's 2 members, a teacher for "
        "each, got 2. Raise train_teacher.ensemble, or take fewer seeds."
    )
    feature = "distill.arms.own={targets: member, feature: {name: feature_mse}}"
    assert fails("distill", "--task", "cb", "--arm", "own", "--set", feature) == (
        "distill.arms.own.targets: it must not be member with a loss on features, of which the cache keeps "
        "only the ensemble's mean, got member. Remove one of the two."
    )
    alone = "distill.arms.own={targets: member}"
    assert fails("distill", "--task", "cb", "--arm", "own", "--set", alone) == (
        "distill.arms.own.targets: with member, the arm must have a teacher's term, got none. "
        "Add inter_class, or remove targets."
    )
    assert not Path("runs").exists()


def test_a_single_teacher_has_no_members(cached_project):
    cached_project(distill={"arms": ARMS})
    assert "got 0. Raise train_teacher.ensemble" in fails(
        "distill", "--task", "cb", "--arm", "own", "--seed", "0"
    )
