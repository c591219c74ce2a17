"""How every figure of the report looks, on light and on dark paper."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.typing import LineStyleType
from numpy.typing import NDArray

INK, MUTED, GRID, SHADE, PAPER = "#1f2328", "#6e7781", "#d8dee4", "#e3e7eb", "#ffffff"
# Okabe & Ito's colours, told apart by people with any colour vision: https://jfly.uni-koeln.de/color/
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
LINES: tuple[LineStyleType, ...] = (
    "-",
    "--",
    "-.",
    ":",
    (0, (5, 1)),
    (0, (3, 1, 1, 1, 1, 1)),
)  # colour is never the only difference
MARKERS = ("o", "s", "D", "^", "v", "P")
Style = tuple[str, LineStyleType, str]  # colour, line, marker

# the same colours on dark paper: an SVG swaps them itself where the reader prefers dark
_DARK = {
    PAPER: "#1b1f24", INK: "#e6e8eb", MUTED: "#9aa4ae", GRID: "#3a424a", SHADE: "#2d343b",
    BLUE: "#58a9e6", VERMILLION: "#f2854a", GREEN: "#33c79c", PURPLE: "#de97bb", ORANGE: "#f0b53c",
}  # fmt: skip
_RC: dict[Any, Any] = {  # matplotlib's types want a dict of literals
    "svg.hashsalt": "scatterflow",  # the same drawing gives the same file
    "svg.fonttype": "none",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "savefig.facecolor": PAPER,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.5,
    "hatch.linewidth": 0.7,
    "image.cmap": "cividis",
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "figure.constrained_layout.use": True,
}

# decorates every function that draws or saves
styled = matplotlib.rc_context(_RC)

WIDTH, HEIGHT = 4.4, 3.1  # inches; at this width the text stays readable when a phone scales the figure down


def blank(width: float = WIDTH, height: float = HEIGHT) -> Figure:
    """An empty figure (no pyplot: nothing is shared between figures)."""
    return Figure(figsize=(width, height))


def legend_above(axes: Axes, columns: int = 2) -> None:
    """A legend above the axes, where it hides no data."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, borderaxespad=0.2, borderpad=0,
            columnspacing=1.2, handlelength=1.8,
        )  # fmt: skip


def dots(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], color: str, label: str | None = None) -> None:
    """Points as the round ends of minute strokes in one path: a quarter of the size of single markers in an SVG."""
    stroke = 1e-4 * (float(np.nanmax(x)) - float(np.nanmin(x)) or 1.0)
    gap = np.full_like(x, np.nan)
    xs, ys = (np.column_stack([start, end, gap]).ravel() for start, end in ((x, x + stroke), (y, y)))
    axes.plot(xs, ys, color=color, linewidth=1.8, solid_capstyle="round")
    if label:
        axes.plot([], [], ".", color=color, label=label)


def _lay_out(figure: Figure) -> None:
    """Give everything in the figure its place, once: saving would do it for every format, and draw twice for it."""
    engine = figure.get_layout_engine()
    if figure.axes and engine is not None:
        FigureCanvasSVG(figure)  # its text is as wide as in the SVG
        engine.execute(figure)
        with matplotlib.rc_context({"figure.constrained_layout.use": False}):
            figure.set_layout_engine(None)


@styled
def to_svg(figure: Figure) -> str:
    """The figure as SVG text, without date and creator."""
    _lay_out(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    # a tenth of a point is enough for any eye and halves the file; text between tags stays as it is
    text = re.sub(r' (d|x|y|x1|x2|y1|y2)="[^"]*"', lambda found: _short(found[0]), text)
    return re.sub(r"font-family: [^;\"]*", "font-family: 'DejaVu Sans', Verdana, sans-serif", text)


def _short(attribute: str) -> str:
    return re.sub(r"(\.\d)\d+", r"\1", attribute).replace(" \n", " ").replace(".0 ", " ")


@styled
def to_png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as PNG."""
    _lay_out(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def data_uri(svg: str) -> str:
    """An SVG as the address of an <img>, with its colours for dark paper; ids of several figures cannot clash there."""
    swaps = "".join(
        f'[style*="{key}: {light}"]{{{key}:{dark} !important}}'
        for light, dark in _DARK.items()
        for key in ("fill", "stroke")
        if f"{key}: {light}" in svg
    )
    style = f"<style>@media (prefers-color-scheme:dark){{{swaps}}}</style>"
    body = re.sub(r"(<svg\b[^>]*>)", lambda match: match[1] + style, svg[svg.index("<svg") :], count=1)
    return "data:image/svg+xml;base64," + base64.b64encode(body.encode()).decode()


def estimator_styles(names: Iterable[str]) -> dict[str, Style]:
    """(colour, line style, marker) of each estimator, by its place in `names`: the same in all figures of a study."""
    return {
        name: (CYCLE[i % len(CYCLE)], LINES[i % len(LINES)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)
    }
