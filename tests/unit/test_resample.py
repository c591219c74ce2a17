"""Frames of one instrument in the views of another."""

import numpy as np
import pytest
import xarray as xr

from scatterflow import instrument as geometry
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.errors import FrameError
from scatterflow.preprocess.resample import to_views
from tests.examples import instrument

VIEWS = ("profile", "image")


def frame(config: InstrumentConfig, values: np.ndarray, mask: np.ndarray | None = None) -> xr.Dataset:
    valid = np.ones(config.shape, dtype=bool) if mask is None else mask
    return xr.Dataset({"counts": (("z", "y"), values), "mask": (("z", "y"), valid)}, attrs={"file": "f.tif"})


@pytest.mark.parametrize("geometry_name", ["bornagain", "flat"])
def test_own_instrument_gives_the_plain_binning(geometry_name: str) -> None:
    config = instrument(geometry=geometry_name)
    values = np.random.default_rng(0).poisson(100, config.shape).astype(float)
    views = to_views(frame(config, values), config, config, VIEWS, 0.5)
    for name in VIEWS:
        expected = geometry.bin_counts(values, config, name)
        valid = views[f"mask_{name}"].values[0]
        assert valid.mean() > 0.7
        np.testing.assert_allclose(views[name].values[0][valid], expected[valid], rtol=2e-3)


def smooth(config: InstrumentConfig) -> np.ndarray:
    """Counts per pixel of a pattern that is a function of q alone, times the solid angle's size in q."""
    q = geometry.q_map(config)
    density = 1 + np.cos(6 * q["qz"].values) * np.exp(-((q["qy"].values / 0.5) ** 2))
    step = config.pixel_mm / config.distance_mm * geometry.wavenumber(config)
    return 1e5 * density * step**2


def test_a_pattern_in_q_survives_another_detector() -> None:
    """Distance, pixel, wavelength, incidence and beam position differ; counts per q^2 agree with the target's own."""
    target = instrument()
    source = instrument(
        distance_mm=2000.0, pixel_mm=0.172, wavelength_nm=0.105, incidence_deg=0.4, shape=(400, 300),
        beam="direct", normal="direct", beam_z_px=40.0, beam_y_px=150.0, geometry="flat", views={},
    )  # fmt: skip
    views = to_views(frame(source, smooth(source)), source, target, VIEWS, 0.5)
    for name in VIEWS:
        valid = views[f"mask_{name}"].values[0]
        expected = geometry.bin_counts(smooth(target), target, name)
        assert valid.mean() > 0.3
        np.testing.assert_allclose(views[name].values[0][valid], expected[valid], rtol=0.05, atol=1e-3 * expected.max())


def test_masked_pixels_do_not_count() -> None:
    config = instrument()
    values = np.full(config.shape, 10.0)
    mask = np.ones(config.shape, dtype=bool)
    mask[30, :] = False
    values[30, :] = 1e9
    views = to_views(frame(config, values, mask), config, config, VIEWS, 0.4)
    valid = views["mask_image"].values[0]
    np.testing.assert_allclose(views["image"].values[0][valid], 80.0, rtol=1e-2)
    assert not views["mask_profile"].values[0, 4 + 2, 0]


def test_below_the_horizon_is_masked() -> None:
    config = instrument()
    views = to_views(frame(config, np.ones(config.shape)), config, config, VIEWS, 0.5)
    horizon = geometry.horizon_px(config)
    below = geometry.axes(geometry.view(config, "image")).z[:, 0] < horizon - 1e-9
    assert below.any()
    np.testing.assert_array_equal(views["mask_image"].values[0].any(axis=1), ~below)


def test_frames_that_do_not_fit_are_refused() -> None:
    config = instrument()
    with pytest.raises(FrameError, match="shape of its instrument") as caught:
        to_views(frame(instrument(shape=(61, 40)), np.ones((61, 40))), config, config, VIEWS, 0.5)
    assert caught.value.status == "wrong-instrument"
    elsewhere = instrument(distance_mm=100000.0, views={})
    with pytest.raises(FrameError, match="overlap the q range"):
        to_views(frame(elsewhere, np.ones(elsewhere.shape)), elsewhere, config, VIEWS, 0.5)
