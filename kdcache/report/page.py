"""The page: its sections, and how they are written as HTML, Markdown and JSON."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcache.project import MEMBER, TEACHERS
from kdcache.report import figures, tables
from kdcache.report.answer import answer
from kdcache.report.cautions import Sentence, not_done
from kdcache.report.cost import FORMULA, cost_table, saving_table, savings
from kdcache.report.figures import GREY, SIGNS, Interval, Style
from kdcache.report.findings import Findings
from kdcache.report.tables import Table
from kdcache.stats.estimates import Estimate

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        name: of its anchor.
        title: above it.
        reading: how to read what it shows.
        sentences: what it says.
        figures: inline SVG elements.
        legend: name → style, as the figures use it.
        tables: below the figures.
        commands: to copy.
    """

    name: str
    title: str
    reading: str = ""
    sentences: list[Sentence] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    legend: dict[str, Style] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


def build_sections(
    findings: Findings, commands: Sequence[str], identities: Mapping[str, str]
) -> list[Section]:
    """Put together what the page says and shows.

    Args:
        findings: of all tasks.
        commands: that reproduce it.
        identities: what all tasks share: name → digest or version.
    """
    styles = figures.arm_styles(list(findings.arms), findings.control)
    diagnostics, saved = tables.diagnostic_table(findings.metrics), savings(findings.metrics)
    sections = [
        Section("answer", "The answer", _scope(findings), sentences=answer(findings)),
        _scores(findings),
        Section("diagnostics", "Diagnostic splits", tables=[diagnostics] if diagnostics else []),
        _gains(findings, styles),
        Section(
            "comparisons", "Comparisons",
            "If an interval includes 0, no difference is shown. The primary comparison is not corrected. "
            "The p-values of the others are corrected together by Holm's method.",
            tables=[tables.comparison_table(findings)] if findings.comparisons else [],
        ),
        Section(
            "teacher", "Reaching the teacher",
            "An arm reaches the teacher if the lower bound, in brackets, is less than 1 point below it. This "
            "is asked where the teacher is at least 5 points above the control. Each cell has a risk of 5%."
            + " Each student is compared with the member of the ensemble that has its seed." * _own(findings),
            tables=[tables.verdict_table(findings)] if any(findings.verdicts.values()) else [],
        ),
        _curves(findings, styles),
        _gradient_shares(findings),
        Section(
            "fidelity", "Fidelity",
            "If an arm agrees more with its teacher and does not score higher, fidelity did not help.",
            tables=[tables.fidelity_table(findings)],
        ),
        Section(
            "cost", "Cost", f"{FORMULA} `kdcache report --timings` shows seconds.",
            tables=[cost_table(findings.metrics), *([saving_table(saved)] if saved else [])],
        ),
        Section(
            "reproduce", "How to reproduce it", commands=list(commands),
            tables=[tables.arm_table(findings), tables.identity_table(findings, identities)],
        ),
    ]  # fmt: skip
    return [s for s in sections if s.sentences or s.figures or s.tables or s.commands]


def _own(findings: Findings) -> bool:
    """Whether each student has a teacher of its own."""
    return findings.teacher == MEMBER


def _scope(findings: Findings) -> str:
    drawn, fixed = "students", "The teacher, the training rows and the backbone are"
    if _own(findings):
        drawn, fixed = "students and their teachers", "The training rows and the backbone are"
        if any(arm["targets"] not in (None, "member") for arm in findings.arms.values()):
            fixed = "The training rows, the backbone and an ensemble that teaches as a whole are"
    return (
        "Numbers are points of each task's first metric on validation. The 95% confidence intervals hold for "
        f"new seeds of {drawn} and for new evaluation examples. {fixed} taken as they are."
    )


def score_panels(findings: Findings) -> dict[str, list[Interval]]:
    """The scores of arms and teachers with intervals: the mean over tasks, then each task."""
    styles = figures.arm_styles(list(findings.arms), findings.control)
    panels = dict(findings.levels)
    if len(panels) > 1:
        panels = {f"mean of {len(panels)} tasks": findings.mean_levels} | panels
    names = [*findings.arms, *(name for name in TEACHERS if name == findings.teacher)]
    return {
        title: [
            _interval(arm, of_title[arm], styles.get(arm, Style(GREY, "D")), most=100.0)
            for arm in names
            if arm in of_title
        ]
        for title, of_title in panels.items()
    }


def _interval(label: str, found: Estimate, style: Style, most: float = float("inf")) -> Interval:
    return Interval(label, found.points, found.low, min(found.high, most), style)


def _scores(findings: Findings) -> Section:
    charts = [
        figures.intervals(f"score-{k}", title, rows, "percent")
        for k, (title, rows) in enumerate(score_panels(findings).items())
    ]
    reading = "Each line is a 95% confidence interval. A prompt is of use if its arm is above the control."
    superglue = tables.superglue_sentence(findings.metrics)
    return Section(
        "scores", "Scores", f"{reading} {superglue}" if superglue else reading, figures=charts,
        tables=[tables.score_table(findings.metrics, findings.control)],
    )  # fmt: skip


def _gains(findings: Findings, styles: Mapping[str, Style]) -> Section:
    panels = {"mean over tasks": findings.mean_gains} if len(findings.records) > 1 else {}
    panels |= {
        task: {arm: by_task[task] for arm, by_task in findings.gains.items() if task in by_task}
        for task in findings.tasks
    }
    charts = [
        figures.intervals(
            f"gain-{k}", title, [_interval(arm, found, styles[arm]) for arm, found in of.items()],
            f"points over {findings.baseline}", line=0.0, sign="+",
        )
        for k, (title, of) in enumerate(panels.items()) if of
    ]  # fmt: skip
    reading = "Effects are paired by seed and example. If a line crosses 0, no difference is shown."
    if findings.shares:
        reading += (
            f" The share of the gap is 0% at `{findings.baseline}` and 100% at `{findings.upper}`: a ratio "
            f"of means over {', '.join(findings.gap_tasks or ())}."
        )
    return Section(
        "gains", f"Gains over {findings.baseline}", reading, figures=charts,
        tables=[tables.gain_table(findings)] if charts else [],
    )  # fmt: skip


def _curves(findings: Findings, styles: Mapping[str, Style]) -> Section:
    drawn = [
        figures.learning_curves(f"curve-{k}", record.name, record.metrics["metric"], record.curves, styles)
        for k, record in enumerate(findings.records)
    ]
    reading = (
        "Means over seeds on the split tune. At step 0 the head is the linear probe and the prompt is "
        "where it starts."
    )
    charts = [figure for figure in drawn if figure]
    return Section("curves", "Learning curves", reading, figures=charts, legend=dict(styles))


def _gradient_shares(findings: Findings) -> Section:
    by_task = {record.name: mean_shares(record.curves) for record in findings.records}
    terms = dict.fromkeys(term for of in by_task.values() for shares in of.values() for term in shares)
    colours = {term: figures.COLOURS[k % len(figures.COLOURS)] for k, term in enumerate(terms)}
    charts = [
        figures.gradient_shares(f"shares-{k}", task, of_task, colours)
        for k, (task, of_task) in enumerate(by_task.items()) if of_task
    ]  # fmt: skip
    reading = (
        "Each loss term's share of the gradient on the prompts, on one fixed batch, mean over the steps "
        "looked at. A term under 1% has no effect."
    )
    legend = {term: Style(colour, "s") for term, colour in colours.items()}
    return Section("shares", "Shares of the gradient", reading, figures=charts, legend=legend)


def mean_shares(curves: "pd.DataFrame") -> dict[str, dict[str, float]]:
    """Return arm → term → mean share of the gradient after step 0; only arms of several terms."""
    names = [column for column in curves if column.startswith("share_")]
    found = {}
    for arm, rows in curves.groupby("arm", sort=False):
        shares = rows.loc[rows["step"] > 0, names].mean().dropna()
        if len(shares) > 1:
            found[str(arm)] = {name.removeprefix("share_"): float(share) for name, share in shares.items()}
    return found


def page_html(sections: Sequence[Section], title: str) -> str:
    """Write the page as one file that needs nothing else."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["code"] = code_spans
    template = environment.get_template("page.html.jinja")
    return template.render(sections=sections, title=title, panel=figures.WIDTH, signs=SIGNS)


def code_spans(text: str) -> "Markup":
    """Escape a text, and set what stands between backticks as code.

    >>> code_spans("`<b>` over `ce`")
    Markup('<code>&lt;b&gt;</code> over <code>ce</code>')
    """
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def page_markdown(sections: Sequence[Section]) -> str:
    """Write the page in Markdown, without its inline figures."""
    lines = ["# Results"]
    for section in sections:
        if not (section.sentences or section.tables or section.commands):
            continue
        lines += ["", f"## {section.title}"]
        lines += ["", *(f"- **{s.topic}** {s.text}" for s in section.sentences)] if section.sentences else []
        lines += ["", section.reading] if section.reading else []
        lines += ["", "![Scores with 95% intervals](results.svg)"] if section.name == "scores" else []
        lines += ["", "```sh", *section.commands, "```"] if section.commands else []
        for table in section.tables:
            lines += ["", *table.markdown(), "", f"{table.caption}."]
    return "\n".join(lines) + "\n"


def page_json(findings: Findings) -> dict[str, Any]:
    """Return every number of the page as plain JSON types; points and percent, 95% intervals."""
    plan = findings.plan
    return _plain({
        "answer": answer(findings),
        "roles": {
            name: getattr(findings, name) for name in ("control", "baseline", "upper", "distilled", "teacher")
        },
        **{
            name: getattr(findings, name)
            for name in ("levels", "mean_levels", "gains", "mean_gains", "gap_tasks", "shares", "comparisons")
        },
        "not_done": not_done(findings),
        "verdicts": findings.verdicts,
        "not_working": findings.not_working,
        "diverged": {record.name: record.metrics["diverged"] for record in findings.records},
        "plan": plan,
        "savings": savings(findings.metrics),
        "identities": {record.name: record.identity for record in findings.records},
    })  # fmt: skip


def _plain(value: Any) -> Any:
    """Turn dataclasses into dicts, and round numbers to digits that all machines share."""
    if isinstance(value, Estimate):
        keys = ("points", "low", "high", "p", "seeds", "groups")
        return {key: _plain(getattr(value, key)) for key in keys}
    if isinstance(value, float):
        return round(value, 6) + 0.0  # no −0
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return _plain(vars(value)) if hasattr(value, "__dict__") else value
