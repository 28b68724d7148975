"""metrics/<task>.json alone → the table of arms and tasks, what is to be said of it, and the cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdcache.data.metrics import accuracy_interval
from kdcache.data.superglue import SUPERGLUE
from kdcache.data.superglue.score import superglue_score


@dataclass(frozen=True)
class Table:
    """Cells as they are shown.

    Args:
        caption: what it holds; Markdown leaves it to the heading above.
        header: of each column.
        rows: of each row, a cell per column.
        text_columns: how many columns on the left hold text, not numbers.
    """

    caption: str
    header: list[str]
    rows: list[list[str]]
    text_columns: int = 1

    def markdown(self) -> list[str]:
        """As lines.

        >>> Table("", ["", "wic"], [["a|b", "50.0"]]).markdown()
        ['|  | wic |', '| --- | ---: |', '| a\\\\|b | 50.0 |']
        """
        rule = ["---"] * self.text_columns + ["---:"] * (len(self.header) - self.text_columns)
        cells = [[cell.replace("|", "\\|") for cell in row] for row in [self.header, *self.rows]]
        return ["| " + " | ".join(row) + " |" for row in [cells[0], rule, *cells[1:]]]


def results_markdown(tasks: Sequence[Mapping[str, Any]], head: str | None = None) -> str:
    """Render the results as Markdown: arm × task in percent, then the cost in counts.

    Args:
        tasks: the metrics of each task, as distill wrote them.
        head: the control; None where there is none.
    """
    lines = [
        "# Results", "", *results_table(tasks).markdown(), "", *_notes(tasks, head), *_superglue(tasks),
        *_diagnostics(tasks), "", "## Cost, in counts", "", *cost_table(tasks).markdown(),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _columns(tasks: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str]]:
    """(task, metric) pairs: one column each."""
    return [(task, name) for task in tasks for name in task["majority"] if name != "rows"]


def _arm_names(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for task in tasks for name in task["arm_order"]))


def results_table(tasks: Sequence[Mapping[str, Any]]) -> Table:
    """Arm × task and metric in percent, mean ± standard deviation over seeds."""
    columns = _columns(tasks)
    header = [f"{task['task']} {metric.replace('_', ' ')}" for task, metric in columns]
    rows = [["majority class", *(f"{100 * task['majority'][m]:.1f}" for task, m in columns)]]
    for arm in _arm_names(tasks):
        cells = [task["arms"].get(arm, {}).get("validation", {}).get(metric) for task, metric in columns]
        rows.append([arm, *map(_over_seeds, cells)])
    for key, name in _teachers(tasks):
        rows.append([name, *(_teacher_cell(task, key, metric) for task, metric in columns)])
    if _are_ensembles(tasks):
        found = [task["teacher"].get("members", {}).get(metric) for task, metric in columns]
        crossed = any(task["teacher"]["folds"] for task in tasks)
        name = "one teacher" + (" (mean of folds)" if crossed else "")
        rows.append([name, *(_over_seeds(cell) for cell in found)])
    return Table("Percent on validation, mean ± standard deviation over seeds", ["", *header], rows)


def _teachers(tasks: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    what = "ensemble" if _are_ensembles(tasks) else "teacher"
    names = [("all_rows", what)]
    if any(task["teacher"]["folds"] for task in tasks):
        names.append(("cached", f"{what} as cached (mean of folds)"))
    return names


def _are_ensembles(tasks: Sequence[Mapping[str, Any]]) -> bool:
    return any("members" in task["teacher"] for task in tasks)


def _over_seeds(cell: Mapping[str, float] | None) -> str:
    return f"{100 * cell['mean']:.1f} ± {100 * cell['sd']:.1f}" if cell else "—"


def _teacher_cell(task: Mapping[str, Any], key: str, metric: str) -> str:
    scores = task["teacher"][key]
    cell = f"{100 * scores[metric]:.1f}"
    if metric == "accuracy":  # the others are no share of rows
        low, high = accuracy_interval(scores[metric], scores["rows"])
        cell += f" [{100 * low:.1f}, {100 * high:.1f}]"
    return cell


def _notes(tasks: Sequence[Mapping[str, Any]], head: str | None) -> list[str]:
    seeds = sorted({
        seed for task in tasks for arm in task["arms"].values()
        for cell in arm["validation"].values() for seed in cell["seeds"]
    }, key=int)  # fmt: skip
    rows = ", ".join(f"{task['task']} {task['rows']['validation']}" for task in tasks)
    one, what = (", one teacher", "ensemble") if _are_ensembles(tasks) else ("", "teachers")
    notes = [
        f"Percent on the validation split ({rows} rows); students{one}: mean ± standard deviation over "
        f"seeds {', '.join(seeds)}; {what}: Wilson's 95 % interval over rows."
    ]
    for task in tasks:
        for student in task.get("diverged", ()):
            step, last = student["diverged"]["step"], student["diverged"]["last_finite_loss"]
            who = f"{student['arm']}, seed {student['seed']}"
            found = f"at step {step}, last finite loss {'none' if last is None else f'{last:.4g}'}"
            notes += ["", f"**Diverged on {task['task']}, left out**: {who} ({found})."]
        if below := not_working(task, head):
            notes += ["", f"**Not working on {task['task']}** (at or below `{head}`): {', '.join(below)}."]
    return notes


def not_working(task: Mapping[str, Any], head: str | None) -> list[str]:
    """Arms at or below the control on the task's first metric.

    Args:
        task: its metrics, as distill wrote them.
        head: the control; None where there is none.
    """
    scores = {arm: task["arms"][arm]["validation"][task["metric"]]["mean"] for arm in task["arm_order"]}
    if head not in scores:
        return []
    return [arm for arm in task["arm_order"] if arm != head and scores[arm] <= scores[head]]


def _superglue(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    """The benchmark's one number, where all of its tasks are there."""
    if not set(SUPERGLUE) <= {task["task"] for task in tasks}:
        return []
    scores = {"teacher": superglue_score({task["task"]: task["teacher"]["all_rows"] for task in tasks})}
    for arm in _arm_names(tasks):
        if all(arm in task["arms"] for task in tasks):
            means = {
                task["task"]: {k: v["mean"] for k, v in task["arms"][arm]["validation"].items()}
                for task in tasks
            }
            scores[arm] = superglue_score(means)
    shown = ", ".join(f"{name} {100 * score:.1f}" for name, score in scores.items())
    return ["", f"SuperGLUE score over the eight validation splits: {shown}."]


def _diagnostics(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of the extra splits, if there are any."""
    columns = [
        (task, split, metric)
        for task in tasks
        for split, scores in task["teacher"].get("diagnostics", {}).items()
        for metric in scores
        if metric != "rows"
    ]
    if not columns:
        return []
    rows = []
    for arm in _arm_names(tasks):
        cells = [task["arms"].get(arm, {}).get("diagnostics", {}).get(split) for task, split, _ in columns]
        means = [cell and cell[metric] for cell, (_, _, metric) in zip(cells, columns, strict=True)]
        rows.append([arm, *(f"{100 * m['mean']:.1f} ± {100 * m['sd']:.1f}" if m else "—" for m in means)])
    teacher = [task["teacher"]["diagnostics"][split][metric] for task, split, metric in columns]
    rows.append(["teacher", *(f"{100 * value:.1f}" for value in teacher)])
    header = [f"{split} {metric.replace('_', ' ')}" for _, split, metric in columns]
    table = Table("Diagnostics", ["", *header], rows)
    return ["", "## Diagnostics, scored with the models above", "", *table.markdown()]


def _teachers_of(teacher: Mapping[str, Any]) -> str:
    """How many there are, and of what.

    >>> _teachers_of({"folds": 2})
    '3 teachers (all rows, 2 folds)'
    >>> _teachers_of({"folds": 0, "members": {"accuracy": {"seeds": {"0": 0.9, "1": 0.8}}}})
    '2 teachers (2 seeds)'
    """
    scores = next(iter(teacher.get("members", {}).values()), {"seeds": [0]})
    seeds, folds = len(scores["seeds"]), teacher["folds"]
    made_of = [f"all rows, {folds} folds"] if folds else []
    made_of += [f"{seeds} seeds"] if seeds > 1 else []
    return f"{seeds * (1 + folds)} teachers ({'; '.join(made_of)})" if made_of else "teacher"


def cost_table(tasks: Sequence[Mapping[str, Any]]) -> Table:
    """What teachers and students cost, in counts, which no machine changes."""
    rows = []
    for task in tasks:
        spent = task["teacher"]["cost"]
        what = _teachers_of(task["teacher"])
        counts = [spent[key] for key in ("training_steps", "training_examples", "forward_examples")]
        rows.append([task["task"], what, "all", *map(str, counts)])
        for name in task["arm_order"]:
            arm = task["arms"][name]
            steps = f"{arm['steps']} + {arm['probe_steps']} head"
            counts = [arm["trained_parameters"], steps, arm["examples"], 0]
            rows.append([task["task"], f"{name}, all seeds", *map(str, counts)])
    header = [
        "task", "", "trained parameters", "steps", "examples after the head start",
        "teacher's forward examples",
    ]  # fmt: skip
    return Table("Cost in counts", header, rows, text_columns=2)
