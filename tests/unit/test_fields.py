"""Fields of strain and tilt over a scan."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scatterflow.errors import ConfigError
from scatterflow.forward import fields


def test_the_test_scan_has_the_published_ranges() -> None:
    maps = fields.test_scan((64, 64), "flat")
    assert maps.shape == (64, 64, 4)
    strain, omega, chi, thickness = np.moveaxis(maps, -1, 0)
    np.testing.assert_allclose([strain.min(), strain.max()], [-5e-4, 5e-4], rtol=0.01)
    assert np.abs(omega).max() <= 0.005
    assert np.ptp(omega) > 0.0099  # both plateaus are there
    np.testing.assert_allclose(chi, 2 * omega, rtol=1e-12)
    assert (thickness == 11.7).all()


def test_strain_repeats_along_the_diagonal() -> None:
    """X + Y is constant along the other diagonal of the map, and 0.4 of the side's 2 is a period."""
    strain = fields.test_scan((51, 51), "flat")[..., 0]
    np.testing.assert_allclose(strain[:-1, 1:], strain[1:, :-1], atol=1e-15)
    np.testing.assert_allclose(strain[10:], strain[:-10], atol=1e-15)


def test_edges_of_the_tilts_are_where_they_are_published() -> None:
    """Every edge is steepest on its line: where (x - x0) cos 60 = +-y sin 60 the logistic is one half."""
    maps = fields.test_scan((401, 401), "flat")[..., 1]
    x = np.linspace(-1, 1, 401)
    middle = maps[200]  # y = 0: the square is looked at from x - 2, x - 0.5 and x + 2
    crossing = x[np.abs(np.diff(middle, append=middle[-1])).argmax()]
    assert abs(crossing - 0.5) < 0.02


@pytest.mark.parametrize(("film", "mean", "height"), [("flat", 11.7, 0.0), ("wavy", 11.7, 0.8), ("thick", 55.0, 1.0)])
def test_thickness_of_the_films(film: str, mean: float, height: float) -> None:
    maps = fields.test_scan((201, 5), film)
    assert abs(maps[..., 3].mean() - mean) < 1e-9
    np.testing.assert_allclose(np.ptp(maps[..., 3]), 2 * height, rtol=1e-2)
    np.testing.assert_array_equal(maps[..., :3], fields.test_scan((201, 5), "flat")[..., :3])


def test_an_unknown_film_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be one of flat, wavy, thick, got round"):
        fields.test_scan((8, 8), "round")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 40), st.integers(2, 40), st.floats(0.02, 0.3))
def test_smooth_fields_fill_their_bounds(seed: int, rows: int, columns: int, length: float) -> None:
    lower, upper = np.array([-5e-3, 8.0]), np.array([5e-3, 9.0])
    maps = fields.smooth((rows, columns), lower, upper, length, seed)
    assert maps.shape == (rows, columns, 2)
    np.testing.assert_allclose(maps.min(axis=(0, 1)), lower, rtol=1e-9)
    np.testing.assert_allclose(maps.max(axis=(0, 1)), upper, rtol=1e-9)
    np.testing.assert_array_equal(maps, fields.smooth((rows, columns), lower, upper, length, seed))


def test_smooth_fields_are_as_smooth_as_asked() -> None:
    """White noise behind a Gaussian of standard deviation s correlates as exp(-d^2 / 4 s^2)."""
    box = np.zeros(200), np.ones(200)
    maps = fields.smooth((64, 64), *box, length=0.05)
    centred = maps - maps.mean(axis=(0, 1))
    distance, s = 4, 0.05 * 64
    found = (centred * np.roll(centred, distance, axis=1)).mean((0, 1)) / (centred**2).mean((0, 1))
    assert abs(found.mean() - np.exp(-(distance**2) / (4 * s**2))) < 0.02
    other = fields.smooth((64, 64), *box, length=0.05, index=1)
    assert np.abs(np.corrcoef(maps[..., 0].ravel(), other[..., 0].ravel())[0, 1]) < 0.5


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"upper": np.array([-1.0])}, "lower <= upper"),
        ({"upper": np.array([np.nan])}, "must be finite"),
        ({"length": 0.0}, "must lie between 0 and 1"),
        ({"shape": (1, 5)}, "at least 2 x 2"),
    ],
)
def test_bad_fields_are_refused(change: dict[str, object], match: str) -> None:
    arguments = {"shape": (8, 8), "lower": np.array([0.0]), "upper": np.array([1.0]), "length": 0.1} | change
    with pytest.raises(ConfigError, match=match):
        fields.smooth(**arguments)  # type: ignore[arg-type]  # wrong on purpose
