"""Arms over arms: a study's planned comparisons, and the questions that always stand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from kdcache.errors import DataError
from kdcache.report.roles import Roles
from kdcache.stats.estimates import Estimate, effect, holm, mean_estimate
from kdcache.stats.runs import Runs

RELATION = "The inter-instance loss beside the inter-class one"
OVER_CE = "Distillation over cross-entropy alone"
Place = Literal["primary", "secondary", "unplanned"]


@dataclass(frozen=True)
class Comparison:
    """One arm over another.

    A *primary* comparison stands for itself, *secondary* ones are corrected together, and *unplanned* are
    the standing questions that a plan leaves out.

    Args:
        question: what it answers.
        arm: the one that should be better.
        over: the other.
        by_task: task → effect, where both arms have predictions.
        mean: over these tasks.
        with_gap: over those of them that have a gap to close; None where that is not known, or all.
        place: among the comparisons of the study.
        holm: p-value within the family of secondary comparisons; None for the others.
    """

    question: str
    arm: str
    over: str
    by_task: dict[str, Estimate]
    mean: Estimate
    with_gap: Estimate | None = None
    place: Place = "secondary"
    holm: float | None = None


def effects(runs: Mapping[str, Runs], arm: str | None, over: str | None) -> dict[str, Estimate]:
    """task → effect of an arm over another, where both have predictions and share seeds."""
    if arm is None or over is None:
        return {}
    return {task: effect(r, arm, over) for task, r in runs.items() if comparable(r, arm, over)}


def comparable(runs: Runs, *arms: str | None) -> bool:
    """Whether all arms are there, with a seed in common: a diverged student may have had the only one."""
    try:
        return None not in arms and bool(runs.paired([arm for arm in arms if arm is not None]))
    except DataError:
        return False


def compare(
    runs: Mapping[str, Runs],
    roles: Roles,
    gap_tasks: Sequence[str] | None,
    planned: Sequence[tuple[str, str]],
) -> list[Comparison]:
    """Ask what was planned, and then what is not among it of the standing questions.

    Args:
        runs: task → its runs under the first metric.
        roles: which arm plays which part.
        gap_tasks: those with a gap to close, where that is known.
        planned: (arm, over), the primary comparison first; empty takes the standing questions.
    """
    standing = [
        (RELATION, roles.relation, roles.kl),
        (OVER_CE, roles.distilled, roles.ce),
        ("The inter-class loss over cross-entropy alone", roles.kl, roles.ce),
        ("Logits over features", roles.kl, roles.feature),
    ]
    question_of = {(arm, over): question for question, arm, over in reversed(standing)}
    asked = [(question_of.get((arm, over), f"{arm} over {over}"), arm, over) for arm, over in planned]
    found: dict[tuple[str, str], Comparison] = {}
    for question, arm, over in [*asked, *standing]:
        by_task = effects(runs, arm, over)
        if arm and over and by_task and (arm, over) not in found:
            part = [by_task[task] for task in gap_tasks or () if task in by_task]
            with_gap = mean_estimate(part) if 0 < len(part) < len(by_task) else None
            mean = mean_estimate(list(by_task.values()))
            found[arm, over] = Comparison(question, arm, over, by_task, mean, with_gap)
    primary = planned[0] if planned else (roles.relation, roles.kl)
    family = [key for key in found if key != primary and (not planned or key in planned)]
    adjusted = holm({" over ".join(key): found[key].mean.p for key in family})
    places: dict[Any, Place] = {key: "secondary" for key in family}
    places[primary] = "primary"
    return [
        replace(c, place=places.get(key, "unplanned"), holm=adjusted.get(" over ".join(key)))
        for key, c in found.items()
    ]
