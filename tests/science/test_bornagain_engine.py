"""The BornAgain engine: views, resolution, background and horizon against BornAgain's own full frame."""

import numpy as np
import pytest
from scipy.ndimage import convolve1d
from scipy.stats import norm

from scatterflow import instrument as geometry
from scatterflow.errors import ConfigError, SimulationError
from scatterflow.forward.bornagain import expected_counts
from tests.examples import instrument, sample, theta

pytestmark = pytest.mark.science
N = 4


def full_frame(**options: object) -> np.ndarray:
    config = instrument(**options)
    return expected_counts(sample(), config, theta(N).values, ("full",))["full"]


def test_views_are_sums_of_the_full_frame() -> None:
    """Sampled at every pixel, a view holds exactly the counts of its pixels, blurred by the resolution."""
    views = expected_counts(sample(), instrument(), theta(N).values, ("profile", "image"))
    frame = full_frame().astype(float)
    for name, counts in views.items():
        np.testing.assert_allclose(counts, geometry.bin_counts(frame, instrument(), name), rtol=2e-4)


def test_resolution_is_a_gaussian_of_the_stated_width() -> None:
    sharp = full_frame(resolution_mm=0.0, background=0.0).astype(float)
    kernel = np.diff(norm.cdf(np.arange(-8, 10) - 0.5, scale=0.32 / 0.8))
    blurred = convolve1d(convolve1d(sharp, kernel, axis=1, mode="constant"), kernel, axis=2, mode="constant")
    inner = (slice(None), slice(12, -5), slice(5, -5))  # away from the horizon and from the edges of the zero padding
    np.testing.assert_allclose(full_frame(background=0.0)[inner], blurred[inner], rtol=1e-4)


def test_background_is_added_per_pixel_and_alone_below_the_horizon() -> None:
    np.testing.assert_allclose(full_frame(background=7.0), full_frame(background=0.0) + 7.0, rtol=1e-6)
    config = instrument()
    below = int(geometry.horizon_px(config) - 0.5)
    assert below > 3
    np.testing.assert_array_equal(full_frame()[:, :below], config.background)
    image = expected_counts(sample(), config, theta(N).values, ("image",))["image"]
    np.testing.assert_array_equal(image[:, : below // 2], config.background * 8)


@pytest.mark.parametrize(
    ("columns", "tolerance"), [((10, 30), 1e-3), ((11, 30), 2e-2)]
)  # symmetric around the beam, not
def test_three_gauss_points_replace_a_sum_over_columns(columns: tuple[int, int], tolerance: float) -> None:
    rows = ((22, 50),)
    views = {
        "profile": {"rows": rows, "columns": columns, "bins": (28, 1), "sampling": (1, "gauss3")},
        "image": {"rows": rows, "columns": columns, "bins": (28, 1), "sampling": (1, columns[1] - columns[0])},
    }
    config = instrument(views=views, pixel_mm=0.1, resolution_mm=0.02, beam_z_px=-80.0)
    counts = expected_counts(sample(), config, theta(N).values, ("profile", "image"))
    np.testing.assert_allclose(counts["profile"], counts["image"], rtol=tolerance)


def test_solid_angle_and_intensity_scale_the_counts() -> None:
    base = full_frame(background=0.0)
    np.testing.assert_allclose(full_frame(background=0.0, beam_intensity=2 * 1.576e10), 2 * base, rtol=1e-5)


@pytest.mark.parametrize("transient", ["tanh", "erf"])
@pytest.mark.parametrize("cross", [None, 50.0])
def test_roughness_options_change_the_answer(transient: str, cross: float | None) -> None:
    options = {"transient": transient, "cross_correlation_length_nm": cross}
    counts = expected_counts(sample(**options), instrument(), theta(2).values, ("image",))["image"]
    default = expected_counts(sample(), instrument(), theta(2).values, ("image",))["image"]
    assert np.isfinite(counts).all()
    assert np.abs(counts / default - 1).max() > 1e-4


def test_born_limit_of_a_single_rough_surface() -> None:
    """Far above the critical angle a bare surface scatters as Sinha et al. (1988), eq. 2.42 with |T| = 1:

    I = I0 dOmega / sin(ai) * k^4 / (16 pi^2) * |1 - n^2|^2 * S(q_par), with the self-affine spectrum S and the
    Debye-Waller factor exp(-qz^2 sigma^2); sigma is small here, so that the factor is 1 within 1 %.
    """
    k = 2 * np.pi / 0.14073
    config = instrument(incidence_deg=2.0, resolution_mm=0.0, background=0.0, beam_z_px=25.0, geometry="bornagain")
    bare = sample(("TaO",), transient="erf")
    sigma, hurst, xi, delta = 0.05, 0.6, 20.0, 2e-6
    silicon = {"delta": delta, "beta": 1e-9, "roughness_nm": sigma, "hurst": hurst, "correlation_length_nm": xi}
    substrate = bare.substrate.model_copy(update=silicon)
    # a free layer of nothing: the refractive index of the vacuum up to 1e-14, so that only the substrate scatters
    nothing = np.array([[1e-14, 0.0, 0.5, 1e-9, 0.5, 10.0]])
    counts = expected_counts(bare.model_copy(update={"substrate": substrate}), config, nothing, ("full",))["full"][0]
    edges = np.arange(61.0)
    q = geometry.q_map(config)
    row, column = slice(20, 60), 20
    alpha = np.radians(q["alpha_f"].values[row, column])
    q_par = np.hypot(q["qx"].values, q["qy"].values)[row, column]
    spectrum = 4 * np.pi * hurst * sigma**2 * xi**2 * (1 + (q_par * xi) ** 2) ** (-1 - hurst)
    upper, _ = geometry.angles(config, edges[1:], np.array(20.5))
    lower, _ = geometry.angles(config, edges[:-1], np.array(20.5))
    _, left = geometry.angles(config, np.array(25.0), np.array(20.0))
    _, right = geometry.angles(config, np.array(25.0), np.array(21.0))
    solid = (np.sin(upper) - np.sin(lower))[row] * (right - left)
    expected = config.beam_intensity * solid / np.sin(np.radians(2.0)) * k**4 / (16 * np.pi**2)
    expected *= (2 * delta) ** 2 * spectrum
    above = alpha > np.radians(
        0.6
    )  # transmission functions are 1 within a few per cent only far above the critical angle
    np.testing.assert_allclose(counts[row, column][above], expected[above], rtol=0.06)


@pytest.mark.parametrize(
    ("index", "value", "name"),
    [
        (0, -1e-6, "delta"),
        (2, 0.0, "thickness_nm"),
        (3, -0.1, "roughness_nm"),
        (4, 1.0, "hurst"),
        (5, np.nan, "correlation"),
    ],
)
def test_unphysical_parameters_name_row_and_parameter(index: int, value: float, name: str) -> None:
    bad = theta(3).values
    bad[1, 6 + index] = value
    with pytest.raises(SimulationError, match=rf"row 1: layer02_Ta\.{name}"):
        expected_counts(sample(), instrument(), bad, ("image",))


def test_flat_geometry_is_refused_by_this_engine() -> None:
    with pytest.raises(ConfigError, match="geometry: bornagain"):
        expected_counts(sample(), instrument(geometry="flat"), theta(1).values, ("image",))


def test_smooth_layers_are_refused() -> None:
    smooth = theta(2).values
    smooth[1, 9] = 0.0
    with pytest.raises(SimulationError, match=r"row 1: layer02_Ta\.roughness_nm"):
        expected_counts(sample(), instrument(), smooth, ("image",))


def test_little_roughness_and_extreme_samples_are_finite() -> None:
    extreme = theta(2).values
    extreme[0, 3::6] = 1e-9
    extreme[1, 3::6] = extreme[1, 2::6]  # roughness as large as the thickness
    counts = expected_counts(sample(), instrument(), extreme, ("image",))["image"]
    assert np.isfinite(counts).all()
    assert (counts > 0).all()
