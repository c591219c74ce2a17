"""Figures on their way into the page and into files."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from scatterflow.report.style import data_uri, to_png, to_svg
from scatterflow.report.tables import Table


@dataclass(frozen=True)
class Picture:
    """A figure as the page shows it: its address, what it shows in words, its caption, its size in CSS pixels."""

    source: str
    alt: str
    caption: str
    width: int
    height: int


@dataclass(frozen=True)
class Row:
    """Small figures side by side under a heading."""

    title: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Section:
    """A part of a study: a sentence, figures, rows of small figures, tables, and what it lacks."""

    key: str
    title: str
    lead: str = ""
    pictures: list[Picture] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    missing: str = ""


@dataclass(frozen=True)
class Gallery:
    """Writes each figure of one study to `folder` and hands it to the page."""

    folder: Path
    study: str

    def add(self, name: str, figure: Figure, alt: str, caption: str = "", png: bool = False) -> Picture:
        """Save `<study>-<name>.svg` (and .png) and return the picture."""
        svg = to_svg(figure)
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{self.study}-{name}")
        (self.folder / f"{stem}.svg").write_text(svg, encoding="utf-8")
        if png:
            (self.folder / f"{stem}.png").write_bytes(to_png(figure))
        width, height = figure.get_size_inches() * 96  # CSS pixels per inch: the page reserves the space
        return Picture(data_uri(svg), alt, caption, round(width), round(height))
