"""Findings → tables."""

from collections.abc import Mapping
from typing import Any

import yaml

from kdcache.report.findings import Findings
from kdcache.report.summary import Table
from kdcache.stats.estimates import Estimate
from kdcache.stats.runs import ALL_ROWS, CACHED, MEMBER
from kdcache.stats.verdicts import GapShare


def teacher_name(findings: Findings, arm: str) -> str:
    """A teacher as tables call it; arms keep their names."""
    scores = (score for metrics in findings.levels.values() for score in metrics.values())
    all_of_them = "ensemble" if any(MEMBER in of_metric for of_metric in scores) else "teacher"
    names = {
        ALL_ROWS: all_of_them,
        MEMBER: "one teacher",
        CACHED: all_of_them + (" as cached" if findings.teacher == ALL_ROWS else ""),
    }
    return names.get(arm, arm)


def score(level: Estimate) -> str:
    """A level as tables show it; an interval ends where scores do.

    >>> score(Estimate(99.0, 0.0, 1.0, df_seeds=0, df_groups=299, seeds=1, groups=300))
    '99.0 [97.0, 100.0]'
    """
    return f"{level.points:.1f} [{level.low:.1f}, {min(level.high, 100.0):.1f}]"


def level_table(findings: Findings) -> Table:
    """Every arm's scores with intervals; a dagger where it does not work."""
    columns = [(task, metric) for task, metrics in findings.levels.items() for metric in metrics]
    first = {record.name: record.metrics["metric"] for record in findings.records}
    names = dict.fromkeys(arm for task, metric in columns for arm in findings.levels[task][metric])
    majority = {record.name: record.metrics["majority"] for record in findings.records}
    rows = [["majority class", *(f"{100 * majority[task][metric]:.1f}" for task, metric in columns)]]
    for arm in names:
        cells = []
        for task, metric in columns:
            found = findings.levels[task][metric].get(arm)
            below = metric == first[task] and arm in findings.not_working.get(task, ())
            cells.append(score(found) + (" †" if below else "") if found else "—")
        rows.append([teacher_name(findings, arm), *cells])
    header = [f"{task} {metric.replace('_', ' ')}" for task, metric in columns]
    return Table(
        "Percent on validation, 95 % intervals over seeds and examples; † at or below the head: not working",
        ["", *header], rows,
    )  # fmt: skip


def comparison_table(findings: Findings) -> Table:
    """The questions, one line each."""
    rows = [
        [
            f"{c.arm} over {c.over}", *(str(c.by_task[t]) if t in c.by_task else "—" for t in findings.tasks),
            str(c.mean), f"{c.mean.p:.2g}", c.place if c.holm is None else f"{c.holm:.2g}",
        ]
        for c in findings.comparisons
    ]  # fmt: skip
    header = ["", *findings.tasks, "mean", "p", "p after Holm"]
    return Table("Effects in points of the first metric, with 95 % intervals", header, rows)


def gain_table(findings: Findings) -> Table:
    """Every arm over cross-entropy alone, and the share of the gap that it closes."""
    rows = []
    for arm, by_task in findings.gains.items():
        share = findings.shares.get(arm)
        cells = [str(by_task[task]) if task in by_task else "—" for task in findings.tasks]
        rows.append([arm, *cells, str(findings.mean_gains[arm]), _share_cell(share)])
    header = ["", *findings.tasks, "mean", "share of the gap"]
    return Table(f"Points over {findings.roles.ce}, with 95 % intervals", header, rows)


def _share_cell(share: GapShare | None) -> str:
    return "—" if share is None else str(share) if share.percent is not None else "no gap"


def verdict_table(findings: Findings) -> Table:
    """Student − teacher, and what that says."""
    arms = dict.fromkeys(arm for of_task in findings.verdicts.values() for arm in of_task)
    rows = [
        [arm, *(str(of_task[arm]) if arm in of_task else "—" for of_task in findings.verdicts.values())]
        for arm in arms
    ]
    return Table(
        "Points over the teacher, and the one-sided 95 % lower bound; reached above −1",
        ["", *findings.verdicts],
        rows,
    )


def relation_table(findings: Findings) -> Table:
    """How far the students' relation matrices lie from the teacher's."""
    rows = []
    for task, relations in findings.relations.items():
        for model in relations.matrices:
            within, between = relations.contrast(model)
            away = relations.distances.get(model)
            rows.append([
                task, teacher_name(findings, model), f"{within:.1f}", f"{between:.1f}",
                "—" if away is None else f"{away:.1f}",
            ])  # fmt: skip
    header = ["task", "model", "within a class", "between classes", "from the teacher's matrix"]
    return Table(
        "Mean entries of the matrices drawn, and root mean square distance over all rows, in points",
        header, rows, text_columns=2,
    )  # fmt: skip


def fidelity_table(findings: Findings) -> Table:
    """Agreement with what teaches each arm, on validation, percent of rows."""
    rows = []
    for arm in findings.arms:
        cells = [
            record.metrics["arms"].get(arm, {}).get("validation", {}).get("agreement")
            for record in findings.records
        ]
        rows.append([arm, *(f"{100 * cell['mean']:.1f}" if cell else "—" for cell in cells)])
    return Table("Percent of validation rows where student and teacher agree", ["", *findings.tasks], rows)


def arm_table(findings: Findings) -> Table:
    """What each arm is, as the parameters say it."""
    rows = [[arm, _flow(findings.recipes.get(arm) or {})] for arm in findings.arms]
    return Table("Arms", ["arm", "recipe"], rows, text_columns=2)


def _flow(recipe: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(recipe), default_flow_style=True, width=1e9, sort_keys=False)).strip()


def identity_table(findings: Findings, backbone: Mapping[str, str]) -> Table:
    """What the numbers were made from."""
    rows = [
        [record.name, what, value] for record in findings.records for what, value in record.identity.items()
    ]
    rows += [["all tasks", what, value] for what, value in backbone.items()]
    return Table("Identities", ["", "what", "which"], rows, text_columns=3)
