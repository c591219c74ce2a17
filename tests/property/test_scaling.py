"""Scaling of profiles and images: bounds, invariances, masks; against numpy's own percentile and interpolation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scatterflow.errors import FrameError
from scatterflow.preprocess.scaling import fill_linear, masked_percentile, scale_image, scale_profile

counts = hnp.arrays(np.float64, (3, 12), elements=st.floats(0, 1e6)).filter(
    lambda a: np.ptp(a[:, :6], axis=1).min() > 1e-3 and np.ptp(a[:, 6:], axis=1).min() > 1e-3
)
PARTS = [0, 6, 12]


@given(counts, st.floats(0.1, 100))
def test_profile_parts_span_zero_to_one_whatever_the_exposure(profile: np.ndarray, exposure: float) -> None:
    mask = np.ones(profile.shape, dtype=bool)
    scaled = scale_profile(profile, mask, PARTS, False, 0.5, 0.5)
    for part in (scaled[:, :6], scaled[:, 6:]):
        np.testing.assert_array_equal(part.min(axis=1), 0)
        np.testing.assert_array_equal(part.max(axis=1), 1)
    np.testing.assert_allclose(scale_profile(profile * exposure, mask, PARTS, False, 0.5, 0.5), scaled, atol=1e-6)


@given(hnp.arrays(np.float64, (4, 9), elements=st.floats(-5, 5)), hnp.arrays(np.bool_, (4, 9)))
def test_masked_points_are_interpolated_as_numpy_does(values: np.ndarray, mask: np.ndarray) -> None:
    mask[:, 4] = True
    filled = fill_linear(values, mask)
    for row, valid, expected in zip(filled, mask, values, strict=True):
        np.testing.assert_allclose(row, np.interp(np.arange(9), np.flatnonzero(valid), expected[valid]), atol=1e-9)


@given(
    hnp.arrays(np.float64, (2, 5, 4), elements=st.floats(0, 1e5)), hnp.arrays(np.bool_, (2, 5, 4)), st.floats(0, 100)
)
def test_percentile_is_numpys_over_the_valid(values: np.ndarray, mask: np.ndarray, percentile: float) -> None:
    mask[:, 0, 0] = True
    found = masked_percentile(values, mask, percentile)
    for one, image, valid in zip(found, values, mask, strict=True):
        assert one == pytest.approx(np.percentile(image[valid], percentile), rel=1e-9, abs=1e-9)


@given(hnp.arrays(np.float64, (2, 6, 4), elements=st.floats(10, 1e5)), hnp.arrays(np.bool_, (2, 6, 4)))
def test_image_is_in_range_and_masked_bins_do_not_matter(image: np.ndarray, mask: np.ndarray) -> None:
    mask[:, :3] = True
    image[:, 0, 0], image[:, 0, 1] = 1.0, 2e5
    scaled = scale_image(image, mask, 10, 0.6)
    assert scaled.min() >= 0
    assert scaled.max() <= 1
    other = scale_image(np.where(mask, image, 9e9), mask, 10, 0.6)
    np.testing.assert_array_equal(scaled, other)
    assert (scaled[~mask] == 0).all()


def test_zero_counts_have_a_finite_logarithm() -> None:
    image = np.zeros((1, 4, 4))
    image[0, 0, 0] = 100
    scaled = scale_image(image, np.ones_like(image, dtype=bool), 10, 0.5)
    assert np.isfinite(scaled).all()
    assert scaled[0, 0, 0] == 1


def test_constant_and_masked_frames_are_refused_by_name() -> None:
    mask = np.ones((2, 12), dtype=bool)
    profile = np.tile(np.arange(12.0), (2, 1))
    profile[1, 6:] = 3
    with pytest.raises(FrameError, match=r"frame 1.*contrast"):
        scale_profile(profile, mask, PARTS, False, 0.5, 0.5)
    mask[0, :4] = False
    with pytest.raises(FrameError, match=r"frame 0.*masked") as caught:
        scale_profile(profile, mask, PARTS, False, 0.5, 0.5)
    assert caught.value.status == "masked-out"
    with pytest.raises(FrameError, match="image of frame 0"):
        scale_image(np.ones((1, 3, 3)), np.zeros((1, 3, 3), dtype=bool), 10, 0.5)
