"""Properties of every loss, and the invariances that its card claims."""

import inspect

import pytest
import torch

from kdcache import losses
from kdcache.errors import ShapeError
from kdcache.losses import LOSSES, cross_entropy

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, -1])
SHIFT_INVARIANT = [name for name, loss in LOSSES.items() if not loss.projected]
# name → the maps of all student rows together that change nothing
ONE_SCALE = {"gram_centred", "sp", "cka", "rkd_distance", "rkd_angle", "pkt", "feature_cosine"}
SCALE_OF_A_ROW = {"gram_centred", "pkt", "feature_cosine"}
COMMON_SHIFT = {"cka", "rkd_distance", "rkd_angle"}
BLIND_TO_CLASSES = {name for name, loss in LOSSES.items() if not loss.tells_classes_apart}


def logits(seed: int, batch: int = 7, classes: int = 3, scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, classes, generator=generator, dtype=torch.float64)


def value(name: str, student: torch.Tensor, teacher: torch.Tensor, labels=LABELS, **options) -> torch.Tensor:
    if LOSSES[name].labels:
        options["labels"] = labels[: len(student)]
    return LOSSES[name].function(student, teacher, **options)


@pytest.mark.parametrize("name", list(LOSSES))
class TestEveryLoss:
    def test_is_zero_at_the_teacher_and_a_scalar(self, name):
        at_teacher = value(name, logits(0), logits(0))
        assert at_teacher.shape == ()
        assert abs(at_teacher.item()) < 1e-14
        near_uniform = 1e-6 * logits(0)
        assert abs(value(name, near_uniform, near_uniform).item()) < 1e-14

    def test_is_unchanged_by_a_common_permutation(self, name):
        s, t, order = logits(0), logits(1), torch.tensor([3, 0, 6, 5, 1, 2, 4])
        moved = value(name, s[order], t[order], labels=LABELS[order]).item()
        assert moved == pytest.approx(value(name, s, t).item(), rel=1e-12)

    def test_is_positive_when_the_teacher_rows_are_shuffled(self, name):
        t = logits(0)
        assert value(name, t, t.roll(1, dims=0)).item() > 1e-3

    def test_gradient_is_right_and_the_teacher_gets_none(self, name):
        s, t = logits(0).requires_grad_(), logits(1).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: value(name, x, t.detach()), (s,))
        value(name, s, t).backward()
        assert t.grad is None

    @pytest.mark.parametrize(
        "rows",
        [torch.zeros(5, 3), torch.ones(5, 3), torch.eye(3)[[0, 0, 1, 1, 1]] * 9, 1e-9 * torch.eye(5)[:, :3]],
    )
    def test_value_and_gradient_are_finite_on_uniform_equal_and_duplicate_rows(self, name, rows):
        s = rows.clone().requires_grad_()
        for teacher in (rows.roll(1, 0), torch.zeros(5, 3), logits(3, batch=5).float()):
            loss = value(name, s, teacher)
            (gradient,) = torch.autograd.grad(loss, s)
            assert torch.isfinite(loss)
            assert torch.isfinite(gradient).all()
            if name != "feature_mse":  # divided by the teacher's mean square, here zero
                assert gradient.abs().max() < 1e4

    @pytest.mark.parametrize("rows", [1, 2])
    def test_tiny_batches_are_finite(self, name, rows):
        s = logits(0, batch=rows).requires_grad_()
        loss = value(name, s, logits(1, batch=rows))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(s.grad).all()
        if rows < LOSSES[name].min_rows and name != "gram":  # which also compares the confidence of a row
            assert loss.item() == pytest.approx(0.0, abs=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_stays_close_and_answers_in_single(self, name, dtype):
        s, t = logits(0), logits(1)
        close = value(name, s.to(dtype), t.to(dtype))
        assert close.dtype == torch.float32
        assert close.item() == pytest.approx(value(name, s, t).item(), rel=0.03)

    def test_other_shapes_are_refused(self, name):
        with pytest.raises(ShapeError, match=r"must be two matrices .*\(7, 3\).*\(6, 3\)"):
            value(name, logits(0), logits(1, batch=6))
        with pytest.raises(ShapeError, match=r"of one shape, got \(7, 3\) and \(7, 4\)"):
            value(name, logits(0), logits(1, classes=4))

    def test_its_card_is_complete(self, name):
        text = inspect.getdoc(LOSSES[name].function)
        for section in ("Args:", "Returns:", "Raises:", "Needs:", "Cost:", "Reference:", ">>> "):
            assert section in text, section


@pytest.mark.parametrize("name", SHIFT_INVARIANT)
def test_a_shift_of_a_row_of_logits_changes_nothing(name):
    s, t = logits(0), logits(1)
    shifts = torch.arange(7.0, dtype=torch.float64)[:, None]
    assert value(name, s + shifts, t - 2 * shifts).item() == pytest.approx(value(name, s, t).item(), rel=1e-9)


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize(
    ("able", "change"),
    [
        (ONE_SCALE, lambda z: 3.0 * z),
        (SCALE_OF_A_ROW, lambda z: torch.arange(1.0, 8.0)[:, None] * z),
        (COMMON_SHIFT, lambda z: z + torch.tensor([1.0, -2.0, 0.5])),
        (BLIND_TO_CLASSES - {"feature_mse", "feature_cosine"}, lambda z: z[:, [1, 2, 0]]),
    ],
    ids=["one scale", "scale of a row", "common shift", "permuted classes"],
)
def test_exactly_the_invariances_of_the_card(name, able, change):
    s, t = logits(0), logits(1)
    same = value(name, change(s), t).item() == pytest.approx(value(name, s, t).item(), rel=1e-9)
    assert same == (name in able)


def test_two_classes_have_a_gradient_exactly_where_the_table_says_so():
    for name, loss in LOSSES.items():
        if "feature" in loss.families and loss.projected:
            continue
        s = logits(0, classes=2).requires_grad_()
        (gradient,) = torch.autograd.grad(value(name, s, logits(1, classes=2), labels=LABELS.clamp(max=1)), s)
        assert (gradient.abs().max() > 1e-6) == loss.two_classes, name


def test_slots_may_be_exchanged_exactly_where_the_table_says_so():
    """COPA: swapping a row's two choices, in student and teacher alike, means nothing."""
    s, t = logits(0, classes=2), logits(1, classes=2)
    swap = torch.tensor([1, 0, 0, 1, 1, 0, 1], dtype=torch.bool)[:, None]
    for name, loss in LOSSES.items():
        if loss.families[0] != "inter_instance" or not loss.two_classes:
            continue
        moved = value(name, torch.where(swap, s.flip(1), s), torch.where(swap, t.flip(1), t)).item()
        same = moved == pytest.approx(value(name, s, t).item(), rel=1e-6)
        assert same == loss.ignores_slots, name


def test_gram_is_one_for_a_uniform_student_of_a_confident_teacher():
    confident = 20.0 * torch.eye(3)[torch.arange(9) % 3]
    assert losses.gram(torch.zeros(9, 3), confident).item() == pytest.approx(1.0, rel=1e-4)


def test_gram_does_not_explode_under_an_unconfident_teacher():
    unconfident, s = 0.05 * logits(0, batch=16, classes=2), logits(1, batch=16, classes=2)
    assert losses.gram(s, unconfident).item() < 5.0


def test_a_class_that_the_teacher_never_ranks_drops_out_of_dist_intra():
    s, t = logits(0, classes=4), logits(1, classes=4)
    t[:, 3] = -60.0
    without = losses.dist_intra(s, t)
    s[:, 3] += logits(2, classes=1)[:, 0] * 1e-4
    assert losses.dist_intra(s, t).item() == pytest.approx(without.item(), rel=1e-2)
    assert torch.isfinite(without)


def test_rkd_distance_knows_nothing_where_all_teacher_rows_are_equal():
    assert losses.rkd_distance(logits(0), torch.ones(7, 3)).item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cross_entropy_of_many_rows_in_half_precision_does_not_overflow(dtype):
    z = 30 * torch.randn(4096, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4096) % 4
    found = cross_entropy(z.to(dtype), labels)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(cross_entropy(z, labels).item(), rel=0.01)


def test_unlabelled_rows_drop_out_of_the_losses_that_need_labels():
    z, labels = logits(0), torch.tensor([0, 1, 2, -1, -100, 0, 1])
    kept = labels >= 0
    wanted = torch.nn.functional.cross_entropy(z[kept], labels[kept])
    assert cross_entropy(z, labels).item() == pytest.approx(wanted.item(), rel=1e-12)
    t = logits(1)
    dkd = losses.dkd(z, t, labels).item()
    assert dkd == pytest.approx(losses.dkd(z[kept], t[kept], labels[kept]).item(), rel=1e-12)
    for function in (lambda x, y: cross_entropy(x, y), lambda x, y: losses.dkd(x, t, y)):
        x = logits(0).requires_grad_()
        nothing = function(x, torch.full((7,), -1))
        assert nothing.item() == 0.0
        nothing.backward()
        assert not x.grad.any()


def test_label_smoothing_is_the_cross_entropy_with_smoothed_targets():
    z, labels = logits(0), torch.tensor([0, 1, 2, 0, 1, 2, -1])
    soft = 0.9 * torch.eye(3, dtype=torch.float64)[labels.clamp(min=0)] + 0.1 / 3
    wanted = -(soft * z.log_softmax(1)).sum(1)[labels >= 0].mean()
    assert cross_entropy(z, labels, 0.1).item() == pytest.approx(wanted.item(), rel=1e-12)


def test_dkd_wants_one_label_per_row():
    with pytest.raises(ShapeError) as caught:
        losses.dkd(logits(0), logits(1), torch.tensor([0]))
    assert str(caught.value) == "dkd: labels must be of shape (7,), one per row, got (1,)."
