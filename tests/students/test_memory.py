"""What is done where a GPU's memory takes fewer students than planned."""

import pytest
import torch

from kdcache.errors import ModelError
from kdcache.students.memory import in_what_fits


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
