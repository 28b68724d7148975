"""Within one instance, over its classes. Logits in; T² where the softened gradient shrinks by it."""

import torch
from torch.nn import functional

from kdcache.errors import ShapeError
from kdcache.losses.inputs import like, paired, row_centred, unit_rows


def cross_entropy(student: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Cross-entropy with the labels: −Σ log P[label] / max(1, labelled rows), in nats.

    Args:
        student: logits of shape (batch, num_labels).
        labels: int64 of shape (batch,); rows with −1 drop out.
        label_smoothing: share of each target spread evenly over all classes, 0 … 1.

    Returns:
        A scalar; 0 without any labelled row.

    Reference:
        Szegedy et al. (2016), section 7, for the smoothing.

    >>> round(cross_entropy(torch.zeros(2, 2), torch.tensor([1, -1])).item(), 4)
    0.6931
    """
    total = functional.cross_entropy(
        student, labels, ignore_index=-1, reduction="sum", label_smoothing=label_smoothing
    )
    return total / (labels >= 0).sum().clamp(min=1)


def kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Follow the teacher's probabilities: T² · Σ_c Pt(T) log(Pt(T) / Ps(T)), mean over the batch, in nats.

    Args:
        student: logits of shape (batch, num_labels).
        teacher: logits of the same shape; detached.
        temperature: T > 0.

    Returns:
        A scalar ≥ 0; 0 where the two softmaxes agree.

    Raises:
        ShapeError: the shapes differ.

    Needs:
        Nothing: any number of classes, any batch.

    Cost:
        O(batch · num_labels).

    Reference:
        Hinton, Vinyals & Dean (2015), section 2.

    Relations:
        Knows one instance at a time; put ``gram`` beside it for relations between instances.

    >>> round(kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]])).item(), 4)
    0.3278
    """
    s, t = paired(student, teacher)
    log_p_s = functional.log_softmax(s / temperature, dim=1)
    log_p_t = functional.log_softmax(t / temperature, dim=1)
    per_row = (log_p_t.exp() * (log_p_t - log_p_s)).sum(dim=1)
    return like(temperature**2 * per_row.mean(), student)


def dist_inter(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Follow the order of classes, not the sureness: T² · (1 − Pearson_c(Ps(T), Pt(T))), mean over the batch.

    Computed as T² · ½‖â − b̂‖² of the centred rows over their norms.

    Args:
        student: logits of shape (batch, num_labels).
        teacher: logits of the same shape; detached.
        temperature: T > 0.

    Returns:
        A scalar between 0 and 2 T²; unchanged by a positive affine map of a row of Ps.

    Raises:
        ShapeError: the shapes differ.

    Needs:
        Three classes: with two, a row's correlation is ±1 whatever the student does.

    Cost:
        O(batch · num_labels).

    Reference:
        Huang et al. (2022), DIST, its inter-class relation.

    Differs:
        Norms are clamped, not shifted by 1e-8.

    Relations:
        Forgives a student that is less sure than its teacher, which ``kl`` does not.

    >>> t = torch.tensor([[0.0, 0.0, 2.0]])
    >>> round(dist_inter(torch.tensor([[0.0, 2.0, 0.0]]), t).item(), 4)
    1.5
    """
    s, t = paired(student, teacher)
    a, b = (unit_rows(row_centred(functional.softmax(z / temperature, dim=1))) for z in (s, t))
    return like(temperature**2 * 0.5 * (a - b).square().sum(dim=1).mean(), student)


def dkd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    temperature: float = 1.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> torch.Tensor:
    """``kl`` in two parts with their own weights: α · TCKD + β · NCKD, each · T², mean over labelled rows.

    TCKD is the divergence of (label, all others) as two classes, NCKD that among the others alone.

    Args:
        student: logits of shape (batch, num_labels).
        teacher: logits of the same shape; detached.
        labels: int64 of shape (batch,); rows with −1 drop out.
        temperature: T > 0.
        alpha: weight of the label's class.
        beta: weight of the other classes.

    Returns:
        A scalar ≥ 0, in nats; 0 without any labelled row.

    Raises:
        ShapeError: the shapes differ, or labels of another batch.

    Needs:
        Labels. With two classes it is exactly α · ``kl``.

    Cost:
        O(batch · num_labels).

    Reference:
        Zhao et al. (2022), Decoupled Knowledge Distillation.

    Relations:
        Beside ``kl`` it brings out what the teacher knows about the wrong classes.

    >>> t = torch.tensor([[0.0, 0.0, 2.0]])
    >>> round(dkd(torch.zeros(1, 3), t, torch.tensor([2])).item(), 4)
    0.433
    """
    s, t = paired(student, teacher)
    if labels.shape != (len(s),):
        raise ShapeError(f"dkd: labels must be of shape ({len(s)},), one per row, got {tuple(labels.shape)}.")
    labelled = labels >= 0
    s, t, labels = s[labelled] / temperature, t[labelled] / temperature, labels[labelled]
    is_label = functional.one_hot(labels, s.shape[1]).bool()
    binary_s, binary_t = (_label_or_not(z, is_label) for z in (s, t))
    others_s, others_t = (functional.log_softmax(_others(z, is_label), dim=1) for z in (s, t))
    target = (binary_t.exp() * (binary_t - binary_s)).sum()
    rest = (others_t.exp() * (others_t - others_s)).sum()
    total = temperature**2 * (alpha * target + beta * rest) / max(1, len(s))
    return like(total, student)


def _others(z: torch.Tensor, is_label: torch.Tensor) -> torch.Tensor:
    """The logits beside the label's, of shape (batch, num_labels − 1)."""
    return z[~is_label].view(len(z), z.shape[1] - 1)


def _label_or_not(z: torch.Tensor, is_label: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of (label, any other), of shape (batch, 2)."""
    two = torch.stack([z[is_label], torch.logsumexp(_others(z, is_label), dim=1)], dim=1)
    return functional.log_softmax(two, dim=1)
