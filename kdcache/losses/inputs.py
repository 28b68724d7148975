"""Preparation of the arguments of every loss: shapes, detaching, double precision, norms."""

import math
from typing import Literal

import torch

from kdcache.errors import ParamsError, ShapeError

# Norms and standard deviations are clamped from below. Adding 1e-8 instead would shift every value and give
# near-uniform rows a loss of 0.5 where student and teacher are equal. Smaller values count as constant, which
# also bounds the gradient of an almost uniform student.
FLOOR = 1e-3

On = Literal["logits", "features"]
Others = tuple[torch.Tensor, torch.Tensor] | None


def paired(
    student: torch.Tensor, teacher: torch.Tensor, same_dim: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both in double precision if the device has it, the teacher detached.

    Args:
        student: of shape (batch, dim_s).
        teacher: of shape (batch, dim_t).
        same_dim: whether dim_s must equal dim_t.

    Raises:
        ShapeError: they are not two matrices, the batch sizes differ, or the dims differ and must not.
    """
    shape_s, shape_t = student.shape, teacher.shape
    if shape_s != shape_t or len(shape_s) != 2:
        fits = len(shape_s) == len(shape_t) == 2 and shape_s[0] == shape_t[0]
        if same_dim or not fits:
            wanted = "two matrices of one shape" if same_dim else "matrices with one row per instance"
            raise ShapeError(
                f"Student and teacher must be {wanted}, got {tuple(shape_s)} and {tuple(shape_t)}."
            )
    dtype = torch.float32 if student.is_mps else torch.float64
    return student.to(dtype), teacher.detach().to(dtype)


def require_positive(temperature: float) -> None:
    """Refuse a temperature that softmax cannot take.

    Raises:
        ParamsError: it is not a finite number > 0.
    """
    if not 0 < temperature < math.inf:
        raise ParamsError(f"temperature: it must be a finite number > 0, got {temperature}.")


def compared(student: torch.Tensor, teacher: torch.Tensor, on: On) -> tuple[torch.Tensor, torch.Tensor]:
    """``paired``, with logits row-centred, because softmax ignores the mean of a row.

    Raises:
        ShapeError: as in ``paired``. The dims of features may differ.
    """
    student, teacher = paired(student, teacher, same_dim=on == "logits")
    if on == "logits":
        student, teacher = row_centred(student), row_centred(teacher)
    return student, teacher


def row_centred(x: torch.Tensor) -> torch.Tensor:
    """Z̄: each row minus its mean."""
    return x - x.mean(dim=1, keepdim=True)


def unit_rows(x: torch.Tensor) -> torch.Tensor:
    """Each row divided by its norm, clamped at ``FLOOR``."""
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=FLOOR)


def like(value: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """The value in the student's dtype, or in float32 if that is a half precision."""
    half = student.dtype in (torch.float16, torch.bfloat16)
    return value.to(torch.float32 if half else student.dtype)


def collapse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Give the labels that a teacher's cache did not keep one logit in common, as the teacher's have.

    It is the logarithm of the mean of their exponentials. So a divergence at T = 1 is exactly the one over
    the kept labels and "another".

    Args:
        student: logits of shape (batch, num_labels).
        teacher: logits of the same shape, from a cache with ``top_k``: in each row, the labels that it did
            not keep have the least.

    Returns:
        Logits of the same shape, in float32 if the student's are in half precision.

    >>> found = collapse(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.0, 0.0, 9.0]]))
    >>> [round(value, 4) for value in found[0].tolist()]
    [1.6201, 1.6201, 4.0]
    """
    student = student.to(torch.promote_types(student.dtype, torch.float32))
    kept = teacher > teacher.amin(dim=1, keepdim=True)
    count = (~kept).sum(dim=1, keepdim=True).to(student.dtype)
    shared = student.masked_fill(kept, -torch.inf).logsumexp(dim=1, keepdim=True) - count.log()
    return torch.where(kept, student, shared)
