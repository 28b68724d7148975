"""metrics and curves → figures: SVG files whose bytes depend on the numbers alone."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kdcache.data.metrics import accuracy_interval

if TYPE_CHECKING:
    from kdcache.analysis.analyse import CacheAnalysis, LabelAnalysis, SplitAnalysis

# Colour-blind safe (Okabe & Ito, 2008), in the order arms or terms come.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
GREY = "#777777"


@contextlib.contextmanager
def _panels(rows: int, columns: int, path: Path, height: float = 3.6) -> Iterator[Any]:
    """An array of axes of shape (rows, columns), written to ``path`` at the end."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "kdcache", "font.size": 10, "svg.fonttype": "path"}):
        size = (4.2 * columns, height * rows)
        figure, panels = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        yield panels
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def draw_results(tasks: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw one panel per task: a dot per student, a bar at each arm's mean, teacher and majority as lines.

    Args:
        tasks: the metrics of each task, as distill wrote them.
        path: an SVG file; the same metrics give the same bytes.
    """
    with _panels(1, len(tasks), path) as panels:
        for panel, task in zip(panels[0], tasks, strict=True):
            _draw_task(panel, task)
        metrics = dict.fromkeys(task["metric"].replace("_", " ") for task in tasks)
        panels[0][0].set_ylabel(f"validation {' or '.join(metrics)}, %")


def _draw_task(panel: Any, task: Mapping[str, Any]) -> None:
    metric = task["metric"]
    arms = [(name, task["arms"][name]) for name in task["arm_order"]]
    teacher = task["teacher"]["all_rows"]
    name = "ensemble" if "members" in task["teacher"] else "teacher"
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


def draw_shares(curves: Mapping[str, pd.DataFrame], path: Path) -> None:
    """Draw each term's share of the gradient over epochs: a row per task, a panel per arm of several terms.

    Epoch 0 is the end of the head start, where the gradient is the head's; then it is the prompts'.

    Args:
        curves: task → one row per arm and epoch, as ``results.mean_curves`` made them.
        path: an SVG file.
    """
    shares = {task: _shares_by_arm(table) for task, table in curves.items()}
    arms = list(dict.fromkeys(arm for by_arm in shares.values() for arm in by_arm))
    terms = dict.fromkeys(name for by_arm in shares.values() for table in by_arm.values() for name in table)
    colours = {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(terms)}
    with _panels(len(shares), max(1, len(arms)), path, height=2.8) as panels:
        for row, (task, by_arm) in zip(panels, shares.items(), strict=True):
            for panel in row:
                panel.set_visible(False)
            for panel, arm in zip(row, arms, strict=False):
                if arm in by_arm:
                    _draw_shares(panel, f"{task}: {arm}", by_arm[arm], colours)
            row[0].set_ylabel("share of the gradient, %")


def _shares_by_arm(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """arm → its shares by epoch, for arms of at least two terms."""
    names = [column for column in table if column.startswith("share_")]
    by_arm = {}
    for arm, rows in table.groupby("arm", sort=False):
        shares = rows.set_index("epoch")[names].dropna(axis="columns", how="all")
        if shares.shape[1] > 1:
            by_arm[str(arm)] = shares
    return by_arm


def _draw_shares(panel: Any, title: str, shares: pd.DataFrame, colours: Mapping[Any, str]) -> None:
    panel.set_visible(True)
    for name in shares:
        colour = colours[name]
        panel.plot(shares.index, 100 * shares[name], "o-", color=colour, markersize=4)
        label = str(name).removeprefix("share_")
        panel.annotate(
            label, (shares.index[-1], 100 * shares[name].iloc[-1]), xytext=(6, 0),
            textcoords="offset points", va="center", color=colour,
        )  # fmt: skip
    panel.axhline(1, color=GREY, linewidth=1, linestyle=":")
    panel.set_ylim(-3, 103)
    panel.set_xlim(shares.index[0] - 0.2, shares.index[-1] + 0.35 * max(1, len(shares)))
    panel.set_xticks(shares.index)
    panel.set_xlabel("epoch")
    panel.set_title(title, fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)


def draw_cache(analysis: "CacheAnalysis", path: Path) -> None:
    """Draw a column per split: how right the teacher is at each confidence, and the entropies of its rows.

    Args:
        analysis: of the cache.
        path: an SVG file; the same analysis gives the same bytes.
    """
    with _panels(2, len(analysis.splits), path, height=3.2) as panels:
        for (upper, lower), (split, found) in zip(panels.T, analysis.splits.items(), strict=True):
            title = f"{split}, {found.rows} rows"
            if found.labels:
                _draw_reliability(upper, found.labels)
                error, chance = 100 * found.labels.ece, 100 * found.labels.ece_by_chance
                title += f"\nECE {error:.1f} %, by chance {chance:.1f} %"
            else:
                upper.text(0.5, 0.5, "no labels", ha="center", va="center", color=GREY)
                upper.set_axis_off()
            upper.set_title(title, fontsize=10)
            _draw_entropies(lower, found, len(analysis.labels))
            upper.spines[["top", "right"]].set_visible(False)
            lower.spines[["top", "right"]].set_visible(False)
        panels[0][0].set_ylabel("right, %")
        panels[1][0].set_ylabel("rows, %")


def _draw_reliability(panel: Any, labels: "LabelAnalysis") -> None:
    """A point per bin with Wilson's 95 % interval; on the diagonal, as sure as right."""
    panel.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle=":")
    for part in labels.reliability:
        low, high = accuracy_interval(part.accuracy, part.rows)
        x, y = 100 * part.confidence, 100 * part.accuracy
        panel.plot([x, x], [100 * low, 100 * high], color=COLOURS[0], alpha=0.4)
        panel.plot([x], [y], "o", color=COLOURS[0], markersize=5)
    panel.set_xlim(-2, 102)
    panel.set_ylim(-2, 102)
    panel.set_xlabel("confidence, %")


def _draw_entropies(panel: Any, found: "SplitAnalysis", num_labels: int) -> None:
    limit = math.log(num_labels)
    width = limit / len(found.entropy_counts)
    heights = [100 * count / found.rows for count in found.entropy_counts]
    lefts = [width * k for k in range(len(heights))]
    panel.bar(lefts, heights, width, align="edge", color=COLOURS[1], edgecolor="white", linewidth=0.5)
    panel.axvline(found.entropy, color=COLOURS[7], linewidth=1.5)
    left = found.entropy > limit / 2
    panel.annotate(
        f"mean {found.entropy:.2f}", (found.entropy, 1.06 * max(heights)), xytext=(-5 if left else 5, 0),
        textcoords="offset points", ha="right" if left else "left",
    )  # fmt: skip
    panel.set_xlim(0, limit)
    panel.set_ylim(0, 1.18 * max(heights))
    panel.set_xlabel(f"entropy, nats (at most log {num_labels} = {limit:.2f})")


def draw_intervals(
    panel: Any,
    rows: Sequence[tuple[str, float, float, float]],
    styles: Sequence[tuple[str, str]],
    line: float | None = None,
    signed: bool = False,
) -> None:
    """Draw a point with its interval per row, from the top down, and the points as numbers on the right.

    Args:
        panel: axes.
        rows: label, points, lower and upper end.
        styles: colour and marker of each row.
        line: where to draw a vertical one.
        signed: whether to write the numbers with their sign.
    """
    for y, ((_, points, low, high), (colour, marker)) in enumerate(zip(rows, styles, strict=True)):
        panel.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        panel.plot([points], [y], marker, color=colour, markersize=5.5)
    if line is not None:
        panel.axvline(line, color=GREY, linewidth=1, linestyle=":")
    panel.set_yticks(range(len(rows)), [label for label, *_ in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    values = panel.twinx()
    values.set_yticks(range(len(rows)), [f"{row[1]:+.1f}" if signed else f"{row[1]:.1f}" for row in rows])
    values.set_ylim(panel.get_ylim())
    for axes in (panel, values):
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)


def draw_headline(
    panels: Mapping[str, Sequence[tuple[str, float, float, float]]],
    styles: Mapping[str, Sequence[tuple[str, str]]],
    path: Path,
) -> None:
    """Draw the scores that the question is about, a panel per title.

    Args:
        panels: title → rows, as ``draw_intervals`` takes them.
        styles: title → styles.
        path: an SVG file; the same numbers give the same bytes.
    """
    columns = min(3, len(panels))
    height = 1.0 + 0.26 * max(len(rows) for rows in panels.values())
    with _panels(-(-len(panels) // columns), columns, path, height) as grid:
        flat = [panel for row in grid for panel in row]
        for panel in flat[len(panels) :]:
            panel.set_visible(False)
        for panel, (title, rows) in zip(flat, panels.items(), strict=False):
            draw_intervals(panel, rows, styles[title])
            panel.set_title(title, fontsize=10)
