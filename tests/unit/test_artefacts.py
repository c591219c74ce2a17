"""Artefacts of frames: independence of batching, statistics of the counts, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, norm

from scatterflow import artefacts
from scatterflow import instrument as geometry
from scatterflow.config.artefacts import NO_ARTEFACTS, ArtefactsConfig
from scatterflow.config.base import Section
from scatterflow.config.loading import validate
from scatterflow.errors import ConfigError, SimulationError
from scatterflow.observe import poisson
from tests.made_artefacts import BIN, FRAME, fixed, instrument, only, recorded, scene

# ---- which row gets what


@settings(max_examples=25, deadline=None)
@given(
    order=st.lists(st.integers(0, 11), min_size=1, max_size=12, unique=True),
    seed=st.integers(0, 2**31),
    draw=st.integers(0, 1000),
)
def test_a_row_depends_on_seed_draw_and_index_only(order: list[int], seed: int, draw: int) -> None:
    of = artefacts.frame(instrument(), "odd")
    counts, config, index = scene(12, of), ArtefactsConfig(), np.arange(12)
    whole = artefacts.record(counts, index, of, config, seed, draw)
    part = artefacts.record(counts[order], index[order], of, config, seed, draw)
    for ours, theirs in zip(part, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs[order])


def test_the_size_of_a_block_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = recorded(ArtefactsConfig(), 5)
    monkeypatch.setattr(artefacts, "_BLOCK", 2 * scene().size)
    for ours, theirs in zip(recorded(ArtefactsConfig(), 5), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_draws_and_seeds_bring_fresh_artefacts() -> None:
    index = np.arange(50)
    one, two, other = (
        artefacts.drawn(ArtefactsConfig(), *key) for key in ((1, index, 0), (1, index, 1), (2, index, 0))
    )
    for name in ("total_counts", "beam_stop_arm_angle_deg", "aperture_radius_px", "hot_place", "streak_length_px"):
        for fresh in (two, other):
            assert not np.isclose(one[name], fresh[name]).any()
            # 4 standard deviations of the correlation of independent numbers
            assert abs(np.corrcoef(one[name].ravel(), fresh[name].ravel())[0, 1]) < 4 / np.sqrt(one[name].size)
    config = ArtefactsConfig()
    assert not np.array_equal(recorded(config, 2)[1], recorded(config, 2, draw=1)[1])
    assert not np.array_equal(recorded(NO_ARTEFACTS, 2)[0], recorded(NO_ARTEFACTS, 2, draw=1)[0])  # the noise, too


def test_an_artefact_that_is_switched_off_leaves_the_others_as_they_are() -> None:
    index = np.arange(20)
    every = artefacts.drawn(ArtefactsConfig(), 1, index)
    some = artefacts.drawn(validate(ArtefactsConfig, {"tail": {"probability": 0}, "total_counts": None}, "t"), 1, index)
    changed = {name for name in every if not np.array_equal(every[name], some[name])}
    assert changed == {"tail_share", "total_counts"}


def test_values_fill_their_ranges() -> None:
    index, config = np.arange(3000), ArtefactsConfig()
    values = artefacts.drawn(config, 3, index)
    low, high = np.log10(config.total_counts or (1, 1))
    assert kstest(np.log10(values["total_counts"]), "uniform", (low, high - low)).pvalue > 1e-3
    low, high = config.beam_stop.radius_px
    assert kstest(values["beam_stop_radius_px"], "uniform", (low, high - low)).pvalue > 1e-3
    largest = config.geometry.beam_px
    assert kstest(values["beam_error_z_px"], "uniform", (-largest, 2 * largest)).pvalue > 1e-3
    share = config.specular_stop.probability
    assert values["specular_stop_on"].mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 3000))
    number = np.bincount(values["hot_on"].sum(1), minlength=21)
    assert len(number) == 21
    assert number.min() > 0


def test_lazy_and_eager_datasets_are_recorded_alike() -> None:
    data = xr.Dataset(coords={"simulation": np.arange(3, 9)}).assign_coords(geometry.coordinates(instrument(), "image"))
    data["image"] = (("simulation", "z_image", "y_image"), scene(6))
    eager = artefacts.observe(data, FRAME, ArtefactsConfig(), seed=1, draw=2)
    lazy = artefacts.observe(data.chunk(simulation=4), FRAME, ArtefactsConfig(), seed=1, draw=2)
    assert lazy["image"].chunks is not None
    xr.testing.assert_identical(eager, lazy.compute())
    counts, valid = artefacts.record(scene(6), np.arange(3, 9), FRAME, ArtefactsConfig(), 1, 2)
    np.testing.assert_array_equal(eager["image"], counts)
    np.testing.assert_array_equal(eager["mask_image"], valid)


# ---- counts


def test_without_artefacts_only_the_noise_is_left() -> None:
    counts, valid = recorded(only(), 3)
    np.testing.assert_array_equal(counts, scene(3))
    assert valid.all()
    counts, valid = recorded(NO_ARTEFACTS, 3)
    np.testing.assert_array_equal(counts, poisson(scene(3), np.arange(3), 1, "artefacts:0"))
    assert valid.all()


def test_mean_and_variance_are_those_of_poisson() -> None:
    """Of one image with stops, gaps, hot pixels and a background: valid bins have the mean of an unshaded image."""
    total, background, n = 2e5, 0.25, 400
    config = validate(
        ArtefactsConfig,
        {
            "total_counts": [total, total], "background": [background, background], "tail": {"probability": 0},
            "streaks": {"probability": 0}, "aperture": {"probability": 0}, "hot_pixels": {"detected": 1},
            "geometry": {"beam_px": 0, "distance": 0, "divergence_px": [0, 0], "bandwidth": [0, 0]},
            "gaps": {"place": "random", "module_px": [60, 45], "gap_px": [5, 7]},
        },
        "test",
    )  # fmt: skip
    index, image = np.arange(n), np.repeat(scene(), n, axis=0)
    counts, valid = artefacts.record(image, index, FRAME, config, seed=4)
    mean = total * image / image[0].sum(dtype=float) + background * total / image[0].size
    _, share = artefacts.expected(image, FRAME, config, artefacts.drawn(config, 4, index))
    assert 0.05 < ((share < 1) & valid).mean() < 0.5  # bins that are partly gap are there, scaled up
    deviation = np.where(valid, (counts - mean) * np.sqrt(share / mean), 0)
    dispersion = (deviation**2).sum(dtype=float)
    # of a Poisson variable, (x - m)^2 / m has mean 1 and variance 2 + 1/m
    spread = np.sqrt((2 + 1 / (mean * share)[valid]).sum())
    assert abs(dispersion - valid.sum()) < norm.isf(1e-4) * spread
    assert abs(deviation.sum()) < norm.isf(1e-4) * np.sqrt(valid.sum())
    seen = valid.sum(0)
    per_bin = deviation.sum(0)[seen > 50] / np.sqrt(seen[seen > 50])
    assert kstest(per_bin, "norm").pvalue > 1e-3


def test_the_total_is_that_of_the_scattering_alone() -> None:
    config = only(total_counts=[1e4, 1e6], background=[0.5, 0.5], tail={"probability": 1, "share": [0.1, 0.1]})
    values = artefacts.drawn(config, 1, np.arange(4))
    counts, _ = artefacts.record(scene(4), np.arange(4), FRAME, config, 1)
    np.testing.assert_allclose(counts.sum((1, 2), dtype=float), 1.6 * values["total_counts"], rtol=1e-5)


def test_the_tail_is_a_power_law_around_the_displaced_beam() -> None:
    config = only(tail={"probability": 1})
    values = fixed(
        tail_share=0.2,
        tail_core_px=10.0,
        tail_power=2.5,
        beam_error_z_px=3.0,
        beam_error_y_px=-2.0,
        total_counts=np.nan,
    )
    total = scene().sum(dtype=float)
    tail = artefacts.expected(scene(), FRAME, config, values)[0][0].astype(float) - scene()[0]
    assert tail.sum() == pytest.approx(0.2 * total, rel=1e-4)
    z, y = np.meshgrid(*FRAME.centres, indexing="ij")
    profile = (1 + ((z - 63) ** 2 + (y - 128) ** 2) / 100) ** -1.25
    np.testing.assert_allclose(tail / tail.max(), profile / profile.max(), atol=1e-5)


@pytest.mark.parametrize("streak", [0, 1])
def test_a_streak_ends_at_the_horizon_and_holds_its_share(streak: int) -> None:
    chosen = np.arange(2)[None] == streak
    values = fixed(
        streak_share=0.3 * chosen, streak_angle_deg=np.array([[90.0, 0.0]]), streak_width_px=np.full((1, 2), 2.0),
        streak_length_px=np.full((1, 2), 10.0), total_counts=np.nan,
    )  # fmt: skip
    mean = artefacts.expected(scene(), FRAME, only(streaks={"probability": 1}), values)[0][0].astype(float) - scene()[0]
    z, _ = FRAME.centres
    assert np.abs(mean[z > FRAME.horizon]).max() < 1e-3
    # the horizon is 4.02, the border 4 lengths above and below the beam
    share = 0.3 * (1 - np.exp(-4)) if streak == 0 else 0.3
    assert mean.sum() == pytest.approx(share * scene().sum(dtype=float), rel=0.02)
    across = mean.sum(0) if streak == 0 else mean.sum(1)
    centre, place = (FRAME.direct[1], FRAME.centres[1]) if streak == 0 else (FRAME.direct[0], z)
    variance = (across * (place - centre) ** 2).sum() / across.sum()
    assert variance == pytest.approx(2.0**2 + BIN**2 / 12, rel=0.05)


def test_hot_pixels_are_masked_or_left_as_they_are_found() -> None:
    clean = scene(200)
    counts, valid = recorded(only(hot_pixels={"number": [5, 5], "detected": 0, "counts": [50, 50]}), 200)
    added = (counts - clean).sum((1, 2))
    assert valid.all()
    np.testing.assert_allclose(added, 250, rtol=1e-3)
    counts, valid = recorded(only(hot_pixels={"number": [5, 5], "detected": 1}), 200)
    assert ((~valid).sum((1, 2)) <= 5).all()
    assert (~valid).sum() > 990  # hardly ever two in one bin
    np.testing.assert_array_equal(counts, np.where(valid, clean, 0))


def test_invalid_bins_hold_nothing() -> None:
    counts, valid = recorded(ArtefactsConfig(), 40)
    assert 0.02 < (~valid).mean() < 0.5
    assert (counts[~valid] == 0).all()
    assert (counts >= 0).all()
    assert np.isfinite(counts).all()
    assert counts.dtype == np.float32


# ---- bad input


@pytest.mark.parametrize(
    ("content", "option"),
    [
        ({"total_counts": [1e5, 1e4]}, "total_counts"),
        ({"total_counts": [0, 1e4]}, "total_counts"),
        ({"total_counts": [1, 1e20]}, "total_counts"),
        ({"total_counts": 1e4}, "total_counts"),
        ({"background": [0, 0.1]}, "background"),
        ({"noise": "gauss"}, "noise"),
        ({"min_valid_share": 0}, "min_valid_share"),
        ({"geometry": {"beam_px": -1}}, "geometry.beam_px"),
        ({"geometry": {"distance": 0.5}}, "geometry.distance"),
        ({"geometry": {"divergence_px": [2, 1]}}, "geometry.divergence_px"),
        ({"geometry": {"bandwidth": [0, 0.5]}}, "geometry.bandwidth"),
        ({"beam_stop": {"radius_px": [0, 5]}}, "beam_stop.radius_px"),
        ({"beam_stop": {"arm_width_px": [-1, 5]}}, "beam_stop.arm_width_px"),
        ({"beam_stop": {"arm_angle_deg": [0, 720]}}, "beam_stop.arm_angle_deg"),
        ({"beam_stop": {"radius": [1, 5]}}, "beam_stop.radius"),
        ({"specular_stop": {"probability": 1.5}}, "specular_stop.probability"),
        ({"gaps": {"module_px": [0, 487]}}, "gaps.module_px"),
        ({"gaps": {"gap_px": [17, -7]}}, "gaps.gap_px"),
        ({"gaps": {"place": "somewhere"}}, "gaps.place"),
        ({"aperture": {"edge_px": [-1, 0]}}, "aperture.edge_px"),
        ({"aperture": {"centre_z_px": [5, 0]}}, "aperture.centre_z_px"),
        ({"aperture": {"outside": [0, 2]}}, "aperture.outside"),
        ({"tail": {"share": [0, 1]}}, "tail.share"),
        ({"tail": {"power": [0, 1]}}, "tail.power"),
        ({"streaks": {"length_px": [0, 1]}}, "streaks.length_px"),
        ({"hot_pixels": {"number": [5, 1]}}, "hot_pixels.number"),
        ({"hot_pixels": {"number": [0, 2000]}}, "hot_pixels.number"),
        ({"hot_pixels": {"counts": [0, 100]}}, "hot_pixels.counts"),
        ({"aperture": None}, "aperture"),
    ],
)
def test_a_wrong_option_is_named_in_one_line(content: dict[str, Any], option: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(ArtefactsConfig, content, "test")
    assert f"option {option} in test" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_section_left_out_is_one_left_empty() -> None:
    sections = [name for name, value in ArtefactsConfig() if isinstance(value, Section)]
    assert len(sections) == 8
    assert validate(ArtefactsConfig, {name: {} for name in sections}, "test") == ArtefactsConfig()


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_impossible_counts_are_refused(value: float) -> None:
    counts = scene(3)
    counts[1, 2, 3] = value
    with pytest.raises(SimulationError, match=r"row 1 must be finite"):
        artefacts.record(counts, np.arange(3), FRAME, ArtefactsConfig(), 0)


def test_a_dark_image_cannot_be_scaled() -> None:
    counts = scene(3)
    counts[2] = 0
    with pytest.raises(SimulationError, match=r"row 2 must hold counts"):
        artefacts.record(counts, np.arange(3), FRAME, ArtefactsConfig(), 0)
    assert not artefacts.record(counts, np.arange(3), FRAME, NO_ARTEFACTS, 0)[0][2].any()


def test_counts_of_another_view_are_refused() -> None:
    with pytest.raises(SimulationError, match=r"of \(66, 60\) bins, got \(1, 66, 59\)"):
        artefacts.record(scene()[:, :, 1:], np.arange(1), FRAME, ArtefactsConfig(), 0)


def test_views_with_a_hole_are_refused() -> None:
    with pytest.raises(ConfigError, match="rows of view two must be one range"):
        artefacts.frame(instrument(), "two")
