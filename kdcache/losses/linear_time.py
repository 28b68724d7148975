"""Distances between relation matrices in linear time, without forming the matrices.

A relation is a product X Yᵀ between two sets of instances: the batch X, and itself or a larger set Y.
With D = Xs − Xt and S = Xs + Xt, and the same for Y,

    Xs Ysᵀ − Xt Ytᵀ = ½ (Dx Syᵀ + Sx Dyᵀ)
    ‖Xs Ysᵀ − Xt Ytᵀ‖²_F = ¼ [⟨DxᵀDx, SyᵀSy⟩ + ⟨SxᵀSx, DyᵀDy⟩ + 2 tr(DxᵀSx · DyᵀSy)]
    ∂/∂Xs = Dx (SyᵀYs) + Sx (DyᵀYs),   ∂/∂Ys = Sy (DxᵀXs) + Dy (SxᵀXs)

This is exact and takes O((batch + others) · dim²) time and O(dim²) memory. The three-term
form ‖XsᵀYs‖² + ‖XtᵀYt‖² − 2 ⟨XsᵀYs, XtᵀYt⟩ costs the same but loses digits to cancellation,
so it is not used.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Group = dist.ProcessGroup | None

# The linear form is faster from this many rows per dim and this many rows on (benchmarks/losses.py).
ROWS_PER_DIM = 2
SMALL_BATCH_ROWS = 160
BLOCK_ENTRIES = 2**20  # entries of a relation matrix held at once by the losses that need it


def relation_distance(
    xs: torch.Tensor,
    xt: torch.Tensor,
    ys: torch.Tensor | None = None,
    yt: torch.Tensor | None = None,
    group: Group = None,
) -> torch.Tensor:
    """Squared Frobenius distance of two relations: ‖Xs Ysᵀ − Xt Ytᵀ‖²_F.

    Args:
        xs: the student's, of shape (batch, dim_s).
        xt: the teacher's, of shape (batch, dim_t); gets no gradient.
        ys: the student's other set, of shape (others, dim_s); None takes ``xs``.
        yt: the teacher's, of shape (others, dim_t); gets no gradient.
        group: processes whose rows count as one batch. Each returns the value of the joint batch and the
            gradient of its own rows. None: this process only.

    Returns:
        A scalar ≥ 0.

    >>> x = torch.eye(2)
    >>> relation_distance(x, 2 * x).item()
    18.0
    """
    if xs.shape[1] != xt.shape[1]:  # columns of zeros change no product
        dim = max(xs.shape[1], xt.shape[1])
        xs, xt = _padded(xs, dim), _padded(xt, dim)
        ys, yt = (None if y is None else _padded(y, dim) for y in (ys, yt))
    rows, dim = (xs if ys is None else ys).shape
    if group is None and (rows < SMALL_BATCH_ROWS or rows < ROWS_PER_DIM * dim):
        return _dense(xs, xt, ys, yt)
    return _Linear.apply(xs, xt, ys, yt, group)


def _padded(x: torch.Tensor, dim: int) -> torch.Tensor:
    return functional.pad(x, (0, dim - x.shape[1]))


def _dense(xs: torch.Tensor, xt: torch.Tensor, ys: Any, yt: Any) -> torch.Tensor:
    """The distance from the matrices themselves; faster if they are small."""
    gap = xs @ (xs if ys is None else ys).T - xt @ (xt if yt is None else yt).T
    return gap.square().sum()


class _Linear(torch.autograd.Function):
    """The distance from the sums above. The forward pass also computes the gradient, from the same sums."""

    @staticmethod
    def forward(ctx: Any, xs: torch.Tensor, xt: torch.Tensor, ys: Any, yt: Any, group: Group) -> torch.Tensor:
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[2]
        zx = torch.cat([xs - xt, xs + xt], dim=1)
        if ys is None:
            (sums,) = _reduced([zx.T @ zx], group)
            ctx.save_for_backward(*([zx @ _weights(sums) * 2] if wanted else []))
            return _form(sums, sums)
        zy = torch.cat([ys - yt, ys + yt], dim=1)
        sums_x, sums_y = _reduced([zx.T @ zx, zy.T @ zy], group)
        ctx.save_for_backward(*([zx @ _weights(sums_y), zy @ _weights(sums_x)] if wanted else []))
        return _form(sums_x, sums_y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        to_xs, *to_ys = (upstream * gradient for gradient in ctx.saved_tensors)
        return to_xs, None, to_ys[0] if to_ys else None, None, None


def _form(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A quarter of the bracket above, from [[DᵀD, DᵀS], [SᵀD, SᵀS]] of both sets."""
    dim = len(x) // 2
    d, s = slice(None, dim), slice(dim, None)
    value = (x[d, d] * y[s, s]).sum() + (x[s, s] * y[d, d]).sum() + 2 * (x[d, s] * y[s, d]).sum()
    return value.clamp(min=0) / 4


def _weights(sums: torch.Tensor) -> torch.Tensor:
    """[SᵀY; DᵀY] of shape (2 · dim, dim), with Y = (S + D) / 2."""
    dim = len(sums) // 2
    halves = (sums[:, :dim] + sums[:, dim:]) / 2
    return torch.cat([halves[dim:], halves[:dim]])


def _reduced(sums: list[torch.Tensor], group: Group) -> list[torch.Tensor]:
    """Sums over the group, in one message."""
    if group is None:
        return sums
    joint = torch.stack(sums)
    dist.all_reduce(joint, group=group)
    return list(joint)


def joint_sum(x: torch.Tensor, group: Group) -> torch.Tensor:
    """Sum over the processes of a group, in the forward and the backward pass."""
    return x if group is None else all_reduce(x, group=group)


def relation_energy(x: torch.Tensor, y: torch.Tensor | None = None, group: Group = None) -> torch.Tensor:
    """Squared Frobenius norm of one relation: ‖X Yᵀ‖²_F = ⟨XᵀX, YᵀY⟩.

    Args:
        x: of shape (batch, dim).
        y: of shape (others, dim); None takes ``x``.
        group: as in ``relation_distance``.

    Returns:
        A scalar ≥ 0.

    >>> relation_energy(torch.tensor([[1.0, 2.0]])).item()
    25.0
    """
    sums_x = joint_sum(x.T @ x, group)
    sums_y = sums_x if y is None else joint_sum(y.T @ y, group)
    return (sums_x * sums_y).sum()


def sum_over_rows(function: Callable[..., torch.Tensor], batch: int, width: int, *args: Any) -> torch.Tensor:
    """Σ function(block, …) over blocks of rows, each recomputed in the backward pass.

    It needs the memory of one block instead of the whole matrix.

    Args:
        function: ``(slice of rows, *args) → scalar``.
        batch: number of rows.
        width: number of entries per row.
        args: further arguments. Tensors among them get gradients.
    """
    rows = max(1, BLOCK_ENTRIES // max(1, width))
    if rows >= batch:
        return function(slice(0, batch), *args)
    parts = [
        checkpoint(function, slice(start, start + rows), *args, use_reentrant=False)
        for start in range(0, batch, rows)
    ]
    return torch.stack(parts).sum()
