"""Students of one kind in one tensor each: as each alone, in few operations."""

from pathlib import Path

import pytest
import torch
from engine import KL_GRAM, build_rows, double, fit, gap, operations_per_step, values

from kdcache.losses import LOSSES, Term
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.run import Run
from kdcache.students.stack import Stack, stacked
from kdcache.students.training_rows import StudentRows

LONG = [pytest.param(method, 75, marks=pytest.mark.slow) for method in ("prefix", "prompt", "p_tuning")]


@pytest.fixture(scope="module")
def backbone(tiny_model: Path) -> Backbone:
    return Backbone.load(tiny_model)


@pytest.fixture(scope="module")
def rows(tiny_model: Path, backbone: Backbone) -> StudentRows:
    return build_rows(tiny_model, backbone)


@pytest.mark.parametrize(("method", "epochs"), [("prefix", 3), ("p_tuning", 3), *LONG])
def test_students_of_one_kind_are_stacked_and_each_is_as_if_alone(tiny_model: Path, rows, method, epochs):
    """In double precision."""
    terms = {"inter_class": Term("kl", 1.0, 2.0)}
    plans = [{"seed": seed, "lr": 0.01, "terms": terms, "epochs": epochs} for seed in range(3)]
    plans += [{"seed": seed, "lr": 0.003, "epochs": epochs // 3} for seed in (3, 4)]

    def start() -> list[Run]:
        runs = [double(tiny_model, rows, method=method, **plan) for plan in plans]
        for run in runs:
            run.student.backbone = runs[0].student.backbone
        return runs

    alone = start()
    for run in alone:
        fit(run)
    together = start()
    assert [len(stack.runs) for stack in stacked(together)] == [3, 2]
    for stack in stacked(together):
        stack.release()
    fit(*together)
    for one, other in zip(alone, together, strict=True):
        assert one.step == other.step
        assert gap(values(one), values(other)) <= 1e-8
        for entry, seen in zip(one.history, other.history, strict=True):
            assert entry == pytest.approx(seen, abs=1e-6)
    assert gap(values(together[0]), values(together[1])) > 1e-4


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_stacked(tiny_model: Path, rows, name):
    """Each student has the gradient that it has alone."""
    terms = {LOSSES[name].families[0]: Term(name)}
    runs = [double(tiny_model, rows, terms=terms, seed=seed) for seed in (0, 1)]
    batches = torch.arange(8).view(2, 4)
    states = torch.randn(8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for run, some, batch in zip(runs, states.split(4), batches, strict=True):
        run.objective.double()
        torch.stack(list(Stack([run]).terms(some, batch[None]).values())).sum().backward()
    wanted = [[p.grad for p in run.optimizer.param_groups[1]["params"]] for run in runs]
    (both,) = stacked(runs)
    torch.stack(list(both.terms(states, batches).values())).sum().backward()
    for k, gradients in enumerate(wanted):
        for gradient, found in zip(gradients, both.optimizer.param_groups[1]["params"], strict=True):
            assert (gradient - found.grad[k]).abs().max() <= 1e-12 * max(1, gradient.abs().max())


def test_more_students_of_an_arm_start_hardly_more_operations(tiny_model: Path, rows, backbone):
    one, six = (
        operations_per_step(tiny_model, backbone, rows, [{"terms": KL_GRAM, "seed": k} for k in range(count)])
        for count in (1, 6)
    )
    assert six < 2 * one
