"""Stage report: one page per run, the metrics of all studies, the figures as files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from scatterflow import fanout, provenance
from scatterflow.config.study import RunConfig
from scatterflow.errors import StoreError
from scatterflow.files import disk_errors, write_atomic
from scatterflow.manifest import Shard
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


def run(run_config: RunConfig, results: Path, tell: Callable[[str], None] = say, workers: int | None = None) -> Path:
    """Write `report.html`, `metrics.json` and `figures/` into `results` (results/<run>/); returns the page's path.

    So many studies at once (by default as many as there are cores) are drawn. What earlier stages have not made is named
    on the page with the command that makes it. Raises StoreError for damaged products and where the disk refuses; what
    was there before stays then.
    """
    studies = [study_of(run_config, name) for name in run_config.studies]
    config_sha256, commit = provenance.digest(run_config.model_dump(mode="json")), provenance.git_commit()
    with replacing(results / "figures") as folder:
        folder.mkdir()
        pages = _pages(studies, results, folder, fanout.processes(workers), tell)
        html = render(run_config, pages, config_sha256, commit).encode()
    page = results / "report.html"
    with disk_errors(page):
        write_atomic(page, html)
    write_json(results / "metrics.json", run_metrics(run_config, pages, config_sha256, commit))
    tell(f"{page}, {size(len(html))}")
    return page


def _pages(
    studies: Sequence[Study], results: Path, figures: Path, workers: int, tell: Callable[[str], None]
) -> list[StudyPage]:
    """What the page shows of each study, in their order."""
    pages: dict[int, StudyPage] = {}
    each = [Shard(number, number + 1) for number in range(len(studies))]
    with closing(fanout.run_shards(each, partial(_page, studies, results, figures), workers)) as outcomes:
        for outcome in outcomes:
            if outcome.result is None:
                raise RuntimeError(outcome.details) if outcome.details else StoreError(outcome.error)
            number = outcome.shard.start
            pages[number] = outcome.result
            tell(f"{studies[number].name}: drawn, {len(pages)} of {len(studies)}")
    return [pages[number] for number in range(len(studies))]


def _page(studies: Sequence[Study], results: Path, figures: Path, which: Shard) -> StudyPage:
    study = studies[which.start]
    folder, gallery = results / study.name, Gallery(figures, study.name)
    if isinstance(study, MultilayerStudy):
        return study_page(read_products(study, folder), gallery, examples_shown(studies))
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
