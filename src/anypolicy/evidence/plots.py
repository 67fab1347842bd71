"""Figures: Plotly for reports (work offline), Matplotlib for the SVG files of the documentation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from anypolicy.parts.reports import Chart

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Okabe and Ito's colours, distinct for colour-blind readers."""


@dataclass
class Curve:
    """One arm: a value at each of `steps` for every seed, (seeds, steps)."""

    name: str
    steps: Sequence[float]
    values: list[list[float]]

    def band(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, lowest and highest over seeds."""
        x = np.asarray(self.values, float)
        return x.mean(0), x.min(0), x.max(0)


def over(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """A name's values in rows of a ledger; where a row has none, NaN: a gap in a line."""
    return [row.get(name, math.nan) for row in rows]


def shade(colour: str, alpha: float) -> str:
    """#rrggbb with transparency."""
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},{alpha})"


def figure(title: str, x: str, y: str) -> Any:
    """An empty Plotly figure in the house style."""
    from plotly import graph_objects as go

    out = go.Figure()
    out.update_layout(
        title={"text": title, "x": 0, "font": {"size": 16}}, template="plotly_white", height=380,
        margin={"l": 60, "r": 20, "t": 50, "b": 50}, font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "y": 1.08, "x": 1, "xanchor": "right"},
    )  # fmt: skip
    out.update_xaxes(title=x)
    out.update_yaxes(title=y)
    return out


def learning_curves(curves: Sequence[Curve], *, x: str = "step", y: str, title: str = "") -> Any:
    """Mean over seeds with the range of the seeds behind it."""
    from plotly import graph_objects as go

    out = figure(title, x, y)
    for i, c in enumerate(curves):
        colour = PALETTE[i % len(PALETTE)]
        mean, low, high = c.band()
        if len(c.values) > 1:
            out.add_trace(go.Scatter(
                x=[*c.steps, *c.steps[::-1]], y=[*high, *low[::-1]], fill="toself", mode="lines", line={"width": 0},
                fillcolor=shade(colour, 0.15), hoverinfo="skip", showlegend=False,
            ))  # fmt: skip
        out.add_trace(go.Scatter(x=[*c.steps], y=mean, name=c.name, mode="lines+markers", line={"color": colour}))
    return out


def interval_dots(
    rows: Sequence[tuple[str, float, float, float]], *, x: str, title: str = "", mark: float | None = None
):
    """A dot with an interval for every row (name, point, low, high); `mark` draws a line at a reference value."""
    from plotly import graph_objects as go

    out = figure(title, x, "")
    for i, (name, point, low, high) in enumerate(rows):
        out.add_trace(go.Scatter(
            x=[point], y=[name], mode="markers", showlegend=False,
            marker={"size": 11, "color": PALETTE[i % len(PALETTE)]},
            error_x={"type": "data", "symmetric": False, "array": [high - point], "arrayminus": [point - low]},
        ))  # fmt: skip
    if mark is not None:
        out.add_vline(x=mark, line={"dash": "dot", "color": "#888"})
    out.update_layout(height=120 + 45 * len(rows))
    out.update_yaxes(autorange="reversed")
    return out


def canvas(width: float, height: float) -> tuple[Any, Any]:
    """An empty Matplotlib figure and its axes in the house style."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    picture = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(picture)
    axes = picture.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return picture, axes


def write_picture(picture: Any, path: Path | IO[bytes]) -> None:
    """A file whose type its name says (.svg, .png; an open one is SVG), the same bytes for the same figure."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "anypolicy"}):
        kind = path.suffix[1:] if isinstance(path, Path) else "svg"
        picture.savefig(path, format=kind, metadata={"Date": None} if kind == "svg" else None)


def save_plane(
    path: Path, points: Mapping[str, tuple[float, float]], *, tq: float, saco: tuple[float, float]
) -> None:  # fmt: skip
    """Data sets by their TQ and SACo, with lines where the regions end."""
    picture, axes = canvas(6.4, 4.6)
    for i, (name, (x, y)) in enumerate(points.items()):
        axes.plot([x], [y], "o", color=PALETTE[i % len(PALETTE)], markersize=9, label=name)
    axes.axvline(tq, color="#888", linestyle=":")
    for level in saco:
        axes.axhline(level, color="#888", linestyle=":")
    xs, ys = zip(*points.values(), strict=True)
    axes.set(xlim=(min(-0.1, *xs) - 0.05, max(1.1, *xs) + 0.1), ylim=(-0.05, max(1.1, *ys) + 0.1))
    axes.set(xlabel="TQ: 0 random, 1 the best known return", ylabel="SACo: distinct pairs beside the reference's")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    write_picture(picture, path)


def save_curves(path: Path | IO[bytes], curves: Sequence[Curve], *, x: str = "step", y: str, title: str = "") -> None:
    """The learning curves as a file whose type its name says (.svg, .png)."""
    picture, axes = canvas(7.2, 4.0)
    for i, c in enumerate(curves):
        colour = PALETTE[i % len(PALETTE)]
        mean, low, high = c.band()
        axes.plot(c.steps, mean, color=colour, label=c.name, linewidth=2)
        if len(c.values) > 1:
            axes.fill_between(c.steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.legend(frameon=False)
    write_picture(picture, path)


def draw(chart: Chart) -> Any:
    """A chart of an exact method's solution, intervals shaded; its title is for the heading above it."""
    from plotly import graph_objects as go

    out = figure("", chart.x, chart.y)
    for i, line in enumerate(chart.lines):
        colour = PALETTE[i % len(PALETTE)]
        x = list(line.x)
        if line.low:
            out.add_trace(go.Scatter(
                x=x + x[::-1], y=[*line.high, *list(line.low)[::-1]], fill="toself", mode="lines", line={"width": 0},
                fillcolor=shade(colour, 0.15), hoverinfo="skip", showlegend=False,
            ))  # fmt: skip
        out.add_trace(go.Scatter(x=x, y=list(line.y), name=line.name, mode="lines+markers", line={"color": colour}))
    if "x" in chart.log:
        out.update_xaxes(type="log")
    if "y" in chart.log:
        out.update_yaxes(type="log")
    return out
