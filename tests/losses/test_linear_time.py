"""The linear forms: equal to the dense ones, exact to 1e-6, and the same over processes."""

import pytest
import slow_losses as slow
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from kdcache.losses import LOSSES
from kdcache.losses import linear_time as relations
from kdcache.losses.linear_time import relation_distance, relation_energy, sum_over_rows

LINEAR = [name for name, loss in LOSSES.items() if loss.linear]
BLOCKED = ["rkd_distance", "rkd_angle", "pkt"]


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("others", [0, 70])
@pytest.mark.parametrize("dim", [2, 30])
@pytest.mark.parametrize("few_rows", [0, 10**6], ids=["linear", "dense"])
def test_both_forms_give_value_and_gradients_of_the_matrices(few_rows, others, dim, monkeypatch):
    monkeypatch.setattr(relations, "SMALL_BATCH_ROWS", few_rows)
    monkeypatch.setattr(relations, "ROWS_PER_DIM", 0)
    xs, xt = normal(0, 50, dim).requires_grad_(), normal(1, 50, dim)
    ys, yt = (normal(2, others, dim).requires_grad_(), normal(3, others, dim)) if others else (None, None)
    value = relation_distance(xs, xt, ys, yt)
    gap = xs @ (xs if ys is None else ys).T - xt @ (xt if yt is None else yt).T
    assert value.item() == pytest.approx(gap.square().sum().item(), rel=1e-12)
    inputs = (xs,) if ys is None else (xs, ys)
    wanted = torch.autograd.grad(gap.square().sum(), inputs)
    for gradient, dense in zip(torch.autograd.grad(value, inputs), wanted, strict=True):
        assert torch.allclose(gradient, dense, rtol=1e-10)


@pytest.mark.parametrize(("rows", "dim", "linear"), [(16, 3, False), (4096, 3, True), (128, 384, False)])
def test_the_form_is_chosen_by_size(rows, dim, linear, monkeypatch):
    taken = []
    monkeypatch.setattr(relations, "_dense", lambda *_: taken.append("dense"))
    monkeypatch.setattr(relations._Linear, "apply", lambda *_: taken.append("linear"))
    relation_distance(torch.zeros(rows, dim), torch.zeros(rows, dim))
    assert taken == ["linear" if linear else "dense"]


@pytest.mark.parametrize("with_others", [False, True])
@pytest.mark.parametrize("rows", [20, 200])
def test_gradient_is_that_of_the_value(rows, with_others):
    xs, xt = normal(0, rows, 2).requires_grad_(), normal(1, rows, 2)
    ys, yt = (normal(2, 120, 2).requires_grad_(), normal(3, 120, 2)) if with_others else (None, None)
    inputs = (xs,) if ys is None else (xs, ys)
    assert torch.autograd.gradcheck(lambda x, y=None: relation_distance(x, xt, y, yt), inputs)


def test_dims_may_differ():
    xs, xt = normal(0, 40, 3), normal(1, 40, 5)
    wanted = (xs @ xs.T - xt @ xt.T).square().sum().item()
    assert relation_distance(xs, xt).item() == pytest.approx(wanted, rel=1e-12)


def test_energy_is_the_squared_norm_of_the_relation():
    x, y = normal(0, 40, 3), normal(1, 60, 3)
    assert relation_energy(x, y).item() == pytest.approx((x @ y.T).square().sum().item(), rel=1e-12)


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("with_others", [False, True])
def test_gradient_of_each_loss_holds_in_the_linear_form(name, with_others, monkeypatch):
    monkeypatch.setattr(relations, "SMALL_BATCH_ROWS", 0)
    s, t = normal(0, 12, 3).requires_grad_(), normal(1, 12, 3)
    options = {"others": (normal(2, 9, 3), normal(3, 9, 3))} if with_others else {}
    assert torch.autograd.gradcheck(lambda x: LOSSES[name].function(x, t, **options), (s,))


@pytest.mark.parametrize("name", LINEAR)
def test_others_get_no_gradient(name):
    more = normal(2, 9, 3).requires_grad_()
    LOSSES[name].function(normal(0, 12, 3).requires_grad_(), normal(1, 12, 3), others=(more, more)).backward()
    assert more.grad is None


@pytest.mark.parametrize("name", BLOCKED)
def test_blocks_of_rows_change_neither_value_nor_gradient(name, monkeypatch):
    s, t = normal(0, 30, 3).requires_grad_(), normal(1, 30, 3)
    whole = LOSSES[name].function(s, t)
    (wanted,) = torch.autograd.grad(whole, s)
    monkeypatch.setattr(relations, "BLOCK_ENTRIES", 100 * (30 if name == "rkd_angle" else 1))
    blocked = LOSSES[name].function(s, t)
    (gradient,) = torch.autograd.grad(blocked, s)
    assert blocked.item() == pytest.approx(whole.item(), rel=1e-12)
    assert torch.allclose(gradient, wanted, rtol=1e-9, atol=1e-14)


def test_a_block_is_all_that_is_held(monkeypatch):
    monkeypatch.setattr(relations, "BLOCK_ENTRIES", 64)
    seen = []
    total = sum_over_rows(lambda rows, x: seen.append(rows) or x[rows].sum(), 20, 16, torch.ones(20))
    assert total.item() == 20
    assert {rows.stop - rows.start for rows in seen} == {4}


def exact(name: str, student: torch.Tensor, teacher: torch.Tensor, monkeypatch) -> tuple[float, torch.Tensor]:
    """Value, and gradient by central differences, of the slow loop in 50 digits."""
    mpmath = pytest.importorskip("mpmath")
    monkeypatch.setattr(mpmath.mp, "dps", 50)
    for function in ("exp", "log", "sqrt"):
        monkeypatch.setattr(slow, function, getattr(mpmath, function))
    s, t = ([[mpmath.mpf(z) for z in row] for row in x.tolist()] for x in (student, teacher))
    more = [1] if LOSSES[name].temperature else []

    def value():
        return getattr(slow, name)(s, t, *more)

    gradient, step = [], mpmath.mpf(10) ** -18
    for row in s:
        for k in range(len(row)):
            at = row[k]
            ends = []
            for row[k] in (at + step, at - step):
                ends.append(value())
            row[k] = at
            gradient.append(float((ends[0] - ends[1]) / (2 * step)))
    return float(value()), torch.tensor(gradient, dtype=torch.float64).view(student.shape)


@pytest.mark.parametrize(
    ("name", "classes"),
    [(name, classes) for name in LINEAR for classes in (2, 4) if classes > 2 or LOSSES[name].two_classes],
)
@pytest.mark.parametrize("difference", [1.0, pytest.param(1e-2, marks=pytest.mark.slow), 1e-5])
def test_six_digits_however_near_the_teacher_in_either_form(name, classes, difference, monkeypatch):
    """Single-precision logits in; value and gradient against 50 digits."""
    t = normal(0, 5, classes).float() * 2
    s = (t + difference * normal(1, 5, classes).float()).requires_grad_()
    wanted, wanted_gradient = exact(name, s, t, monkeypatch)
    monkeypatch.setattr(relations, "ROWS_PER_DIM", 0)
    for few_rows in (0, 10**6):
        monkeypatch.setattr(relations, "SMALL_BATCH_ROWS", few_rows)
        value = LOSSES[name].function(s, t)
        (gradient,) = torch.autograd.grad(value, s)
        assert value.item() == pytest.approx(wanted, rel=1e-6)
        assert torch.linalg.norm(gradient - wanted_gradient) < 1e-6 * torch.linalg.norm(wanted_gradient)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in (*LINEAR, "dkd")])
@pytest.mark.parametrize("difference", [1.0, 1e-3])
def test_six_digits_of_the_other_losses(name, difference, monkeypatch):
    t = normal(0, 4, 3).float() * 2
    s = (t + difference * normal(1, 4, 3).float()).requires_grad_()
    wanted, wanted_gradient = exact(name, s, t, monkeypatch)
    value = LOSSES[name].function(s, t)
    (gradient,) = torch.autograd.grad(value, s)
    assert value.item() == pytest.approx(wanted, rel=1e-6)
    assert torch.linalg.norm(gradient - wanted_gradient) < 1e-6 * torch.linalg.norm(wanted_gradient)


def _one_of_two(rank: int, folder: str, name: str, with_others: bool) -> None:
    s, t, more_s, more_t = _joint_batch()
    mine, mine_of_others = ((slice(0, 5), slice(0, 4)), (slice(5, 12), slice(4, 9)))[rank]
    s = s[mine].clone().requires_grad_()
    others = {"others": (more_s[mine_of_others], more_t[mine_of_others])} if with_others else {}
    value = LOSSES[name].function(s, t[mine], group=dist.group.WORLD, **others)
    (gradient,) = torch.autograd.grad(value, s)
    torch.save({"value": value.detach(), "gradient": gradient}, f"{folder}/{name}-{with_others}-{rank}.pt")


def _all_of_one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for name in LINEAR:
        for with_others in (False, True):
            _one_of_two(rank, folder, name, with_others)
    dist.destroy_process_group()


def _joint_batch():
    return normal(0, 12, 3), normal(1, 12, 3), normal(2, 9, 3), normal(3, 9, 3)


@pytest.mark.slow
def test_two_processes_give_value_and_gradient_of_one_on_the_joint_batch(tmp_path):
    multiprocessing.spawn(_all_of_one_rank, (str(tmp_path),), nprocs=2)
    for name in LINEAR:
        for with_others in (False, True):
            s, t, more_s, more_t = _joint_batch()
            s.requires_grad_()
            others = {"others": (more_s, more_t)} if with_others else {}
            value = LOSSES[name].function(s, t, **others)
            (gradient,) = torch.autograd.grad(value, s)
            parts = [torch.load(tmp_path / f"{name}-{with_others}-{rank}.pt") for rank in (0, 1)]
            for part in parts:
                assert part["value"].item() == pytest.approx(value.item(), rel=1e-9), name
            joint = torch.cat([part["gradient"] for part in parts])
            assert torch.allclose(joint, gradient, rtol=1e-9, atol=1e-14), (name, with_others)
