"""The objective of an arm: weights, ramps, projections, and rows remembered outside the batch."""

import pytest
import torch

from kdcache import losses
from kdcache.losses import Objective, Ramp, Targets, Term, cross_entropy
from kdcache.losses.objective import Memory


def logits(seed: int, batch: int = 7) -> torch.Tensor:
    return 2 * torch.randn(batch, 3, generator=torch.Generator().manual_seed(seed))


S, T, FEATURES = logits(0), logits(1), torch.randn(7, 4, generator=torch.Generator().manual_seed(2))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, -1])
TARGETS = Targets(torch.arange(7), LABELS, T, FEATURES)


def test_objective_adds_weighted_terms():
    terms = {"inter_class": Term("kl", weight=0.5, temperature=2.0), "inter_instance": Term("gram", 3.0)}
    values = Objective(terms, 2.0, 4, 4)(S, FEATURES, TARGETS)
    assert list(values) == ["ce", "kl", "gram"]
    assert values["ce"].item() == pytest.approx(2.0 * cross_entropy(S, LABELS).item())
    assert values["kl"].item() == pytest.approx(0.5 * losses.kl(S, T, 2.0).item())
    assert values["gram"].item() == pytest.approx(3.0 * losses.gram(S, T).item())


def test_label_smoothing_and_labels_reach_the_losses_that_take_them():
    values = Objective({"inter_class": Term("dkd")}, 1.0, 4, 4, label_smoothing=0.2)(S, FEATURES, TARGETS)
    assert values["ce"].item() == pytest.approx(cross_entropy(S, LABELS, 0.2).item())
    assert values["dkd"].item() == pytest.approx(losses.dkd(S, T, LABELS).item())


def test_teacher_annealing_moves_the_weight_from_the_teacher_to_the_labels():
    terms = {"inter_class": Term("kl", weight=Ramp(1.0, 0.0), temperature=Ramp(4.0, 2.0))}
    objective = Objective(terms, Ramp(0.0, 1.0), 4, 4)
    for progress, temperature in ((0.0, 4.0), (0.25, 3.5), (1.0, 2.0)):
        values = objective(S, FEATURES, TARGETS, progress)
        assert values["ce"].item() == pytest.approx(progress * cross_entropy(S, LABELS).item())
        kl = losses.kl(S, T, temperature).item()
        assert values["kl"].item() == pytest.approx((1 - progress) * kl)


def test_projection_starts_as_the_identity_where_dims_agree():
    terms = {"feature": Term("feature_mse")}
    assert Objective(terms, 1.0, 4, 4)(S, FEATURES, TARGETS)["feature_mse"].item() == 0.0
    other = Objective(terms, 1.0, 4, 6)
    assert other.projection is not None
    assert other.projection.weight.shape == (6, 4)
    assert [p.shape for p in Objective({}, 1.0, 4, 6).parameters()] == []


def test_relations_on_features_need_no_projection():
    wide = Targets(torch.arange(7), LABELS, T, torch.randn(7, 9))
    objective = Objective({"feature": Term("sp"), "inter_instance": Term("sp")}, 1.0, 4, 9)
    assert list(objective.parameters()) == []
    values = objective(S, FEATURES, wide)
    assert values["sp"].item() == pytest.approx(losses.sp(S, T).item())
    on_features = losses.sp(FEATURES, wide.features, on="features").item()
    assert values["feature_sp"].item() == pytest.approx(on_features)


def batch(rows: list[int], seed: int) -> tuple[torch.Tensor, Targets]:
    labels = torch.zeros(len(rows), dtype=torch.int64)
    return logits(seed, len(rows)), Targets(torch.tensor(rows), labels, T[rows], FEATURES[rows])


def test_scope_all_relates_the_batch_to_every_row_as_the_student_saw_it_last():
    objective = Objective({"inter_instance": Term("gram", scope="all")}, 1.0, 4, 4)
    first, second, again = batch([0, 1, 2], 5), batch([3, 4], 6), batch([1, 5], 7)
    value = objective(first[0], FEATURES[:3], first[1])["gram"].item()
    assert value == pytest.approx(losses.gram(first[0], first[1].logits).item())
    value = objective(second[0], FEATURES[3:5], second[1])["gram"].item()
    others = (first[0], first[1].logits)
    assert value == pytest.approx(losses.gram(second[0], second[1].logits, others=others).item())
    value = objective(again[0], FEATURES[[1, 5]], again[1])["gram"].item()
    kept = torch.cat([first[0][[0, 2]], second[0]]), T[[0, 2, 3, 4]]  # row 1's stale copy is replaced
    assert value == pytest.approx(losses.gram(again[0], again[1].logits, others=kept).item())


def test_a_queue_keeps_the_rows_trained_on_last():
    memory = Memory(length=3)
    for rows in ([0, 1], [2, 3], [0, 4]):
        memory.remember(torch.tensor(rows), torch.tensor([[float(row)] for row in rows]), torch.zeros(2, 1))
    student, _ = memory.beyond(torch.tensor([4]))
    assert sorted(student[:, 0].tolist()) == [0.0, 2.0, 3.0]
    assert memory.beyond(torch.arange(5)) is None


def test_looking_does_not_make_the_objective_remember():
    objective = Objective({"inter_instance": Term("gram", scope="queue:4")}, 1.0, 4, 4)
    before = objective(S, FEATURES, TARGETS, remember=False)["gram"].item()
    assert objective(S, FEATURES, TARGETS, remember=False)["gram"].item() == before
    assert objective.memory.beyond(torch.tensor([9])) is None


def test_what_is_remembered_gets_no_gradient_and_does_not_change_behind_ones_back():
    objective = Objective({"inter_instance": Term("gram", scope="all")}, 1.0, 4, 4)
    early = S[:3].clone().requires_grad_()
    objective(early, FEATURES[:3], Targets(torch.arange(3), LABELS[:3], T[:3], FEATURES[:3]))
    late = S[3:].clone().requires_grad_()
    rest = Targets(torch.arange(3, 7), LABELS[3:], T[3:], FEATURES[3:])
    objective(late, FEATURES[3:], rest)["gram"].backward()
    assert early.grad is None
    assert late.grad.abs().max() > 0
