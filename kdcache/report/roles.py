"""Which arm plays which part in the question, decided by what teaches it and never by its name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PROMPTLESS = ("head", "full", "lora")  # every other method learns a prompt
FAMILIES = ("inter_class", "inter_instance", "feature")
# An arm that sets such a key, or has such targets, is a control or a lever, and plays no part.
CONTROL_KEYS = ("label_smoothing", "ce_weight", "init")
CONTROL_TARGETS = ("all_rows", "shuffled_within_class")

# As params.yaml writes it.
Recipe = Mapping[str, Any]


@dataclass(frozen=True)
class Roles:
    """The arms that the question is about; None where no arm fits.

    Args:
        head: no prompt, labels alone: what prompts must beat.
        ce: a prompt, labels alone.
        kl: a prompt and a loss within each instance.
        relation: the same with a loss between instances beside it.
        feature: a prompt and a loss on features alone.
        full: every weight trained, labels alone: where the gap ends.
        temperature: at which the relation's loss sees probabilities.
        planned: the arm with a teacher that a study's plan compares with ``ce``.
    """

    head: str | None = None
    ce: str | None = None
    kl: str | None = None
    relation: str | None = None
    feature: str | None = None
    full: str | None = None
    temperature: float = 1.0
    planned: str | None = None

    @property
    def distilled(self) -> str | None:
        """The arm that stands for distillation: as planned, or with both losses, or with what there is."""
        return self.planned or self.relation or self.kl or self.feature


def find_roles(
    arms: Mapping[str, Recipe | None], method: str, planned: Sequence[tuple[str, str]] = ()
) -> Roles:
    """Cast the arms. Of several that fit, the one that sets least; of these the first.

    The inter-class and the inter-instance arm are the pair that the plan compares, else one that differs in
    nothing else, where there is one: an arm that also sees more rows would say nothing of the loss.

    Args:
        arms: name → recipe, as ``distill.arms`` of params.yaml.
        method: of arms that name none.
        planned: (arm, over) of a study's plan.

    >>> arms = {"CE": {}, "A": {"inter_class": {"name": "kl"}}, "S": {"label_smoothing": 0.1}}
    >>> arms["H"] = {"method": "head"}
    >>> roles = find_roles(arms, method="prefix")
    >>> roles.head, roles.ce, roles.kl, roles.distilled, roles.full
    ('H', 'CE', 'A', 'A', None)
    """
    recipes = {name: dict(recipe or {}) for name, recipe in arms.items()}

    def fitting(taught_by: set[str], fits: Callable[[str], bool]) -> list[str]:
        names = [
            name for name, recipe in recipes.items()
            if fits(recipe.get("method") or method)
            and {family for family in FAMILIES if recipe.get(family)} == taught_by
            and not any(key in recipe for key in CONTROL_KEYS)
            and recipe.get("targets") not in CONTROL_TARGETS
        ]  # fmt: skip
        return sorted(names, key=lambda name: len(recipes[name]))

    def first(taught_by: set[str], fits: Callable[[str], bool]) -> str | None:
        return next(iter(fitting(taught_by, fits)), None)

    def prompt(name: str) -> bool:
        return name not in PROMPTLESS

    def without_relation(name: str) -> dict[str, Any]:
        return {key: value for key, value in recipes[name].items() if key != "inter_instance"}

    alone, beside = fitting({"inter_class"}, prompt), fitting({"inter_class", "inter_instance"}, prompt)
    pairs = [(kl, both) for both, kl in planned if both in beside and kl in alone]
    pairs += [(kl, both) for both in beside for kl in alone if without_relation(both) == recipes[kl]]
    kl, relation = pairs[0] if pairs else (next(iter(alone), None), next(iter(beside), None))
    ce = first(set(), prompt)
    over_ce = (arm for arm, over in planned if over == ce and learns_from_teacher(recipes.get(arm)))
    return Roles(
        head=first(set(), lambda name: name == "head"),
        ce=ce,
        kl=kl,
        relation=relation,
        feature=first({"feature"}, prompt),
        full=first(set(), lambda name: name == "full"),
        temperature=_temperature(recipes[relation]["inter_instance"]) if relation else 1.0,
        planned=next(over_ce, None),
    )


def learns_from_member(recipe: Recipe | None) -> bool:
    """Whether each of an arm's students has a member of the ensemble for its teacher."""
    return (recipe or {}).get("targets") == "member"


def learns_from_teacher(recipe: Recipe | None) -> bool:
    """Whether an arm has a teacher's term."""
    return any((recipe or {}).get(family) for family in FAMILIES)


def _temperature(term: Mapping[str, Any]) -> float:
    """At the end of training, where it moves."""
    value = term.get("temperature", 1.0)
    return float(value["end"] if isinstance(value, Mapping) else value)
