"""An arm: one row of the results table, a method and what teaches it."""

from dataclasses import dataclass
from typing import Literal

from kdcache.losses import Term
from kdcache.params import NonNegativeFloat


@dataclass(frozen=True)
class Arm:
    """A student's recipe as params.yaml writes it; ``{}`` learns from the labels alone.

    Args:
        method: ``prefix``, ``head``, or None for ``distill.method``.
        ce_weight: weight of cross-entropy with the labels.
        inter_class: a loss within one instance, over classes.
        inter_instance: a loss on the relations between the instances of a batch.
        feature: a loss on pooled features.
    """

    method: Literal["prefix", "head"] | None = None
    ce_weight: NonNegativeFloat = 1.0
    inter_class: Term | None = None
    inter_instance: Term | None = None
    feature: Term | None = None

    @property
    def terms(self) -> dict[str, Term | None]:
        """Family → term."""
        families = ("inter_class", "inter_instance", "feature")
        return {family: getattr(self, family) for family in families}

    def describe(self) -> str:
        """The objective in one line.

        >>> Arm(inter_class=Term("kl", 0.5, 2.0)).describe()
        '1 · ce + 0.5 · kl (T = 2)'
        """
        parts = [f"{self.ce_weight:g} · ce"] if self.ce_weight else []
        parts += [f"{t.weight:g} · {t.name} (T = {t.temperature:g})" for t in self.terms.values() if t]
        return " + ".join(parts)
