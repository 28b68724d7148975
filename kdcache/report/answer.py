"""Findings → the answer in a few sentences; arms stand between backticks."""

from collections.abc import Sequence
from dataclasses import dataclass

from kdcache.report.comparisons import OVER_CE, RELATION, Comparison
from kdcache.report.findings import WANTED, Findings, Plan
from kdcache.report.roles import PROMPTLESS, Roles
from kdcache.stats.estimates import Estimate
from kdcache.stats.verdicts import GapShare

RISK = 0.05


@dataclass(frozen=True)
class Sentence:
    """One thing that is said.

    Args:
        topic: in a word or two.
        text: whole sentences.
    """

    topic: str
    text: str


def answer(findings: Findings) -> list[Sentence]:
    """Say what was found, what was not, and what could not be asked."""
    effects = {c.question: Sentence(c.question, sentence(c)) for c in findings.comparisons}
    first = [effects.pop(OVER_CE)] if OVER_CE in effects else _unknown(findings.roles)
    second = [effects.pop(RELATION)] if RELATION in effects else _no_relation(findings.roles)
    return [
        *first, _gap(findings), *second, *effects.values(), _teacher(findings), *_failures(findings),
        *_still_rising(findings), *_planning(findings.plan), *_cautions(findings),
    ]  # fmt: skip


def sentence(found: Comparison) -> str:
    """What a comparison says, and how far it was planned."""
    said = verdict(found.mean)
    if found.holm is not None and found.mean.p < RISK <= found.holm:
        said = f"{found.mean} points, alone distinguishable from 0, among the planned comparisons not"
    text = f"`{found.arm}` over `{found.over}`: {said}, {_over(list(found.by_task))}."
    if found.with_gap:
        text += f" On the tasks with a gap to close: {verdict(found.with_gap)}."
    if found.place == "secondary":
        return f"{text} After Holm, p = {found.holm:.2g}."
    return text + (" The primary comparison." if found.place == "primary" else " Not planned, not corrected.")


def _unknown(roles: Roles) -> list[Sentence]:
    if roles.ce is None:
        return [Sentence(OVER_CE, "Not known: no arm learns a prompt from the labels alone (`ce: {}`).")]
    return [Sentence(OVER_CE, "Not known: no arm learns a prompt from the teacher.")]


def _no_relation(roles: Roles) -> list[Sentence]:
    if roles.distilled is None:
        return []
    lacking = "`inter_class` alone" if roles.relation else "both `inter_class` and `inter_instance`"
    return [Sentence(RELATION, f"Not asked: no arm has {lacking}.")]


def verdict(estimate: Estimate) -> str:
    """An effect with its interval, and whether that leaves out 0.

    >>> verdict(Estimate(1.0, 0.2, 0.05, df_seeds=4, df_groups=299, seeds=5, groups=300))
    '+1.0 [-0.3, 2.3] points, not distinguishable from 0'
    >>> verdict(Estimate(-1.0, 0.0, 0.05, df_seeds=4, df_groups=299, seeds=5, groups=300))
    '-1.0 [-1.4, -0.6] points, worse'
    """
    holds = estimate.low <= 0 <= estimate.high
    what = "not distinguishable from 0" if holds else "better" if estimate.points > 0 else "worse"
    return f"{estimate} points, {what}"


def _over(tasks: Sequence[str]) -> str:
    return f"mean over {len(tasks)} tasks" if len(tasks) > 1 else f"on {tasks[0]}"


def _gap(findings: Findings) -> Sentence:
    roles = findings.roles
    if roles.full is None or roles.ce is None or roles.head is None:
        lacking = {"full": "{method: full, lr: 1e-4}", "ce": "{}", "head": "{method: head}"}
        needed = [f"`{name}: {lacking[name]}`" for name in lacking if getattr(roles, name) is None]
        return Sentence(
            "Gap", f"How much closes is not known: that takes {' and '.join(needed)} among the arms."
        )
    if findings.gap_tasks is None:
        return Sentence(
            "Gap", f"How much closes is not known: `{roles.full}` and `{roles.head}` share no student's seed."
        )
    if not findings.gap_tasks:
        return Sentence(
            "Gap", f"There is none to close: on no task does `{roles.full}` beat `{roles.head}` by a point."
        )
    if roles.distilled is None:
        return Sentence("Gap", "How much closes is not known: no distilled arm beside it.")
    share = findings.shares.get(roles.distilled)
    text = f"What `{roles.distilled}` closes is not known: it shares no seed with the others."
    if share:
        text = _closes(share, roles.distilled, roles.ce, roles.full, findings.gap_tasks)
    others = [
        f"`{arm}` {of_arm}" for arm, of_arm in findings.shares.items()
        if arm != roles.distilled and of_arm.low is not None and of_arm.low > 0
    ]  # fmt: skip
    return Sentence("Gap", text + (f" Other arms above 0: {', '.join(others)}." if others else ""))


def _closes(share: GapShare, arm: str, ce: str, full: str, tasks: Sequence[str]) -> str:
    where = f"on the tasks where full tuning beats the head by a point ({', '.join(tasks)})"
    if share.percent is None:
        return f"No share: `{full}` over `{ce}` is {verdict(share.gap)}, {where}."
    text = f"`{arm}` closes {share} of the {share.gap} points between `{ce}` and `{full}`, {where}."
    if share.low is not None and share.high is not None and share.low <= 0 <= share.high:
        text += " The interval holds 0: not distinguishable from closing nothing."
    return text


def _teacher(findings: Findings) -> Sentence:
    if findings.roles.head is None:
        return Sentence(
            "Teacher", "Whether a student reaches it is not asked without `head: {method: head}`."
        )
    by_verdict: dict[str, list[str]] = {}
    for task, of_task in findings.verdicts.items():
        for arm, found in of_task.items():
            by_verdict.setdefault(found.verdict, []).append(f"`{arm}` on {task}")
    unknown = [task for task, of_task in findings.verdicts.items() if not of_task]
    asked = [
        task for task, of_task in findings.verdicts.items()
        if any(found.verdict != "not asked" for found in of_task.values())
    ]  # fmt: skip
    near = [task for task in findings.tasks if task not in (*asked, *unknown)]
    said = []
    if asked:
        reached = ", ".join(by_verdict.get("reaches", [])) or "no student"
        undecided, below = (len(by_verdict.get(name, [])) for name in ("open", "below"))
        said.append(f"Shown to be reached (less than 1 point below, at 5 % risk) by {reached}.")
        fail = "does" if below == 1 else "do"
        said.append(f"Of the other arms, counted on each task, {undecided} may reach it, {below} {fail} not.")
    if near and not asked:
        where = "On no task" if not unknown else f"Not on {', '.join(near)}"
        said.append(f"{where} is it 5 points above the head: reaching it would mean nothing.")
    elif near:
        said.append(f"Not asked, as it is hardly above the head: {', '.join(near)}.")
    if unknown:
        said.append(f"Not known, for want of a head to compare with: {', '.join(unknown)}.")
    return Sentence("Teacher", " ".join(said))


def _failures(findings: Findings) -> list[Sentence]:
    found = []
    head = findings.roles.head
    for record in findings.records:
        if head is not None and head not in record.metrics["arms"]:
            text = f"Whether a prompt arm is above `{head}` on {record.name} is not known"
            found.append(Sentence("Not working", f"{text}: it has no student there."))
    for task, arms in findings.not_working.items():
        arms_of_task = next(record for record in findings.records if record.name == task).metrics["arms"]
        prompts = [f"`{arm}`" for arm in arms if arms_of_task[arm]["method"] not in PROMPTLESS]
        others = [f"`{arm}`" for arm in arms if arms_of_task[arm]["method"] in PROMPTLESS]
        if prompts:
            found.append(Sentence("Not working", f"At or below the head on {task}: {', '.join(prompts)}."))
        if others:
            found.append(Sentence("Below the head", f"Without a prompt, on {task}: {', '.join(others)}."))
    for record in findings.records:
        for student in record.metrics.get("diverged", ()):
            who = f"`{student['arm']}`, seed {student['seed']}, on {record.name}"
            found.append(Sentence("Diverged", f"{who} at step {student['diverged']['step']}; left out."))
    return found


def _still_rising(findings: Findings) -> list[Sentence]:
    """Arms whose mean score on tune is highest after their last epoch: perhaps not done learning."""
    rises: dict[str, list[str]] = {}
    for record in findings.records:
        score = f"tune_{record.metrics['metric']}"
        if score not in record.curves:
            continue
        for arm, curve in record.curves.sort_values("epoch").groupby("arm", sort=False)[score]:
            if len(curve) > 2 and curve.iloc[-1] > (before := curve.iloc[:-1].max()):
                rises.setdefault(str(arm), []).append(f"{record.name} +{100 * (curve.iloc[-1] - before):.1f}")
    if not rises:
        return []
    arms = ", ".join(f"`{arm}` ({', '.join(rises[arm])})" for arm in findings.arms if arm in rises)
    text = f"Best on tune after the last epoch (points over the best before): {arms}. More may lift them."
    if (ce := findings.roles.ce) in rises:
        text += f" A gain over `{ce}` may then be one of steps, not of the teacher."
    return [Sentence("Still rising", text)]


def _planning(plan: Plan | None) -> list[Sentence]:
    if plan is None:
        return []
    text = f"`{plan.arm}` over `{plan.over}` is known to ± {plan.half:.2g} points with {plan.seeds} seeds. "
    text += (
        f"For ± {WANTED:g} it takes {plan.to_know} seeds per arm." if plan.to_know
        else f"No number of seeds makes it ± {WANTED:g} on these rows."
    )  # fmt: skip
    detects = f"{plan.to_find} seeds detect" if plan.to_find else "No number detects"
    text += f" {detects} a true effect of {WANTED:g} with a power of 80 %."
    return [Sentence("Planning", text)]


def _cautions(findings: Findings) -> list[Sentence]:
    if findings.seeds > 1:
        return []
    return [
        Sentence(
            "One seed",
            "Arms trained once have intervals that know of other examples, not of other seeds.",
        )
    ]
