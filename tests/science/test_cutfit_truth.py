"""The fit of cuts finds what the reference engine, which computes every pixel by itself, put into the frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy.stats import binom

from scatterflow import instrument as geometry
from scatterflow import sizes
from scatterflow.baselines.cutfit import VALUES, cut_fit
from scatterflow.baselines.cuts import Cuts, cuts, peak_distance, uniform_sizes
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.loading import validate
from scatterflow.config.particles import ParticleSampleConfig
from scatterflow.forward.dwba.particles import expected_counts
from scatterflow.sizescores import mean_and_width, wasserstein
from scatterflow.units import energy_kev

pytestmark = pytest.mark.science
FRAMES = 36
COUNTS = 1e5
# as at P03: a Pilatus 2M 3.2 m behind the sample, 0.105 nm at 0.4 deg, of which 64 x 64 bins are seen
INSTRUMENT = InstrumentConfig(
    shape=(400, 1024), pixel_mm=0.172, distance_mm=3230.0, beam_z_px=141.1, beam_y_px=512.0, wavelength_nm=0.105,
    incidence_deg=0.4, resolution_mm=0.0, background=0.0,
    views={"image": {"rows": ((12, 268),), "columns": (0, 1024), "bins": (64, 64)}},
)  # fmt: skip
BINS = geometry.axes(INSTRUMENT.views["image"])
ROUGH: dict[str, Any] = {"hurst": 0.6, "correlation_length_nm": 30}
OXIDE = {"name": "SiO2", "delta": 4.8e-6, "beta": 4e-8}
CONTENT: dict[str, Any] = {
    "material": {"name": "Au", "delta": 2.2e-5, "beta": 1.6e-6},
    "radius_nm": [0.5, 9], "modes": {"number": 2, "mean_radius_nm": [1, 7]}, "distance_nm": [6, 20],
    "layers": [{"material": OXIDE, "thickness_nm": [1, 6], "roughness_nm": [0.2, 0.8], **ROUGH}],
    "substrate": {
        "material": {"name": "Si", "delta": 3.5e-6, "beta": 3.8e-8}, "roughness_nm": [0.1, 0.6], **ROUGH,
    },
}  # fmt: skip
SAMPLE = validate(ParticleSampleConfig, CONTENT, "particles.yaml")


@pytest.fixture(scope="module")
def of() -> Cuts:
    return cuts(SAMPLE, INSTRUMENT, BINS.z, BINS.y)


@pytest.fixture(scope="module")
def truth() -> xr.DataArray:
    return sizes.particle_prior(SAMPLE, 5).sample(FRAMES)


@pytest.fixture(scope="module")
def expected(truth: xr.DataArray) -> np.ndarray:
    """Counts (simulation, z, y), of which each frame has as many."""
    energy = energy_kev(INSTRUMENT.wavelength_nm)
    described = sizes.particles(SAMPLE, energy), sizes.arrangement(SAMPLE, truth), sizes.stack(SAMPLE, truth, energy)
    image = expected_counts(*described, INSTRUMENT, BINS.z, BINS.y, rough=False)
    return np.asarray(COUNTS * image / image.sum((1, 2), keepdims=True))


def values(truth: xr.DataArray, name: str) -> np.ndarray:
    if name in truth["parameter"]:
        return np.asarray(truth.sel(parameter=name).values)
    shares = sizes.size_distribution(SAMPLE, truth)
    return mean_and_width(shares.values, shares["radius"].values)[name == "width_nm"]


def away(found: xr.DataArray, truth: xr.DataArray) -> np.ndarray:
    """Wasserstein distances [nm] from the true size distributions."""
    right = sizes.size_distribution(SAMPLE, truth)
    return wasserstein(found.values, right.values, right["radius"].values)


def test_without_noise_the_truth_is_found(of: Cuts, truth: xr.DataArray, expected: np.ndarray) -> None:
    some = slice(0, 12)
    found = cut_fit(expected[some], np.ones(expected[some].shape, dtype=bool), of)
    here = truth[some]
    distance = np.abs(found["distance_nm"].values / values(here, "distance_nm") - 1)
    disorder = np.abs(found["disorder"].values - values(here, "disorder"))
    apart = away(found["size_distribution"], here)
    print(f"noise-free cuts: D {distance.max():.1e}, w/D {disorder.max():.1e}, p(R) {apart.max():.1e} nm at most")
    assert distance.max() < 5e-3
    assert disorder.max() < 0.01
    assert apart.max() < 0.1
    assert found["chi2_reduced"].max() < 0.1


def test_errors_hold_and_sizes_beat_knowing_nothing(of: Cuts, truth: xr.DataArray, expected: np.ndarray) -> None:
    """At 1e5 counts on a background, with a beam stop and gaps."""
    valid = np.ones(expected.shape, dtype=bool)
    valid[:, :14, 29:35] = False
    valid[:, 40:42] = False
    valid[:, :, 10:12] = False
    mean = expected + 0.1 * COUNTS / expected[0].size
    counts = np.where(valid, np.random.default_rng(1).poisson(mean), 0)
    found = cut_fit(counts, valid, of)
    assert found["success"].mean() > 0.8
    assert 0.9 < float(found["chi2_reduced"].median()) < 1.4
    low, high = binom.interval(0.9999, FRAMES, 0.68) / np.array(FRAMES)
    for name in VALUES:
        off = np.abs(found[name].values - values(truth, name)) / found[f"{name}_sd"].values
        inside, error = float((off < 1).mean()), np.median(np.abs(found[name].values - values(truth, name)))
        print(f"{name}: 68 % intervals hold {inside:.0%} of {FRAMES} frames, median error {error:.2g}")
        assert low < inside < high
        assert (off < 3).mean() > 0.9
    distance = np.abs(found["distance_nm"].values / values(truth, "distance_nm") - 1)
    trivial = np.abs(peak_distance(counts, valid, of)["distance_nm"].values / values(truth, "distance_nm") - 1)
    assert np.median(distance) < 0.02
    assert np.median(distance) < np.median(trivial) / 3
    assert np.median(trivial) < 0.15  # it is a peak, but the form factor and the disorder move it
    apart, nothing = away(found["size_distribution"], truth), away(uniform_sizes(SAMPLE, FRAMES), truth)
    print(f"p(R): {np.median(apart):.3f} nm, uniform {np.median(nothing):.3f} nm; D {np.median(distance):.2%}, trivially "
          f"{np.median(trivial):.1%}")  # fmt: skip
    assert np.median(apart) < np.median(nothing) / 5
