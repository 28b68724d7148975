"""The inter-instance losses with a linear-time form: ``gram``, ``gram_centred``, ``sp`` and ``cka``.

Each compares the student's relation matrix with the teacher's. ``linear_time`` computes
them in O(batch · dim²). They also take ``others``, instances outside the batch that the batch is related
to, and ``group``, processes whose batches count as one. ``quadratic_time`` holds the relations that have no
linear-time form.
"""

from collections.abc import Callable

import torch
from torch.nn import functional

from kdcache.losses.inputs import (
    FLOOR,
    On,
    Others,
    compared,
    like,
    paired,
    require_positive,
    row_centred,
    unit_rows,
)
from kdcache.losses.linear_time import Group, joint_sum, relation_distance, relation_energy

_Sets = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]

HALFWAY = 0.5  # confidence, from 0 (uniform) to 1 (one-hot), below which gram divides by the floor E₀


def gram(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float = 1.0,
    others: Others = None,
    group: Group = None,
) -> torch.Tensor:
    """Match which instances share a class: ‖Ps Psᵀ − Pt Ptᵀ‖²_F / max(E, E₀), E = ‖(Pt − 1/C)(Pt − 1/C)ᵀ‖²_F.

    P is taken at temperature T. An entry of P Pᵀ is the probability that two instances have the same class
    when each class is drawn independently. E₀ = (batch · ½(1 − 1/C))² / (C − 1) is the energy of a balanced
    batch whose rows lie halfway, in squared distance, between uniform and one-hot.

    Args:
        student: logits of shape (batch, num_labels).
        teacher: logits of the same shape; detached.
        temperature: T > 0.
        others: (student, teacher) logits of instances outside the batch, each of shape
            (others, num_labels). The batch is then related to itself and to them.
        group: processes whose batches count as one. Each returns the joint value and the gradient of its
            own rows. DDP averages gradients, so multiply the loss by the world size there.

    Returns:
        A scalar ≥ 0. It is 0 if the relation matrices are equal, and about 1 if the student is uniform and
        the teacher is confident.

    Raises:
        ShapeError: the shapes differ.

    Needs:
        Another term that tells the classes apart, because permuting the student's classes does not change
        it. Its gradient is zero if the student is exactly uniform.

    Cost:
        O((batch + others) · num_labels²), memory O(num_labels²).

    Reference:
        After Jin et al. (2023), batch level.

    Differs:
        Divided by the teacher's energy E. Without the divisor the value shrinks with T⁻⁴ and with the batch
        until the term has no effect. With it no factor T² is needed. E has the floor E₀: the energy of an
        unconfident teacher goes to 0, and the quotient would then keep the student from becoming more
        confident than its teacher (docs/log.md has the run).

    Relations:
        The default. ``sp`` compares the same kind of matrix on logits, which are unbounded.

    >>> t = torch.tensor([[9.0, -9.0], [-9.0, 9.0]])
    >>> round(gram(torch.zeros(2, 2), t).item(), 3)
    1.0
    """
    require_positive(temperature)
    sets = _sets(*paired(student, teacher), others)
    if temperature != 1:
        sets = _mapped(lambda z: z / temperature, sets)
    p_s, p_t, q_s, q_t = _mapped(lambda z: functional.softmax(z, dim=1), sets)
    num_labels = p_t.shape[1]
    energy = relation_energy(p_t - 1 / num_labels, None if q_t is None else q_t - 1 / num_labels, group)
    floor = _entries(p_s, q_s, group) * (HALFWAY * (1 - 1 / num_labels)) ** 2 / max(1, num_labels - 1)
    return like(relation_distance(p_s, p_t, q_s, q_t, group) / energy.clamp(min=floor), student)


def gram_centred(
    student: torch.Tensor, teacher: torch.Tensor, others: Others = None, group: Group = None
) -> torch.Tensor:
    """Match the cosines between instances: ‖Ûs Ûsᵀ − Ût Ûtᵀ‖²_F / batch², Û the unit rows of Z̄.

    Args:
        student: logits of shape (batch, num_labels).
        teacher: logits of the same shape; detached.
        others: see ``gram``. The divisor is then batch · (batch + others).
        group: see ``gram``.

    Returns:
        A scalar between 0 and 4. Scaling a row of logits does not change it.

    Raises:
        ShapeError: the shapes differ.

    Needs:
        At least three classes: with two, every cosine is ±1 and has no gradient. Another term that tells the
        classes apart.

    Cost:
        O((batch + others) · num_labels²), memory O(num_labels²).

    Reference:
        This library, after the angular relations of Park et al. (2019).

    Relations:
        ``gram`` weights instances by the teacher's confidence. This loss weights all instances equally.

    >>> t = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    >>> round(gram_centred(t[[0, 0]], t).item(), 4)
    1.125
    """
    sets = _mapped(lambda z: unit_rows(row_centred(z)), _sets(*paired(student, teacher), others))
    return like(relation_distance(*sets, group) / _entries(sets[0], sets[2], group), student)


def sp(
    student: torch.Tensor,
    teacher: torch.Tensor,
    on: On = "logits",
    others: Others = None,
    group: Group = None,
) -> torch.Tensor:
    """Match the similarities between instances: ‖Ĝs − Ĝt‖²_F / batch², Ĝ the unit rows of G = Z̄ Z̄ᵀ.

    Args:
        student: logits of shape (batch, num_labels), or features of shape (batch, dim_s).
        teacher: logits of the same shape, or features of shape (batch, dim_t); detached.
        on: ``logits`` are row-centred first, ``features`` are taken as they are.
        others: see ``gram``. The divisor is then batch · (batch + others).
        group: see ``gram``.

    Returns:
        A scalar between 0 and 4 / batch. Scaling all logits together does not change it, but
        rows of G with a norm below 1e-3 are divided by 1e-3.

    Raises:
        ShapeError: the batch sizes differ, or the shapes of logits do.

    Needs:
        Another term that tells the classes apart.

    Cost:
        O((batch + others) · dim²), memory O(dim²). The dense form is used if dim is close to the batch size.

    Reference:
        Tung & Mori (2019), Similarity-Preserving Knowledge Distillation.

    Differs:
        Logits are row-centred first. Otherwise half of the gradient goes into the row means, which softmax
        ignores.

    Relations:
        Smaller than ``gram`` by a factor 1 / batch, so it needs a larger weight.

    >>> t = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> round(sp(t[[0, 0]], t).item(), 4)
    1.0
    """
    s, t, ys, yt = _sets(*compared(student, teacher, on), None if others is None else compared(*others, on))
    us, ut = (_over_relation_norm(x, y, group) for x, y in ((s, ys), (t, yt)))
    ys, yt = (s, t) if ys is None else (ys, yt)
    return like(relation_distance(us, ut, ys, yt, group) / _entries(s, ys, group), student)


def cka(
    student: torch.Tensor,
    teacher: torch.Tensor,
    on: On = "logits",
    others: Others = None,
    group: Group = None,
) -> torch.Tensor:
    """Maximise the linear CKA: ½‖Âs Âsᵀ − Ât Âtᵀ‖²_F, Â = X / √‖XᵀX‖_F, X column-centred.

    This equals 1 − CKA, computed without its cancellation.

    Args:
        student: logits of shape (batch, num_labels), or features of shape (batch, dim_s).
        teacher: logits of the same shape, or features of shape (batch, dim_t); detached.
        on: ``logits`` are row-centred first, ``features`` are taken as they are.
        others: see ``gram``. Means are then taken over the batch and the others.
        group: see ``gram``.

    Returns:
        A scalar between 0 and 1. Scaling, shifting or rotating all rows together does not change it.

    Raises:
        ShapeError: the batch sizes differ, or the shapes of logits do.

    Needs:
        Two rows that differ. Another term that tells the classes apart.

    Cost:
        O((batch + others) · dim²), memory O(dim²). The dense form is used if dim is close to the batch size.

    Reference:
        Kornblith et al. (2019), CKA with linear kernels.

    Differs:
        Logits are row-centred first, as softmax ignores their row means.

    Relations:
        Suits features of different dims, because it needs no projection.

    >>> t = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> round(cka(t[[0, 0, 2]], t, on="features").item(), 4)
    0.6838
    """
    s, t, ys, yt = _sets(*compared(student, teacher, on), None if others is None else compared(*others, on))
    (xs, ys), (xt, yt) = (_over_norm(x, y, group) for x, y in ((s, ys), (t, yt)))
    return like(0.5 * relation_distance(xs, xt, ys, yt, group), student)


def _sets(student: torch.Tensor, teacher: torch.Tensor, others: Others) -> _Sets:
    """(Xs, Xt, Ys, Yt): the batch, and the batch with the others, which are detached."""
    if others is None:
        return student, teacher, None, None
    others_s, others_t = paired(others[0].detach(), others[1], same_dim=False)
    return student, teacher, torch.cat([student, others_s]), torch.cat([teacher, others_t])


def _mapped(function: Callable[[torch.Tensor], torch.Tensor], sets: _Sets) -> _Sets:
    xs, xt, ys, yt = sets
    return (
        function(xs), function(xt),
        None if ys is None else function(ys), None if yt is None else function(yt),
    )  # fmt: skip


def _entries(x: torch.Tensor, y: torch.Tensor | None, group: Group) -> float | torch.Tensor:
    """Number of entries of the relation matrix over all processes."""
    columns = len(x) if y is None else len(y)
    if group is None:
        return float(len(x) * columns)
    sizes = torch.tensor([len(x), columns], dtype=x.dtype, device=x.device)
    return joint_sum(sizes, group).prod()


def _over_relation_norm(x: torch.Tensor, y: torch.Tensor | None, group: Group) -> torch.Tensor:
    """Rows of X divided by the norms of the rows of X Yᵀ: nᵢ = √(xᵢᵀ (YᵀY) xᵢ)."""
    y = x if y is None else y
    squares = ((x @ joint_sum(y.T @ y, group)) * x).sum(dim=1, keepdim=True)
    return x / squares.clamp(min=FLOOR**2).sqrt()


def _over_norm(
    x: torch.Tensor, y: torch.Tensor | None, group: Group
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """X and Y, column-centred by the mean of Y and divided by √‖X Yᵀ‖_F."""
    everyone = x if y is None else y
    count = joint_sum(torch.ones((), dtype=x.dtype, device=x.device) * len(everyone), group)
    mean = joint_sum(everyone.sum(dim=0), group) / count
    x, y = x - mean, None if y is None else y - mean
    root = relation_energy(x, y, group).clamp(min=FLOOR**4).pow(0.25)
    return x / root, None if y is None else y / root
