"""The section on what a study cost, for kinds whose page has no more to say of it."""

from __future__ import annotations

from collections.abc import Mapping

from scatterflow.report import tables
from scatterflow.report.figures import overview
from scatterflow.report.gallery import Gallery, Section
from scatterflow.report.metrics import Cost, StudyMetrics
from scatterflow.report.numbers import percent, seconds


def section(costs: Mapping[str, Cost], gallery: Gallery) -> Section:
    """Wall time of the jobs as a figure, and what each rule took as a table."""
    metrics = StudyMetrics(cost=dict(costs))
    wall = {
        name.replace("_", " ").replace(".", " "): entry.seconds
        for name, entry in tables.in_order(metrics)
        if entry.seconds is not None
    }
    pictures = []
    if wall:
        total, longest = sum(wall.values()), max(wall, key=lambda job: wall[job])
        words = f"{seconds(total)} in all; {longest} takes {percent(wall[longest] / total) if total else 'nothing'}."
        pictures.append(
            gallery.add("cost", overview.cost(wall), f"Wall time per job: {words}", f"Wall time per job: {words}")
        )
    return Section("cost", "What it cost", pictures=pictures, tables=[tables.cost(metrics, [])])
