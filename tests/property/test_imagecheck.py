"""Fits of scale and background, and coarse features, of any images."""

import numpy as np
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scatterflow.imagecheck import coarse, fitted

SHAPE = (2, 6, 7)
counts = arrays(np.float64, SHAPE, elements=st.integers(0, 10_000).map(float))
images = arrays(np.float64, SHAPE, elements=st.floats(1e-3, 1e4))
masks = arrays(np.bool_, SHAPE)
cauchy = st.sampled_from([None, 2.0])


@settings(max_examples=60, deadline=None)
@given(images, counts, masks, cauchy)
def test_fits_are_numbers_and_not_negative(
    expected: np.ndarray, seen: np.ndarray, valid: np.ndarray, c: float | None
) -> None:
    fit = fitted(expected, seen * valid, valid, cauchy=c)
    assert all(np.isfinite(part).all() for part in fit)
    assert (fit.scale >= 0).all()
    assert (fit.background >= 0).all()
    assert ((fit.score >= 0) & (fit.score <= 16)).all()


@settings(max_examples=60, deadline=None)
@given(images, counts, masks, cauchy, st.sampled_from([2.0**-9, 8.0]))
def test_fits_do_not_depend_on_units_order_and_masked_bins(
    expected: np.ndarray, seen: np.ndarray, valid: np.ndarray, c: float | None, factor: float
) -> None:
    fit = fitted(expected, seen, valid, cauchy=c)
    scaled = fitted(expected * factor, seen, valid, cauchy=c)
    flipped = fitted(expected[::-1], seen[::-1], valid[::-1], cauchy=c)
    other = fitted(np.where(valid, expected, 7.0), np.where(valid, seen, 3.0), valid, cauchy=c)
    np.testing.assert_allclose(scaled.scale * factor, fit.scale, rtol=1e-9)
    for name in ("scale", "background", "score"):
        np.testing.assert_array_equal(getattr(flipped, name)[::-1], getattr(fit, name))
        np.testing.assert_array_equal(getattr(other, name), getattr(fit, name))
    np.testing.assert_allclose(scaled.background, fit.background, rtol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_coarse_features_are_numbers_of_what_is_valid(rows: int, columns: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    seen = rng.poisson(10 ** rng.uniform(-2, 3), (2, rows, columns)).astype(np.float32)
    valid = rng.random(seen.shape) < share
    valid[1] = False

    def features(values: np.ndarray) -> xr.Dataset:
        dims = ("simulation", "z_image", "y_image")
        return coarse(xr.Dataset({"image": (dims, values), "mask_image": (dims, valid)}))

    found = features(seen)
    assert found["image"].shape[1] <= 16
    assert found["image"].shape[2] <= 20
    assert all(np.isfinite(each).all() for each in found.data_vars.values())
    assert not found["mask_image"][1].any()
    assert bool(found["mask_image"][0].any()) is bool(valid[0].any())
    assert found.identical(features(np.where(valid, seen, 5).astype(np.float32)))
