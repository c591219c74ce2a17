"""Trunks of the dual-branch network at equal CPU seconds, and what an answer costs.

pytest benchmarks/bench_particle_model.py -s

The perceptron on all bins and plain convolutions are the peers of the default trunk, on the same images with artefacts in
the same run: information gain [nat] over the prior on validation images, W1 of p(R) over that of a uniform one, and median
errors of spacing and disorder by the second branch. A view of 256 x 256 bins and an ensemble of three are answered in
less than 20 ms per image. 6 minutes on one core.

SCATTERFLOW_TRUNK_SECONDS=300: more CPU time for each.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from scatterflow import artefacts
from scatterflow.config.dualbranch import DualBranchConfig
from scatterflow.config.study import ParticlesConfig
from scatterflow.data import Batches, Rows
from scatterflow.models.dualbranch import DualBranch, Seen, reduction
from scatterflow.models.dualbranch_training import targets
from scatterflow.models.flow import log_prior
from scatterflow.models.particlemodel import ParticleModel, untrained
from scatterflow.particles import ParticlesStudy
from scatterflow.sizescores import wasserstein

pytestmark = pytest.mark.usefixtures("one_thread")
SECONDS = float(os.environ.get("SCATTERFLOW_TRUNK_SECONDS", "60"))  # of CPU, each
TRAIN, VALIDATION, BATCH, RATE = 6000, 1000, 64, 3e-3
LATENCY_MS = 20.0
TRUNKS: dict[str, dict[str, Any]] = {
    "columns": {},
    "convolution": {"kind": "convolution", "channels": [24, 48, 64, 96]},
    "perceptron": {"kind": "perceptron"},
}
STUDY: dict[str, Any] = {
    "kind": "particles",
    "instrument": {
        "wavelength_nm": 0.10332, "incidence_deg": 0.4, "distance_mm": 2565, "pixel_mm": 0.172, "shape": [1679, 1475],
        "background": 0, "resolution_mm": 0, "beam": "direct", "beam_z_px": 367.5, "beam_y_px": 792.0,
        "views": {
            "image": {"rows": [[474, 858]], "columns": [312, 1272], "bins": [64, 160], "sampling": [2, 1]},
        },
    },
    "sample": {
        "shape": "truncated-sphere", "material": {"name": "Au", "formula": "Au", "density_g_cm3": 19.3},
        "aspect_ratio": 0.8, "radius_nm": [0.5, 7.5], "sizes": 28,
        "modes": {"number": 2, "mean_radius_nm": [1.0, 6.0], "relative_width": [0.08, 0.35]},
        "distance_nm": [5.0, 18.0],
        "substrate": {
            "material": {"name": "Si", "formula": "Si", "density_g_cm3": 2.33}, "roughness_nm": 0.4, "hurst": 0.6,
            "correlation_length_nm": 20.0,
        },
    },
    "simulate": {"simulations": 10_000, "held_back": 100, "validation": 100},
    "models": {"dual-branch": {}},
}  # fmt: skip


def study_of(**view: Any) -> ParticlesStudy:
    instrument = STUDY["instrument"]
    told = instrument | {"views": {"image": instrument["views"]["image"] | view}}
    return ParticlesStudy("bench", ParticlesConfig.model_validate(STUDY | {"instrument": told}), 5, "bench")


@pytest.fixture(scope="module")
def study() -> ParticlesStudy:
    return study_of()


@pytest.fixture(scope="module")
def rows(study: ParticlesStudy) -> dict[str, Rows]:
    began, found = time.process_time(), {}
    theta = study.prior.sample(TRAIN + VALIDATION, seed=1).values
    reduce = reduction(study.frame, DualBranchConfig().trunk)
    for name, part in (("train", slice(0, TRAIN)), ("validation", slice(TRAIN, None))):
        index = np.arange(len(theta))[part]
        recorded = artefacts.record(study.expected(theta[part]), index, study.frame, study.config.artefacts, 1)
        found[name] = Rows((*reduce(*recorded), *targets(study, theta[part])))
    print(f"\n{len(theta):,} images simulated and recorded in {time.process_time() - began:.0f} s of CPU")
    return found


def trained(study: ParticlesStudy, config: DualBranchConfig, train: Rows) -> tuple[DualBranch, int]:
    """A network after `SECONDS` of CPU, and the number of its steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = untrained(study, config).networks[0]
    log_counts, share, _, _, second = train.tensors
    network.fit_scaling(Seen(log_counts, share), second)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-2)
    began, steps, epoch = time.process_time(), 0, 0
    while True:
        for batch in Batches(train, BATCH, partial(int, epoch), 0):
            done = (time.process_time() - began) / SECONDS
            if done >= 1:
                return network.eval(), steps
            optimizer.param_groups[0]["lr"] = RATE * min(1, (steps + 1) / 100) * 0.5 * (1 + np.cos(np.pi * done))
            optimizer.zero_grad()
            network.loss(*batch).mean().backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            steps += 1
        epoch += 1


def scored(study: ParticlesStudy, network: DualBranch, held: Rows) -> dict[str, float]:
    log_counts, share, normal, sizes, second = held.tensors
    with torch.inference_mode():
        vector = network.describe(log_counts, share)
        gain = network.flow.log_prob(normal, vector) - log_prior(normal)
        found, answers = network.sizes(vector).exp().double().numpy(), network.second(vector)
    radius = study.size_distribution(study.prior.sample(1, seed=1).values)["radius"].values
    truth = sizes.double().numpy()
    apart, ignorant = (wasserstein(each, truth, radius) for each in (found, np.full_like(truth, 1 / len(radius))))
    return {
        "gain": float(gain.mean()),
        "sizes": float(np.median(apart) / np.median(ignorant)),
        "distance": float((answers[:, 0] / second[:, 0] - 1).abs().median()),
        "disorder": float((answers[:, 1] - second[:, 1]).abs().median()),
    }


def test_default_trunk_is_the_best_at_equal_cpu_seconds(study: ParticlesStudy, rows: dict[str, Rows]) -> None:
    print(f"\ntrunk        steps   gain [nat]  W1 / uniform  distance  disorder   ({SECONDS:.0f} s of CPU each)")
    scores = {}
    for name, trunk in TRUNKS.items():
        network, steps = trained(study, DualBranchConfig.model_validate({"trunk": trunk}), rows["train"])
        scores[name] = got = scored(study, network, rows["validation"])
        print(
            f"{name:12s} {steps:5d} {got['gain']:10.2f} {got['sizes']:13.3f} {got['distance']:10.2%} "
            f"{got['disorder']:9.4f}"
        )
    assert max(scores, key=lambda name: scores[name]["gain"]) == DualBranchConfig().trunk.kind


@pytest.mark.parametrize("members", [1, 3])
def test_answers_take_less_than_20_ms(members: int) -> None:
    study = study_of(rows=[[474, 986]], columns=[280, 1304], bins=[256, 256], sampling=[1, 1])
    config = DualBranchConfig(members=members)
    model = ParticleModel("new", study, config, untrained(study, config).eval().requires_grad_(False))
    rng = np.random.default_rng(0)
    counts = (("simulation", "z_image", "y_image"), rng.gamma(0.5, 2.0, (20, 256, 256)))
    images = study.observe(xr.Dataset({"image": counts}, {"simulation": np.arange(20)}))
    model.predict(images)
    spent = []
    for each in range(20):  # one by one, as frames come
        began = time.process_time()
        model.predict(images.isel(simulation=[each]))
        spent.append(1e3 * (time.process_time() - began))
    began = time.process_time()
    model.predict(images)
    together = 1e3 * (time.process_time() - began) / 20
    median = np.median(spent)
    print(f"\n{members} member(s): {median:.1f} ms of CPU for an image alone, {together:.1f} ms in a batch of 20")
    assert median < LATENCY_MS
