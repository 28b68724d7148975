"""The terms of an arm as params.yaml writes them, and their checks before training."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kdcache.errors import ParamsError, nearest
from kdcache.losses.table import LOSSES, Loss
from kdcache.params import NonNegativeFloat, PositiveFloat


@dataclass(frozen=True)
class Ramp:
    """A number that changes linearly from ``start`` to ``end`` over the first ``over`` of the steps.

    ``{start: 0, end: 1, over: 0.2}`` warms a term up. For teacher annealing (Clark et al., 2019) use one ramp
    of ``ce_weight`` from 0 to 1 and one of the teacher's term from 1 to 0.

    Args:
        start: value at the first step.
        end: value from ``over`` on.
        over: share of the steps, > 0.
    """

    start: NonNegativeFloat
    end: NonNegativeFloat
    over: PositiveFloat = 1.0


@dataclass(frozen=True)
class Term:
    """One weighted loss of an arm.

    Args:
        name: a key of ``LOSSES``.
        weight: its factor in the total loss; a number or a ramp.
        temperature: T, for losses that have a temperature; a number or a ramp.
        scope: the instances that the batch is related to: ``batch``, itself; ``queue:N``, also the N rows
            trained on last; ``all``, every training row seen so far. Rows outside the batch have the logits
            that the student gave them last.
    """

    name: str
    weight: NonNegativeFloat | Ramp = 1.0
    temperature: PositiveFloat | Ramp = 1.0
    scope: str = "batch"


def value_at(number: float | Ramp, progress: float) -> float:
    """The value of a number or ramp after a share ``progress`` (0 … 1) of the steps.

    >>> [value_at(Ramp(0.0, 2.0, 0.5), progress) for progress in (0.0, 0.25, 0.9)]
    [0.0, 1.0, 2.0]
    """
    if not isinstance(number, Ramp):
        return number
    return number.start + (number.end - number.start) * min(1.0, progress / number.over)


def describe(number: float | Ramp) -> str:
    """A number or ramp as a short text.

    >>> describe(Ramp(0.0, 1.0, 0.2))
    '0 → 1 over 0.2'
    """
    if not isinstance(number, Ramp):
        return f"{number:g}"
    over = "" if number.over == 1 else f" over {number.over:g}"
    return f"{number.start:g} → {number.end:g}{over}"


def is_zero(number: float | Ramp) -> bool:
    """Whether it is zero at every step."""
    return (number.start == number.end == 0) if isinstance(number, Ramp) else number == 0


def queue_length(scope: str) -> int | None:
    """Number of rows outside the batch that a scope keeps; None keeps all.

    >>> [queue_length(scope) for scope in ("batch", "queue:512", "all")]
    [0, 512, None]
    """
    return None if scope == "all" else int(scope.partition(":")[2] or 0)


def check_terms(
    terms: Mapping[str, Term | None],
    ce_weight: float | Ramp,
    where: str,
    num_labels: int | None = None,
    num_choices: int = 1,
    batch_size: int | None = None,
) -> list[str]:
    """Check the terms of an arm before training.

    Args:
        terms: family → term, None where an arm has none.
        ce_weight: weight of cross-entropy.
        where: the arm, for messages.
        num_labels: number of classes; None skips the checks that depend on it.
        num_choices: > 1 if the classes are exchangeable slots (COPA).
        batch_size: rows per step, if known.

    Returns:
        Warnings about terms that work, but differently than their name suggests.

    Raises:
        ParamsError: a loss is unknown or of another family, has no such scope or temperature, has no gradient
            on two classes, or needs a larger batch; or no term tells the classes apart.
    """
    given = {family: term for family, term in terms.items() if term is not None}
    warnings = []
    for family, term in given.items():
        key = f"{where}.{family}"
        loss = _known(term, family, key)
        _check_scope_and_temperature(term, loss, family, key)
        on_logits = family != "feature"
        if on_logits and num_labels == 2 and not loss.two_classes:
            raise ParamsError(
                f"{key}.name: it must have a gradient on the logits of two classes, got {term.name}, "
                f"which has none. Use {'kl' if family == 'inter_class' else 'gram'}."
            )
        if batch_size is not None and batch_size < loss.min_rows:
            raise ParamsError(
                f"{where}.batch_size: it must be at least {loss.min_rows} for {term.name}, "
                f"got {batch_size}. Raise it, or distill.batch_size."
            )
        if on_logits and family == "inter_instance" and num_choices > 1 and not loss.ignores_slots:
            warnings.append(
                f"{key}: {term.name} sees in which slot a choice stands, which means nothing here. "
                "Prefer gram or sp."
            )
        if term.name == "dkd" and num_labels == 2:
            warnings.append(f"{key}: with two classes dkd is kl of the labelled rows only. Prefer kl.")
    tells = not is_zero(ce_weight) or any(
        LOSSES[term.name].tells_classes_apart and not is_zero(term.weight) for term in given.values()
    )
    if not tells:
        raise ParamsError(
            f"{where}: a term must tell the classes apart, got ce_weight 0 and no inter_class "
            "(relations and features do not say which class is which). Add inter_class: {name: kl}."
        )
    return warnings


def _known(term: Term, family: str, key: str) -> Loss:
    names = [name for name, loss in LOSSES.items() if family in loss.families]
    if term.name not in names:
        raise ParamsError(
            f"{key}.name: it must be a loss of that family, got {term.name!r}. {nearest(term.name, names)}"
        )
    return LOSSES[term.name]


def _check_scope_and_temperature(term: Term, loss: Loss, family: str, key: str) -> None:
    if not re.fullmatch(r"batch|all|queue:[1-9]\d*", term.scope):
        raise ParamsError(f"{key}.scope: it must be batch, all or queue:N, got {term.scope!r}. Use batch.")
    if term.scope != "batch" and not (loss.linear and family == "inter_instance"):
        able = ", ".join(name for name, row in LOSSES.items() if row.linear)
        raise ParamsError(
            f"{key}.scope: it must be batch for {term.name}, got {term.scope!r}. "
            f"Wider scopes are for {able} under inter_instance."
        )
    if isinstance(term.temperature, Ramp) and 0 in (term.temperature.start, term.temperature.end):
        raise ParamsError(f"{key}.temperature: it must be > 0 throughout, got {describe(term.temperature)}.")
    if not loss.temperature and term.temperature != 1.0:
        raise ParamsError(
            f"{key}.temperature: it must be left out, since {term.name} has none, "
            f"got {describe(term.temperature)}."
        )
