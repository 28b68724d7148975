"""An arm: one row of the results table, a method and what teaches it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from kdcache.losses.terms import Ramp, Term, describe
from kdcache.params import NonNegativeFloat, Range


@dataclass(frozen=True)
class Arm:
    """A student's recipe as params.yaml writes it; ``{}`` learns from the labels alone.

    Args:
        method: ``prefix``, ``head``, or None for ``distill.method``.
        ce_weight: weight of cross-entropy with the labels; a number or a ramp.
        label_smoothing: of cross-entropy; with no other term, the control of a teacher that
            knows nothing.
        inter_class: a loss within one instance, over classes.
        inter_instance: a loss on the relations between the instances of a batch.
        feature: a loss on pooled features.
        targets: ``cached``, or ``shuffled_within_class``, the control that gives each row the
            cached targets of another row of its label.
    """

    method: Literal["prefix", "head"] | None = None
    ce_weight: NonNegativeFloat | Ramp = 1.0
    label_smoothing: Annotated[float, Range(0, 1)] = 0.0
    inter_class: Term | None = None
    inter_instance: Term | None = None
    feature: Term | None = None
    targets: Literal["cached", "shuffled_within_class"] = "cached"

    @property
    def terms(self) -> dict[str, Term | None]:
        """Family → term."""
        families = ("inter_class", "inter_instance", "feature")
        return {family: getattr(self, family) for family in families}

    @property
    def uses_unlabelled(self) -> bool:
        """Whether rows without a label can teach: by a teacher's term, on targets of their own."""
        return any(self.terms.values()) and self.targets == "cached"

    def describe(self) -> str:
        """The objective in one line.

        >>> Arm(inter_class=Term("kl", 0.5, 2.0)).describe()
        '1 · ce + 0.5 · kl (T = 2)'
        """
        parts = [f"{describe(self.ce_weight)} · ce"] if self.ce_weight != 0 else []
        if parts and self.label_smoothing:
            parts[0] += f" (smoothed by {self.label_smoothing:g})"
        parts += [
            f"{describe(t.weight)} · {t.name} (T = {describe(t.temperature)}"
            + ("" if t.scope == "batch" else f", {t.scope}") + ")"
            for t in self.terms.values() if t
        ]  # fmt: skip
        shuffled = "" if self.targets == "cached" else ", targets shuffled within the class"
        return " + ".join(parts) + shuffled
