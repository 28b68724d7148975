"""Draw docs/results.svg from studies/larger_teacher.json: python studies/picture.py"""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

STUDIES = Path(__file__).parent
TARGET = STUDIES.parent / "docs" / "results.svg"
PANELS = {
    ("kl", "ce"): "distillation (kl)\nover cross-entropy (ce)",
    ("head+kl", "head"): "taught probe (head+kl)\nover the probe of labels (head)",
    ("kl", "SetFit"): "distilled prompts (kl)\nover SetFit",
    ("kl+gram", "kl"): "inter-instance loss (kl+gram)\nover kl",
}
MEAN = "mean"
ROWS = ("clinc150", "banking77", "subj", "ag_news", "mrpc", "cb", "copa", "wic", "rte", "boolq", MEAN)
SHOWN = -6, 13  # points; the longest intervals go beyond


def read_effects(results: dict[str, Any], arm: str, over: str) -> dict[str, dict[str, float]]:
    """Task, or the mean over tasks → points, low and high of an arm over another."""
    for comparison in results["comparisons"]:
        if (comparison["arm"], comparison["over"]) == (arm, over):
            return {**comparison["tasks"], MEAN: comparison[MEAN]}
    raise SystemExit(f"studies/larger_teacher.json does not compare {arm} with {over}.")


def draw_effect(panel: Any, y: int, effect: dict[str, float]) -> None:
    """A point and its interval: dark where the interval excludes 0, grey where it holds 0."""
    colour = "0.6" if effect["low"] <= 0 <= effect["high"] else "0.1"
    panel.plot([effect["low"], effect["high"]], [y, y], color=colour, linewidth=1.5)
    panel.plot([effect["points"]], [y], "o", color=colour, markersize=5)
    text = f"{round(effect['points'], 1) or 0:+.1f}".replace("-", "−")
    panel.text(1.02, y, text, transform=panel.get_yaxis_transform(), va="center", fontsize=8, color=colour)


def draw(path: Path) -> None:
    """Draw one row per task; the same numbers give the same picture."""
    results = json.loads((STUDIES / "larger_teacher.json").read_text(encoding="utf-8"))["few labels"]
    with matplotlib.rc_context({"svg.hashsalt": "kdcache", "svg.fonttype": "none", "font.size": 9}):
        figure, panels = pyplot.subplots(1, 4, figsize=(12, 3.4), sharey=True, layout="constrained")
        for panel, (pair, title) in zip(panels, PANELS.items(), strict=True):
            panel.axvline(0, color="0.6", linewidth=1, linestyle=":")
            effects = read_effects(results, *pair)
            for y, row in enumerate(ROWS):
                if row in effects:
                    draw_effect(panel, y, effects[row])
            panel.set_xlim(*SHOWN)
            panel.set_title(title, fontsize=10)
            panel.spines[["top", "right", "left"]].set_visible(False)
            panel.tick_params(axis="y", length=0)
        panels[0].set_yticks(range(len(ROWS)), [*ROWS[:-1], "mean of these tasks"])
        panels[0].set_ylim(len(ROWS) - 0.5, -0.5)
        panels[1].set_xlabel(
            "points of accuracy with 95% intervals; grey: it holds 0. Some of cb, copa and rte go on outside"
        )
        figure.patch.set_facecolor("white")
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


if __name__ == "__main__":
    draw(TARGET)
