"""Losses towards a teacher of which a cache kept the largest logits: over these labels and "another"."""

import math

import pytest
import torch
from torch.func import vmap

from kdcache.cache.top_logits import expand_logits, keep_largest
from kdcache.losses import LOSSES, Objective, Targets, Term, cross_entropy, gram, kl
from kdcache.losses.inputs import collapse

ROWS, LABELS, TOP_K = 7, 9, 3


def normal(seed: int, *shape: int) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kept_of(logits: torch.Tensor, top_k: int = TOP_K) -> torch.Tensor:
    """The teacher's logits as a cache gives them."""
    return torch.from_numpy(expand_logits(*keep_largest(logits.float().numpy(), top_k), logits.shape[1]))


def outcomes(logits: torch.Tensor, kept: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probabilities of the kept labels and of "another", whose logit stands for all others alike."""
    found = []
    for row, keep in zip(logits, kept, strict=True):
        others = row[~keep]
        shared = others.logsumexp(0) - math.log(len(others))
        another = shared / temperature + math.log(len(others))
        found.append(torch.cat([row[keep] / temperature, another[None]]).log_softmax(0))
    return torch.stack(found)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kl_and_its_gradient_are_those_over_kept_labels_and_another(temperature: float):
    exact = normal(1, ROWS, LABELS)
    teacher = kept_of(exact)
    kept = teacher > teacher.amin(1, keepdim=True)
    one, other = (normal(0, ROWS, LABELS).requires_grad_() for _ in range(2))
    found = kl(collapse(one, teacher), teacher, temperature)
    log_p_s, log_p_t = (outcomes(logits, kept, temperature) for logits in (other, exact))
    wanted = temperature**2 * (log_p_t.exp() * (log_p_t - log_p_s)).sum(1).mean()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    found.backward()
    wanted.backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-7)
    if temperature == 1:  # the mass of the others is that of the teacher itself
        mass = exact.softmax(1).masked_fill(kept, 0).sum(1)
        torch.testing.assert_close(log_p_t[:, -1].exp(), mass)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.families[0] != "feature"])
def test_no_loss_tells_the_labels_apart_that_were_not_kept(name: str):
    """Their gradient is one number per row, given to each as it adds to their common mass."""
    student = normal(0, ROWS, LABELS).requires_grad_()
    teacher = kept_of(normal(1, ROWS, LABELS))
    labels = torch.arange(ROWS) % LABELS
    family = LOSSES[name].families[0]
    targets = Targets(torch.arange(ROWS), labels, teacher, torch.zeros(ROWS, 0))
    objective = Objective({family: Term(name)}, 0.0, 4, 0, collapsed=True)
    (value,) = objective(student, torch.zeros(ROWS, 4), targets).values()
    value.backward()
    others = teacher == teacher.amin(1, keepdim=True)
    assert student.grad.abs().max() > 1e-6
    for gradient, share, rest in zip(student.grad, student.detach().exp(), others, strict=True):
        per_share = gradient[rest] / share[rest]
        torch.testing.assert_close(per_share, per_share[:1].expand_as(per_share), rtol=1e-6, atol=1e-9)


def test_cross_entropy_sees_the_full_logits_and_other_terms_do_not():
    student, teacher = normal(0, ROWS, LABELS).float(), kept_of(normal(1, ROWS, LABELS))
    labels = torch.arange(ROWS) % LABELS
    targets = Targets(torch.arange(ROWS), labels, teacher, torch.zeros(ROWS, 0))
    terms = {"inter_class": Term("kl"), "inter_instance": Term("gram", scope="all")}
    objective = Objective(terms, 1.0, 4, 0, collapsed=True)
    values = objective(student, torch.zeros(ROWS, 4), targets)
    seen = collapse(student, teacher)
    assert values["ce"].item() == pytest.approx(cross_entropy(student, labels).item())
    assert values["kl"].item() == pytest.approx(kl(seen, teacher).item())
    assert values["kl"].item() < kl(student, teacher).item() - 0.01
    assert values["gram"].item() == pytest.approx(gram(seen, teacher).item())
    assert torch.equal(objective.memory.student, seen), "rows are remembered as they were compared"


def test_where_one_label_is_left_out_nothing_changes():
    student, teacher = normal(0, ROWS, LABELS), normal(1, ROWS, LABELS)
    kept = kept_of(teacher, LABELS - 1)
    torch.testing.assert_close(kept, teacher.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(collapse(student, kept), student, rtol=1e-12, atol=1e-12)


def test_students_side_by_side_are_collapsed_as_each_alone():
    student, teacher = normal(0, 2, ROWS, LABELS), normal(1, 2 * ROWS, LABELS)
    kept = kept_of(teacher).view(2, ROWS, LABELS)
    each = torch.stack([collapse(*pair) for pair in zip(student, kept, strict=True)])
    assert torch.equal(vmap(collapse)(student, kept), each)


def test_half_precision_is_collapsed_in_single():
    student, teacher = normal(0, ROWS, LABELS), kept_of(normal(1, ROWS, LABELS))
    found = collapse(student.bfloat16(), teacher)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, collapse(student.bfloat16().float(), teacher))
