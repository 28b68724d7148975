"""Students of a cache that kept the largest logits."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fails, run
from engine import KL_GRAM, build_rows, double, fit, gap, values

from kdcache.cache.reader import load_cache
from kdcache.cache.top_logits import expand_logits, keep_largest
from kdcache.losses import Term
from kdcache.params import read_params
from kdcache.project import Project
from kdcache.students.grid import Grid
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.stack import stacked
from kdcache.students.training_rows import StudentRows


@pytest.fixture(scope="module")
def rows(tiny_model: Path) -> StudentRows:
    return build_rows(tiny_model, Backbone.load(tiny_model))


def kept(rows: StudentRows, top_k: int) -> StudentRows:
    """The same rows, as a cache of the largest logits gives them."""
    logits = expand_logits(*keep_largest(rows.cached.logits, top_k), rows.task.num_labels)
    return replace(rows, teacher_logits=torch.from_numpy(logits))


def start(folder: Path, rows: StudentRows, collapsed: bool, seed: int = 0, temperature: float = 2.0):
    found = double(folder, rows, terms=KL_GRAM | {"inter_class": Term("kl", 1.0, temperature)}, seed=seed)
    found.objective.collapsed = collapsed
    return found


def test_where_one_label_is_left_out_a_student_takes_the_steps_of_one_of_all_logits(tiny_model: Path, rows):
    few = kept(rows, top_k=2)
    one, other = (start(tiny_model, taught, taught is few, temperature=1.0) for taught in (rows, few))
    before = values(one)
    fit(one)
    fit(other)
    assert gap(values(one), values(other)) < 1e-5 < gap(values(one), before)
    for seen, wanted in zip(other.history, one.history, strict=True):
        assert seen == pytest.approx(wanted, abs=1e-5)


def test_students_of_the_largest_logits_are_stacked_and_each_is_as_if_alone(tiny_model: Path, rows):
    few = kept(rows, top_k=1)

    def runs() -> list:
        found = [start(tiny_model, few, True, seed) for seed in (0, 1)]
        found[1].student.backbone = found[0].student.backbone
        return found

    alone, together = runs(), runs()
    for one in alone:
        fit(one)
    (stack,) = stacked(together)
    stack.release()
    fit(*together)
    for one, other in zip(alone, together, strict=True):
        assert gap(values(one), values(other)) <= 1e-8
    (warm,) = runs()[:1]
    warm.objective = start(tiny_model, few, True, temperature=1.0).objective
    fit(warm)
    for seen in warm.history:
        assert seen["kl_to_teacher"] == pytest.approx(seen["fixed_kl"], abs=1e-6), "compared in the same way"
    full = start(tiny_model, few, False)
    fit(full)
    assert gap(values(full), values(alone[0])) > 1e-3, "the labels that were not kept are not compared"


def test_top_k_from_the_teacher_to_its_students(built_project: Callable[..., Path]):
    """With folds: of each column of logits the largest are kept."""
    built_project("prepare", "teach --task cb", "cache --task cb", "shrink")
    Path("cache/cb").rename("all")
    before = {split: load_cache("all", split).rows for split in ("train", "tune", "validation")}
    assert run("cache", "--task", "cb", "--set", "cache_teacher.top_k=1")[0] == 0
    manifest = load_cache("cache/cb", "train").manifest
    assert manifest.format_version == 2
    assert dict(manifest.columns)["top_labels_plain"] == "int32[1]"
    assert manifest.metrics == load_cache("all", "train").manifest.metrics
    for split, wanted in before.items():
        found = load_cache("cache/cb", split).rows
        for logits, exact in ((found.logits, wanted.logits), (found.logits_plain, wanted.logits_plain)):
            np.testing.assert_array_equal(logits, expand_logits(*keep_largest(exact, 1), 3))

    code, out, _ = run("verify", "--task", "cb", "--teacher-rows", "24")
    assert code == 0
    assert "train.parquet: 24 rows by the teacher" in out
    assert "0 argmax flips" in run("diff", "all", "cache/cb")[1]
    assert "of a row the 1 largest logits are kept" in run("inspect", "--task", "cb")[1]
    assert json.loads(run("inspect", "cache/cb", "--json")[1])["cache/cb"]["top_k"] == 1
    assert run("export", "x.parquet", "--task", "cb")[0] == 0

    grid = Grid(Project.of(read_params("params.yaml")), "cb")
    assert grid.start("kl+gram", 0).objective.collapsed
    arms = ("--arm", "head+kl", "--arm", "kl+gram", "--seed", "0")
    assert run("distill", "--task", "cb", *arms)[0] == 0
    assert run("import", "x.parquet", "--task", "cb")[0] == 0
    imported = load_cache("cache/cb", "train")
    assert imported.manifest.format_version == 1
    np.testing.assert_allclose(
        imported.rows.logits, expand_logits(*keep_largest(before["train"].logits, 1), 3)
    )


def test_verify_finds_what_the_teacher_does_not_say(built_project: Callable[..., Path], monkeypatch):
    """The labels that are kept, and the mass of the others, are compared."""
    built_project("prepare", "teach --task cb")
    real = keep_largest
    for place in (1, 2):

        def moved(logits: np.ndarray, top_k: int, place: int = place):
            found = list(real(logits, top_k))
            found[place] = found[place] - np.float32(0.01)
            return tuple(found)

        monkeypatch.setattr("kdcache.cache.cached_rows.keep_largest", moved)
        assert run("cache", "--task", "cb", "--set", "cache_teacher.top_k=1")[0] == 0
        code, _, error = run("verify", "--task", "cb")
        assert code == 1
        assert error.count("got up to 0.01 away") == 3


def test_a_task_of_no_more_labels_keeps_all_logits(built_project: Callable[..., Path]):
    built_project("prepare", "teach --task cb", "cache --task cb")
    before = {path.name: path.read_bytes() for path in Path("cache/cb").iterdir()}
    assert run("cache", "--task", "cb", "--set", "cache_teacher.top_k=3")[0] == 0
    assert {path.name: path.read_bytes() for path in Path("cache/cb").iterdir()} == before
    assert "top_k" in fails("cache", "--task", "cb", "--set", "cache_teacher.top_k=0")
