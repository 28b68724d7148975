"""The inter-instance losses without a linear-time form: ``dist_intra``, ``rkd_*`` and ``pkt``.

Those that need the whole relation matrix compute it in blocks of rows and recompute each block in the
backward pass, so that memory is O(block · batch). Distances are computed from differences: in single
precision ‖x‖² + ‖y‖² − 2xy gives 0 for two rows 1.7e-4 apart.
"""

import torch
from torch.nn import functional

from kdcache.losses.inputs import FLOOR, On, compared, like, paired, require_positive, unit_rows
from kdcache.losses.linear_time import sum_over_rows

PKT_EPSILON = 1e-7


def dist_intra(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Correlate the instances within each class: T² · (1 − Pearson_batch), mean over classes.

    Computed as T² · ½‖â − b̂‖², where â and b̂ are the centred columns of P(T) divided by their norms.

    Args:
        student: logits of shape (batch, num_labels).
        teacher: logits of the same shape; detached.
        temperature: T > 0.

    Returns:
        A scalar between 0 and 2 T². A positive affine map of a column of Ps does not change it. It is 0 for
        fewer than three rows. Classes whose teacher probability deviates by less than 1e-3 are ignored.

    Raises:
        ShapeError: the shapes differ.

    Needs:
        At least three rows. It is the only relation that tells the classes apart.

    Cost:
        O(batch · num_labels).

    Reference:
        Huang et al. (2022), DIST, intra-class relation.

    Differs:
        Standard deviations are clamped at 1e-3 from below instead of shifted. Columns of the teacher below it
        are ignored: many of them, if there are many classes and a high temperature.

    Relations:
        Together with ``dist_inter`` it is DIST.

    >>> t = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    >>> round(dist_intra(t.roll(1, 0), t).item(), 4)
    1.5
    """
    require_positive(temperature)
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
    """Match the distances between instances: Huber(ds / mean ds − dt / mean dt), mean over batch².

    d is the Euclidean distance between two rows of Z̄. Its mean is taken over pairs with d > 0. The Huber
    threshold is 1.

    Args:
        student: logits of shape (batch, num_labels), or features of shape (batch, dim_s).
        teacher: logits of the same shape, or features of shape (batch, dim_t); detached.
        on: ``logits`` are row-centred first, ``features`` are taken as they are.

    Returns:
        A scalar ≥ 0. Scaling, shifting or rotating all rows together does not change it. It is 0 if all rows
        of the teacher are equal.

    Raises:
        ShapeError: the batch sizes differ, or the shapes of logits do.

    Needs:
        Two rows that differ. Another term that tells the classes apart. It has no second derivative.

    Cost:
        O(batch² · dim), memory O(block · batch).

    Reference:
        Park et al. (2019), Relational Knowledge Distillation, RKD-D.

    Relations:
        Measures how far apart instances of one class are. ``gram`` does not where the rows are confident.

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
    """Match the angles within triplets: Huber(cos∠s − cos∠t), mean over batch³.

    cos∠ is the cosine at row i between the directions to rows j and k. The Huber threshold is 1.

    Args:
        student: logits of shape (batch, num_labels), or features of shape (batch, dim_s).
        teacher: logits of the same shape, or features of shape (batch, dim_t); detached.
        on: ``logits`` are row-centred first, ``features`` are taken as they are.

    Returns:
        A scalar between 0 and 1.5. Scaling, shifting or rotating all rows together does not change it.

    Raises:
        ShapeError: the batch sizes differ, or the shapes of logits do.

    Needs:
        At least three classes on logits: with two, all rows lie on a line and every cosine is ±1.
        Another term that tells the classes apart. It has no second derivative.

    Cost:
        O(batch³ + batch² · dim), memory O(block · batch²).

    Reference:
        Park et al. (2019), Relational Knowledge Distillation, RKD-A.

    Relations:
        ``rkd_distance`` is cheaper by a factor of the batch size.

    >>> t = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> round(rkd_angle(t.roll(1, 0), t, on="features").item(), 4)
    0.0444
    """
    s, t = compared(student, teacher, on)
    rows = len(s)
    width = rows * max(rows, s.shape[1], t.shape[1])
    return like(sum_over_rows(_huber_of_angles, rows, width, s, t) / rows**3, student)


def pkt(student: torch.Tensor, teacher: torch.Tensor, on: On = "logits") -> torch.Tensor:
    """Match which instances are near each other: Kt log((Kt + ε) / (Ks + ε)), mean over batch².

    K = (cosine + 1) / 2 between rows of Z̄, each row of K divided by its sum; ε = 1e-7.

    Args:
        student: logits of shape (batch, num_labels), or features of shape (batch, dim_s).
        teacher: logits of the same shape, or features of shape (batch, dim_t); detached.
        on: ``logits`` are row-centred first, ``features`` are taken as they are.

    Returns:
        A scalar; 0 if student and teacher are equal. Scaling a row does not change it.

    Raises:
        ShapeError: the batch sizes differ, or the shapes of logits do.

    Needs:
        At least three classes on logits: with two, every cosine is ±1 and has no gradient. Another term that
        tells the classes apart.

    Cost:
        O(batch² · dim), memory O(block · batch).

    Reference:
        Passalis & Tefas (2018), Probabilistic Knowledge Transfer.

    Relations:
        Its entries are of order 1 / batch and their mean divergence is small, so it needs a large weight.

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
    """Mean over the pairs with a distance above 0; 0 if there is none."""
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
    """Cosines at row i between the directions to j and k, of shape (rows, batch, batch)."""
    ways = functional.normalize(x[None] - x[rows, None], dim=2, eps=FLOOR)
    return ways @ ways.transpose(1, 2)


def _divergence_of_rows(rows: slice, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    k_s, k_t = ((u[rows] @ u.T + 1) / 2 for u in (s, t))
    k_s, k_t = (k / k.sum(dim=1, keepdim=True) for k in (k_s, k_t))
    return (k_t * ((k_t + PKT_EPSILON) / (k_s + PKT_EPSILON)).log()).sum()
