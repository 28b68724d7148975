"""Draw docs/results.svg from the studies' results.json: python studies/picture.py"""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

STUDIES = Path(__file__).parent
TARGET = STUDIES.parent / "docs" / "results.svg"
TITLES = (
    "distillation (kl)\nover cross-entropy (ce)",
    "full tuning\nover cross-entropy (ce)",
    "kl+gram\nover kl",
)
MEAN = "mean"
KL, FULL, GRAM = ("kl", "ce"), ("full", "ce"), ("kl+gram", "kl")  # arm, over
SHORT = ("kl", "ce@2")
# label, file, task or the mean over tasks, then a pair of arms per panel
ROWS = (
    ("clinc150, six layers", "equal_steps/results.json", "clinc150", KL, ("full@20", "ce"), None),
    ("subj, six layers", "new_rows/results.json", "subj", KL, FULL, GRAM),
    ("ag_news, six layers", "new_rows/results.json", "ag_news", KL, FULL, GRAM),
    ("banking77, three layers", "banking77/results.json", "banking77", KL, FULL, GRAM),
    ("clinc150, three layers, ce of 6 epochs", "three_layers/results.json", "clinc150", KL, FULL, GRAM),
    ("SuperGLUE, four tasks, three layers", "superglue/results.json", MEAN, KL, None, GRAM),
    ("subj, six layers, 32 labels", "archive/labels_32.json", "subj", SHORT, None, GRAM),
    ("ag_news, six layers, 32 labels", "archive/labels_32.json", "ag_news", SHORT, None, GRAM),
)


def read_effect(file: str, task: str, arm: str, over: str) -> dict[str, float]:
    """Points, low and high of an arm over another on a task, or in the mean over tasks."""
    for comparison in json.loads((STUDIES / file).read_text(encoding="utf-8"))["comparisons"]:
        if (comparison["arm"], comparison["over"]) == (arm, over):
            effects = {**comparison["tasks"], MEAN: comparison.get("mean")}
            if effect := effects.get(task):
                found: dict[str, float] = effect
                return found
    raise SystemExit(f"studies/{file} does not compare {arm} with {over} on {task}.")


def draw_effect(panel: Any, y: int, effect: dict[str, float]) -> None:
    """A point and its interval: dark where the interval excludes 0, grey where it holds 0."""
    colour = "0.6" if effect["low"] <= 0 <= effect["high"] else "0.1"
    panel.plot([effect["low"], effect["high"]], [y, y], color=colour, linewidth=1.5)
    panel.plot([effect["points"]], [y], "o", color=colour, markersize=5)
    text = f"{round(effect['points'], 1) or 0:+.1f}".replace("-", "−")
    panel.text(1.02, y, text, transform=panel.get_yaxis_transform(), va="center", fontsize=8, color=colour)


def draw(path: Path) -> None:
    """Draw one row per study and task; the same numbers give the same picture."""
    with matplotlib.rc_context({"svg.hashsalt": "kdcache", "svg.fonttype": "none", "font.size": 9}):
        figure, panels = pyplot.subplots(1, 3, figsize=(9, 3.4), sharey=True, layout="constrained")
        for panel, title, k in zip(panels, TITLES, range(3), strict=True):
            panel.axvline(0, color="0.6", linewidth=1, linestyle=":")
            for y, row in enumerate(ROWS):
                if pair := row[3 + k]:
                    draw_effect(panel, y, read_effect(row[1], row[2], *pair))
            panel.set_title(title, fontsize=10)
            panel.spines[["top", "right", "left"]].set_visible(False)
            panel.tick_params(axis="y", length=0)
        panels[0].set_yticks(range(len(ROWS)), [row[0] for row in ROWS])
        panels[0].set_ylim(len(ROWS) - 0.5, -0.5)
        panels[1].set_xlabel("points of accuracy with 95% intervals; grey: the interval holds 0")
        figure.patch.set_facecolor("white")
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


if __name__ == "__main__":
    draw(TARGET)
