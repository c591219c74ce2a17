"""One self-contained page per run: no script, no request, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import yaml
from markupsafe import Markup, escape

from scatterflow import provenance
from scatterflow.config.study import RunConfig
from scatterflow.report import observation, quality, realframes, sweeps
from scatterflow.report.gallery import Gallery, Section
from scatterflow.report.headline import best_model, label, study_verdict
from scatterflow.report.metrics import Verdict
from scatterflow.report.numbers import NONE, percent, plus_minus, seconds
from scatterflow.report.products import Missing, Products
from scatterflow.report.tables import Table
from scatterflow.study import Study

_EXAMPLES = 2  # held-back examples shown per study
_MANY_PARAMETERS = 40  # of all studies: beyond it a second example would make the page too heavy for a mail


_SOURCES = {
    "multilayer": "Kind multilayer: engines BornAgain (doi:10.1107/S1600576719016789) and dwba, which computes the same and "
    "is compared with it in every run; study, network and published figures: Zhdanov et al., arXiv 2210.01543; expert "
    "values: Randolph et al., doi:10.1103/PhysRevResearch.4.033038.",
    "nanodiffraction": "Kind nanodiffraction: forward model, test scan and published figures: DONUT, arXiv 2507.14038.",
    "particles": "Kind particles: distorted-wave Born approximation as in BornAgain (doi:10.1107/S1600576719016789), which "
    "every run is compared with; dual-branch network after Zhai et al. 2025; what people reach: arXiv 2303.03772.",
}


@dataclass(frozen=True)
class Tile:
    """One number of the headline with what it means."""

    value: str
    meaning: str


@dataclass(frozen=True)
class StudyPage:
    """Everything the page shows of one study."""

    name: str
    kind: str
    verdict: Verdict | None
    tiles: list[Tile]
    sections: list[Section]
    missing: list[Missing]
    manifest: dict[str, Any]  # of the simulations
    metrics: dict[str, Any]  # as evaluated
    identity: dict[str, str]


def examples_shown(studies: Sequence[Study]) -> int:
    """How many held-back examples each study shows."""
    return _EXAMPLES if sum(len(study.prior.names) for study in studies) <= _MANY_PARAMETERS else 1


def study_page(products: Products, gallery: Gallery, shown: int = _EXAMPLES) -> StudyPage:
    """Draw all figures of a study, with so many held-back examples, and compose its sections."""
    examples = products.arrays["example"].sizes.get("example", 1) if "example" in products.arrays else 1
    sections = [quality.comparison(products, gallery)]
    for index in range(min(examples, shown)):
        sections.append(
            observation.observation(
                products, "example", index, f"example-{index}", f"A held-back simulation, number {index + 1}",
                f"held-back example {index + 1}", gallery,
            )
        )  # fmt: skip
    sections.append(
        observation.observation(
            products,
            "experiment",
            0,
            "experiment",
            "The experiment: the expert's sample",
            "the expert's sample",
            gallery,
        )
    )
    sections += [
        realframes.section(products, gallery),
        quality.calibrated(products, gallery),
        quality.forward(products),
        quality.rebuilt(products, gallery),
        quality.training(products, gallery),
        quality.costs(products, gallery),
    ]
    if (found := sweeps.section(products.study.config, products.sweep)) is not None:
        sections.insert(-1, found)
    study = products.study
    verdict, identity = study_verdict(products.metrics), {"simulations": study.simulation_identity()}
    return StudyPage(
        study.name, study.kind, verdict, _tiles(products), sections, products.missing, products.manifest,
        products.raw_metrics, identity | {str(k): str(v) for k, v in products.metrics.identity.items()},
    )  # fmt: skip


def _tiles(products: Products) -> list[Tile]:
    metrics = products.metrics
    best = best_model(metrics)
    tiles = []
    if best is not None:
        estimator = metrics.estimators[best]
        gain = estimator.information_gain
        if gain and gain.mean is not None:
            tiles.append(Tile(f"{plus_minus(gain.mean, gain.se)} nats", f"information gain, {label(metrics, best)}"))
        at = estimator.coverage.at(0.9) if estimator.coverage else None
        if at:
            tiles.append(
                Tile(percent(at[0]), f"of truths in 90 % regions (expected {percent(at[1])} to {percent(at[2])})")
            )
        if estimator.seconds_per_observation is not None:
            tiles.append(Tile(seconds(estimator.seconds_per_observation), "per observation, once trained"))
    alarm = metrics.out_of_range.false_alarm if metrics.out_of_range else None
    if alarm and alarm.rate is not None:
        count = f" of {alarm.n:,}" if alarm.n else ""
        tiles.append(Tile(percent(alarm.rate), f"false alarms{count} in-range simulations"))
    return tiles


def provenance_table(run: RunConfig, pages: Sequence[StudyPage], config_sha256: str, commit: str) -> Table:
    """Seeds, hashes, versions: what determines this run."""
    rows = [
        ["run", run.run],
        ["seed", str(run.seed)],
        ["code (commit)", commit],
        ["configuration (sha256)", config_sha256],
    ]
    versions: dict[str, str] = dict(provenance.versions())
    for page in pages:
        versions |= {str(k): str(v) for k, v in page.manifest.get("versions", {}).items()}
    rows += [[f"version of {name}", version] for name, version in sorted(versions.items())]
    for page in pages:
        rows.append([f"{page.name}: identity of the simulations", page.identity["simulations"]])
        if "checksum" in page.manifest:
            rows.append([f"{page.name}: checksum of the store", str(page.manifest["checksum"])])
        rows += [[f"{page.name}: {name}", value] for name, value in page.identity.items() if name != "simulations"]
    return Table("Seed, hashes, identities, versions", ["what", "value"], rows)


def sources(run: RunConfig) -> list[str]:
    """Where data and comparisons come from."""
    found = [
        "Simulations: made by this run from the configuration below.",
        *(_SOURCES[kind] for kind in dict.fromkeys(study.kind for study in run.studies.values())),
    ]
    for name, study in run.studies.items():
        found += [f"Frames of {name}, set {each}: {source or NONE}" for each, source in study.sources]
    return found


def code(text: str) -> Markup:
    """Escaped text with what stands between backticks as code."""
    parts = [f"<code>{escape(part)}</code>" if i % 2 else str(escape(part)) for i, part in enumerate(text.split("`"))]
    return Markup("".join(parts))


def render(run: RunConfig, pages: Sequence[StudyPage], config_sha256: str, commit: str) -> str:
    """The HTML text of the report. All text is escaped; only figure addresses made here are used as they are."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["code"] = code
    folder = resources.files("scatterflow.report") / "templates"
    template = environment.from_string((folder / "page.html.j2").read_text(encoding="utf-8"))
    style = (folder / "page.css").read_text(encoding="utf-8")
    missing = [(page.name, item) for page in pages for item in page.missing]
    content: dict[str, Any] = {
        "run": run.run,
        "style": Markup(style),
        "pages": pages,
        "missing": missing,
        "provenance": provenance_table(run, pages, config_sha256, commit),
        "sources": sources(run),
        "config": yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100),
        "commit": commit,
    }
    return template.render(**content)
