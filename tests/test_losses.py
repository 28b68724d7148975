"""Losses: against slow loops in float64, and the properties their docstrings claim."""

import math

import pytest
import torch

from kdcache import losses
from kdcache.errors import ParamsError, ShapeError
from kdcache.losses import LOSSES, Objective, Term, check_terms, cross_entropy

LOGIT_LOSSES = ["kl", "gram"]


def logits(seed: int, batch: int = 7, classes: int = 3, scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, classes, generator=generator, dtype=torch.float64)


def softmax(row: list[float], t: float) -> list[float]:
    top = max(row)
    exps = [math.exp((z - top) / t) for z in row]
    return [e / sum(exps) for e in exps]


def slow_kl(s, t, temperature):
    total = 0.0
    for row_s, row_t in zip(s.tolist(), t.tolist(), strict=True):
        p_s, p_t = softmax(row_s, temperature), softmax(row_t, temperature)
        total += sum(b * math.log(b / a) for a, b in zip(p_s, p_t, strict=True))
    return temperature**2 * total / len(s)


def slow_gram(s, t, temperature):
    p_s = [softmax(row, temperature) for row in s.tolist()]
    p_t = [softmax(row, temperature) for row in t.tolist()]
    n, c = len(p_s), len(p_s[0])

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    distance = sum((dot(p_s[i], p_s[j]) - dot(p_t[i], p_t[j])) ** 2 for i in range(n) for j in range(n))
    energy = sum((dot(p_t[i], p_t[j]) - 1 / c) ** 2 for i in range(n) for j in range(n))
    floor = (n * 0.5 * (1 - 1 / c)) ** 2 / (c - 1)
    return distance / max(energy, floor)


SLOW = {"kl": slow_kl, "gram": slow_gram}


@pytest.mark.parametrize("name", LOGIT_LOSSES)
@pytest.mark.parametrize("classes", [2, 3, 11])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("scale", [0.1, 5.0])
def test_value_equals_the_formula(name, classes, temperature, scale):
    s, t = logits(0, classes=classes), logits(1, classes=classes, scale=scale)
    fast = LOSSES[name].function(s, t, temperature).item()
    assert fast == pytest.approx(SLOW[name](s, t, temperature), rel=1e-10)


def test_feature_mse_equals_the_formula():
    s, t = logits(0, classes=5), logits(1, classes=5)
    wanted = sum((a - b) ** 2 for a, b in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True))
    wanted /= sum(b**2 for b in t.flatten().tolist())
    assert losses.feature_mse(s, t).item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("name", list(LOSSES))
class TestEveryLoss:
    def test_is_zero_at_the_teacher_and_a_scalar(self, name):
        value = LOSSES[name].function(logits(0), logits(0))
        assert value.shape == ()
        assert abs(value.item()) < 1e-14

    def test_is_unchanged_by_a_common_permutation(self, name):
        s, t, order = logits(0), logits(1), torch.randperm(7)
        loss = LOSSES[name].function
        assert loss(s[order], t[order]).item() == pytest.approx(loss(s, t).item(), rel=1e-12)

    def test_is_positive_when_the_teacher_rows_are_shuffled(self, name):
        t = logits(0)
        assert LOSSES[name].function(t, t.roll(1, dims=0)).item() > 1e-3

    def test_gradient_is_right_and_the_teacher_gets_none(self, name):
        s, t = logits(0).requires_grad_(), logits(1).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: LOSSES[name].function(x, t.detach()), (s,))
        LOSSES[name].function(s, t).backward()
        assert t.grad is None

    @pytest.mark.parametrize("rows", [torch.zeros(5, 3), torch.ones(5, 3), torch.eye(3)[[0, 0, 1, 1, 1]] * 9])
    def test_gradient_is_finite_on_uniform_equal_and_duplicate_rows(self, name, rows):
        s = rows.clone().requires_grad_()
        for teacher in (rows.roll(1, 0), torch.zeros(5, 3), logits(3, batch=5).float()):
            (gradient,) = torch.autograd.grad(LOSSES[name].function(s, teacher), s)
            assert torch.isfinite(gradient).all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_stays_close(self, name, dtype):
        s, t = logits(0), logits(1)
        close = LOSSES[name].function(s.to(dtype), t.to(dtype)).item()
        assert close == pytest.approx(LOSSES[name].function(s, t).item(), rel=0.03)

    def test_other_shapes_are_refused(self, name):
        with pytest.raises(ShapeError, match=r"one shape, got \(7, 3\) and \(6, 3\)"):
            LOSSES[name].function(logits(0), logits(1, batch=6))


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_a_shift_of_the_logits_changes_nothing(name):
    s, t, loss = logits(0), logits(1), LOSSES[name].function
    assert loss(s + 3.0, t - 2.0).item() == pytest.approx(loss(s, t).item(), rel=1e-9)


def test_gram_is_blind_to_a_permutation_of_classes_and_kl_is_not():
    t = logits(0)
    assert losses.gram(t[:, [1, 2, 0]], t).item() == pytest.approx(0.0, abs=1e-14)
    assert losses.kl(t[:, [1, 2, 0]], t).item() > 0.1


def test_gram_is_one_for_an_uninformed_student_of_a_sure_teacher():
    sure = 20.0 * torch.eye(3)[torch.arange(9) % 3]
    assert losses.gram(torch.zeros(9, 3), sure).item() == pytest.approx(1.0, rel=1e-4)


def test_gram_does_not_explode_under_a_hesitant_teacher():
    hesitant, s = 0.05 * logits(0, batch=16, classes=2), logits(1, batch=16, classes=2)
    assert losses.gram(s, hesitant).item() < 5.0


def test_unlabelled_rows_drop_out_of_cross_entropy():
    z, labels = logits(0), torch.tensor([0, 1, 2, -1, -1, 0, 1])
    wanted = torch.nn.functional.cross_entropy(z[labels >= 0], labels[labels >= 0])
    assert cross_entropy(z, labels).item() == pytest.approx(wanted.item(), rel=1e-12)
    nothing = cross_entropy(z.requires_grad_(), torch.full((7,), -1))
    assert nothing.item() == 0.0
    nothing.backward()
    assert z.grad is not None
    assert not z.grad.any()


@pytest.mark.parametrize(
    ("terms", "ce_weight", "message"),
    [
        (
            {"inter_class": Term("kll")},
            1.0,
            "arm.inter_class.name: it must be a loss of that family, got 'kll'. Did you mean kl?",
        ),
        (
            {"inter_instance": Term("kl")},
            1.0,
            "arm.inter_instance.name: it must be a loss of that family, got 'kl'. Known: gram.",
        ),
        (
            {"inter_instance": Term("gram")},
            0.0,
            "arm: a term must tell the classes apart, got ce_weight 0 and no inter_class (relations and "
            "features do not say which class is which). Add inter_class: {name: kl}.",
        ),
    ],
)
def test_what_cannot_work_is_refused_at_start(terms, ce_weight, message):
    with pytest.raises(ParamsError) as caught:
        check_terms(terms, ce_weight, "arm")
    assert str(caught.value) == message


def test_objective_adds_weighted_terms():
    terms = {"inter_class": Term("kl", weight=0.5, temperature=2.0), "inter_instance": Term("gram", 3.0)}
    s, t, labels = logits(0).float(), logits(1).float(), torch.tensor([0, 1, 2, 0, 1, 2, -1])
    features = torch.randn(7, 4)
    values = Objective(terms, 2.0, 4, 4)(s, features, labels, t, features)
    assert list(values) == ["ce", "kl", "gram"]
    assert values["ce"].item() == pytest.approx(2.0 * cross_entropy(s, labels).item())
    assert values["kl"].item() == pytest.approx(0.5 * losses.kl(s, t, 2.0).item())
    assert values["gram"].item() == pytest.approx(3.0 * losses.gram(s, t).item())


def test_projection_starts_as_the_identity_where_dims_agree():
    features = torch.randn(7, 4)
    s = logits(0).float()
    terms = {"feature": Term("feature_mse")}
    same = Objective(terms, 1.0, 4, 4)(s, features, torch.zeros(7, dtype=torch.long), s, features)
    assert same["feature_mse"].item() == 0.0
    other = Objective(terms, 1.0, 4, 6)
    assert other.projection is not None
    assert other.projection.weight.shape == (6, 4)
    assert [p.shape for p in Objective({}, 1.0, 4, 6).parameters()] == []
