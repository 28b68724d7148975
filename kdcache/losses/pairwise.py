"""Between the instances of a batch, the losses that are no product X Yᵀ.

Those that need the whole relation matrix go by blocks of rows, each recomputed in the backward
pass, so that memory is O(block · batch). Distances are taken by direct differences: ‖x‖² + ‖y‖² − 2xy makes
two rows 1.7e-4 apart coincide in single precision.
"""

import torch
from torch.nn import functional

from kdcache.losses.inputs import FLOOR, On, compared, like, paired, unit_rows
from kdcache.losses.relations import sum_over_rows

PKT_EPSILON = 1e-7


def dist_intra(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Rank the instances within each class as the teacher does: T² · (1 − Pearson_batch), mean over classes.

    Computed as T² · ½‖â − b̂‖² of the centred columns of P(T) over their norms.

    Args:
        student: logits of shape (batch, num_labels).
        teacher: logits of the same shape; detached.
        temperature: T > 0.

    Returns:
        A scalar between 0 and 2 T²; unchanged by a positive affine map of a column of Ps. 0
        below three rows. Classes that the teacher gives one probability throughout drop out.

    Raises:
        ShapeError: the shapes differ.

    Needs:
        Three rows. Of the relations only this one sees which class is which.

    Cost:
        O(batch · num_labels).

    Reference:
        Huang et al. (2022), DIST, its intra-class relation.

    Differs:
        Deviations are clamped, not shifted; a constant column of the teacher drops out.

    Relations:
        DIST is this beside ``dist_inter``.

    >>> t = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    >>> round(dist_intra(t.roll(1, 0), t).item(), 4)
    1.5
    """
    s, t = paired(student, teacher)
    if len(s) < 3:
        return like((s * 0).sum(), student)
    a, b = (functional.softmax(z / temperature, dim=1) for z in (s, t))
    spread = b.std(dim=0, correction=0)
    a, b = (unit_rows((p - p.mean(dim=0)).T / len(p) ** 0.5) for p in (a, b))
    varies = spread >= FLOOR
    per_class = 0.5 * (a - b).square().sum(dim=1) * varies
    return like(temperature**2 * per_class.sum() / varies.sum().clamp(min=1), student)


def rkd_distance(student: torch.Tensor, teacher: torch.Tensor, on: On = "logits") -> torch.Tensor:
    """Distances between instances: Huber(ds / mean ds − dt / mean dt), mean over batch².

    d is the Euclidean distance of two rows of Z̄, its mean is over pairs with d > 0, Huber's
    bend is at 1.

    Args:
        student: logits of shape (batch, num_labels), or features of shape (batch, dim_s).
        teacher: logits of the same shape, or features of shape (batch, dim_t); detached.
        on: ``logits`` are row-centred first, ``features`` are taken as they are.

    Returns:
        A scalar ≥ 0; unchanged by scale, shift and rotation of all rows together. 0 where all
        of the teacher's rows are equal.

    Raises:
        ShapeError: other batches, or logits of other shapes.

    Needs:
        Two rows that differ. Something beside it that tells the classes apart.

    Cost:
        O(batch² · dim), memory O(block · batch).

    Reference:
        Park et al. (2019), Relational Knowledge Distillation, RKD-D.

    Relations:
        Sees how far apart instances of one class are, to which ``gram`` on sure rows is blind.

    >>> t = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> round(rkd_distance(t.roll(1, 0), t, on="features").item(), 4)
    0.0942
    """
    s, t = compared(student, teacher, on)
    mean_t, rows = _mean_distance(t), len(t)
    if mean_t == 0:
        return like((s * 0).sum(), student)
    mean_s = _mean_distance(s)
    total = sum_over_rows(_huber_of_distances, rows, rows, s, t, mean_s, mean_t)
    return like(total / rows**2, student)


def rkd_angle(student: torch.Tensor, teacher: torch.Tensor, on: On = "logits") -> torch.Tensor:
    """Angles within triplets: Huber(cos∠s − cos∠t), mean over batch³.

    cos∠ is taken at each row i between the directions to rows j and k, Huber's bend is at 1.

    Args:
        student: logits of shape (batch, num_labels), or features of shape (batch, dim_s).
        teacher: logits of the same shape, or features of shape (batch, dim_t); detached.
        on: ``logits`` are row-centred first, ``features`` are taken as they are.

    Returns:
        A scalar between 0 and 1.5; unchanged by scale, shift and rotation of all rows together.

    Raises:
        ShapeError: other batches, or logits of other shapes.

    Needs:
        Three classes on logits: with two, all rows lie on a line and a cosine is ±1. Something
        beside it that tells the classes apart.

    Cost:
        O(batch³ + batch² · dim), memory O(block · batch²).

    Reference:
        Park et al. (2019), Relational Knowledge Distillation, RKD-A.

    Relations:
        ``rkd_distance`` is a batch cheaper.

    >>> t = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> round(rkd_angle(t.roll(1, 0), t, on="features").item(), 4)
    0.0444
    """
    s, t = compared(student, teacher, on)
    rows = len(s)
    width = rows * max(rows, s.shape[1], t.shape[1])
    return like(sum_over_rows(_huber_of_angles, rows, width, s, t) / rows**3, student)


def pkt(student: torch.Tensor, teacher: torch.Tensor, on: On = "logits") -> torch.Tensor:
    """Who is near whom, as probabilities: Kt log((Kt + ε) / (Ks + ε)), mean over batch².

    K = (cosine + 1) / 2 of the rows of Z̄, each row of K divided by its sum; ε = 1e-7.

    Args:
        student: logits of shape (batch, num_labels), or features of shape (batch, dim_s).
        teacher: logits of the same shape, or features of shape (batch, dim_t); detached.
        on: ``logits`` are row-centred first, ``features`` are taken as they are.

    Returns:
        A scalar, 0 at student = teacher; unchanged by the scale of a row.

    Raises:
        ShapeError: other batches, or logits of other shapes.

    Needs:
        Three classes on logits: with two, a cosine is ±1 and has no gradient. Something beside
        it that tells the classes apart.

    Cost:
        O(batch² · dim), memory O(block · batch).

    Reference:
        Passalis & Tefas (2018), Probabilistic Knowledge Transfer.

    Relations:
        Its entries are of order 1 / batch, their mean divergence is tiny: it wants a large weight.

    >>> t = torch.tensor([[0.1, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> round(pkt(t.roll(1, 0), t, on="features").item(), 4)
    0.027
    """
    s, t = compared(student, teacher, on)
    rows = len(s)
    total = sum_over_rows(_divergence_of_rows, rows, rows, unit_rows(s), unit_rows(t))
    return like(total / rows**2, student)


def _distances(rows: slice, x: torch.Tensor) -> torch.Tensor:
    return torch.cdist(x[rows], x, compute_mode="donot_use_mm_for_euclid_dist")


def _mean_distance(x: torch.Tensor) -> torch.Tensor:
    """Mean over the pairs that are apart; 0 where none is."""
    rows = len(x)
    with torch.no_grad():
        apart = sum_over_rows(lambda block: (_distances(block, x) > 0).sum(), rows, rows)
    total = sum_over_rows(lambda block, x: _distances(block, x).sum(), rows, rows, x)
    return total / apart.clamp(min=1)


def _huber_of_distances(
    rows: slice, s: torch.Tensor, t: torch.Tensor, mean_s: torch.Tensor, mean_t: torch.Tensor
) -> torch.Tensor:
    apart_s, apart_t = (_distances(rows, z) / mean.clamp(min=FLOOR) for z, mean in ((s, mean_s), (t, mean_t)))
    return functional.smooth_l1_loss(apart_s, apart_t, reduction="sum")


def _huber_of_angles(rows: slice, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return functional.smooth_l1_loss(_cosines(rows, s), _cosines(rows, t), reduction="sum")


def _cosines(rows: slice, x: torch.Tensor) -> torch.Tensor:
    """Of shape (rows, batch, batch): at row i, between the directions to j and k."""
    ways = functional.normalize(x[None] - x[rows, None], dim=2, eps=FLOOR)
    return ways @ ways.transpose(1, 2)


def _divergence_of_rows(rows: slice, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    k_s, k_t = ((u[rows] @ u.T + 1) / 2 for u in (s, t))
    k_s, k_t = (k / k.sum(dim=1, keepdim=True) for k in (k_s, k_t))
    return (k_t * ((k_t + PKT_EPSILON) / (k_s + PKT_EPSILON)).log()).sum()
