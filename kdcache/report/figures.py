"""Every figure: one palette, one set of SVG settings and one drawing of intervals.

The same numbers give the same bytes. Figures of the page are inline SVG elements at most 340 px wide, which
take text and axes in the page's own colour; other figures are files. Colours are visible on white and on
black, and markers or labels say the same as they do. Alternative texts hold the numbers. matplotlib is
imported when a figure is drawn.
"""

import contextlib
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kdcache.data.metrics import accuracy_interval
from kdcache.stats.estimates import decimal

if TYPE_CHECKING:
    import pandas as pd

    from kdcache.analysis.analyse import CacheAnalysis, LabelAnalysis, SplitAnalysis

WIDTH = 340  # px; fits into a phone's 390 with margins
# Colour-blind safe, after Okabe & Ito (2008), without those that are hard to see on white or on black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B57F00", "#3B8FD0")
GREY = "#777777"
MARKERS = ("o", "s", "^", "D", "v", "P")
SIGNS = dict(zip(MARKERS, "●■▲◆▼✚", strict=True))  # the same markers as text, for legends
POINTS_PER_PX = 0.75
FONT_SIZE = 8  # points
INK = "#010203"  # replaced by the page's own colour
LABEL_LENGTH = 18


class Style(NamedTuple):
    """The look of an arm in every figure."""

    colour: str
    marker: str


class Interval(NamedTuple):
    """A row of a drawing of intervals."""

    label: str
    points: float
    low: float
    high: float
    style: Style


def arm_styles(arms: Sequence[str], control: str | None) -> dict[str, Style]:
    """Give each arm a style; the control is grey."""
    others = [arm for arm in arms if arm != control]
    colours = len(COLOURS)
    styles = {
        arm: Style(COLOURS[k % colours], MARKERS[(k + k // colours) % colours])
        for k, arm in enumerate(others)
    }
    return {arm: styles.get(arm, Style(GREY, "o")) for arm in arms}


@contextlib.contextmanager
def _drawing(width: float, height: float, rows: int = 1, columns: int = 1) -> Iterator[tuple[Any, Any]]:
    """A figure and its array of axes of shape (rows, columns); sizes are in px."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings: Any = dict.fromkeys(inked, INK) | {
        "font.size": FONT_SIZE, "axes.titlesize": FONT_SIZE, "axes.titleweight": "bold",
        "axes.titlelocation": "left", "axes.linewidth": 0.6, "axes.spines.top": False,
        "axes.spines.right": False, "figure.facecolor": "none", "axes.facecolor": "none",
        "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "kdcache",
        "font.sans-serif": ["DejaVu Sans"],
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        size = (width * POINTS_PER_PX / 72, height * POINTS_PER_PX / 72)
        figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        try:
            yield figure, axes
        finally:
            pyplot.close(figure)


def _svg(figure: Any, **options: Any) -> str:
    """The figure as SVG text, without a date."""
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=metadata, **options)
    return buffer.getvalue()


def _inline(figure: Any, name: str, alt: str) -> str:
    """The figure as an element of a page, with ids of its own and the page's colour for ink."""
    text = _svg(figure)
    width, height = (round(inches * 72 / POINTS_PER_PX) for inches in figure.get_size_inches())
    _, box, body = re.split(r'(viewBox="[^"]*")[^>]*>', text, maxsplit=1)
    body = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body).replace(INK, "currentColor")
    return (
        f'<svg role="img" aria-label="{escape(alt)}" width="{width}" height="{height}" {box}>{body.strip()}'
    )


def _save(figure: Any, path: Path) -> None:
    """The figure as a file, in black on white."""
    path.write_text(_svg(figure, facecolor="white").replace(INK, "#000000"), encoding="utf-8")


def shorten_label(label: str) -> str:
    """Cut a label so that it leaves room for the figure.

    >>> shorten_label("kl+gram@all on all rows")
    'kl+gram@all on al…'
    """
    return label if len(label) <= LABEL_LENGTH else label[: LABEL_LENGTH - 1] + "…"


def _draw_intervals(
    axes: Any, rows: Sequence[Interval], title: str, what: str, line: float | None, sign: str
) -> None:
    """Draw a point with its interval per row, from the top down, and the points as numbers on the right."""
    for y, row in enumerate(rows):
        axes.plot([row.low, row.high], [y, y], color=row.style.colour, linewidth=2, solid_capstyle="butt")
        axes.plot([row.points], [y], row.style.marker, color=row.style.colour, markersize=5.5)
    if line is not None:
        axes.axvline(line, color=GREY, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(rows)), [shorten_label(row.label) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    values = axes.twinx()
    values.set_yticks(range(len(rows)), [decimal(row.points, sign) for row in rows])
    values.set_ylim(axes.get_ylim())
    for side in (axes, values):
        side.tick_params(axis="y", length=0)
        side.spines["left"].set_visible(False)
    axes.set_title(shorten_label(title))
    axes.set_xlabel(what)


def _height(rows: Sequence[Interval]) -> float:
    return 58 + 19 * len(rows)


def intervals(
    name: str, title: str, rows: Sequence[Interval], what: str, line: float | None = None, sign: str = ""
) -> str:
    """Draw intervals for the page.

    Args:
        name: of the figure, unique on the page.
        title: above it.
        rows: from the top down.
        what: the numbers are.
        line: where to draw a vertical line.
        sign: ``+`` writes numbers with their sign.
    """
    told = "; ".join(
        f"{row.label} {decimal(row.points, sign)} ({decimal(row.low)} to {decimal(row.high)})" for row in rows
    )
    with _drawing(WIDTH, _height(rows)) as (figure, axes):
        _draw_intervals(axes[0, 0], rows, title, what, line, sign)
        return _inline(figure, name, f"{title}: {what}, 95% CI. {told}.")


def draw_results(panels: Mapping[str, Sequence[Interval]], path: Path) -> None:
    """Draw the scores into an SVG file, a panel per title."""
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    height = max(map(_height, panels.values())) * lines
    with _drawing(WIDTH * columns, height, lines, columns) as (figure, axes):
        for panel in axes.flat[len(panels) :]:
            panel.set_visible(False)
        for panel, (title, rows) in zip(axes.flat, panels.items(), strict=False):
            _draw_intervals(panel, rows, title, "percent, 95% CI", None, "")
        _save(figure, path)


def learning_curves(
    name: str, task: str, metric: str, curves: "pd.DataFrame", styles: Mapping[str, Style]
) -> str | None:
    """Draw the metric on ``tune`` by step, a line per arm; None if nothing was scored."""
    column, words = f"tune_{metric}", metric.replace("_", " ")
    if column not in curves or curves[column].isna().all():
        return None
    told = []
    with _drawing(WIDTH, 230) as (figure, axes):
        panel = axes[0, 0]
        for arm, rows in curves.groupby("arm", sort=False):
            style, scores = styles[str(arm)], 100 * rows[column].to_numpy()
            panel.plot(
                rows["step"], scores, marker=style.marker, color=style.colour, markersize=3.5, linewidth=1.3
            )
            ends = [f"{scores[k]:.1f} at step {rows['step'].iloc[k]}" for k in (0, -1)]
            told.append(f"{arm} " + " to ".join(dict.fromkeys(ends)))
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_xlabel("step")
        panel.set_ylabel(f"{words} on tune, %")
        panel.set_title(shorten_label(task))
        return _inline(figure, name, f"{task}: {words} on tune in percent, by step. {'; '.join(told)}.")


def gradient_shares(
    name: str, task: str, shares: Mapping[str, Mapping[str, float]], colours: Mapping[str, str]
) -> str:
    """Draw a bar per arm, cut into its terms' shares of the gradient.

    Args:
        name: of the figure, unique on the page.
        task: above it.
        shares: arm → term → share, 0 … 1.
        colours: of every term on the page.
    """
    told = []
    with _drawing(WIDTH, 60 + 24 * len(shares)) as (figure, axes):
        panel = axes[0, 0]
        for y, (arm, of_arm) in enumerate(shares.items()):
            left = 0.0
            for term, share in of_arm.items():
                colour, label = colours[term], f"{term} {100 * share:.0f}"
                panel.barh(y, 100 * share, 0.72, left, color=f"{colour}55", edgecolor=colour, linewidth=1)
                if share > 0.032 * len(label):
                    panel.text(left + 50 * share, y, label, ha="center", va="center")
                left += 100 * share
            told.append(f"{arm}: " + ", ".join(f"{term} {100 * s:.0f}%" for term, s in of_arm.items()))
        panel.set_yticks(range(len(shares)), [shorten_label(arm) for arm in shares])
        panel.set_ylim(len(shares) - 0.5, -0.5)
        panel.set_xlim(0, 100)
        panel.tick_params(axis="y", length=0)
        panel.spines["left"].set_visible(False)
        panel.set_xlabel("share of the gradient, %")
        panel.set_title(shorten_label(task))
        return _inline(figure, name, f"{task}: shares of the gradient. {'; '.join(told)}.")


def draw_cache(analysis: "CacheAnalysis", path: Path) -> None:
    """Draw a cache into an SVG file: per split the teacher's reliability and the entropies of its rows."""
    splits = analysis.splits
    with _drawing(WIDTH * len(splits), 520, 2, len(splits)) as (figure, axes):
        for (upper, lower), (split, found) in zip(axes.T, splits.items(), strict=True):
            upper.set_title(f"{split}, {found.rows} rows")
            if found.labels:
                _draw_reliability(upper, found.labels)
            else:
                upper.text(0.5, 0.5, "no labels", ha="center", va="center", color=GREY)
                upper.set_axis_off()
            _draw_entropies(lower, found, len(analysis.labels))
        axes[0, 0].set_ylabel("right, %")
        axes[1, 0].set_ylabel("rows, %")
        _save(figure, path)


def _draw_reliability(panel: Any, labels: "LabelAnalysis") -> None:
    """Draw a point per bin with Wilson's 95% interval; on the diagonal, confidence equals accuracy."""
    panel.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle=":")
    for part in labels.reliability:
        low, high = accuracy_interval(part.accuracy, part.rows)
        x, y = 100 * part.confidence, 100 * part.accuracy
        panel.plot([x, x], [100 * low, 100 * high], color=COLOURS[0], alpha=0.4)
        panel.plot([x], [y], "o", color=COLOURS[0], markersize=5)
    panel.set_xlim(-2, 102)
    panel.set_ylim(-2, 102)
    panel.set_xlabel(
        f"confidence, %; ECE {100 * labels.ece:.1f}%, by chance {100 * labels.ece_by_chance:.1f}%"
    )


def _draw_entropies(panel: Any, found: "SplitAnalysis", num_labels: int) -> None:
    limit = math.log(num_labels)
    width = limit / len(found.entropy_counts)
    heights = [100 * count / found.rows for count in found.entropy_counts]
    lefts = [width * k for k in range(len(heights))]
    panel.bar(lefts, heights, width, align="edge", color=COLOURS[1], edgecolor="white", linewidth=0.5)
    panel.axvline(found.entropy, color=INK, linewidth=1.5)
    panel.set_xlim(0, limit)
    panel.set_xlabel(f"entropy, nats; mean {found.entropy:.2f}, at most log {num_labels} = {limit:.2f}")
