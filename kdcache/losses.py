"""The losses, as pure functions ``loss(student, teacher, …) → scalar``, and how an arm adds them up.

The teacher is always detached. Logits are (batch, num_labels), features (batch, dim), labels
(batch,) with −1 for a row without one. ``LOSSES`` is the table of all terms beside
cross-entropy; T is the temperature, P(T) = softmax(Z / T).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from kdcache import relations
from kdcache.errors import ParamsError, ShapeError, nearest
from kdcache.params import NonNegativeFloat, PositiveFloat

TINY = 1e-12  # clamps a divisor; never added, which would shift every value
HALFWAY = 0.5  # how sure a teacher must be for gram to take its energy as the measure


def cross_entropy(student: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the labels, in nats: −Σ log P[label] / max(1, labelled rows).

    Args:
        student: logits of shape (batch, num_labels).
        labels: int64 of shape (batch,); rows with −1 drop out.

    Returns:
        A scalar; 0 without any labelled row.

    >>> round(cross_entropy(torch.zeros(2, 2), torch.tensor([1, -1])).item(), 4)
    0.6931
    """
    total = functional.cross_entropy(student, labels, ignore_index=-1, reduction="sum")
    return total / (labels >= 0).sum().clamp(min=1)


def kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Inter-class distillation: T² · Σ_c Pt(T) log(Pt(T) / Ps(T)), mean over the batch, in nats.

    Args:
        student: logits of shape (batch, num_labels).
        teacher: logits of the same shape; detached.
        temperature: T > 0.

    Returns:
        A scalar ≥ 0; 0 where the two softmaxes agree.

    Raises:
        ShapeError: the shapes differ.

    Reference:
        Hinton, Vinyals & Dean (2015), section 2.

    Relations:
        Knows one instance at a time; put ``gram`` beside it for relations between instances.

    >>> round(kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]])).item(), 4)
    0.3278
    """
    student, teacher = _pair(student, teacher)
    log_p_s = functional.log_softmax(student / temperature, dim=1)
    log_p_t = functional.log_softmax(teacher / temperature, dim=1)
    per_row = (log_p_t.exp() * (log_p_t - log_p_s)).sum(dim=1)
    return temperature**2 * per_row.mean()


def gram(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Inter-instance distillation: ‖Ps Psᵀ − Pt Ptᵀ‖²_F / max(E, E₀), E = ‖(Pt − 1/C)ᵀ(Pt − 1/C)‖²_F.

    P is taken at T; E₀ = (batch · ½(1 − 1/C))² / (C − 1) is the energy of a balanced batch whose
    rows lie halfway, in squared distance, between uniform and one-hot.

    Args:
        student: logits of shape (batch, num_labels).
        teacher: logits of the same shape; detached.
        temperature: T > 0.

    Returns:
        A scalar ≥ 0, about 1 for an uninformed student of an informed teacher; 0 where the
        relation matrices agree.

    Raises:
        ShapeError: the shapes differ.

    Reference:
        After Jin et al. (2023), batch level.

    Differs:
        The divisor, the teacher's own energy, is ours: without it the value shrinks like T⁻⁴
        and with the batch, until the term does nothing. So no T² either. Its floor E₀ is ours
        too: a hesitant teacher's energy goes to 0, and the quotient then forbids the student
        to become surer than its teacher (docs/log.md has the run that showed it).

    Relations:
        Blind to a permutation of the student's classes: always beside cross-entropy or ``kl``.
        Zero gradient at an exactly uniform student.

    >>> t = torch.tensor([[9.0, -9.0], [-9.0, 9.0]])
    >>> round(gram(torch.zeros(2, 2), t).item(), 3)
    1.0
    """
    student, teacher = _pair(student, teacher)
    p_s = functional.softmax(student / temperature, dim=1)
    p_t = functional.softmax(teacher / temperature, dim=1)
    distance = (relations.gram(p_s) - relations.gram(p_t)).square().sum()
    batch, num_labels = p_t.shape
    floor = (batch * HALFWAY * (1 - 1 / num_labels)) ** 2 / (num_labels - 1)
    return distance / relations.class_energy(p_t).clamp(min=floor)


def feature_mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Feature distillation: mean over batch and dim of (fs − ft)² / mean(ft²).

    Args:
        student: features of shape (batch, dim_t), projected first where dims differ.
        teacher: features of shape (batch, dim_t); detached.

    Returns:
        A scalar ≥ 0; about 1 for features of zero.

    Raises:
        ShapeError: the shapes differ.

    Reference:
        Romero et al. (2015), equation 3.

    Differs:
        Divided by the teacher's mean square, so that the weight does not depend on its scale.

    >>> feature_mse(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]])).item()
    1.0
    """
    student, teacher = _pair(student, teacher)
    return (student - teacher).square().mean() / teacher.square().mean().clamp(min=TINY)


def _pair(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Check the shapes, detach the teacher, and leave half precision."""
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ShapeError(
            f"loss: student and teacher must be two matrices of one shape, "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}."
        )
    if student.dtype in (torch.float16, torch.bfloat16):
        student = student.float()
    return student, teacher.detach().to(student.dtype)


@dataclass(frozen=True)
class Loss:
    """One row of the table.

    Args:
        family: the key under which an arm names it.
        function: ``(student, teacher)`` or, on logits, ``(student, teacher, temperature)``.
        on: what it compares, ``logits`` or ``features``.
    """

    family: str
    function: Callable[..., torch.Tensor]
    on: str


LOSSES = {
    "kl": Loss("inter_class", kl, "logits"),
    "gram": Loss("inter_instance", gram, "logits"),
    "feature_mse": Loss("feature", feature_mse, "features"),
}


@dataclass(frozen=True)
class Term:
    """One weighted loss of an arm.

    Args:
        name: a key of ``LOSSES``.
        weight: its factor in the total.
        temperature: T, for losses on logits.
    """

    name: str
    weight: NonNegativeFloat = 1.0
    temperature: PositiveFloat = 1.0


def check_terms(terms: Mapping[str, Term | None], ce_weight: float, where: str) -> None:
    """Refuse at start what could not work at step 300.

    Args:
        terms: family → term, None where an arm has none.
        ce_weight: weight of cross-entropy.
        where: the arm, for messages.

    Raises:
        ParamsError: an unknown loss, one of another family, or relations and features alone.
    """
    for family, term in terms.items():
        if term is None:
            continue
        names = [name for name, loss in LOSSES.items() if loss.family == family]
        if term.name not in names:
            raise ParamsError(
                f"{where}.{family}.name: it must be a loss of that family, got {term.name!r}. "
                f"{nearest(term.name, names)}"
            )
    if ce_weight == 0 and terms.get("inter_class") is None:
        raise ParamsError(
            f"{where}: a term must tell the classes apart, got ce_weight 0 and no inter_class "
            "(relations and features do not say which class is which). Add inter_class: {name: kl}."
        )


class Objective(nn.Module):
    """The total of an arm: ce_weight · CE + Σ weight · term.

    Args:
        terms: family → term or None, checked with ``check_terms`` before.
        ce_weight: weight of cross-entropy.
        dim_s: dim of the student's features.
        dim_t: dim of the teacher's; where a feature term stands, a projection between the two
            is trained with the student and thrown away, the identity at start where dims agree.
    """

    def __init__(self, terms: Mapping[str, Term | None], ce_weight: float, dim_s: int, dim_t: int) -> None:
        super().__init__()
        self.terms = [term for term in terms.values() if term is not None]
        self.ce_weight = ce_weight
        self.projection: nn.Linear | None = None
        if any(LOSSES[term.name].on == "features" for term in self.terms):
            self.projection = nn.Linear(dim_s, dim_t, bias=False)
            if dim_s == dim_t:
                nn.init.eye_(self.projection.weight)

    def forward(
        self,
        logits: torch.Tensor,
        features: torch.Tensor,
        labels: torch.Tensor,
        teacher_logits: torch.Tensor,
        teacher_features: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Return each weighted term by name; their sum is the loss.

        Args:
            logits, features: the student's, of shape (batch, num_labels) and (batch, dim_s).
            labels: of shape (batch,), −1 = unlabelled.
            teacher_logits, teacher_features: of the same rows.
        """
        values = {}
        if self.ce_weight:
            values["ce"] = self.ce_weight * cross_entropy(logits.float(), labels)
        for term in self.terms:
            loss = LOSSES[term.name]
            if loss.on == "features":
                assert self.projection is not None
                value = loss.function(self.projection(features), teacher_features)
            else:
                value = loss.function(logits, teacher_logits, term.temperature)
            values[term.name] = term.weight * value
        return values
