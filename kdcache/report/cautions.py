"""What a reader must know before any gain: arms not done, unequal steps, a teacher with nothing to give."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdcache.report.comparisons import steps_per_student
from kdcache.report.findings import Findings
from kdcache.report.tables import base_probe_score, percent
from kdcache.stats.estimates import decimal
from kdcache.students.unfinished import still_rising

ENOUGH_SEEDS = 3


@dataclass(frozen=True)
class Sentence:
    """One thing that the report says.

    Args:
        topic: a question or a word or two, with its punctuation.
        text: whole sentences.
    """

    topic: str
    text: str


def cautions(findings: Findings) -> list[Sentence]:
    """Say what limits the answer; nothing where nothing does."""
    return [
        *_few_seeds(findings), *_not_done(findings), *_worth_distilling(findings), *_unequal_steps(findings)
    ]  # fmt: skip


def few_seeds(seeds: int) -> str | None:
    """Say what so few seeds cannot tell, and what to do; None for enough."""
    if seeds >= ENOUGH_SEEDS:
        return None
    if seeds == 1:
        what = "Some arms were trained once: intervals cover new examples, but not new seeds."
    else:
        what = f"Some arms have {seeds} seeds, so intervals over seeds are very wide."
    return f"{what} Set distill.seeds to [0, 1, 2] or more and train again."


def _few_seeds(findings: Findings) -> list[Sentence]:
    text = few_seeds(findings.seeds)
    return [Sentence("Too few seeds.", text)] if text else []


def list_words(names: list[str]) -> str:
    """Join words: ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def not_done(findings: Findings) -> dict[str, dict[str, float]]:
    """Find the arms that may gain from more steps: arm → task → rise at the end, a share of 1."""
    rises: dict[str, dict[str, float]] = {}
    for record in findings.records:
        if rows := record.metrics["rows"].get("tune"):
            found = still_rising(record.curves, f"tune_{record.metrics['metric']}", rows)
            for arm, rise in found.items():
                rises.setdefault(arm, {})[record.name] = rise
    return {arm: rises[arm] for arm in findings.arms if arm in rises}


def _not_done(findings: Findings) -> list[Sentence]:
    rises = not_done(findings)
    if not rises:
        return []
    told = {
        arm: ", ".join(f"{task} {decimal(100 * rise, '+')}" for task, rise in by_task.items())
        for arm, by_task in rises.items()
    }
    arms = ", ".join(f"`{arm}` ({on_tasks})" for arm, on_tasks in told.items())
    text = (
        "These arms score best on tune in the last tenth of their steps, in points over all that came "
        f"before: {arms}. More steps may help them: raise distill.steps."
    )
    if findings.baseline in rises:
        text += f" A gain over `{findings.baseline}` may then come from more steps, not from the teacher."
    return [Sentence("Not done.", text)]


def _unequal_steps(findings: Findings) -> list[Sentence]:
    """Name compared arms that took different numbers of steps; a probe, which takes none, is left out."""
    pairs = [(c.arm, c.over) for c in (findings.lift, *findings.comparisons) if c]
    if findings.upper and findings.baseline:
        pairs.append((findings.upper, findings.baseline))
    told = []
    for arm, over in dict.fromkeys(pairs):
        for task in findings.metrics:
            one, other = steps_per_student(task, arm), steps_per_student(task, over)
            if one and other and one != other:
                told.append(f"`{arm}` {one} and `{over}` {other} on {task['task']}")
    if not told:
        return []
    text = f"These compared arms took different numbers of optimizer steps: {'; '.join(told)}."
    return [Sentence("Unequal steps.", f"{text} A gain may come from steps, not from the teacher.")]


def _worth_distilling(findings: Findings) -> list[Sentence]:
    """Compare each teacher with what frozen encoders give to a linear probe."""
    above, below = [], []
    for task in findings.metrics:
        teacher = _teacher_score(task)
        probes = {
            f"the linear probe of the {whose}": score
            for whose, score in (
                ("students' backbone", _control_score(task, findings.control)),
                ("model that the teacher started from", base_probe_score(task, task["metric"])),
            )
            if score is not None
        }
        if findings.baseline in task["arms"] and probes:
            score = task["arms"][findings.baseline]["validation"][task["metric"]]["mean"]
            probes[f"the baseline `{findings.baseline}`"] = score
        if teacher is None or not probes:
            continue
        better = [f"{probe} ({percent(score)})" for probe, score in probes.items() if score >= teacher]
        if better:
            below.append(
                f"Nothing on {task['task']}: the teacher ({percent(teacher)}) is not better than "
                f"{list_words(better)}. Take a larger teacher, or train it longer (train_teacher)."
            )
        else:
            above.append(task["task"])
    if above:
        below.insert(0, f"The teacher is above the linear probes of frozen encoders on {list_words(above)}.")
    return [Sentence("Is there anything to distil?", " ".join(below))] if below else []


def _teacher_score(task: Mapping[str, Any]) -> float | None:
    teacher, metric = task["teacher"], task["metric"]
    return teacher["all_rows"].get(metric, teacher["cached"].get(metric))


def _control_score(task: Mapping[str, Any], control: str | None) -> float | None:
    arm = task["arms"].get(control, {})
    return arm["validation"][task["metric"]]["mean"] if arm.get("method") == "head" else None
