"""Artefacts of frames: areas and places of shadows, errors of the geometry, against closed forms and a real frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fabio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import ndtr

from scatterflow import artefacts
from scatterflow import instrument as geometry
from scatterflow.artefacts import resampling
from scatterflow.artefacts.detector import stop_shadow
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.instrument_file import read_instrument
from tests.made_artefacts import BIN, FRAME, fixed, instrument, only, recorded, scene

# ---- shadows


@settings(max_examples=30, deadline=None)
@given(
    radius=st.floats(12, 35),
    z=st.floats(-15, 15),
    y=st.floats(-40, 40),
    width=st.floats(8, 20),
    angle=st.floats(0, 360),
)
def test_stops_have_the_area_of_a_disc_and_a_strip(
    radius: float, z: float, y: float, width: float, angle: float
) -> None:
    values = fixed(
        specular_stop_on=True, specular_stop_z_px=z, specular_stop_y_px=y, specular_stop_radius_px=radius - 2,
        specular_stop_margin_px=2.0, specular_stop_arm_width_px=0.0, specular_stop_arm_angle_deg=angle,
    )  # fmt: skip
    (disc,) = stop_shadow("specular_stop", FRAME, values)
    # bins on the rim are wrong by half a bin either way, at random
    assert abs(disc.sum() * BIN**2 - np.pi * radius**2) < 4 * BIN**2 * np.sqrt(2 * np.pi * radius / BIN / 4)
    row, column = (np.average(np.broadcast_to(axis, disc.shape), weights=disc) for axis in _grid())
    assert np.hypot(row - FRAME.specular[0] - z, column - FRAME.specular[1] - y) < BIN / 2
    (whole,) = stop_shadow("specular_stop", FRAME, values | {"specular_stop_arm_width_px": np.array([width - 4])})
    arm = whole & ~disc
    rows, columns = _grid()
    up, right = rows - FRAME.specular[0] - z, columns - FRAME.specular[1] - y
    along = up * np.sin(np.radians(angle)) + right * np.cos(np.radians(angle))
    assert (along[arm] > 0).all()
    near = arm & (along > radius) & (along < radius + 40)
    length = 40 * BIN  # of both long rims in bins, times the area of one
    assert abs(near.sum() * BIN**2 - 40 * width) < 4 * BIN**2 * np.sqrt(length / BIN) / 2 + width * BIN


def _grid() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    z, y = np.meshgrid(*FRAME.centres, indexing="ij")
    return z, y


def pilatus2m() -> artefacts.Frame:
    config = InstrumentConfig(shape=(1679, 1475), pixel_mm=0.172, beam="direct", normal="direct", geometry="flat")
    return artefacts.frame(config, "full")


def pilatus_gaps() -> NDArray[np.bool_]:
    of = pilatus2m()
    config = only(gaps={"probability": 1})
    _, valid = artefacts.record(np.ones((1, *of.shape)), np.array([0]), of, config, seed=0)
    return ~valid[0]


def test_gaps_are_those_of_a_pilatus_2m() -> None:
    gaps = pilatus_gaps()
    assert (~gaps).sum() == 3 * 8 * 487 * 195  # its modules
    np.testing.assert_array_equal(gaps, gaps[::-1, ::-1])


@pytest.mark.frames
def test_gaps_are_those_of_the_real_frames(frames_dir: Path) -> None:
    raw = np.flipud(fabio.open(str(sorted((frames_dir / "p03_pilatus2m").glob("*.cbf"))[0])).data)
    np.testing.assert_array_equal(pilatus_gaps(), raw == -1)


def test_gaps_at_random_places_take_their_share() -> None:
    config = only(gaps={"probability": 1, "place": "random", "module_px": [40, 30], "gap_px": [8, 4]})
    _, share = artefacts.expected(scene(300), FRAME, config, artefacts.drawn(config, 1, np.arange(300)))
    assert share.mean() == pytest.approx(40 / 48 * 30 / 34, rel=0.01)
    counts, valid = artefacts.record(scene(300), np.arange(300), FRAME, config, 1)
    np.testing.assert_allclose(counts[valid], scene(300)[valid], rtol=1e-5)  # scaled up to whole bins
    np.testing.assert_array_equal(valid, share >= 0.5)


@pytest.mark.parametrize("masked", [0, 1])
def test_outside_the_aperture_only_some_background_is_left(masked: int) -> None:
    place = {"radius_px": [80, 80], "centre_z_px": [100, 100], "centre_y_px": [10, 10], "edge_px": [20, 20]}
    config = only(aperture={"probability": 1, "masked": masked, "outside": [0.2, 0.2]} | place, background=[0.1, 0.1])
    counts, valid = recorded(config)
    rows, columns = _grid()
    passed = np.interp(np.hypot(rows - FRAME.direct[0] - 100, columns - FRAME.direct[1] - 10), [70, 90], [1, 0])
    flat = 0.1 * scene().mean(dtype=float)
    expected = passed * (scene()[0] + 0.8 * flat) + 0.2 * flat
    whole = passed == 1
    np.testing.assert_array_equal(valid[0], whole | (masked == 0))
    np.testing.assert_allclose(counts[valid], expected[valid[0]], rtol=1e-4)
    assert 0 < whole.mean() < 1


def test_without_an_aperture_the_background_is_even() -> None:
    config = only(aperture={"probability": 0.5}, background=[0.1, 0.1])
    values = artefacts.drawn(config, 1, np.arange(20))
    counts, valid = recorded(config, 20)
    without = ~values["aperture_on"]
    assert 0 < without.sum() < 20
    assert valid[without].all()
    clean = scene(20)
    expected = clean + 0.1 * clean.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(counts[without], expected[without], rtol=1e-5)


def test_what_the_instrument_masks_is_masked() -> None:
    config = instrument(masked=({"z": (20, 60), "y": (10, 50)}, {"z": (60, 61), "y": (10, 250)}))
    of = artefacts.frame(config, "image")
    counts, valid = artefacts.record(scene(), np.array([0]), of, only(instrument_mask=True), 1)
    assert not valid[0, :10, :10].any()
    assert (~valid).sum() == 100  # three quarters of the eleventh row are there
    np.testing.assert_allclose(counts[valid], scene()[valid], rtol=1e-6)


# ---- errors of the geometry


def blob(z: float, y: float, sigma: float) -> NDArray[np.float64]:
    """1e5 counts of a Gaussian, integrated over the bins."""
    rows, columns = (np.diff(ndtr((e - c) / sigma)) for e, c in ((FRAME.z_edges, z), (FRAME.y_edges, y)))
    return np.asarray(1e5 * np.outer(rows, columns))[None]


def moments(image: NDArray[Any]) -> tuple[float, float, float, float]:
    """Mean and variance along z and y."""
    found = []
    for axis, weights in zip(FRAME.centres, (image[0].sum(1, dtype=float), image[0].sum(0, dtype=float)), strict=True):
        mean = float(np.average(axis, weights=weights))
        found += [mean, float(np.average((axis - mean) ** 2, weights=weights))]
    return found[0], found[1], found[2], found[3]


def test_no_error_changes_nothing_whatever_the_grid() -> None:
    rng = np.random.default_rng(0)
    zero = np.zeros(1)
    for edges in (FRAME.z_edges, np.linspace(0.1, 999.7, 258)):
        shares = resampling.redistribution(edges, 313.7, zero, zero, zero, zero)
        np.testing.assert_array_equal(shares[0].astype(np.float32), np.eye(len(edges) - 1, dtype=np.float32))
    image = rng.random((1, 66, 60)).astype(np.float32)
    config = only(geometry={"beam_px": 5})
    np.testing.assert_array_equal(artefacts.expected(image, FRAME, config, fixed())[0], image)


@settings(max_examples=40, deadline=None)
@given(
    shift_z=st.floats(-8, 8), shift_y=st.floats(-8, 8), stretch=st.floats(-0.05, 0.05),
    sigma=st.floats(0, 8), z=st.floats(110, 190), y=st.floats(100, 160),
)  # fmt: skip
def test_errors_move_and_widen_but_keep_the_counts(
    shift_z: float, shift_y: float, stretch: float, sigma: float, z: float, y: float
) -> None:
    before = blob(z, y, 10.0)
    values = fixed(
        beam_error_z_px=shift_z,
        beam_error_y_px=shift_y,
        distance_error=stretch,
        divergence_z_px=sigma,
        divergence_y_px=0.0,
    )
    (after,) = artefacts.expected(before, FRAME, only(geometry={"beam_px": 8}), values)[:1]
    assert after.sum(dtype=float) == pytest.approx(1e5, rel=1e-5)
    assert (after >= 0).all()
    mean_z, variance_z, mean_y, variance_y = moments(after)
    for mean, place, shift, centre in ((mean_z, z, shift_z, FRAME.direct[0]), (mean_y, y, shift_y, FRAME.direct[1])):
        assert mean == pytest.approx(centre + shift + (place - centre) * (1 + stretch), abs=0.05)
    # binned twice: each adds the variance of a bin, the second only where it does not fall on the first
    own = (1 + stretch) ** 2 * 100
    for variance, blur in ((variance_z, sigma**2), (variance_y, 0.0)):
        assert own + blur + BIN**2 / 12 - 1.5 < variance < own + blur + BIN**2 / 3 + 1.5


def test_a_shift_by_whole_bins_is_exact() -> None:
    before = blob(150, 140, 8.0).astype(np.float32)
    values = fixed(beam_error_z_px=2 * BIN, beam_error_y_px=-3 * BIN)
    after, _ = artefacts.expected(before, FRAME, only(geometry={"beam_px": 12}), values)
    np.testing.assert_allclose(after[0], np.roll(before[0], (2, -3), (0, 1)), rtol=1e-6, atol=1e-6)


def test_an_even_image_stays_even_up_to_the_border() -> None:
    """But for the density: farther away, a pixel holds less."""
    values = fixed(beam_error_z_px=5.0, beam_error_y_px=-5.0, distance_error=0.02, divergence_z_px=3.0, bandwidth=0.02)
    even = np.full((1, *FRAME.shape), 7.0)
    after, _ = artefacts.expected(even, FRAME, only(geometry={"beam_px": 5}), values)
    rows, _ = artefacts.expected(even, FRAME, only(geometry={"beam_px": 5}), values | {"bandwidth": np.zeros(1)})
    np.testing.assert_allclose(rows, 7 / 1.02**2, rtol=1e-5)
    np.testing.assert_allclose(after, 7 / 1.02**2, rtol=5e-3)  # the blur of a bandwidth is not the same everywhere


def test_divergence_and_bandwidth_are_gaussian() -> None:
    before = blob(150, 205, 8.0)
    values = fixed(divergence_z_px=6.0, bandwidth=0.1)
    after, _ = artefacts.expected(before, FRAME, only(geometry={"divergence_px": [0, 9]}), values)
    spread = BIN**2 / 12  # by summing counts into a bin, and again by spreading them evenly in it
    rows = np.diff(ndtr((FRAME.z_edges - 150) / np.sqrt(64 + 36 + 2 * spread)))
    np.testing.assert_allclose(after[0].sum(1) / 1e5, rows, rtol=0, atol=2e-3 * rows.max())
    _, _, mean, variance = moments(after)
    assert mean == pytest.approx(205, abs=1)
    assert variance == pytest.approx(64 + (0.1 * 75) ** 2 + 3 * spread, rel=0.03)


def test_p03_frames_are_where_the_instrument_says() -> None:
    config = read_instrument(Path(__file__).parents[2] / "config" / "instruments" / "p03_pilatus2m.yaml")
    of = artefacts.frame(config, "full")
    assert of.direct == (config.beam_z_px, config.beam_y_px)
    assert of.horizon == geometry.horizon_px(config)
    # the reflected beam leaves at twice the incidence: a flat detector across the direct beam
    rise = config.distance_mm * np.tan(2 * np.radians(config.incidence_deg)) / config.pixel_mm
    assert of.specular[0] - of.direct[0] == pytest.approx(rise)
