"""What is predicted of a pass's memory, and what is done where a GPU's takes fewer students than planned."""

from itertools import accumulate

import pytest
import torch
from engine import KL_GRAM, build_rows, build_run
from torch.profiler import ProfilerActivity, profile

from kdcache.errors import ModelError
from kdcache.students import looks, step
from kdcache.students.loop import train_students
from kdcache.students.memory import REHEARSED, in_what_fits, rehearse
from kdcache.students.prompted_backbone import Backbone


def peak_bytes(compute):
    """What the CPU's allocator held at most, above what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        compute()
    events = [event for event in told.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes))


@pytest.mark.parametrize("students", [2, 6])
@pytest.mark.parametrize("dropout", [0, 0.1])
@pytest.mark.parametrize(
    ("pooling", "method", "changes"),
    [("cls", "prefix", {}), ("mean", "prompt", {}), ("mean", "late_prefix", {"late_layers": 1})],
)
def test_the_memory_of_a_pass_is_predicted(
    tiny_model, monkeypatch, pooling, method, changes, dropout, students
):
    for module in (step, looks):  # a GPU computes all of the first layer
        monkeypatch.setattr(module, "known_prefix", lambda runs: None)
    backbone = Backbone.load(tiny_model, pooling, dropout=dropout)
    rows = build_rows(tiny_model, backbone)
    runs = [
        build_run(tiny_model, backbone, rows, method, seed, rows, terms=KL_GRAM, **changes)
        for seed in range(students)
    ]
    rehearse(runs[0])  # the computation that is kept comes first
    predicted = students * peak_bytes(lambda: rehearse(runs[0])) / REHEARSED
    assert peak_bytes(lambda: train_students(runs)) == pytest.approx(predicted, rel=0.1)


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
