"""Each loss's card, read from its docstring: what ``kdcache losses`` lists and docs/losses.md shows."""

import inspect
import re
from dataclasses import dataclass

from kdcache.losses.table import LOSSES

FAMILIES = {
    "inter_class": "Inter-class: within one instance, over its classes",
    "inter_instance": "Inter-instance: between the instances of a batch",
    "feature": "Feature-based: on pooled features",
}
SECTIONS = ("Returns", "Needs", "Cost", "Reference", "Differs", "Relations")


@dataclass(frozen=True)
class Card:
    """One loss.

    Args:
        name: as an arm names it.
        families: the keys under which it may.
        summary: what it does, and its formula.
        sections: ``SECTIONS`` that its docstring has → their text.
    """

    name: str
    families: tuple[str, ...]
    summary: str
    sections: dict[str, str]

    @property
    def aim(self) -> str:
        """The summary's first half: what the student is to do."""
        return self.summary.partition(": ")[0]

    @property
    def formula(self) -> str:
        """The summary's second half."""
        return self.summary.partition(": ")[2].removesuffix(".")


def read_cards() -> list[Card]:
    """The cards of all losses, in the table's order."""
    cards = []
    for name, loss in LOSSES.items():
        text = inspect.getdoc(loss.function) or ""
        parts = re.split(r"^(\w+):\n", text.partition(">>> ")[0], flags=re.MULTILINE)
        sections = dict(zip(parts[1::2], map(_joined, parts[2::2]), strict=True))
        kept = {key: sections[key] for key in SECTIONS if key in sections}
        summary, _, more = parts[0].strip().partition("\n\n")
        if more:
            kept = {"Where": _joined(more), **kept}
        cards.append(Card(name, loss.families, _joined(summary), kept))
    return cards


def cards_markdown() -> str:
    """docs/losses.md: the cards by family."""
    lines = [
        "# The losses", "",
        "Made from the docstrings by `kdcache losses --markdown`. Student first, then teacher, which gets no",
        "gradient. T is the temperature, P = softmax(Z / T), Z̄ = Z with each row centred, C the number of",
        "classes. Everything is computed in double precision where the device has it. An arm's total is",
        "ce_weight · CE + Σ weight · term.", "",
    ]  # fmt: skip
    for family, title in FAMILIES.items():
        lines += [f"## {title}", ""]
        for card in read_cards():
            if card.families[0] != family:
                continue
            lines += [f"### `{card.name}`", "", f"{card.aim}: {card.formula}.", ""]
            lines += [f"- **{key}.** {text}" for key, text in card.sections.items()]
            if len(card.families) > 1:
                lines.append('- **On features too**, under `feature`; dims may differ (`on="features"`).')
            lines.append("")
    return "\n".join(lines)


def _joined(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")
