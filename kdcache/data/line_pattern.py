"""Cutting a line by a pattern: ``{label} {text}``."""

from collections.abc import Sequence


def cut_line(text: str, literals: Sequence[str]) -> list[str] | None:
    """Return the texts between literals, each as short as it can be but the last, and at least one character.

    An expression of as many lazy groups would try each combination of their ends.

    Args:
        text: of a line.
        literals: what stands before, between and after the texts; at least two.

    Returns:
        One text less than there are literals; None where the line does not fit.

    >>> cut_line("yes a b", ["", " ", ""])
    ['yes', 'a b']
    """
    first, *between, last = literals
    if not text.startswith(first) or not text.endswith(last):
        return None
    parts, start, stop = [], len(first), len(text) - len(last)
    for literal in between:
        end = text.find(literal, start + 1, stop)
        if end < 0:
            return None
        parts.append(text[start:end])
        start = end + len(literal)
    return [*parts, text[start:stop]] if start < stop else None
