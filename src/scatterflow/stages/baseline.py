"""Stage baseline: ABC on the stored simulations for every held-back observation."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from scatterflow import experiment
from scatterflow.baselines.abc import AbcPosterior, fit
from scatterflow.config.baselines import AbcMethod
from scatterflow.exports import write_tree
from scatterflow.multilayer import MultilayerStudy
from scatterflow.products import write_json
from scatterflow.progress import say
from scatterflow.stages import preprocess
from scatterflow.stages.posteriors import write_result

LABELS = {
    "abc-kde": "ABC rejection + KDE, profile (the paper's baseline)",
    "abc-kde-normal": "ABC rejection + KDE inside the prior's support, profile",
    "abc-regression": "ABC + regression adjustment, profile",
}


def run(study: MultilayerStudy, folder: Path, tell: Callable[[str], None] = say) -> Path:
    """Write `baseline/<method>.nc` and `.json` for each method, and `baseline/manifest.json`; returns its path."""
    features = preprocess.load(study, folder)
    library = preprocess.rows(features, "train", "validation").load()
    held_back = preprocess.rows(features, "held_back").load()
    start = time.monotonic()
    index = fit(
        library["profile"], library["parameters"], study.prior, study.config.baselines, mask=library["mask_profile"]
    )
    built = time.monotonic() - start
    methods = study.config.baselines.methods
    for method in methods:

        def posterior(rows: slice, method: AbcMethod = method) -> AbcPosterior:
            part = held_back.isel(simulation=rows)
            return index.posterior(part["profile"], method, mask=part["mask_profile"])

        first = posterior(slice(0, 1))
        extra = {
            "label": LABELS[method],
            "model": method,
            "mode": "profile",
            "library": len(library["simulation"]),
            "accepted": first.distances.shape[1],
            "acceptance": first.acceptance,
        }
        write_result(study, folder / "baseline" / f"{method}.nc", posterior, held_back, extra, tell)
    known = experiment.record(study)
    if known is not None:
        expert, _, recorded = known
        groups = {
            f"/{experiment.GROUP}/{method}": experiment.result(
                study, index.posterior(recorded["profile"], method, mask=recorded["mask_profile"]), expert
            )
            for method in methods
        }
        write_tree(folder / "baseline" / "experiment.nc", groups)
    return write_json(
        folder / "baseline" / "manifest.json",
        {
            "format": 1,
            "methods": list(methods),
            "library": len(library["simulation"]),
            "index_seconds": round(built, 3),
        },
    )
