"""How well kind particles answers: 2,000 held-out simulations with artefacts, at 1e5 counts, against the fit of two cuts.

pytest benchmarks/bench_particle_answers.py -s

The study of the demo with more simulations, through its own stages; prints what evaluate found, and asserts the bars: p(R)
at most a third as far from the truth as the uniform one and nearer than the fit's, D within 2 %, w/D within 0.02 (medians),
and 68 % intervals that hold 65 to 71 %. About 15 minutes on one core.

SCATTERFLOW_ANSWER_SECONDS=300: time that the network trains.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from scatterflow.particles import ParticlesStudy
from scatterflow.progress import quiet
from scatterflow.stages import preprocess, simulate, stage
from scatterflow.stages.particles.evaluate import read_estimates
from scatterflow.study import load_study

pytestmark = pytest.mark.usefixtures("one_thread")
SECONDS = float(os.environ.get("SCATTERFLOW_ANSWER_SECONDS", "240"))
HELD_BACK, VALIDATION, TRAIN = 2000, 2000, 8000
QUANTITIES = ("distance_nm", "disorder", "mean_radius_nm", "width_nm")


def test_answers_on_held_out_images(tmp_path: Path) -> None:
    study = load_study(
        Path(__file__).parents[1] / "config" / "demo.yaml",
        "particles",
        {
            "simulate.simulations": HELD_BACK + VALIDATION + TRAIN,
            "simulate.held_back": HELD_BACK,
            "simulate.validation": VALIDATION,
            "models.dual-branch.training.budget_s": SECONDS,
            "baselines.fitted": 300,
        },
    )
    assert isinstance(study, ParticlesStudy)
    simulate.run(study, tmp_path, quiet)
    preprocess.run(study, tmp_path, quiet)
    for model in study.config.models:
        stage("train", study.kind).run(study, model, tmp_path, tracker=quiet)
    for name in ("baseline", "infer", "evaluate"):
        stage(name, study.kind).run(study, tmp_path)
    found = json.loads((tmp_path / "evaluate" / "metrics.json").read_text())["estimators"]
    for name, entry in found.items():
        test = entry["test"]
        covered = [f"{100 * test[each]['coverage']:.1f}" for each in QUANTITIES if "coverage" in test.get(each, {})]
        errors = [f"{each} {test[each]['median_error']:.4g}" for each in QUANTITIES if each in test]
        apart = f"p(R) {test['wasserstein_nm']['median']:.4f} nm, " if "wasserstein_nm" in test else ""
        outside = f", {100 * entry['beyond']['outside']:.0f} % outside beyond the prior" if "outside" in test else ""
        print(f"{name} (n = {test['n']}): {apart}{', '.join(errors)}; intervals hold {' / '.join(covered)} %{outside}")
    best = found["dual-branch"]["test"]
    fit = read_estimates(tmp_path / "baseline" / "cut-fit.nc")["test"]["wasserstein_nm"].values
    own = read_estimates(tmp_path / "infer" / "dual-branch.nc")["test"]["wasserstein_nm"].values[: len(fit)]
    print(f"on the images that were fitted: {np.median(own):.4f} nm against {np.median(fit):.4f} nm of the fit")
    assert best["n"] == HELD_BACK
    assert best["wasserstein_over_uniform"] <= 1 / 3
    assert np.median(own) < np.median(fit)
    assert best["distance_nm"]["median_relative_error"] <= 0.02
    assert best["disorder"]["median_error"] <= 0.02
    for each in QUANTITIES:
        assert 0.65 <= best[each]["coverage"] <= 0.71, each
