"""The answer in a few sentences; names of arms stand between backticks."""

from collections.abc import Sequence

from kdcache.report.cautions import Sentence, cautions, list_words
from kdcache.report.comparisons import Comparison, has_prompt
from kdcache.report.findings import PRECISION, Findings, SeedPlan
from kdcache.stats.estimates import Estimate, decimal
from kdcache.stats.verdicts import Verdict

ALPHA = 0.05


def answer(findings: Findings) -> list[Sentence]:
    """Say what was found, what was not, and what is not known: cautions first, then the main questions."""
    return [
        *cautions(findings),
        Sentence("Does distillation lift the students over the baseline?", _lift(findings)),
        Sentence("Is the teacher reached?", _teacher(findings)),
        *_gap(findings), *_other_comparisons(findings), *_below_control(findings), *_diverged(findings),
        *_seeds_needed(findings.plan),
    ]  # fmt: skip


def points(estimate: Estimate) -> str:
    """An effect with its interval in a sentence.

    >>> points(Estimate(1.0, 0.2, 0.05, df_seeds=4, df_groups=299, seeds=5, groups=300))
    '+1.0 points (95% CI −0.3 to 2.3)'
    """
    return f"{decimal(estimate.points, '+')} points (95% CI {estimate.range})"


def shown(found: Comparison) -> str:
    """Which difference a comparison shows: ``better``, ``worse`` or ``none``."""
    p = found.mean.p if found.holm is None else found.holm
    if found.mean.low <= 0 <= found.mean.high or p > ALPHA:
        return "none"
    return "better" if found.mean.points > 0 else "worse"


def sentence(found: Comparison) -> str:
    """A comparison with its interval, and how far it was planned.

    >>> mean = Estimate(1.0, 0.2, 0.05, df_seeds=4, df_groups=299, seeds=5, groups=300)
    >>> sentence(Comparison("kl", "ce", {"wic": mean}, mean, "primary"))
    '`kl` over `ce`: +1.0 points (95% CI −0.3 to 2.3) on wic. This is the primary comparison.'
    """
    text = f"`{found.arm}` over `{found.over}`: {points(found.mean)} {_where(list(found.by_task))}."
    if found.place == "primary":
        return f"{text} This is the primary comparison."
    if found.holm is None:
        return f"{text} The comparison was not planned, so it is not corrected."
    return f"{text} After Holm's correction p = {found.holm:.2g}."


def _where(tasks: Sequence[str]) -> str:
    return f"in the mean over {len(tasks)} tasks" if len(tasks) > 1 else f"on {tasks[0]}"


def _count(number: int, singular: str, plural: str) -> str:
    return f"{number} {singular if number == 1 else plural}"


def _lift(findings: Findings) -> str:
    if findings.baseline is None:
        return f"Not known: `{findings.params.baseline}` (report.baseline) is not among the arms."
    if findings.distilled is None:
        return "Not known: no prompt arm learns from the teacher."
    if findings.lift is None:
        return f"Not known: `{findings.distilled}` and `{findings.baseline}` share no seed."
    words = {"better": "Yes.", "worse": "No, it is worse.", "none": "No difference is shown."}
    return f"{words[shown(findings.lift)]} {sentence(findings.lift)}"


def _teacher(findings: Findings) -> str:
    if findings.control is None:
        return (
            f"Not known: `{findings.params.control}` (report.control) is not among the arms. Without one "
            "it is not known either which arms work and whether there is a gap to close."
        )
    arms: dict[str, list[str]] = {}
    for task, of_task in findings.verdicts.items():
        for arm, found in of_task.items():
            arms.setdefault(found.verdict, []).append(f"`{arm}` on {task}")
    asked = [task for task, of_task in findings.verdicts.items() if _is_asked(of_task)]
    near = [task for task, of_task in findings.verdicts.items() if of_task and task not in asked]
    unknown = [task for task, of_task in findings.verdicts.items() if not of_task]
    said = []
    if asked:
        reached = arms.get("reaches", [])
        said.append(f"Yes, by {list_words(reached)}." if reached else "Not shown for any arm.")
        counts = [
            _count(len(arms.get(verdict, [])), *words)
            for verdict, words in {
                "open": ("is open", "are open"), "below": ("stays below", "stay below"),
            }.items()
            if verdict in arms
        ]  # fmt: skip
        if counts:
            said.append(f"Of the other cases, one per arm and task, {list_words(counts)}.")
    if near:
        why = f"the teacher is less than 5 points above `{findings.control}` there"
        said.append(f"Not asked on {list_words(near)}: {why}.")
    if unknown:
        said.append(f"Not known on {list_words(unknown)}: `{findings.control}` has no student there.")
    return " ".join(said)


def _is_asked(verdicts: dict[str, Verdict]) -> bool:
    return any(found.verdict != "not asked" for found in verdicts.values())


def _gap(findings: Findings) -> list[Sentence]:
    """The share of the gap that the distilled arm closes; nothing without the arms that it takes."""
    upper, control, baseline, arm = findings.upper, findings.control, findings.baseline, findings.distilled
    if None in (upper, control, baseline, arm):
        return []
    topic = f"How much of the gap between `{baseline}` and `{upper}` closes?"
    if findings.gap_tasks is None:
        return [Sentence(topic, f"Not known: `{upper}` and `{control}` share no seed.")]
    if not findings.gap_tasks:
        return [Sentence(topic, f"There is none: `{upper}` is nowhere a point above `{control}`.")]
    share = findings.shares.get(str(arm))
    where = f"on {list_words(findings.gap_tasks)}"
    if share is None:
        text = f"Not known: `{arm}` shares no seed with `{baseline}` and `{upper}`."
    elif share.percent is None:
        text = f"There is no share to give: `{upper}` over `{baseline}` is {points(share.gap)} {where}."
    else:
        text = f"`{arm}` closes {share} of the {decimal(share.gap.points)} points {where}."
        if share.low is not None and share.high is not None and share.low <= 0 <= share.high:
            text += " The interval includes 0, so it may close nothing."
    others = [
        f"`{name}`"
        for name, of in findings.shares.items()
        if name != arm and of.low is not None and of.low > 0
    ]
    return [
        Sentence(topic, text + (f" More than 0 is also shown for {list_words(others)}." if others else ""))
    ]


def _other_comparisons(findings: Findings) -> list[Sentence]:
    """The primary comparison if it is another than the lift, and which others show a difference."""
    others = [c for c in findings.comparisons if c != findings.lift]
    said = [Sentence("Primary comparison.", sentence(c)) for c in others if c.place == "primary"]
    words = {"better": "Better", "worse": "Worse", "none": "No difference shown"}
    texts = []
    for found, word in words.items():
        pairs = [f"`{c.arm}` over `{c.over}`" for c in others if c.place == "secondary" and shown(c) == found]
        texts += [f"{word}: {', '.join(pairs)}."] if pairs else []
    if texts:
        said.append(Sentence("Other comparisons, after Holm's correction.", " ".join(texts)))
    if findings.unpaired:
        pairs = [f"`{arm}` and `{over}`" for arm, over in findings.unpaired]
        said.append(Sentence("Not compared.", f"These arms share no seed: {', '.join(pairs)}."))
    return said


def _below_control(findings: Findings) -> list[Sentence]:
    said = []
    for task, arms in findings.not_working.items():
        prompts = [f"`{arm}`" for arm in arms if has_prompt(findings.arms[arm])]
        others = [f"`{arm}`" for arm in arms if not has_prompt(findings.arms[arm])]
        if prompts:
            text = f"These prompt arms are not above `{findings.control}` on {task}: {', '.join(prompts)}."
            said.append(Sentence("Not working.", text))
        if others:
            text = f"These arms have no prompt and are not above it on {task}: {', '.join(others)}."
            said.append(Sentence(f"Not above `{findings.control}`.", text))
    return said


def _diverged(findings: Findings) -> list[Sentence]:
    said = []
    for record in findings.records:
        for student in record.metrics["diverged"]:
            step, last = student["diverged"]["step"], student["diverged"]["last_finite_loss"]
            loss = "none" if last is None else f"{last:.4g}"
            who = f"`{student['arm']}`, seed {student['seed']}, on {record.name}"
            said.append(f"{who} at step {step} (last finite loss {loss}).")
    return [Sentence("Diverged and left out.", " ".join(said))] if said else []


def _seeds_needed(plan: SeedPlan | None) -> list[Sentence]:
    if plan is None:
        return []
    text = f"`{plan.arm}` over `{plan.over}` is known to ±{plan.half:.2g} points with {plan.seeds} seeds."
    know = f"{plan.to_know} seeds per arm give" if plan.to_know else "No number of seeds gives"
    find = f"{plan.to_find} seeds per arm find" if plan.to_find else "No number of seeds finds"
    text += (
        f" {know} ±{PRECISION:g} points on these rows. {find} a true effect of {PRECISION:g} with 80% power."
    )
    return [Sentence("Seeds needed.", text)]
