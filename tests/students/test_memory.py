"""What is predicted of a pass's memory, and what is done where a GPU's takes fewer students than planned."""

import runpy

import pytest
import torch
from conftest import ROOT
from engine import KL_GRAM, build_rows, build_run

from kdcache.errors import ModelError
from kdcache.students import looks, step
from kdcache.students.frozen_inputs import KEPT_SHARE
from kdcache.students.loop import train_students
from kdcache.students.memory import FREE_SHARE, REHEARSED, in_what_fits, rehearse, students_that_fit
from kdcache.students.prompted_backbone import Backbone

peak_bytes = runpy.run_path(str(ROOT / "benchmarks" / "allocator.py"))["peak_bytes"]


@pytest.mark.parametrize("students", [2, 6])
@pytest.mark.parametrize("dropout", [0, 0.1])
@pytest.mark.parametrize(
    ("pooling", "method", "scored", "changes"),
    [
        ("cls", "prefix", True, {}),
        ("mean", "prefix", False, {"num_virtual_tokens": 32}),
        ("mean", "prompt", True, {}),
        ("mean", "late_prefix", True, {"late_layers": 1}),
    ],
)
def test_the_memory_of_a_pass_is_predicted(
    tiny_model, monkeypatch, pooling, method, scored, changes, dropout, students
):
    for module in (step, looks):  # a GPU computes all of the first layer
        monkeypatch.setattr(module, "known_prefix", lambda runs: None)
    backbone = Backbone.load(tiny_model, pooling, dropout=dropout)
    rows = build_rows(tiny_model, backbone)
    tune = rows if scored else None
    first, *runs = (
        build_run(tiny_model, backbone, rows, method, seed, tune, terms=KL_GRAM, **changes)
        for seed in range(students + 1)
    )
    train_students([first])  # what is kept of rows comes first
    predicted = students * peak_bytes(lambda: rehearse(runs[0])) / REHEARSED
    assert peak_bytes(lambda: train_students(runs)) == pytest.approx(predicted, rel=0.1)


def test_a_pass_holds_the_students_that_fit_and_what_late_prompts_keep(tiny_model, monkeypatch):
    on_gpu = {"memory_allocated": 100, "max_memory_allocated": 700, "mem_get_info": (6000, 8000)}
    for name, told in on_gpu.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, told=told: told)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    backbone = Backbone.load(tiny_model, "cls")
    rows = build_rows(tiny_model, backbone)
    room = FREE_SHARE * 6000
    students = students_that_fit(build_run(tiny_model, backbone, rows))
    assert students == int(room / (600 / REHEARSED)) > 1
    late = students_that_fit(build_run(tiny_model, backbone, rows, "late_prefix", late_layers=1))
    assert late == int(room * (1 - KEPT_SHARE) / (600 / REHEARSED)) < students


def test_a_pass_that_does_not_fit_is_trained_in_halves(capsys):
    trained, steps = [], []

    def train(names, after_step):
        after_step(len(names))
        if len(names) > 2:
            raise torch.OutOfMemoryError
        trained.append(names)

    names = [("ce", seed) for seed in range(5)]
    in_what_fits(names, "cb", steps.append, train)
    assert [name for some in trained for name in some] == names
    assert max(map(len, trained)) == 2
    assert sum(steps) == len(names)  # each step counts once, however often it was taken
    told = capsys.readouterr().err.splitlines()
    assert [("cb" in line, "5 students" in line) for line in told] == [(True, True), (True, False)]


def test_a_single_student_that_does_not_fit_is_refused():
    def train(names, after_step):
        raise torch.OutOfMemoryError

    with pytest.raises(ModelError, match=r"kl must fit .* batch_size"):
        in_what_fits([("ce", 0), ("kl", 0)][1:], "cb", lambda steps: None, train)
