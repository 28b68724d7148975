"""metrics/<task>.json → the table and the one figure; pure functions, no files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcache.metrics import SUPERGLUE_METRICS, accuracy_interval, superglue_score

# Colour-blind safe (Okabe & Ito, 2008), in the order arms come.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
GREY = "#777777"


def results_markdown(tasks: Sequence[Mapping[str, Any]]) -> str:
    """Render the results as Markdown: arm × task in percent, then the cost in counts.

    Args:
        tasks: the metrics of each task, as distill wrote them.
    """
    lines = [
        "# Results", "", *_table(tasks), "", *_notes(tasks), *_superglue(tasks), *_diagnostics(tasks),
        "", "## Cost, in counts", "", *_cost(tasks),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _columns(tasks: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str]]:
    """(task, metric) pairs: one column each."""
    return [(task, name) for task in tasks for name in task["majority"] if name != "rows"]


def _arm_names(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for task in tasks for name in task["arm_order"]))


def _table(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = _columns(tasks)
    header = [f"{task['task']} {metric.replace('_', ' ')}" for task, metric in columns]
    rows = [["majority class", *(f"{100 * task['majority'][m]:.1f}" for task, m in columns)]]
    for arm in _arm_names(tasks):
        cells = [task["arms"].get(arm, {}).get("validation", {}).get(metric) for task, metric in columns]
        rows.append([arm, *(f"{100 * c['mean']:.1f} ± {100 * c['sd']:.1f}" if c else "—" for c in cells)])
    for key, name in _teachers(tasks):
        rows.append([name, *(_teacher_cell(task, key, metric) for task, metric in columns)])
    lines = [["", *header], ["---", *["---:"] * len(columns)], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _teachers(tasks: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    names = [("all_rows", "teacher")]
    if any(task["teacher"]["folds"] for task in tasks):
        names.append(("cached", "teacher as cached (mean of folds)"))
    return names


def _teacher_cell(task: Mapping[str, Any], key: str, metric: str) -> str:
    scores = task["teacher"][key]
    cell = f"{100 * scores[metric]:.1f}"
    if metric == "accuracy":  # the others are no share of rows
        low, high = accuracy_interval(scores[metric], scores["rows"])
        cell += f" [{100 * low:.1f}, {100 * high:.1f}]"
    return cell


def _notes(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    seeds = sorted({
        seed for task in tasks for arm in task["arms"].values()
        for cell in arm["validation"].values() for seed in cell["seeds"]
    }, key=int)  # fmt: skip
    rows = ", ".join(f"{task['task']} {task['rows']['validation']}" for task in tasks)
    notes = [
        f"Percent on the validation split ({rows} rows); students: mean ± standard deviation over "
        f"seeds {', '.join(seeds)}; teachers: Wilson's 95 % interval over rows."
    ]
    for task in tasks:
        head = task["arms"].get("head")
        if head is None:
            continue
        floor = head["validation"][task["metric"]]["mean"]
        below = [
            name for name in task["arm_order"]
            if task["arms"][name]["method"] != "head"
            and task["arms"][name]["validation"][task["metric"]]["mean"] <= floor
        ]  # fmt: skip
        if below:
            notes += ["", f"**Not working on {task['task']}** (at or below `head`): {', '.join(below)}."]
    return notes


def _superglue(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    """The benchmark's one number, where all of its tasks are there."""
    if not set(SUPERGLUE_METRICS) <= {task["task"] for task in tasks}:
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
    lines = [["", *header], ["---", *["---:"] * len(columns)], *rows]
    return [
        "",
        "## Diagnostics, scored with the models above",
        "",
        *("| " + " | ".join(r) + " |" for r in lines),
    ]


def _cost(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| task | | trained parameters | steps | examples trained on | teacher's forward examples |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for task in tasks:
        spent = task["teacher"]["cost"]
        teachers = 1 + task["teacher"]["folds"]
        what = "teacher" if teachers == 1 else f"{teachers} teachers (all rows, {teachers - 1} folds)"
        lines.append(
            f"| {task['task']} | {what} | all | {spent['training_steps']} | "
            f"{spent['training_examples']} | {spent['forward_examples']} |"
        )
        for name in task["arm_order"]:
            arm = task["arms"][name]
            lines.append(
                f"| {task['task']} | {name}, all seeds | {arm['trained_parameters']} | "
                f"{arm['steps']} + {arm['head_steps']} head | {arm['examples']} | 0 |"
            )
    return lines


def draw_results(tasks: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw one panel per task: a dot per student, a bar at each arm's mean, teacher and majority as lines.

    Args:
        tasks: the metrics of each task, as distill wrote them.
        path: an SVG file; the same metrics give the same bytes.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "kdcache", "font.size": 10, "svg.fonttype": "path"}):
        figure, panels = pyplot.subplots(
            1, len(tasks), figsize=(4.2 * len(tasks), 3.6), squeeze=False, layout="constrained"
        )
        for panel, task in zip(panels[0], tasks, strict=True):
            _draw_task(panel, task)
        metrics = dict.fromkeys(task["metric"].replace("_", " ") for task in tasks)
        panels[0][0].set_ylabel(f"validation {' or '.join(metrics)}, %")
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def _draw_task(panel: Any, task: Mapping[str, Any]) -> None:
    metric = task["metric"]
    arms = [(name, task["arms"][name]) for name in task["arm_order"]]
    teacher = task["teacher"]["all_rows"]
    name = "teacher"
    if metric == "accuracy":
        low, high = accuracy_interval(teacher[metric], teacher["rows"])
        panel.axhspan(100 * low, 100 * high, color=GREY, alpha=0.15, linewidth=0)
        name += ", 95 %"
    panel.axhline(100 * teacher[metric], color=GREY, linewidth=1.5)
    panel.axhline(100 * task["majority"][metric], color=GREY, linewidth=1, linestyle=":")
    end = len(arms) - 0.45
    panel.text(end, 100 * teacher[metric], name, va="bottom", ha="right", color=GREY)
    panel.text(end, 100 * task["majority"][metric], "majority", va="bottom", ha="right", color=GREY)
    for x, (_, arm) in enumerate(arms):
        colour = COLOURS[x % len(COLOURS)]
        cell = arm["validation"][metric]
        values = [100 * value for value in cell["seeds"].values()]
        panel.plot([x] * len(values), values, "o", color=colour, alpha=0.6, markersize=5)
        panel.plot([x - 0.25, x + 0.25], [100 * cell["mean"]] * 2, color=colour, linewidth=2.5)
        panel.annotate(
            f"{100 * cell['mean']:.1f}", (x, max(values)), xytext=(0, 6),
            textcoords="offset points", ha="center", color=colour,
        )  # fmt: skip
    panel.set_xticks(range(len(arms)), [name for name, _ in arms], rotation=20)
    panel.set_xlim(-0.6, len(arms) - 0.4)
    panel.set_title(task["task"])
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(y=0.15)
