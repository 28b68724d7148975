"""Findings → the sections of the page: what each shows, and how that is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from kdcache.report import charts, tables
from kdcache.report.answer import Sentence, answer
from kdcache.report.charts import Style
from kdcache.report.cost import FORMULA, saving_table, savings
from kdcache.report.figures import GREY
from kdcache.report.findings import Findings
from kdcache.report.roles import learns_from_member, learns_from_teacher
from kdcache.report.summary import Table, cost_table
from kdcache.stats.estimates import Estimate
from kdcache.stats.runs import MEMBER, TEACHERS

FAR = (-150.0, 250.0)  # where intervals of shares are cut off

ANSWER = (
    "Points of each task's first metric on validation; in brackets 95 % intervals, which hold for new "
    "seeds of {drawn} and new evaluation examples; {taken} are taken as they are."
)
HEADLINE = (
    "Further right is better. A point is a mean over seeds, its line the 95 % interval. Prompts are of use "
    "where they stand right of the head, distillation where it stands right of cross-entropy alone."
)
SCORES = "A dagger marks an arm whose mean is not above the head's: it does not work there."
COMPARISONS = (
    "An interval that holds 0 leaves open whether there is a difference. The primary comparison stands for "
    "itself; the p-values of the other planned ones are corrected together."
)
TEACHER = (
    "A student reaches {teacher} where even the lower bound is less than a point below, at 5 % risk for "
    "each cell; it is asked where the teacher beats the head by 5 points."
)
OF_ITS_SEED = "a single teacher, of the ensemble the one that has its seed,"
AGAIN = "Commands from the project's root, and what the numbers were made from."


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        name: of its anchor.
        title: in words.
        reading: how to read what it shows.
        sentences: what it says.
        figures: inline SVG elements.
        legend: arm → the key that its figures use.
        tables: below the figures.
        commands: to copy.
    """

    name: str
    title: str
    reading: str = ""
    sentences: list[Sentence] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    legend: dict[str, str] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


def build_sections(
    findings: Findings, commands: Sequence[str], identities: Mapping[str, str]
) -> list[Section]:
    """Put together what is said and shown.

    Args:
        findings: of all tasks.
        commands: that make it anew.
        identities: of what all tasks share: name → digest or version.
    """
    styles = charts.arm_styles(findings.arms, findings.roles.head)
    styles |= dict.fromkeys(TEACHERS, Style(charts.INK, "D", "-"))
    sections = [
        Section("answer", "The answer", _scope(findings), sentences=answer(findings)),
        _headline(findings, styles),
        Section("scores", "Arms and tasks", SCORES, tables=[tables.level_table(findings)]),
        _gains(findings, styles),
        _gap(findings, styles),
        Section(
            "comparisons", "The comparisons", COMPARISONS,
            tables=[tables.comparison_table(findings)] if findings.comparisons else [],
        ),
        Section(
            "teacher", "Reaching the teacher",
            TEACHER.format(teacher=OF_ITS_SEED if findings.teacher == MEMBER else "its teacher"),
            tables=[tables.verdict_table(findings)] if any(findings.verdicts.values()) else [],
        ),
        _curves(findings, styles),
        _shares(findings),
        _fidelity(findings, styles),
        _relations(findings),
        Section(
            "cost", "Cost, in counts", f"{FORMULA} `kdcache report --timings` has them.",
            tables=[cost_table(findings.metrics), saving_table(savings(findings.metrics, findings.recipes))],
        ),
        Section(
            "again", "The same again", AGAIN, commands=list(commands),
            tables=[tables.arm_table(findings), tables.identity_table(findings, identities)],
        ),
    ]  # fmt: skip
    return [s for s in sections if s.sentences or s.figures or s.tables or s.commands]


def _scope(findings: Findings) -> str:
    """What the intervals hold for."""
    if findings.teacher != MEMBER:
        return ANSWER.format(drawn="the students", taken="training rows, teacher and backbone")
    taught = {arm for arm in findings.arms if learns_from_teacher(findings.recipes.get(arm))}
    by_all = [arm for arm in taught if not learns_from_member(findings.recipes.get(arm))]
    return ANSWER.format(
        drawn="the students and of their teachers, one for each,",
        taken="training rows and backbone" + (", and the ensemble where it teaches," if by_all else ""),
    )


def _headline(findings: Findings, styles: Mapping[str, Style]) -> Section:
    figures = [
        charts.intervals(f"headline-{k}", title, rows, of_rows, "percent")
        for k, (title, rows, of_rows) in enumerate(headline(findings, styles))
    ]
    return Section("headline", "Head, prompts, full tuning, teacher", HEADLINE, figures=figures)


def headline(
    findings: Findings, styles: Mapping[str, Style]
) -> list[tuple[str, list[charts.Row], list[Style]]]:
    """Title, rows and styles of each panel: the mean over tasks, then each task."""
    roles = findings.roles
    planned = [arm for c in findings.comparisons if c.place != "unplanned" for arm in (c.over, c.arm)]
    wanted = (roles.head, roles.ce, roles.kl, roles.distilled, *planned, roles.full, findings.teacher)
    names = list(dict.fromkeys(arm for arm in wanted if arm))
    levels = {
        record.name: findings.levels[record.name][record.metrics["metric"]] for record in findings.records
    }
    if len(levels) > 1:
        levels = {f"mean over {len(levels)} tasks": findings.mean_levels} | levels
    panels = []
    for title, of_title in levels.items():
        there = [arm for arm in names if arm in of_title]
        rows = [_row(tables.teacher_name(findings, arm), of_title[arm], most=100.0) for arm in there]
        panels.append((title, rows, [styles.get(arm, Style(GREY, "o", "-")) for arm in there]))
    return panels


def _row(label: str, found: Estimate, most: float = float("inf")) -> charts.Row:
    return label, found.points, found.low, min(found.high, most)


def _gains(findings: Findings, styles: Mapping[str, Style]) -> Section:
    panels = {"mean over tasks": findings.mean_gains} if len(findings.records) > 1 else {}
    panels |= {
        task: {arm: by_task[task] for arm, by_task in findings.gains.items() if task in by_task}
        for task in findings.tasks
    }
    figures = [
        charts.intervals(
            f"gain-{k}", title, [_row(arm, found) for arm, found in of_title.items()],
            [styles[arm] for arm in of_title], f"points over {findings.roles.ce}", line=0.0, signed=True,
        )
        for k, (title, of_title) in enumerate(panels.items()) if of_title
    ]  # fmt: skip
    reading = (
        f"In points of each task's first metric over {findings.roles.ce}, paired by seed and example. Right "
        "of the dotted line is better; a line that crosses it leaves open which is."
    )
    return Section(
        "gains", "Gain over cross-entropy alone", reading, figures=figures,
        tables=[tables.gain_table(findings)] if figures else [],
    )  # fmt: skip


def _gap(findings: Findings, styles: Mapping[str, Style]) -> Section:
    there = [
        (arm, share.percent, share.low, share.high) for arm, share in findings.shares.items()
        if share.percent is not None and share.low is not None and share.high is not None
    ]  # fmt: skip
    figures = []
    if there:
        what = f"percent of the gap from {findings.roles.ce} to {findings.roles.full}"
        of_rows = [styles[arm] for arm, *_ in there]
        figures = [charts.intervals("gap", "share of the gap", there, of_rows, what, line=0.0, limits=FAR)]
    tasks = ", ".join(findings.gap_tasks or ())
    reading = (
        f"0: no better than cross-entropy alone; 100: as good as full tuning. A ratio of means over {tasks}."
    )
    return Section("gap", "Share of the gap closed", reading, figures=figures)


def _curves(findings: Findings, styles: Mapping[str, Style]) -> Section:
    drawn = [
        charts.curves(f"curve-{k}", record.name, record.metrics["metric"], record.curves, styles)
        for k, record in enumerate(findings.records)
    ]
    reading = (
        "Means over seeds on the split tune. Epoch 0 is the end of the head start, before any prompt moved."
    )
    figures = [figure for figure in drawn if figure]
    return Section(
        "curves", "Learning curves", reading, figures=figures, legend=_legend("curve", findings, styles)
    )


def _legend(name: str, findings: Findings, styles: Mapping[str, Style]) -> dict[str, str]:
    return {arm: charts.key(f"{name}-key-{k}", styles[arm]) for k, arm in enumerate(findings.arms)}


def _shares(findings: Findings) -> Section:
    by_task = {record.name: mean_shares(record.curves) for record in findings.records}
    terms = list(dict.fromkeys(t for of in by_task.values() for shares in of.values() for t in shares))
    figures = [
        charts.gradient_shares(f"shares-{k}", task, of_task, terms)
        for k, (task, of_task) in enumerate(by_task.items()) if of_task
    ]  # fmt: skip
    reading = (
        "Each term's share of the gradient on the prompts, on one fixed batch, mean over epochs: a term "
        "under 1 % does nothing. shares.svg has it by epoch."
    )
    keys = {term: charts.key(f"shares-key-{k}", charts.term_style(k)) for k, term in enumerate(terms)}
    return Section("shares", "What pulls at the prompts", reading, figures=figures, legend=keys)


def mean_shares(curves: pd.DataFrame) -> dict[str, dict[str, float]]:
    """arm → term → share of the gradient over the epochs with prompts; arms of several terms only."""
    names = [column for column in curves if column.startswith("share_")]
    found = {}
    for arm, rows in curves.groupby("arm", sort=False):
        tuned = rows[rows["epoch"] > 0] if (rows["epoch"] > 0).any() else rows
        shares = tuned[names].mean().dropna()
        if len(shares) > 1:
            found[str(arm)] = {name.removeprefix("share_"): float(share) for name, share in shares.items()}
    return found


def _fidelity(findings: Findings, styles: Mapping[str, Style]) -> Section:
    figures = []
    for k, record in enumerate(findings.records):
        arms = {
            arm: of["validation"]
            for arm, of in record.metrics["arms"].items()
            if "agreement" in of["validation"]
        }
        if arms:
            figures.append(
                charts.fidelity(f"fidelity-{k}", record.name, record.metrics["metric"], arms, styles)
            )
    reading = (
        "Further right follows more closely what teaches an arm (the cached logits, where nothing does), "
        "further up is better. Right and not up: fidelity grew, accuracy did not. Small points are seeds."
    )
    if not figures:
        return Section("fidelity", "")
    return Section(
        "fidelity", "Accuracy against fidelity", reading, figures=figures,
        legend=_legend("fidelity", findings, styles), tables=[tables.fidelity_table(findings)],
    )  # fmt: skip


def _relations(findings: Findings) -> Section:
    figures, parts = [], []
    for k, (task, found) in enumerate(findings.relations.items()):
        titles = {model: tables.teacher_name(findings, model) for model in found.matrices}
        figures += charts.matrices(f"relations-{k}", task, found, titles)
        parts.append(f"{len(found.classes)} of {found.of_classes} classes of {task}")
    reading = (
        "Validation rows against validation rows, by class and then by how sure the teacher is of it: bright "
        "where a model would put two rows into one class. What the inter-instance loss wants is a student's "
        "matrix like the teacher's; how far away it is, in points, stands above each. One scale of colours "
        f"per task; students of the first seed; {', '.join(parts)}."
    )
    if not figures:
        return Section("relations", "")
    table = tables.relation_table(findings)
    return Section("relations", "Relations between instances", reading, figures=figures, tables=[table])
