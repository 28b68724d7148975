"""Gradient shares and fidelity, seen at every look."""

import numpy as np
import pytest
import torch
from torch import nn

from kdcache.losses import gram, kl
from kdcache.students.watch import Watch, gradient_norms, idle_terms


def test_every_arm_looks_at_the_same_rows():
    assert np.array_equal(Watch(100, 16).batch, Watch(100, 16).batch)
    assert len(Watch(5, 16).batch) == 5


def test_shares_are_those_of_the_gradient_norms():
    prompt, other = (nn.Parameter(torch.tensor([3.0, 4.0])) for _ in range(2))
    terms = {"ce": prompt.sum(), "kl": 2 * prompt.sum(), "gram": 0.0 * prompt.sum()}
    two = {"ce": other.square().sum(), "kl": other.sum()}
    norms = gradient_norms([terms, {"ce": prompt.sum()}, two], [[prompt], [prompt], [other]])
    assert norms[1] == {"ce": 1.0}  # all of it, whatever its size
    assert norms[2] == pytest.approx({"ce": 10.0, "kl": 2**0.5})
    seen = Watch(8, 4).see(terms, norms[0], torch.eye(2), torch.eye(2), torch.eye(2))
    assert [seen[f"share_{name}"] for name in terms] == pytest.approx([1 / 3, 2 / 3, 0.0])
    assert seen["fixed_kl"] == 14.0


def test_fidelity_is_agreement_and_two_distances_to_the_teacher():
    student, teacher = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    seen = Watch(2, 2).see({"ce": torch.ones(())}, {"ce": 1.0}, student, teacher, student)
    assert seen["agreement"] == 0.5
    assert seen["kl_to_teacher"] == pytest.approx(kl(student, teacher).item())
    assert seen["gram_to_teacher"] == pytest.approx(gram(student, teacher).item())


def test_an_idle_term_is_named_with_a_weight_that_would_wake_it():
    history = [{"share_ce": 0.998, "share_sp": 0.002}, {"share_ce": 0.99, "share_sp": 0.01}]
    (sentence,) = idle_terms(history)
    assert sentence == (
        "sp has 0.6% of the gradient and does next to nothing: a weight 18 times as large would give it 10%."
    )
    factor = 18
    assert factor * 0.006 / (factor * 0.006 + 0.994) == pytest.approx(0.1, abs=0.005)
    assert idle_terms([{"share_ce": 0.9, "share_sp": 0.1}]) == []
    assert idle_terms([{"share_ce": 1.0, "share_sp": 0.0}]) == [
        "sp has 0.0% of the gradient and does next to nothing: it has no gradient."
    ]
