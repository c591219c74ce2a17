"""Figures of the report: what they compute, against BornAgain, simulation and the instrument's own q map."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import bornagain
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy.stats import binom

from scatterflow import instrument as geometry
from scatterflow.forward.bornagain import _sample
from scatterflow.multilayer import MultilayerStudy
from scatterflow.report import numbers, style
from scatterflow.report.depth import depth_profile
from scatterflow.report.figures import calibration, detector, overview, posterior, profiles
from scatterflow.report.gallery import Gallery
from scatterflow.report.metrics import Mean
from scatterflow.report.observation import lines_of, masked_in_q
from scatterflow.study import study_of
from tests.made_products import run_config


@pytest.fixture(scope="module")
def study() -> MultilayerStudy:
    return study_of(run_config(), "multilayer")


@pytest.mark.parametrize("transient", ["tanh", "erf"])
def test_depth_profile_is_that_of_bornagain(study: MultilayerStudy, transient: str) -> None:
    sample = study.config.sample.model_copy(update={"transient": transient})
    theta = study.prior.sample(4, seed=5).values
    for row in theta:
        z, expected = bornagain.materialProfile(_sample(bornagain, sample, row), 500, -130.0, 10.0)
        found = depth_profile(sample, row[None], list(study.prior.names), -np.array(z))[0]
        np.testing.assert_allclose(found, np.real(expected), atol=1e-12)


def test_depth_profile_of_smooth_interfaces_is_a_step(study: MultilayerStudy) -> None:
    theta = study.prior.sample(1, seed=1).values.copy()
    names = list(study.prior.names)
    theta[:, [i for i, name in enumerate(names) if name.endswith("roughness_nm")]] = 0.0
    inside = np.array([theta[0, names.index("layer01_TaO.thickness_nm")] / 2])
    assert depth_profile(study.config.sample, theta, names, inside)[0, 0] == pytest.approx(theta[0, 0])


def test_lines_lie_where_the_q_map_has_their_angles(study: MultilayerStudy) -> None:
    instrument = study.config.instrument
    delta = 6.31e-6
    lines = lines_of(instrument, {"Si": delta})
    column = geometry.q_map(instrument).isel(y_full=int(instrument.beam_y_px))
    angles = {"horizon": 0.0, "specular": instrument.incidence_deg, "Yoneda Si": np.degrees(np.sqrt(2 * delta))}
    step = float(np.diff(column["qz"].values).max())
    for name, angle in angles.items():
        assert lines[name] == pytest.approx(np.interp(angle, column["alpha_f"], column["qz"]), abs=step / 100)


def test_masked_rectangle_covers_the_masked_bins(study: MultilayerStudy) -> None:
    instrument = study.config.instrument
    full = geometry.q_map(instrument)
    invalid = ~geometry.valid_pixels(instrument)
    (qy0, qz0, qy1, qz1) = masked_in_q(instrument)[0]
    qy, qz = full["qy_full"].values, full["qz_full"].values
    inside = ((qz > qz0) & (qz < qz1))[:, None] & ((qy > qy0) & (qy < qy1))
    np.testing.assert_array_equal(inside, invalid)


def test_edges_enclose_their_centres() -> None:
    centres = np.cumsum(np.random.default_rng(0).uniform(0.1, 1, 30))
    borders = detector.edges(centres)
    assert (np.diff(borders) > 0).all()
    assert ((borders[:-1] < centres) & (centres < borders[1:])).all()


@pytest.mark.parametrize("n", [50, 500])
def test_simultaneous_band_holds_as_often_as_it_says(n: int) -> None:
    fresh, rounds = np.random.default_rng(99), 600
    ranks = fresh.integers(0, 1000, size=(n, rounds))  # uniform ranks among 999 draws
    outside = calibration.outside_band(ranks.astype(float), 999, confidence=0.9).mean()
    low, high = binom.interval(0.9999, rounds, 0.1)
    # the share of the band itself comes from a simulation: allow for its own error
    assert low / rounds - 0.03 < outside < high / rounds + 0.03


@pytest.mark.parametrize("width", [0.6, 1.7])
def test_rank_band_rejects_wrong_widths_and_accepts_the_right_one(width: float) -> None:
    rng = np.random.default_rng(3)
    draws, parameters = 200, 40
    truth = rng.normal(size=(400, 1, parameters))
    wrong = (rng.normal(size=(400, draws, parameters)) * width < truth).sum(axis=1)
    right = (rng.normal(size=(400, draws, parameters)) < truth).sum(axis=1)
    assert calibration.outside_band(wrong, draws, 0.99).all()
    # 1 % of right ones leave by chance: more than this number of 40 in one case of 1e5
    assert calibration.outside_band(right, draws, 0.99).sum() <= binom.isf(1e-5, parameters, 0.01)


@given(st.integers(20, 2000), st.floats(0.05, 0.95))
def test_binomial_band_holds_its_confidence(n: int, level: float) -> None:
    low, high = calibration.binomial_band(np.array([level]), n, 0.99)
    inside = binom.cdf(round(high[0] * n), n, level) - binom.cdf(round(low[0] * n) - 1, n, level)
    assert inside >= 0.99


def test_profile_is_split_at_the_beam_stop_only(study: MultilayerStudy) -> None:
    qz = geometry.coordinates(study.config.instrument, "profile")["qz_profile"][1]
    lengths = [part.stop - part.start for part in profiles.with_gaps(qz)]
    assert lengths == [bins for *_, bins in geometry.row_ranges(study.config.instrument.views["profile"])]


def test_marginal_counts_what_lies_outside_the_prior() -> None:
    inside, outside = np.linspace(0.1, 0.9, 50), np.full(50, 2.0)
    figure = posterior.marginal(
        "layer01_Ta.hurst",
        "1",
        (0.0, 1.0),
        inside,
        [posterior.Curve(np.concatenate([inside, outside]), style.BLUE, "-")],
        0.5,
    )
    _, step = figure.axes[0].patches
    values, borders, _ = step.get_data()
    assert (values * np.diff(borders)).sum() == pytest.approx(0.5)


def gains() -> list[overview.Gain]:
    return [
        overview.Gain("good", 3.0, 0.1, 3.1, True, style.BLUE),
        overview.Gain("impossible", None, 0.0, None, False, style.ORANGE),
    ]


def test_svg_is_well_formed_and_the_same_each_time() -> None:
    first, second = (style.to_svg(overview.information_gain(gains())) for _ in range(2))
    assert first == second
    ElementTree.fromstring(first)
    assert "\N{MINUS SIGN}∞" in first


def test_every_colour_of_a_figure_has_its_twin_on_dark_paper() -> None:
    text = style.to_svg(overview.information_gain(gains()))
    used = set()
    for node in ElementTree.fromstring(text).iter():
        for part in node.get("style", "").split(";"):
            key, _, value = part.partition(":")
            if key.strip() in ("fill", "stroke") and value.strip().startswith("#"):
                used.add(value.strip())
    assert used
    assert used <= set(style._DARK), used - set(style._DARK)


def test_drawing_leaves_no_global_figure_and_no_settings_behind() -> None:
    import matplotlib
    from matplotlib import _pylab_helpers

    before = {key: value for key, value in matplotlib.rcParams.items() if key != "backend"}
    style.to_svg(overview.information_gain(gains()))
    assert before == {key: value for key, value in matplotlib.rcParams.items() if key != "backend"}
    assert not _pylab_helpers.Gcf.get_all_fig_managers()


def test_file_names_of_figures_stay_in_their_folder(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path / "figures", "../../study")
    (tmp_path / "figures").mkdir()
    gallery.add("../a/b<c>", Figure(figsize=(1, 1)), "nothing", png=True)
    assert sorted(path.suffix for path in (tmp_path / "figures").iterdir()) == [".png", ".svg"]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e4))
def test_mean_and_error_read_back_to_a_tenth_of_the_error(mean: float, error: float) -> None:
    shown, spread = numbers.plus_minus(mean, error).replace("\N{MINUS SIGN}", "-").replace(",", "").split(" ± ")
    assert abs(float(shown) - mean) <= max(0.06 * error, 0.5)
    assert float(spread) == pytest.approx(error, rel=0.06, abs=0.5 if error >= 10 else 1e-8)


@given(st.floats(-1e12, 1e12).filter(lambda x: abs(x) > 1e-12))
def test_significant_digits_read_back(value: float) -> None:
    shown = numbers.significant(value, 3).replace("\N{MINUS SIGN}", "-").replace(",", "")
    assert float(shown) == pytest.approx(value, rel=0.006)


def test_impossible_truths_are_said_in_words() -> None:
    assert "zero density at 3 of 500" in numbers.estimate(Mean(mean=None, impossible=3, n=500))
    assert numbers.estimate(Mean()) == numbers.NONE
