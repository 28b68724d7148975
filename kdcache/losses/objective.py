"""The objective of an arm: the weighted sum of its terms, and the logits kept for wider scopes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kdcache.losses.inputs import collapse
from kdcache.losses.inter_class import cross_entropy
from kdcache.losses.table import LOSSES
from kdcache.losses.terms import Ramp, Term, queue_length, value_at


@dataclass(frozen=True)
class Targets:
    """The targets of a batch.

    Args:
        rows: int64 of shape (batch,), the indices of its rows among the training rows.
        labels: int64 of shape (batch,), −1 = unlabelled.
        logits: the teacher's, of shape (batch, num_labels).
        features: the teacher's, of shape (batch, dim_t).
    """

    rows: torch.Tensor
    labels: torch.Tensor
    logits: torch.Tensor
    features: torch.Tensor


class Objective(nn.Module):
    """The total loss of an arm: ce_weight · CE + Σ weight · term.

    Args:
        terms: family → term or None, checked by ``check_terms`` before.
        ce_weight: weight of cross-entropy.
        dim_s: dim of the student's features.
        dim_t: dim of the teacher's features. A feature loss that needs equal dims trains a projection with
            the student and discards it. If the dims are equal, it starts as the identity.
        label_smoothing: of cross-entropy.
        collapsed: whether the teacher's logits are of a cache with ``top_k``. All terms but cross-entropy
            then see the student's as ``collapse`` gives them.
    """

    def __init__(
        self,
        terms: Mapping[str, Term | None],
        ce_weight: float | Ramp,
        dim_s: int,
        dim_t: int,
        label_smoothing: float = 0.0,
        collapsed: bool = False,
    ) -> None:
        super().__init__()
        self.terms = {family: term for family, term in terms.items() if term is not None}
        self.ce_weight, self.label_smoothing, self.collapsed = ce_weight, label_smoothing, collapsed
        self.projection: nn.Linear | None = None
        if any(LOSSES[term.name].projected for term in self.terms.values()):
            self.projection = nn.Linear(dim_s, dim_t, bias=False)
            if dim_s == dim_t:
                nn.init.eye_(self.projection.weight)
        relation = self.terms.get("inter_instance")
        weights = [number for term in self.terms.values() for number in (term.weight, term.temperature)]
        self.ramps = any(isinstance(number, Ramp) for number in [ce_weight, *weights])
        self.memory = Memory(queue_length(relation.scope)) if relation and relation.scope != "batch" else None

    def forward(
        self,
        logits: torch.Tensor,
        features: torch.Tensor,
        targets: Targets,
        progress: float = 0.0,
        remember: bool = True,
    ) -> dict[str, torch.Tensor]:
        """Return each weighted term by name; their sum is the loss.

        Args:
            logits: the student's, of shape (batch, num_labels).
            features: the student's, of shape (batch, dim_s).
            targets: of the same rows.
            progress: share of the steps done so far, for ramps.
            remember: whether these logits are kept for later batches, for wider scopes.
        """
        values = {}
        if self.ce_weight != 0:
            ce = cross_entropy(logits.float(), targets.labels, self.label_smoothing)
            values["ce"] = value_at(self.ce_weight, progress) * ce
        logits = self.compared(logits, targets.logits)
        for family, term in self.terms.items():
            value = self._value(family, term, logits, features, targets, progress)
            values[term_key(family, term)] = value_at(term.weight, progress) * value
        if self.memory is not None and remember:
            self.memory.remember(targets.rows, logits, targets.logits)
        return values

    def compared(self, logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Return the student's logits as they are compared with the teacher's, see ``collapse``."""
        return collapse(logits, teacher) if self.collapsed else logits

    def _value(
        self,
        family: str,
        term: Term,
        logits: torch.Tensor,
        features: torch.Tensor,
        targets: Targets,
        progress: float,
    ) -> torch.Tensor:
        loss = LOSSES[term.name]
        if family == "feature":
            if not loss.projected:
                return loss.function(features, targets.features, on="features")
            projection: Any = self.projection
            return loss.function(projection(features), targets.features)
        options: dict[str, object] = {}
        if loss.temperature:
            options["temperature"] = value_at(term.temperature, progress)
        if loss.labels:
            options["labels"] = targets.labels
        if self.memory is not None and family == "inter_instance":
            options["others"] = self.memory.beyond(targets.rows)
        return loss.function(logits, targets.logits, **options)


def term_key(family: str, term: Term) -> str:
    """The name of a term among the values: its loss, with a prefix if a relation is on features.

    >>> term_key("feature", Term("sp")), term_key("inter_instance", Term("sp"))
    ('feature_sp', 'sp')
    """
    on_features = family == "feature" and not LOSSES[term.name].projected
    return f"feature_{term.name}" if on_features else term.name


class Memory:
    """The last logits of rows seen before, to which ``scope: queue:N | all`` relates a batch.

    Args:
        length: number of rows kept outside the batch; None keeps all rows seen.
    """

    def __init__(self, length: int | None) -> None:
        self.length = length
        self.now = 0
        self.seen = torch.zeros(0, dtype=torch.int64)  # row → step at which it was last seen, 0 = never
        self.student = self.teacher = torch.zeros(0, 0)  # row → logits

    def remember(self, rows: torch.Tensor, student: torch.Tensor, teacher: torch.Tensor) -> None:
        """Keep the logits of a batch and replace earlier ones of the same rows."""
        missing = int(rows.max()) + 1 - len(self.seen)
        if missing > 0:
            wider = (student.new_zeros(missing, student.shape[1]) for _ in range(2))
            if len(self.seen) == 0:
                self.student, self.teacher = wider
            else:
                self.student, self.teacher = (
                    torch.cat(pair) for pair in zip((self.student, self.teacher), wider, strict=True)
                )
            self.seen = torch.cat([self.seen.to(rows.device), rows.new_zeros(missing)])
        self.now += 1
        self.seen[rows] = self.now
        self.student[rows], self.teacher[rows] = student.detach(), teacher.to(self.teacher.dtype)

    def state(self) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The state for a checkpoint."""
        return self.now, self.seen, self.student, self.teacher

    def restore(self, state: tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
        """Restore the state of a checkpoint."""
        self.now, self.seen, self.student, self.teacher = state

    def beyond(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The (student, teacher) logits of the rows kept, without those of the batch itself."""
        seen = self.seen.clone()
        seen[rows[rows < len(seen)]] = 0
        kept = torch.nonzero(seen)[:, 0]
        if self.length is not None and len(kept) > self.length:
            latest = torch.argsort(seen[kept], descending=True, stable=True)[: self.length]
            kept = kept[latest]
        return (self.student[kept], self.teacher[kept]) if len(kept) else None
