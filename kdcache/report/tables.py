"""Tables of the report: scores, gains, comparisons, verdicts, fidelity, arms and identities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdcache.data.superglue import SUPERGLUE
from kdcache.data.superglue.score import superglue_score
from kdcache.report.findings import Findings, not_working

NONE = "—"


@dataclass(frozen=True)
class Table:
    """Cells as they are shown.

    Args:
        caption: what the table holds.
        header: one cell per column.
        rows: one cell per column.
        text_columns: number of columns on the left that hold text, not numbers.
    """

    caption: str
    header: list[str]
    rows: list[list[str]]
    text_columns: int = 1

    def markdown(self) -> list[str]:
        """Return the lines of a Markdown table, without the caption.

        >>> Table("", ["", "wic"], [["a|b", "50.0"]]).markdown()
        ['|  | wic |', '| --- | ---: |', '| a\\\\|b | 50.0 |']
        """
        rule = ["---"] * self.text_columns + ["---:"] * (len(self.header) - self.text_columns)
        cells = [[cell.replace("|", "\\|") for cell in row] for row in [self.header, *self.rows]]
        return ["| " + " | ".join(row) + " |" for row in [cells[0], rule, *cells[1:]]]


def score_table(tasks: Sequence[Mapping[str, Any]], control: str | None) -> Table:
    """Tabulate the scores of arms, teachers and the majority class, over seeds.

    Args:
        tasks: the metrics of each task, as distill wrote them.
        control: the control; arms not above it get a dagger.
    """
    columns = [(task, metric) for task in tasks for metric in task["majority"] if metric != "rows"]
    below = {task["task"]: not_working(task, control) for task in tasks}
    rows = [["majority class", *(percent(task["majority"][metric]) for task, metric in columns)]]
    for arm in arm_names(tasks):
        cells = []
        for task, metric in columns:
            mark = " †" if metric == task["metric"] and arm in below[task["task"]] else ""
            cells.append(_over_seeds(task["arms"].get(arm, {}).get("validation", {}).get(metric)) + mark)
        rows.append([arm, *cells])
    ensemble = any("members" in task["teacher"] for task in tasks)
    crossed = any(task["teacher"]["folds"] for task in tasks)
    name = "ensemble" if ensemble else "teacher"
    rows.append([name, *(percent(task["teacher"]["all_rows"][metric]) for task, metric in columns)])
    if crossed:
        cached = (percent(task["teacher"]["cached"][metric]) for task, metric in columns)
        rows.append([f"{name} as cached (mean of folds)", *cached])
    if ensemble:
        members = (_over_seeds(task["teacher"].get("members", {}).get(metric)) for task, metric in columns)
        rows.append(["one teacher" + (" (mean of folds)" if crossed else ""), *members])
    probes = [base_probe_score(task, metric) for task, metric in columns]
    if any(score is not None for score in probes):
        cells = [NONE if score is None else percent(score) for score in probes]
        rows.append(["linear probe of the teacher's base", *cells])
    caption = f"Percent on validation ({_row_counts(tasks)}), mean ± standard deviation over seeds"
    if any(below.values()):
        caption += f". † Not above `{control}` by the first metric: the arm does not work there"
    return Table(caption, ["", *(_column(task["task"], metric) for task, metric in columns)], rows)


def base_probe_score(task: Mapping[str, Any], metric: str) -> float | None:
    """Return the score on validation of the linear probe of the model that the teacher started from.

    Args:
        task: its metrics, as distill wrote them.
        metric: one of the task's. None comes back where the cache does not hold the score.
    """
    return task["teacher"].get("probe", {}).get("validation", {}).get(metric)


def arm_names(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of all arms, in the order of the parameters."""
    return list(dict.fromkeys(name for task in tasks for name in task["arm_order"]))


def percent(value: float) -> str:
    """Format a share as percent, without the sign."""
    return f"{100 * value:.1f}"


def _over_seeds(cell: Mapping[str, Any] | None) -> str:
    if not cell:
        return NONE
    one_seed = len(cell["seeds"]) == 1
    return percent(cell["mean"]) + ("" if one_seed else f" ± {percent(cell['sd'])}")


def _column(name: str, metric: str) -> str:
    return f"{name} {metric.replace('_', ' ')}"


def _row_counts(tasks: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{task['task']} {task['rows']['validation']} rows" for task in tasks)


def diagnostic_table(tasks: Sequence[Mapping[str, Any]]) -> Table | None:
    """Tabulate the scores on the extra splits; None if no task has one."""
    columns = [
        (task, split, metric)
        for task in tasks
        for split, scores in task["teacher"].get("diagnostics", {}).items()
        for metric in scores if metric != "rows"
    ]  # fmt: skip
    if not columns:
        return None
    rows = []
    for arm in arm_names(tasks):
        found = [task["arms"].get(arm, {}).get("diagnostics", {}) for task, _, _ in columns]
        cells = [of.get(split, {}).get(metric) for of, (_, split, metric) in zip(found, columns, strict=True)]
        rows.append([arm, *map(_over_seeds, cells)])
    teacher = (percent(task["teacher"]["diagnostics"][split][metric]) for task, split, metric in columns)
    rows.append(["teacher", *teacher])
    header = ["", *(_column(split, metric) for _, split, metric in columns)]
    return Table("Percent on the diagnostic splits, by the same models", header, rows)


def superglue_sentence(tasks: Sequence[Mapping[str, Any]]) -> str | None:
    """The benchmark's single number for teacher and arms; None unless all eight tasks are there."""
    if not set(SUPERGLUE) <= {task["task"] for task in tasks}:
        return None
    scores = {"teacher": superglue_score({task["task"]: task["teacher"]["all_rows"] for task in tasks})}
    for arm in arm_names(tasks):
        if all(arm in task["arms"] for task in tasks):
            cells = {task["task"]: task["arms"][arm]["validation"] for task in tasks}
            means = {
                task: {metric: cell["mean"] for metric, cell in of.items()} for task, of in cells.items()
            }
            scores[arm] = superglue_score(means)
    shown = ", ".join(f"{name} {percent(score)}" for name, score in scores.items())
    return f"SuperGLUE score over the eight validation splits: {shown}."


def gain_table(findings: Findings) -> Table:
    """Tabulate every arm's effect over the baseline, and its share of the gap."""
    header = ["", *findings.tasks]
    several, gap = len(findings.tasks) > 1, bool(findings.shares)
    rows = []
    for arm, by_task in findings.gains.items():
        row = [arm, *(by_task[task].cell if task in by_task else NONE for task in findings.tasks)]
        row += [findings.mean_gains[arm].cell] if several else []
        share = findings.shares.get(arm)
        row += [(share.cell if share else NONE)] if gap else []
        rows.append(row)
    header += (["mean"] if several else []) + (["share of the gap"] if gap else [])
    return Table(f"Points over `{findings.baseline}` (95% CI), not corrected", header, rows)


def comparison_table(findings: Findings) -> Table:
    """Tabulate the comparisons, the primary one first."""
    several = len(findings.tasks) > 1
    rows = [
        [
            f"{c.arm} over {c.over}",
            *(c.by_task[task].cell if task in c.by_task else NONE for task in findings.tasks),
            *([c.mean.cell] if several else []),
            f"{c.mean.p:.2g}", "primary" if c.holm is None else f"{c.holm:.2g}",
        ]
        for c in findings.comparisons
    ]  # fmt: skip
    header = ["", *findings.tasks, *(["mean"] if several else []), "p", "p after Holm"]
    return Table("Points of the first metric (95% CI)", header, rows)


def verdict_table(findings: Findings) -> Table:
    """Tabulate whether each arm reaches the teacher."""
    tasks = {task: of_task for task, of_task in findings.verdicts.items() if of_task}
    arms = dict.fromkeys(arm for of_task in tasks.values() for arm in of_task)
    rows = [
        [arm, *(str(of_task[arm]) if arm in of_task else NONE for of_task in tasks.values())] for arm in arms
    ]
    return Table("Points over the teacher, and the one-sided 95% lower bound", ["", *tasks], rows)


def fidelity_table(findings: Findings) -> Table:
    """Tabulate how often students predict what their teacher does."""
    cells = {
        arm: [task["arms"].get(arm, {}).get("validation", {}).get("agreement") for task in findings.metrics]
        for arm in findings.arms
    }
    rows = [[arm, *map(_over_seeds, of_arm)] for arm, of_arm in cells.items() if any(of_arm)]
    caption = "Percent of validation rows on which student and teacher predict the same"
    return Table(f"{caption}, mean ± standard deviation over seeds", ["", *findings.tasks], rows)


def arm_table(findings: Findings) -> Table:
    """Tabulate what each arm is."""
    rows = [[name, arm["method"], arm["objective"]] for name, arm in findings.arms.items()]
    return Table("Arms", ["arm", "method", "objective"], rows, text_columns=3)


def identity_table(findings: Findings, shared: Mapping[str, str]) -> Table:
    """Tabulate what the numbers were made from.

    Args:
        findings: of all tasks.
        shared: what all tasks have in common: name → digest or version.
    """
    rows = [[record.name, *item] for record in findings.records for item in record.identity.items()]
    rows += [["all tasks", *item] for item in shared.items()]
    return Table("Identities", ["", "what", "which"], rows, text_columns=3)
