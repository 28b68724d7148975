"""Cross-entropy and the inter-class losses: ``kl``, ``dist_inter`` and ``dkd``.

All take logits. A loss with a temperature T is multiplied by T², because its gradient shrinks by 1 / T².
"""

import torch
from torch.nn import functional

from kdcache.errors import ShapeError
from kdcache.losses.inputs import like, paired, require_positive, row_centred, unit_rows


def cross_entropy(student: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Cross-entropy with the labels: −Σ log P[label] / max(1, labelled rows), in nats.

    Args:
        student: logits of shape (batch, num_labels).
        labels: int64 of shape (batch,); negative ones are ignored.
        label_smoothing: share of each target that is spread evenly over all classes, 0 … 1.

    Returns:
        A scalar; 0 if no row is labelled.

    Reference:
        Szegedy et al. (2016), section 7, for label smoothing.

    >>> round(cross_entropy(torch.zeros(2, 2), torch.tensor([1, -1])).item(), 4)
    0.6931
    """
    # In half precision the sum would overflow.
    wide = student.float() if student.dtype in (torch.float16, torch.bfloat16) else student
    total = functional.cross_entropy(
        wide, labels.clamp(min=-1), ignore_index=-1, reduction="sum", label_smoothing=label_smoothing
    )
    return total / (labels >= 0).sum().clamp(min=1)


def kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Match the teacher's probabilities: T² · Σ_c Pt(T) log(Pt(T) / Ps(T)), mean over the batch, in nats.

    Args:
        student: logits of shape (batch, num_labels).
        teacher: logits of the same shape; detached.
        temperature: T > 0.

    Returns:
        A scalar ≥ 0; 0 if the two softmaxes are equal.

    Raises:
        ShapeError: the shapes differ.
        ParamsError: T is not > 0, here and in every loss that has one.

    Needs:
        Nothing. It works with any number of classes and any batch size.

    Cost:
        O(batch · num_labels).

    Reference:
        Hinton, Vinyals & Dean (2015), section 2.

    Relations:
        Looks at one instance at a time. Add ``gram`` for relations between instances.

    >>> round(kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]])).item(), 4)
    0.3278
    """
    require_positive(temperature)
    s, t = paired(student, teacher)
    log_p_s = functional.log_softmax(s / temperature, dim=1)
    log_p_t = functional.log_softmax(t / temperature, dim=1)
    # A label that the teacher rules out, by a logit of −inf, counts 0.
    per_row = (log_p_t.exp() * (log_p_t - log_p_s)).masked_fill(log_p_t == -torch.inf, 0).sum(dim=1)
    return like(temperature**2 * per_row.mean(), student)


def dist_inter(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Correlate with the teacher's probabilities: T² · (1 − Pearson_c(Ps(T), Pt(T))), mean over the batch.

    Computed as T² · ½‖â − b̂‖², where â and b̂ are the centred rows divided by their norms.

    Args:
        student: logits of shape (batch, num_labels).
        teacher: logits of the same shape; detached.
        temperature: T > 0.

    Returns:
        A scalar between 0 and 2 T². A positive affine map of a row of Ps does not change it.

    Raises:
        ShapeError: the shapes differ.

    Needs:
        At least three classes. With two, the correlation of a row is always ±1.

    Cost:
        O(batch · num_labels).

    Reference:
        Huang et al. (2022), DIST, inter-class relation.

    Differs:
        Norms are clamped from below instead of shifted by 1e-8.

    Relations:
        Allows a student to be less confident than its teacher; ``kl`` does not.

    >>> t = torch.tensor([[0.0, 0.0, 2.0]])
    >>> round(dist_inter(torch.tensor([[0.0, 2.0, 0.0]]), t).item(), 4)
    1.5
    """
    require_positive(temperature)
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
    """``kl`` as two terms with separate weights: α · TCKD + β · NCKD, each · T², mean over labelled rows.

    TCKD is the divergence over the two classes (label, any other). NCKD is the divergence over the other
    classes only.

    Args:
        student: logits of shape (batch, num_labels).
        teacher: logits of the same shape; detached.
        labels: int64 of shape (batch,); rows with −1 are ignored.
        temperature: T > 0.
        alpha: weight of TCKD.
        beta: weight of NCKD.

    Returns:
        A scalar ≥ 0, in nats; 0 if no row is labelled.

    Raises:
        ShapeError: the shapes differ, or the labels have another batch size.

    Needs:
        Labels. With two classes it equals α · ``kl`` of the labelled rows.

    Cost:
        O(batch · num_labels).

    Reference:
        Zhao et al. (2022), Decoupled Knowledge Distillation.

    Relations:
        Gives more weight than ``kl`` to the teacher's probabilities of the wrong classes.

    >>> t = torch.tensor([[0.0, 0.0, 2.0]])
    >>> round(dkd(torch.zeros(1, 3), t, torch.tensor([2])).item(), 4)
    0.433
    """
    require_positive(temperature)
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
    """The logits of all classes but the label, of shape (batch, num_labels − 1)."""
    return z[~is_label].view(len(z), z.shape[1] - 1)


def _label_or_not(z: torch.Tensor, is_label: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of (label, any other), of shape (batch, 2)."""
    two = torch.stack([z[is_label], torch.logsumexp(_others(z, is_label), dim=1)], dim=1)
    return functional.log_softmax(two, dim=1)
