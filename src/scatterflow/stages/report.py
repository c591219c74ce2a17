"""Stage report: one page per run, the metrics of all studies, the figures as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scatterflow import provenance
from scatterflow.config.study import RunConfig
from scatterflow.files import disk_errors, write_atomic
from scatterflow.multilayer import MultilayerStudy
from scatterflow.particles import ParticlesStudy
from scatterflow.products import replacing, write_json
from scatterflow.progress import say, size
from scatterflow.report.gallery import Gallery
from scatterflow.report.nanodiffraction import page as map_page
from scatterflow.report.page import StudyPage, examples_shown, render, study_page
from scatterflow.report.particles import page as particle_page
from scatterflow.report.products import read_products
from scatterflow.study import Study, study_of


def run(run_config: RunConfig, results: Path, tell: Callable[[str], None] = say) -> Path:
    """Write `report.html`, `metrics.json` and `figures/` into `results` (results/<run>/); returns the page's path.

    What earlier stages have not made is named on the page with the command that makes it. Raises StoreError for damaged
    products and where the disk refuses; what was there before stays then.
    """
    studies = [study_of(run_config, name) for name in run_config.studies]
    config_sha256, commit = provenance.digest(run_config.model_dump(mode="json")), provenance.git_commit()
    pages: list[StudyPage] = []
    with replacing(results / "figures") as folder:
        folder.mkdir()
        for study in studies:
            pages.append(_page(study, results / study.name, Gallery(folder, study.name), examples_shown(studies)))
            tell(f"{study.name}: {len(list(folder.glob('*.svg')))} figures")
        html = render(run_config, pages, config_sha256, commit).encode()
    page = results / "report.html"
    with disk_errors(page):
        write_atomic(page, html)
    write_json(results / "metrics.json", run_metrics(run_config, pages, config_sha256, commit))
    tell(f"{page}, {size(len(html))}")
    return page


def _page(study: Study, folder: Path, gallery: Gallery, shown: int) -> StudyPage:
    if isinstance(study, MultilayerStudy):
        return study_page(read_products(study, folder), gallery, shown)
    of_kind = particle_page if isinstance(study, ParticlesStudy) else map_page
    return of_kind(study, folder, gallery)


def run_metrics(run_config: RunConfig, pages: list[StudyPage], config_sha256: str, commit: str) -> dict[str, Any]:
    """The metrics of all studies as evaluated, with the verdicts shown and what determines the run."""
    studies = {
        page.name: {
            **page.metrics,
            "verdict": page.verdict.model_dump(mode="json") if page.verdict else None,
        }
        for page in pages
    }
    return {
        "format": 1,
        "run": run_config.run,
        "seed": run_config.seed,
        "commit": commit,
        "config_sha256": config_sha256,
        "versions": provenance.versions(),
        "studies": studies,
    }
