"""Findings → small inline SVG figures for a page that is read on a phone, on paper, by day and by night.

Each is at most 340 px wide and takes text, axes and lines in the page's own colour. Colours of data show
on white and on black, and never alone: markers, dashes or labels say the same. Alternative texts hold the
numbers.
"""

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from kdcache.report.figures import GREY, draw_intervals
from kdcache.report.matrices import Relations

WIDTH = 340  # px; with a phone's margins it fits into 390
SMALL = 260
POINTS = 0.75  # per px
FONT = 8  # points, 10.7 px
INK = "#010203"  # stands for the page's own colour
# After Okabe & Ito (2008), but for those that do not show on white or on black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B57F00", "#3B8FD0")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", ":", "-.")
LONGEST = 18  # characters of a label

Row = tuple[str, float, float, float]  # label, points, lower and upper end


@dataclass(frozen=True)
class Style:
    """How an arm looks in every figure."""

    colour: str
    marker: str
    dash: str


def arm_styles(arms: Sequence[str], head: str | None) -> dict[str, Style]:
    """A style for each arm; the control is grey."""
    styles: dict[str, Style] = {}
    for name in arms:
        k = len(styles) - (head in styles)
        turn = k // len(COLOURS)
        styles[name] = Style(
            COLOURS[k % len(COLOURS)], MARKERS[(k + turn) % len(MARKERS)], DASHES[turn % len(DASHES)]
        )
        if name == head:
            styles[name] = Style(GREY, "o", "-")
    return styles


def term_style(k: int) -> Style:
    """How the k-th term of the objective looks."""
    return Style(COLOURS[k % len(COLOURS)], "s", "none")


@contextlib.contextmanager
def _chart(height: float, width: float = WIDTH) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, sizes in px."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings: Any = dict.fromkeys(inked, INK) | {
        "font.size": FONT, "axes.titlesize": FONT, "svg.fonttype": "none", "text.parse_math": False,
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
        "figure.facecolor": "none", "axes.facecolor": "none", "svg.hashsalt": "kdcache",
        "font.sans-serif": ["DejaVu Sans"],
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        figure, panel = pyplot.subplots(
            figsize=(width * POINTS / 72, height * POINTS / 72), layout="constrained"
        )
        try:
            yield figure, panel
        finally:
            pyplot.close(figure)


def _svg(figure: Any, name: str, alt: str) -> str:
    """The figure as an element of a page: ids of its own, no address, the page's colour for ink."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    width, height = (round(inches * 72 / POINTS) for inches in figure.get_size_inches())
    text = buffer.getvalue()
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    body = text[text.index(">", box.end()) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body).replace(INK, "currentColor")
    role = f'role="img" aria-label="{escape(alt)}"' if alt else 'aria-hidden="true"'
    return f'<svg {role} width="{width}" height="{height}" {box[0]}>{body.strip()}'


def shorten_label(label: str) -> str:
    """A label that leaves room for a figure.

    >>> shorten_label("kl+gram@all on plain targets")
    'kl+gram@all on pl…'
    """
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"


def key(name: str, style: Style) -> str:
    """What a legend shows beside an arm's name."""
    with _chart(14, 34) as (figure, panel):
        panel.set_axis_off()
        panel.plot([0, 1], [0, 0], style.dash, color=style.colour, linewidth=1.5)
        panel.plot([0.5], [0], style.marker, color=style.colour, markersize=5)
        return _svg(figure, name, "")


def intervals(
    name: str, title: str, rows: Sequence[Row], styles: Sequence[Style], what: str,
    line: float | None = None, signed: bool = False, limits: tuple[float, float] | None = None,
) -> str:  # fmt: skip
    """A point and a 95 % interval per row.

    Args:
        name: of the figure, unique on the page.
        title: above it.
        rows: from the top down.
        styles: of each.
        what: the numbers are, for the alternative text.
        line: where a vertical one stands.
        signed: whether numbers have a sign.
        limits: of the axis, where intervals may run far.
    """
    sign = "+" if signed else ""
    told = "; ".join(
        f"{label} {points:{sign}.1f} [{low:.1f}, {high:.1f}]" for label, points, low, high in rows
    )
    with _chart(58 + 19 * len(rows)) as (figure, panel):
        shown = [(shorten_label(label), *numbers) for label, *numbers in rows]
        draw_intervals(panel, shown, [(s.colour, s.marker) for s in styles], line, signed)  # type: ignore[arg-type]
        if limits:
            panel.set_xlim(max(limits[0], panel.get_xlim()[0]), min(limits[1], panel.get_xlim()[1]))
        panel.set_title(shorten_label(title), loc="left", fontweight="bold")
        panel.set_xlabel(what)
        return _svg(figure, name, f"{title}: {what}, 95 % intervals. {told}.")


def curves(name: str, task: str, metric: str, table: pd.DataFrame, styles: Mapping[str, Style]) -> str | None:
    """The metric on ``tune`` after each epoch, a line per arm; None where nothing was scored."""
    column = f"tune_{metric}"
    if column not in table or table[column].isna().all():
        return None
    told = []
    with _chart(230) as (figure, panel):
        for arm, rows in table.groupby("arm", sort=False):
            style, scores = styles[str(arm)], 100 * rows[column].to_numpy()
            panel.plot(
                rows["epoch"], scores, style.dash, marker=style.marker, color=style.colour,
                markersize=3.5, linewidth=1.3,
            )  # fmt: skip
            ends = [
                f"{score:.1f} at epoch {epoch}" for epoch, score in zip(rows["epoch"], scores, strict=True)
            ]
            told.append(f"{arm} " + " to ".join(dict.fromkeys((ends[0], ends[-1]))))
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_xlabel("epoch")
        panel.set_ylabel(f"{metric.replace('_', ' ')} on tune, %")
        panel.set_title(shorten_label(task), loc="left", fontweight="bold")
        alt = f"{task}: {metric.replace('_', ' ')} on tune in percent, by epoch. {'; '.join(told)}."
        return _svg(figure, name, alt)


def gradient_shares(
    name: str, task: str, shares: Mapping[str, Mapping[str, float]], terms: Sequence[str]
) -> str:
    """A bar per arm, cut into its terms' shares of the gradient.

    Args:
        name: of the figure, unique on the page.
        task: above it.
        shares: arm → term → share, 0 … 1.
        terms: all of the page's, in one order, so that each keeps its colour.
    """
    told = []
    with _chart(60 + 24 * len(shares)) as (figure, panel):
        for y, (arm, of_arm) in enumerate(shares.items()):
            left = 0.0
            for term, share in of_arm.items():
                colour = term_style(terms.index(term)).colour
                panel.barh(y, 100 * share, 0.72, left, color=f"{colour}55", edgecolor=colour, linewidth=1)
                label = f"{term} {100 * share:.0f}"
                if share > 0.032 * len(label):
                    panel.text(left + 50 * share, y, label, ha="center", va="center")
                left += 100 * share
            told.append(f"{arm}: " + ", ".join(f"{t} {100 * s:.0f} %" for t, s in of_arm.items()))
        panel.set_yticks(range(len(shares)), [shorten_label(arm) for arm in shares])
        panel.set_ylim(len(shares) - 0.5, -0.5)
        panel.set_xlim(0, 100)
        panel.tick_params(axis="y", length=0)
        panel.spines["left"].set_visible(False)
        panel.set_xlabel("share of the gradient, %")
        panel.set_title(shorten_label(task), loc="left", fontweight="bold")
        return _svg(figure, name, f"{task}: shares of the gradient. {'; '.join(told)}.")


def fidelity(
    name: str, task: str, metric: str, arms: Mapping[str, Mapping[str, Mapping[str, float]]],
    styles: Mapping[str, Style],
) -> str:  # fmt: skip
    """Score against agreement with the teacher, a point per arm and a faint one per seed."""
    told = []
    with _chart(230) as (figure, panel):
        for arm, cells in arms.items():
            style = styles[arm]
            for marker, alpha, size, xs, ys in (
                (".", 0.45, 4, cells["agreement"]["seeds"].values(), cells[metric]["seeds"].values()),  # type: ignore[attr-defined]
                (style.marker, 1.0, 7, [cells["agreement"]["mean"]], [cells[metric]["mean"]]),
            ):
                points = [100 * x for x in xs], [100 * y for y in ys]
                panel.plot(
                    *points, marker, color=style.colour, alpha=alpha, markersize=size, linestyle="none"
                )
            told.append(f"{arm} {100 * cells['agreement']['mean']:.1f} and {100 * cells[metric]['mean']:.1f}")
        panel.margins(0.12)
        panel.set_xlabel("agreement with the teacher, %")
        panel.set_ylabel(f"{metric.replace('_', ' ')}, %")
        panel.set_title(shorten_label(task), loc="left", fontweight="bold")
        what = f"agreement with the teacher and {metric.replace('_', ' ')}"
        return _svg(figure, name, f"{task}: {what}, in percent. {'; '.join(told)}.")


def matrices(name: str, task: str, found: Relations, titles: Mapping[str, str]) -> list[str]:
    """The relation matrices of a task on one scale of colours, and the scale."""
    low = min(float(matrix.min()) for matrix in found.matrices.values())
    high = max(float(matrix.max()) for matrix in found.matrices.values())
    high = max(high, low + 0.01)
    ends = np.cumsum([rows for _, rows in found.classes])
    middles = ends - np.array([rows for _, rows in found.classes]) / 2
    charts = []
    for k, (model, matrix) in enumerate(found.matrices.items()):
        with _chart(SMALL + 5, SMALL) as (figure, panel):
            panel.imshow(
                np.round(matrix, 2), vmin=low, vmax=high, cmap="cividis", interpolation="none",
                extent=(0, len(matrix), len(matrix), 0),
            )  # fmt: skip
            for end in ends[:-1]:
                panel.axhline(end, color="white", linewidth=0.8)
                panel.axvline(end, color="white", linewidth=0.8)
            panel.set_xticks([])
            names = [shorten_label(label)[:13] for label, _ in found.classes]
            panel.set_yticks(middles, names, rotation=90, va="center")
            panel.tick_params(axis="y", length=0)
            panel.spines[:].set_visible(False)
            away = found.distances.get(model)
            title = titles[model] + ("" if away is None else f": {away:.1f} away")
            panel.set_title(f"{shorten_label(task)}, {title}", loc="left", fontweight="bold")
            within, between = found.contrast(model)
            alt = f"{task}, relation matrix of {titles[model]}: mean {within:.1f} % within a class, "
            alt += f"{between:.1f} % between"
            alt += "." if away is None else f"; {away:.1f} points from the teacher's."
            charts.append(_svg(figure, f"{name}-{k}", alt))
    with _chart(58, SMALL) as (figure, panel):
        panel.imshow(
            np.linspace(low, high, 64)[None], vmin=low, vmax=high, cmap="cividis", interpolation="none",
            aspect="auto", extent=(100 * low, 100 * high, 0, 1),
        )  # fmt: skip
        panel.set_yticks([])
        panel.spines[:].set_visible(False)
        panel.set_xlabel("chance of one class, %")
        alt = f"{task}: the scale of colours, from {100 * low:.0f} to {100 * high:.0f} %."
        charts.append(_svg(figure, f"{name}-scale", alt))
    return charts
