"""Student and teacher drawn together: with ``targets: member`` each seed has a teacher of its own."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import fails

from kdcache.cache.reader import load_cache
from kdcache.stages.distill import distill
from kdcache.stages.grid import Grid
from kdcache.stages.lineup import Lineup
from kdcache.stages.workspace import Project

KL = {"inter_class": {"name": "kl", "temperature": 2.0}}
ARMS = {"head": {"method": "head"}, "own": {**KL, "targets": "member"}, "mean": KL}
ENSEMBLE = {"ensemble": 2, "folds": 0}


def test_a_seed_learns_from_the_member_of_its_number(cached_project):
    cached_project(train_teacher=ENSEMBLE, distill={"arms": ARMS})
    grid = Grid(Project.load(), "cb")
    shared = Lineup(grid.params, grid.task, grid.folder, grid.backbone, grid.splits, grid.score_on_tune)
    train = grid.splits["train"]
    for seed in (0, 1):
        learnt = shared.start("own", seed).rows.teacher_logits.numpy()
        assert (learnt == train.targets.members[seed]).all()
        assert (shared.start("mean", seed).rows.teacher_logits.numpy() == train.targets.logits).all()
    assert not np.allclose(*train.targets.members)


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


def test_what_no_member_can_teach_is_refused(cached_project):
    cached_project(train_teacher=ENSEMBLE, distill={"arms": ARMS})
    assert fails("distill", "--task", "cb", "--arm", "own", "--seed", "2") == (
        "distill.arms.own.targets: with member, seeds must be below the ensemble's 2 members, a teacher for "
        "each, got 2. Raise train_teacher.ensemble, or take fewer seeds."
    )
    feature = "distill.arms.own={targets: member, feature: {name: feature_mse}}"
    assert fails("distill", "--task", "cb", "--arm", "own", "--set", feature) == (
        "distill.arms.own.targets: it must not be member with a loss on features, of which the cache keeps "
        "the ensemble's mean alone, got member. Remove one of the two."
    )
    assert not Path("runs").exists()


def test_a_single_teacher_has_no_members(cached_project):
    cached_project(distill={"arms": ARMS})
    assert "got 0. Raise train_teacher.ensemble" in fails(
        "distill", "--task", "cb", "--arm", "own", "--seed", "0"
    )
