"""The feature losses: ``feature_mse`` and ``feature_cosine``, on pooled features.

``Objective`` first projects the student's features to the teacher's dim by a trained linear layer.
"""

import torch

from kdcache.losses.inputs import FLOOR, like, paired, unit_rows


def feature_mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Match the features: mean over batch and dim of (fs − ft)² / mean(ft²).

    Args:
        student: features of shape (batch, dim_t), projected before if the dims differ.
        teacher: features of shape (batch, dim_t); detached.

    Returns:
        A scalar ≥ 0; 1 if the student's features are all zero.

    Raises:
        ShapeError: the shapes differ.

    Needs:
        A projection. An arm trains it with the student and discards it.

    Cost:
        O(batch · dim), and O(batch · dim_s · dim_t) for the projection.

    Reference:
        Romero et al. (2015), equation 3.

    Differs:
        Divided by the teacher's mean square, so that the weight does not depend on the features' scale.

    >>> feature_mse(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]])).item()
    1.0
    """
    s, t = paired(student, teacher)
    return like((s - t).square().mean() / t.square().mean().clamp(min=FLOOR**2), student)


def feature_cosine(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Match the directions of the features: 1 − cosine(fs, ft), mean over the batch.

    Computed as ½‖â − b̂‖², where â and b̂ are the rows divided by their norms.

    Args:
        student: features of shape (batch, dim_t), projected before if the dims differ.
        teacher: features of shape (batch, dim_t); detached.

    Returns:
        A scalar between 0 and 2. Scaling a row does not change it.

    Raises:
        ShapeError: the shapes differ.

    Needs:
        A projection, like ``feature_mse``.

    Cost:
        O(batch · dim), and O(batch · dim_s · dim_t) for the projection.

    Reference:
        Sanh et al. (2019), DistilBERT, section 3, the loss on the last layer.

    >>> feature_cosine(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])).item()
    1.0
    """
    s, t = paired(student, teacher)
    return like(0.5 * (unit_rows(s) - unit_rows(t)).square().sum(dim=1).mean(), student)
