"""Comparisons of arms: which pairs, and the effect of each."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from kdcache.errors import DataError, ParamsError, nearest
from kdcache.stats.estimates import Estimate, effect, holm, mean_estimate
from kdcache.stats.runs import Runs

PROMPTLESS = ("head", "full", "lora")  # every other method learns a prompt

Pair = tuple[str, str]  # an arm and the arm it is compared with


@dataclass(frozen=True)
class Comparison:
    """One arm over another.

    Args:
        arm: the arm that should be better.
        over: the arm it is compared with.
        by_task: task → effect, where both have predictions and share seeds.
        mean: the mean effect over these tasks.
        place: ``primary`` is not corrected, ``secondary`` ones are corrected together, ``unplanned`` is not
            corrected.
        holm: the p-value after correction; None unless secondary.
        steps: task → optimizer steps of a student of ``arm`` and of ``over``.
    """

    arm: str
    over: str
    by_task: dict[str, Estimate]
    mean: Estimate
    place: Literal["primary", "secondary", "unplanned"]
    holm: float | None = None
    steps: dict[str, tuple[int, int]] = field(default_factory=dict)


def steps_per_student(task: Mapping[str, Any], arm: str) -> int:
    """Return the optimizer steps of one student of an arm, 0 for a linear probe.

    Args:
        task: its metrics, as distill wrote them, with the steps of all seeds.
        arm: one without a student there has none.
    """
    if arm not in task["arms"]:
        return 0
    found = task["arms"][arm]
    return int(found["steps"] // len(found["validation"][task["metric"]]["seeds"]))


def has_prompt(arm: Mapping[str, Any]) -> bool:
    """Whether an arm's students learn a prompt."""
    return arm["method"] not in PROMPTLESS


def is_taught(arm: Mapping[str, Any]) -> bool:
    """Whether an arm's students learn from the teacher."""
    return arm["targets"] is not None


def comparable(runs: Runs, *arms: str | None) -> bool:
    """Whether all arms have predictions and share a seed: a diverged student may have had the only one."""
    try:
        return None not in arms and bool(runs.paired([arm for arm in arms if arm is not None]))
    except DataError:
        return False


def effects(runs: Mapping[str, Runs], arm: str | None, over: str | None) -> dict[str, Estimate]:
    """Estimate an arm's effect over another on each task where both can be compared."""
    if arm is None or over is None:
        return {}
    return {task: effect(found, arm, over) for task, found in runs.items() if comparable(found, arm, over)}


def planned_pairs(comparisons: Sequence[Sequence[str]], known: Collection[str]) -> list[Pair]:
    """Check the comparisons of the parameters.

    Args:
        comparisons: pairs [arm, over].
        known: the names of all arms.

    Raises:
        ParamsError: one is not a pair, names an unknown arm, or stands twice, in whatever order.
    """
    pairs: list[Pair] = []
    for k, pair in enumerate(comparisons):
        where = f"report.comparisons[{k}]"
        if len(pair) != 2 or pair[0] == pair[1]:
            raise ParamsError(f"{where}: A comparison is a pair [arm, over] of two arms, got {list(pair)}.")
        for name in pair:
            if name not in known:
                raise ParamsError(f"{where}: Unknown arm {name!r}. {nearest(name, known)}")
        if {(pair[0], pair[1]), (pair[1], pair[0])} & set(pairs):
            raise ParamsError(f"{where}: A comparison must stand once, got {list(pair)} again. Remove it.")
        pairs.append((pair[0], pair[1]))
    return pairs


def standing_pairs(
    arms: Mapping[str, Mapping[str, Any]], control: str | None, baseline: str | None
) -> list[Pair]:
    """Pair every other prompt arm with the baseline, the first that learns from the teacher first."""
    if baseline is None:
        return []
    prompts = [name for name, arm in arms.items() if has_prompt(arm) and name not in (control, baseline)]
    first = next((name for name in prompts if is_taught(arms[name])), None)
    return [(name, baseline) for name in sorted(prompts, key=lambda name: name != first)]


def compare_arms(runs: Mapping[str, Runs], pairs: Sequence[Pair]) -> list[Comparison]:
    """Estimate the effect of each pair; the first is primary, the others are corrected together.

    Args:
        runs: task → its runs under the first metric.
        pairs: arms; a pair that shares no seed on any task is left out.
    """
    found = []
    for k, (arm, over) in enumerate(pairs):
        if by_task := effects(runs, arm, over):
            mean = mean_estimate(list(by_task.values()))
            found.append(Comparison(arm, over, by_task, mean, "secondary" if k else "primary"))
    family = {f"{c.arm} over {c.over}": c.mean.p for c in found if c.place == "secondary"}
    adjusted = holm(family)
    return [replace(c, holm=adjusted.get(f"{c.arm} over {c.over}")) for c in found]
