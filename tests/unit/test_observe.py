"""Noise and masks: statistics, independence of batching, laziness."""

import numpy as np
import pytest
import xarray as xr
from scipy.stats import chi2

from scatterflow import instrument as geometry
from scatterflow.config.observe import ObserveConfig, ParasiticConfig
from scatterflow.errors import SimulationError
from scatterflow.observe import observe, parasitic_weight, scale_to_full
from tests.examples import instrument


def counts(n: int = 6, level: float = 40.0, start: int = 0) -> xr.Dataset:
    config = instrument()
    data = xr.Dataset(coords={"simulation": np.arange(start, start + n)})
    for name in ("profile", "image"):
        data = data.assign_coords(geometry.coordinates(config, name))
        shape = geometry.axes(geometry.view(config, name)).pixels
        values = np.broadcast_to(level * shape, (n, *shape.shape)).astype(np.float32)
        data[name] = (("simulation", f"z_{name}", f"y_{name}"), values)
    return data


def test_poisson_mean_and_variance() -> None:
    noisy = observe(counts(400), instrument(), ObserveConfig(), seed=1)["image"].values.astype(float)
    expected = 40.0 * 8
    freedom = noisy.size - 1
    dispersion = ((noisy - noisy.mean()) ** 2).sum() / expected
    low, high = chi2.interval(0.999, freedom)
    assert low < dispersion < high
    assert noisy.mean() == pytest.approx(expected, abs=4 * np.sqrt(expected / noisy.size))
    np.testing.assert_array_equal(noisy, np.round(noisy))


def test_noise_depends_on_seed_view_and_simulation_only() -> None:
    whole = observe(counts(6), instrument(), ObserveConfig(), seed=1)
    part = observe(counts(2, start=3), instrument(), ObserveConfig(), seed=1)
    lazy = observe(counts(6).chunk(simulation=2), instrument(), ObserveConfig(), seed=1)
    for name in ("profile", "image", "mask_image"):
        xr.testing.assert_identical(whole[name].sel(simulation=[3, 4]), part[name])
        assert lazy[name].chunks is not None
        xr.testing.assert_identical(whole[name], lazy[name].compute())
    other = observe(counts(6), instrument(), ObserveConfig(), seed=2)
    assert (other["image"] != whole["image"]).mean() > 0.5
    one, two = whole["image"].values[0], whole["image"].values[1]
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.3


def test_no_noise_gives_the_expected_counts() -> None:
    data = counts(2)
    quiet = observe(data, instrument(), ObserveConfig(noise="none"), seed=0)
    np.testing.assert_allclose(quiet["image"], data["image"])


def test_partly_masked_bins_are_scaled_up_and_mostly_masked_ones_are_masked() -> None:
    config = instrument(masked=({"z": (0, 1), "y": (4, 8)}, {"z": (2, 4), "y": (4, 8)}))
    noisy = observe(counts(300), config, ObserveConfig(), seed=0)
    assert noisy["mask_image"].values[:, 0, 0].all()
    assert not noisy["mask_image"].values[:, 1, 0].any()
    assert (noisy["image"].values[:, 1, 0] == 0).all()
    half = noisy["image"].values[:, 0, 0].astype(float)
    assert half.mean() == pytest.approx(320, rel=0.03)
    assert half.var() == pytest.approx(2 * 320, rel=0.3)  # half the photons, doubled


def test_dead_bins_at_random_share() -> None:
    noisy = observe(counts(200), instrument(), ObserveConfig(dead_share=0.1), seed=0)
    assert 1 - noisy["mask_image"].values.mean() == pytest.approx(0.1, abs=0.01)
    assert len(np.unique(noisy["mask_image"].values[:, :5, :5].reshape(200, -1), axis=0)) > 100


def test_parasitic_scattering_is_removed_by_its_weight() -> None:
    """What an experiment adds, preprocessing takes away: without noise exactly."""
    data, parasitic = counts(2), ParasiticConfig(centre_qz_per_nm=1.2)
    dirty = observe(data, instrument(), ObserveConfig(noise="none"), seed=0, parasitic=parasitic)
    assert dirty.attrs["parasitic"] == 1
    weight = parasitic_weight(data["qz_profile"], parasitic)
    assert float(weight.max()) == 1
    np.testing.assert_allclose(dirty["profile"] * weight, data["profile"], rtol=1e-5)
    assert float((dirty["profile"] / data["profile"]).max()) > 2


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_impossible_counts_are_refused(value: float) -> None:
    data = counts(2)
    data["image"].values[1, 2, 3] = value
    with pytest.raises(SimulationError, match="image"):
        observe(data, instrument(), ObserveConfig(), seed=0)


def test_scale_to_full_keeps_dtype_and_shape() -> None:
    full, valid = scale_to_full(np.array([[4.0, 4.0]]), np.array([[0.5, 0.25]]), 0.5)
    np.testing.assert_array_equal(full, [[8, 0]])
    np.testing.assert_array_equal(valid, [[True, False]])
    assert full.dtype == np.float32
