"""Between the instances of a batch: the relation matrix, and how the student's differs from the teacher's.

These four cost O(batch · dim²) by ``relations.relation_distance``. They also take ``others``,
instances beyond the batch whose relations to it count too, and ``group``, processes whose
batches count as one. ``pairwise.py`` has the relations that have no such form.
"""

from collections.abc import Callable

import torch
from torch.nn import functional

from kdcache.losses.inputs import FLOOR, On, Others, compared, like, paired, row_centred, unit_rows
from kdcache.losses.relations import Group, joint_sum, relation_distance, relation_energy

_Sets = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]

HALFWAY = 0.5  # how sure a teacher must be for gram to take its energy as the measure


def gram(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float = 1.0,
    others: Others = None,
    group: Group = None,
) -> torch.Tensor:
    """Which instances share a class: ‖Ps Psᵀ − Pt Ptᵀ‖²_F / max(E, E₀), E = ‖(Pt − 1/C)(Pt − 1/C)ᵀ‖²_F.

    P is taken at T; an entry of P Pᵀ is the chance that two instances, drawn independently,
    fall into one class. E₀ = (batch · ½(1 − 1/C))² / (C − 1) is the energy of a balanced batch
    whose rows lie halfway, in squared distance, between uniform and one-hot.

    Args:
        student: logits of shape (batch, num_labels).
        teacher: logits of the same shape; detached.
        temperature: T > 0.
        others: (student, teacher) logits of instances beyond the batch, each of shape
            (others, num_labels); relations run from the batch to batch and others.
        group: processes that share one batch; the value is the joint one on each, the gradient
            that of its own rows. Under DDP, which averages gradients, multiply by the world size.

    Returns:
        A scalar ≥ 0, about 1 for an uninformed student of an informed teacher; 0 where the
        relation matrices agree.

    Raises:
        ShapeError: the shapes differ.

    Needs:
        Something beside it that tells the classes apart: it is blind to a permutation of the
        student's classes. Zero gradient at an exactly uniform student.

    Cost:
        O((batch + others) · num_labels²), memory O(num_labels²).

    Reference:
        After Jin et al. (2023), batch level.

    Differs:
        The divisor, the teacher's own energy, is ours: without it the value shrinks like T⁻⁴
        and with the batch, until the term does nothing. So no T² either. Its floor E₀ is ours
        too: a hesitant teacher's energy goes to 0, and the quotient then forbids the student
        to become surer than its teacher (docs/log.md has the run that showed it).

    Relations:
        The default. ``sp`` compares the same matrix on logits, where sureness has no bound.

    >>> t = torch.tensor([[9.0, -9.0], [-9.0, 9.0]])
    >>> round(gram(torch.zeros(2, 2), t).item(), 3)
    1.0
    """
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
    """Cosines between instances: ‖Ûs Ûsᵀ − Ût Ûtᵀ‖²_F / batch², Û the rows of Z̄ over their norms.

    Args:
        student: logits of shape (batch, num_labels).
        teacher: logits of the same shape; detached.
        others: see ``gram``; the divisor is then batch · (batch + others).
        group: see ``gram``.

    Returns:
        A scalar between 0 and 4; unchanged by the scale of a row of logits.

    Raises:
        ShapeError: the shapes differ.

    Needs:
        Three classes: with two, a cosine is ±1 and has no gradient. Something beside it that
        tells the classes apart.

    Cost:
        O((batch + others) · num_labels²), memory O(num_labels²).

    Reference:
        Ours, after the angular relations of Park et al. (2019).

    Relations:
        ``gram`` weighs an instance by how sure the teacher is; here all weigh the same.

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
    """Similarity-preserving: ‖Ĝs − Ĝt‖²_F / batch², Ĝ the rows of G = Z̄ Z̄ᵀ over their L2 norms.

    Args:
        student: logits of shape (batch, num_labels), or features of shape (batch, dim_s).
        teacher: logits of the same shape, or features of shape (batch, dim_t); detached.
        on: ``logits`` are row-centred first, ``features`` are taken as they are.
        others: see ``gram``; the divisor is then batch · (batch + others).
        group: see ``gram``.

    Returns:
        A scalar between 0 and 4 / batch; unchanged by one scale of all logits.

    Raises:
        ShapeError: other batches, or logits of other shapes.

    Needs:
        Something beside it that tells the classes apart.

    Cost:
        O((batch + others) · dim²), memory O(dim²); the dense form where dim nears the batch.

    Reference:
        Tung & Mori (2019), Similarity-Preserving Knowledge Distillation.

    Differs:
        Logits are row-centred: half of the gradient went where softmax cannot see it.

    Relations:
        Smaller by 1 / batch than ``gram``: it wants a larger weight.

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
    """1 − linear CKA: ½‖Âs Âsᵀ − Ât Âtᵀ‖²_F, Â = X / √‖XᵀX‖_F of the column-centred X.

    The difference of unit matrices has the value of 1 − ⟨·, ·⟩ without its cancellation.

    Args:
        student: logits of shape (batch, num_labels), or features of shape (batch, dim_s).
        teacher: logits of the same shape, or features of shape (batch, dim_t); detached.
        on: ``logits`` are row-centred first, ``features`` are taken as they are.
        others: see ``gram``; means are then taken over batch and others.
        group: see ``gram``.

    Returns:
        A scalar between 0 and 1; unchanged by scale, shift and rotation of all rows together.

    Raises:
        ShapeError: other batches, or logits of other shapes.

    Needs:
        Two rows that differ. Something beside it that tells the classes apart.

    Cost:
        O((batch + others) · dim²), memory O(dim²); the dense form where dim nears the batch.

    Reference:
        Kornblith et al. (2019), CKA with linear kernels.

    Relations:
        The relation for features of other dims: no projection is needed.

    >>> t = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> round(cka(t[[0, 0, 2]], t, on="features").item(), 4)
    0.6838
    """
    s, t, ys, yt = _sets(*compared(student, teacher, on), None if others is None else compared(*others, on))
    (xs, ys), (xt, yt) = (_over_norm(x, y, group) for x, y in ((s, ys), (t, yt)))
    return like(0.5 * relation_distance(xs, xt, ys, yt, group), student)


def _sets(student: torch.Tensor, teacher: torch.Tensor, others: Others) -> _Sets:
    """(Xs, Xt, Ys, Yt): the batch, and batch and others in one set; the others are detached."""
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
    """How many entries the relation matrix has, over all processes."""
    columns = len(x) if y is None else len(y)
    if group is None:
        return float(len(x) * columns)
    sizes = torch.tensor([len(x), columns], dtype=x.dtype, device=x.device)
    return joint_sum(sizes, group).prod()


def _over_relation_norm(x: torch.Tensor, y: torch.Tensor | None, group: Group) -> torch.Tensor:
    """Rows of X over the norms of the rows of X Yᵀ: nᵢ = √(xᵢᵀ (YᵀY) xᵢ)."""
    y = x if y is None else y
    squares = ((x @ joint_sum(y.T @ y, group)) * x).sum(dim=1, keepdim=True)
    return x / squares.clamp(min=FLOOR**2).sqrt()


def _over_norm(
    x: torch.Tensor, y: torch.Tensor | None, group: Group
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """X and Y, column-centred by the mean of Y, over √‖X Yᵀ‖_F."""
    everyone = x if y is None else y
    count = joint_sum(torch.ones((), dtype=x.dtype, device=x.device) * len(everyone), group)
    mean = joint_sum(everyone.sum(dim=0), group) / count
    x, y = x - mean, None if y is None else y - mean
    root = relation_energy(x, y, group).clamp(min=FLOOR**4).pow(0.25)
    return x / root, None if y is None else y / root
