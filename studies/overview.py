"""The studies' numbers → studies/overview.svg, one row per study and task: python studies/overview.py"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from kdcache.figures import COLOURS, GREY
from matplotlib import pyplot

STUDIES = Path(__file__).parent
TITLES = (
    "distillation\nover cross-entropy",
    "full tuning on the labels\nover cross-entropy",
    "inter-instance loss\nover KL alone",
)
Pair = tuple[str, str]  # an arm and the one it is compared with


@dataclass(frozen=True)
class Row:
    """What a study says of a task; None where it was not asked.

    Args:
        study: the folder.
        task: the task.
        about: it, beside the task.
        distilled: the arm that stands for distillation, over cross-entropy.
        full: full tuning on the labels, over cross-entropy.
        relation: with the inter-instance loss, over the same without.
        short: whether the arm ``ce`` had 6 epochs, after which it still rose, or was held back by a long head
            start on few labels (``ce@2`` was not).
    """

    study: str
    task: str
    about: str
    distilled: Pair | None
    full: Pair | None = ("full", "ce")
    relation: Pair | None = ("kl+gram", "kl")
    short: bool = True

    @property
    def pairs(self) -> tuple[Pair | None, Pair | None, Pair | None]:
        return self.distilled, self.full, self.relation


KL, MORE = ("kl", "ce"), ("kl@more", "ce")
RELATION_MORE = ("kl+gram@more", "kl@more")
ROWS = {
    "6 layers, teacher the same 6": [
        Row("equal_steps", "clinc150", "1500 labels", KL, ("full@20", "ce"), None, short=False),
        Row("new_rows", "subj", "500 labels", KL, short=False),
        Row("new_rows", "ag_news", "500 labels", KL, short=False),
        Row("labels_500", "subj", "500 labels, no tune", KL),
        Row("labels_500", "ag_news", "500 labels, no tune", KL),
        Row("labels_128", "subj", "128 labels", ("kl", "ce@2")),
        Row("labels_128", "ag_news", "128 labels", KL),
        Row("labels_32", "subj", "32 labels", ("kl", "ce@2")),
        Row("labels_32", "ag_news", "32 labels", ("kl", "ce@2")),
        Row("rates", "subj", "750 labels", KL, relation=("kl+gram@0.03", "kl")),
        Row("rates", "clinc150", "1500 labels", KL, relation=("kl+gram@0.03", "kl")),
        Row("same_size", "subj", "750 labels, folds", MORE, relation=RELATION_MORE),
        Row("same_size", "clinc150", "1500 labels, folds", MORE, relation=RELATION_MORE),
    ],
    "3 of 6 layers, teacher all 6": [
        Row("banking77", "banking77", "1000 labels", KL, short=False),
        Row("banking77", "banking77", "batches of 64", None, None, ("kl+gram@64", "kl@64")),
        Row("batch_256", "banking77", "batches of 256", None, None, ("kl+gram@256", "kl@256")),
        Row("mrpc", "mrpc", "500 labels", KL, short=False),
        Row("three_layers", "clinc150", "1500 labels", KL),
        Row("raw_cut", "clinc150", "1500 labels, not healed", KL, None),
        Row("powered", "subj", "500 labels, folds", MORE),
        Row("powered", "ag_news", "500 labels, folds", MORE),
        Row("superglue", "cb", "200 labels, folds", KL),
        Row("superglue", "copa", "320 labels, folds", KL),
        Row("superglue", "wsc", "400 labels, folds", KL),
        Row("superglue", "rte", "399 labels, folds", KL),
    ],
}


def read_effect(study: str, task: str, pair: Pair) -> dict[str, float]:
    """Points, low and high of an arm over another: from the study's page, else from its comparisons.json."""
    arm, over = pair
    page, beside = STUDIES / study / "reports/results.json", STUDIES / study / "comparisons.json"
    found: list[Any] = []
    if page.is_file():
        report = json.loads(page.read_text(encoding="utf-8"))
        found = report["comparisons"] + [
            {"arm": name, "over": report["roles"]["ce"], "by_task": by_task}
            for name, by_task in report["gains"].items()
        ]
    if beside.is_file():
        found += json.loads(beside.read_text(encoding="utf-8"))
    for comparison in found:
        if (comparison["arm"], comparison["over"]) == pair and task in comparison["by_task"]:
            effect: dict[str, float] = comparison["by_task"][task]
            return effect
    raise SystemExit(f"overview: {study} must compare {arm} with {over} on {task}, got no such comparison.")


def _draw(panel: Any, k: int, placed: Sequence[tuple[float, Row]]) -> None:
    panel.axvline(0, color=GREY, linewidth=1, linestyle=":")
    for y, row in placed:
        if pair := row.pairs[k]:
            effect = read_effect(row.study, row.task, pair)
            colour, fill = COLOURS[k], "white" if row.short and pair[1] == "ce" else COLOURS[k]
            panel.plot([effect["low"], effect["high"]], [y, y], color=colour, linewidth=1.5)
            panel.plot([effect["points"]], [y], "o", color=colour, markerfacecolor=fill, markersize=5)
            text = f"{round(effect['points'], 1) or 0:+.1f}".replace("-", "−")
            panel.text(1.02, y, text, transform=panel.get_yaxis_transform(), va="center", fontsize=8)
    panel.set_title(TITLES[k], fontsize=10)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)


def draw_overview(path: Path) -> None:
    """Draw a row per study and task: a point, its 95 % interval, and the points as a number.

    Args:
        path: an SVG file; the same numbers give the same bytes.
    """
    placed: list[tuple[float, Row]] = []
    heads: list[tuple[float, str]] = []
    y = 0.0
    for head, rows in ROWS.items():
        heads.append((y, head))
        placed += [(y + 1 + n, row) for n, row in enumerate(rows)]
        y += 1.5 + len(rows)
    with matplotlib.rc_context({"svg.hashsalt": "kdcache", "font.size": 9, "svg.fonttype": "path"}):
        figure, panels = pyplot.subplots(
            1, 3, figsize=(10, 0.6 + 0.24 * y), sharey=True, layout="constrained"
        )
        for k, panel in enumerate(panels):
            _draw(panel, k, placed)
        panels[0].set_yticks([y for y, _ in placed], [f"{row.task}, {row.about}" for _, row in placed])
        for top, head in heads:
            panels[0].text(0, top, head, transform=panels[0].get_yaxis_transform(), ha="right", va="center",
                           fontweight="bold")  # fmt: skip
        panels[0].set_ylim(y - 0.5, -0.5)
        panels[1].set_xlabel(
            "points of accuracy, 95 % intervals; open: cross-entropy of 6 epochs, or held back"
        )
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


if __name__ == "__main__":
    draw_overview(STUDIES / "overview.svg")
