"""The card of each loss, read from its docstring, for ``kdcache losses`` and docs/reference/losses.md."""

import inspect
import re
from dataclasses import dataclass

from kdcache.losses.table import LOSSES

FAMILIES = {
    "inter_class": "Inter-class: within one instance, over its classes",
    "inter_instance": "Inter-instance: between the instances of a batch",
    "feature": "Feature-based: on pooled features",
}
CARD_SECTIONS = ("Returns", "Needs", "Cost", "Reference", "Differs", "Relations")


@dataclass(frozen=True)
class Card:
    """The card of one loss.

    Args:
        name: its name in params.yaml.
        families: the keys of an arm under which it may stand.
        summary: its aim and its formula.
        sections: the ``CARD_SECTIONS`` of its docstring → their text.
    """

    name: str
    families: tuple[str, ...]
    summary: str
    sections: dict[str, str]

    @property
    def aim(self) -> str:
        """First half of the summary: what the student learns."""
        return self.summary.partition(": ")[0]

    @property
    def formula(self) -> str:
        """Second half of the summary."""
        return self.summary.partition(": ")[2].removesuffix(".")


def read_cards() -> list[Card]:
    """The cards of all losses, in the order of the table."""
    cards = []
    for name, loss in LOSSES.items():
        text = inspect.getdoc(loss.function) or ""
        parts = re.split(r"^(\w+):\n", text.partition(">>> ")[0], flags=re.MULTILINE)
        sections = dict(zip(parts[1::2], map(_joined, parts[2::2]), strict=True))
        kept = {key: sections[key] for key in CARD_SECTIONS if key in sections}
        summary, _, more = parts[0].strip().partition("\n\n")
        if more:
            kept = {"Where": _joined(more), **kept}
        cards.append(Card(name, loss.families, _joined(summary), kept))
    return cards


def cards_markdown() -> str:
    """The page docs/reference/losses.md: the cards by family."""
    lines = [
        "# Losses", "",
        "<!-- Written by `kdcache losses --markdown` from the docstrings; do not edit. -->", "",
        "Every loss takes the student first and the teacher second. The teacher gets no gradient. T is the",
        "temperature, P = softmax(Z / T), Z̄ is Z with each row centred, and C is the number of classes.",
        "Losses are computed in double precision if the device has it. The total loss of an arm is",
        "ce_weight · CE + Σ weight · term. [Losses and arms](../concepts/losses.md) says which one to use.",
        "",
    ]  # fmt: skip
    for family, title in FAMILIES.items():
        lines += [f"## {title}", ""]
        for card in read_cards():
            if card.families[0] != family:
                continue
            lines += [f"### `{card.name}`", "", f"{card.aim}: {card.formula}.", ""]
            lines += [f"- **{key}.** {text}" for key, text in card.sections.items()]
            if len(card.families) > 1:
                lines.append('- **Features.** Works on features too, under `feature` (`on="features"`).')
            lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def _joined(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")
