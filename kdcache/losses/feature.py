"""On pooled features: the arm that the paper compares logits against.

The student's features go through a trained projection to the teacher's dim first (``Objective``).
"""

import torch

from kdcache.losses.inputs import FLOOR, like, paired, unit_rows


def feature_mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Copy the features: mean over batch and dim of (fs − ft)² / mean(ft²).

    Args:
        student: features of shape (batch, dim_t), projected first where dims differ.
        teacher: features of shape (batch, dim_t); detached.

    Returns:
        A scalar ≥ 0; about 1 for features of zero.

    Raises:
        ShapeError: the shapes differ.

    Needs:
        A projection, which an arm trains with the student and throws away.

    Cost:
        O(batch · dim), and dim_s · dim_t for the projection.

    Reference:
        Romero et al. (2015), equation 3.

    Differs:
        Divided by the teacher's mean square, so that the weight does not depend on its scale.

    >>> feature_mse(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]])).item()
    1.0
    """
    s, t = paired(student, teacher)
    return like((s - t).square().mean() / t.square().mean().clamp(min=FLOOR**2), student)


def feature_cosine(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Copy the features' directions: 1 − cosine(fs, ft), mean over the batch.

    Computed as ½‖â − b̂‖² of the rows over their norms.

    Args:
        student: features of shape (batch, dim_t), projected first where dims differ.
        teacher: features of shape (batch, dim_t); detached.

    Returns:
        A scalar between 0 and 2; unchanged by the length of a row.

    Raises:
        ShapeError: the shapes differ.

    Needs:
        A projection, as ``feature_mse``.

    Cost:
        O(batch · dim), and dim_s · dim_t for the projection.

    Reference:
        As in the last-layer loss of Sanh et al. (2019), DistilBERT, section 3.

    >>> feature_cosine(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])).item()
    1.0
    """
    s, t = paired(student, teacher)
    return like(0.5 * (unit_rows(s) - unit_rows(t)).square().sum(dim=1).mean(), student)
