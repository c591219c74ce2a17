"""Figures of merit of maps: on errors whose distribution is known, and on scans of the real forward model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, norm, pearsonr

from scatterflow import maps
from scatterflow.errors import ScatterflowError, StoreError
from tests import made_scans


@pytest.fixture(scope="module")
def paper() -> xr.Dataset:
    return made_scans.scan(16, seed=1)


@pytest.fixture(scope="module")
def particle() -> xr.Dataset:
    return made_scans.scan(12, seed=2, film=False, experiment=True)


def gaussian(bias: float, width: float, stated: float, points: int = 60) -> xr.Dataset:
    """One estimator whose errors are normal, in units of a bound that varies from point to point."""
    rng = np.random.default_rng(5)
    shape = (points, points, 1)
    bound = 1e-4 * rng.uniform(0.5, 2, shape)
    truth = 1e-3 * rng.normal(size=shape)
    estimate = truth + bound * (bias + width * rng.normal(size=shape))
    return xr.Dataset(
        {
            "estimate": (("estimator", "row", "column", "parameter"), estimate[None]),
            "sd": (("estimator", "row", "column", "parameter"), stated * bound[None]),
            "goodness": (("estimator", "row", "column"), rng.normal(1, 0.1, (1, points, points))),
            "intensity": (("row", "column"), np.full((points, points), 100.0)),
            "status": (("row", "column"), np.full((points, points), "ok", dtype=object)),
            "truth": (("row", "column", "parameter"), truth),
            "bound": (("row", "column", "parameter"), bound),
        },
        coords={"estimator": ["one"], "parameter": ["strain"]},
    )


@settings(max_examples=12, deadline=None)
@given(st.floats(-0.5, 0.5), st.floats(0.5, 3), st.floats(0.5, 2))
def test_figures_of_merit_of_normal_errors(bias: float, width: float, stated: float) -> None:
    scan = gaussian(bias, width, stated)
    part = maps.merit(scan)["estimators"]["one"]["parameters"]["strain"]
    root_mean_square = float(np.sqrt((scan["bound"] ** 2).mean()))
    assert part["bound"] == pytest.approx(root_mean_square)
    assert abs(part["mean"] - bias * float(scan["bound"].mean())) < 5 * part["mean_se"]
    spread = np.sqrt(width**2 + bias**2 * float(scan["bound"].var()) / root_mean_square**2)  # the bias varies, too
    assert abs(part["ratio"] - spread) < 5 * part["ratio_se"]
    for level in maps.LEVELS:
        inside = norm.ppf(0.5 + level / 2) * stated
        expected = norm.cdf((inside - bias) / width) - norm.cdf((-inside - bias) / width)
        share = part["coverage"][f"{level:g}"]
        # 99 % intervals are left by chance once in a hundred: half as wide again is 4 standard errors
        room = (share["high"] - share["low"]) / 2
        assert abs(share["share"] - expected) < 1.75 * room


def test_the_stated_error_of_a_ratio_is_its_spread_over_repetitions() -> None:
    rng = np.random.default_rng(0)
    for draw in (rng.normal, rng.laplace):
        values = draw(size=(600, 400))
        stated = np.mean([maps._relative_error_of_sd(row) for row in values])
        spreads = values.std(axis=1, ddof=1)
        assert stated == pytest.approx(spreads.std() / spreads.mean(), rel=0.15)


@given(st.integers(1, 400), st.floats(0, 1))
def test_shares_have_clopper_pearson_intervals(n: int, part: float) -> None:
    count = round(part * n)
    found = maps.share(count, n)
    tail = (1 - maps.CONFIDENCE) / 2
    assert found["low"] == pytest.approx(beta.ppf(tail, count, n - count + 1) if count else 0.0, abs=1e-9)
    assert found["high"] == pytest.approx(beta.ppf(1 - tail, count + 1, n - count) if count < n else 1.0, abs=1e-9)


def test_an_efficient_estimator_reaches_the_bound(paper: xr.Dataset) -> None:
    found = maps.merit(paper)
    best = found["estimators"]["likelihood"]
    assert found["points"] == 256
    assert best["failures"]["count"] == 0
    for part in best["parameters"].values():
        assert abs(part["ratio"] - 1) < 4 * part["ratio_se"]
        assert abs(part["mean"]) < 4 * part["mean_se"]
        assert part["coverage"]["0.68"]["low"] < 0.68 < part["coverage"]["0.68"]["high"]
    narrow = found["estimators"]["narrow"]["parameters"]["chi_deg"]
    assert narrow["ratio"] == pytest.approx(np.hypot(1, 1.5), rel=0.2)
    assert narrow["coverage"]["0.68"]["high"] < 0.65


def test_failures_are_counted_and_missing_errors_are_none(paper: xr.Dataset) -> None:
    found = maps.merit(paper)["estimators"]
    values = paper["estimate"].sel(estimator="lost")
    far = (np.abs(values - paper["truth"]) > maps.LOST * paper["bound"]).any("parameter") | values.isnull().any(
        "parameter"
    )
    assert found["lost"]["failures"]["count"] == int(far.sum()) > 200
    assert found["centroid"]["parameters"]["strain"]["coverage"] is None
    assert found["centroid"]["parameters"]["strain"]["stated_sd"] is None


def test_what_an_estimator_does_not_know_is_no_failure(paper: xr.Dataset) -> None:
    blind = paper.copy(deep=True)
    blind["estimate"].loc[{"estimator": "likelihood", "parameter": "chi_deg"}] = np.nan
    blind["sd"].loc[{"estimator": "likelihood", "parameter": "chi_deg"}] = np.nan
    found = maps.merit(blind)["estimators"]["likelihood"]
    assert list(found["parameters"]) == ["strain", "omega_deg"]
    assert found["failures"]["count"] == 0
    blind["estimate"].loc[{"estimator": "likelihood", "parameter": "strain", "row": 3, "column": 4}] = np.inf
    assert maps.merit(blind)["estimators"]["likelihood"]["failures"]["count"] == 1


def test_frames_that_measured_nothing_are_left_out(paper: xr.Dataset) -> None:
    dark = paper.copy(deep=True)
    dark["status"][0] = "missing"
    dark["estimate"][:, 0] = np.nan
    found = maps.merit(dark)
    assert found["points"] == 240
    assert found["estimators"]["likelihood"]["failures"]["n"] == 240
    assert found["estimators"]["likelihood"]["failures"]["count"] == 0


def test_points_without_a_bound_stay_out_of_the_ratio(paper: xr.Dataset) -> None:
    blind = paper.copy(deep=True)
    blind["bound"][0] = np.inf
    part = maps.merit(blind)["estimators"]["likelihood"]["parameters"]["omega_deg"]
    rest = maps.merit(paper.isel(row=slice(1, None)))["estimators"]["likelihood"]["parameters"]["omega_deg"]
    assert part["ratio"] == pytest.approx(rest["ratio"])
    assert part["n"] == 256


def test_agreement_is_pearson_and_in_units_of_stated_errors(particle: xr.Dataset) -> None:
    found = maps.agreement(particle)
    use = maps.measured(particle)
    first, second = (
        particle["estimate"].sel(estimator=e, parameter="omega_deg").values[use] for e in ("likelihood", "narrow")
    )
    sd = [particle["sd"].sel(estimator=e, parameter="omega_deg").values[use] for e in ("likelihood", "narrow")]
    matrices = found["parameters"]["omega_deg"]
    assert found["points"] == int(use.sum()) < 144
    assert matrices["pearson"][0][1] == matrices["pearson"][1][0] == pytest.approx(pearsonr(first, second).statistic)
    expected = np.sqrt(np.mean((first - second) ** 2 / (sd[0] ** 2 + sd[1] ** 2)))
    assert matrices["rms_in_sd"][0][1] == pytest.approx(expected)
    assert matrices["rms_in_sd"][0][3] is None, "the centroid states no errors"
    assert matrices["mean_difference"][1][0] == -matrices["mean_difference"][0][1]


@given(st.floats(-0.01, 0.01))
def test_a_constant_does_not_matter_where_only_differences_are_known(particle: xr.Dataset, constant: float) -> None:
    moved = particle.copy(deep=True)
    moved["estimate"].loc[{"estimator": "narrow"}] += constant
    before, after = (maps.agreement(scan)["parameters"] for scan in (particle, moved))
    assert after["strain"]["rms_in_sd"][0][1] == pytest.approx(before["strain"]["rms_in_sd"][0][1], rel=1e-6)
    assert after["omega_deg"]["pearson"][0][1] == pytest.approx(before["omega_deg"]["pearson"][0][1], rel=1e-6)
    if abs(constant) > 2e-3:
        assert after["omega_deg"]["rms_in_sd"][0][1] > 2 * before["omega_deg"]["rms_in_sd"][0][1]


def test_two_films_are_not_one(paper: xr.Dataset, particle: xr.Dataset) -> None:
    found = maps.evaluation({"particle": particle, "paper": paper})
    assert found["headline"] == "paper"
    limit = found["thresholds"]["likelihood"]
    share = float((paper["goodness"].sel(estimator="likelihood") > limit["threshold"]).mean())
    assert share <= maps.FALSE_ALARM
    here, there = (found["scans"][name]["goodness"]["verdict"] for name in ("paper", "particle"))
    assert (here["status"], there["status"]) == ("ok", "outside")
    doubled = np.arange(144).reshape(12, 12) % 2 == 0
    above = particle["goodness"].sel(estimator="likelihood").values > limit["threshold"]
    use = maps.measured(particle)
    assert (above == doubled)[use].mean() > 0.95
    assert there["above"]["count"] == int(above[use].sum())
    assert found["scans"]["particle"]["status"] == {"ok": int(use.sum()), "weak: 3 counts": int((~use).sum())}
    assert (found["scans"]["paper"]["as_published"], found["scans"]["particle"]["merit"]) == (True, None)
    json.dumps(found, allow_nan=False)


def test_points_without_signal_do_not_vote_on_the_film(paper: xr.Dataset, particle: xr.Dataset) -> None:
    """Beside a particle there is little to reproduce, and every model reproduces it."""
    dark = particle.copy(deep=True)
    beside = np.arange(144).reshape(12, 12) % 12 < 10
    dark["intensity"].values[beside] *= 0.9 * maps.SIGNAL
    dark["goodness"].values[:, beside] = 0.1
    dark["estimate"].values[:, beside] = np.random.default_rng(0).normal(size=dark["estimate"].values[:, beside].shape)
    found = maps.evaluation({"paper": paper, "dark": dark})["scans"]["dark"]
    use = maps.measured(dark) & ~beside
    np.testing.assert_array_equal(maps.signal(dark), use)
    assert maps.signal(paper).all()
    assert found["goodness"]["verdict"]["status"] == "outside"
    assert found["goodness"]["verdict"]["above"]["n"] == found["agreement"]["points"] == int(use.sum())
    assert found["agreement"]["parameters"]["chi_deg"]["pearson"][0][1] > 0.9


def test_a_constant_map_has_no_correlation(particle: xr.Dataset) -> None:
    flat = particle.copy(deep=True)
    flat["estimate"].loc[{"estimator": "narrow", "parameter": "strain"}] = -0.005 + 1e-19
    found = maps.agreement(flat)["parameters"]["strain"]
    assert found["pearson"][0][1] is None
    assert found["mean_difference"][0][1] is not None


def test_thresholds_at_its_own_counts_come_with_the_scan(paper: xr.Dataset, particle: xr.Dataset) -> None:
    own = {"likelihood": {"threshold": 1e3, "n": 50, "false_alarm_rate": 0.01}}
    lenient = particle.assign_attrs(thresholds=json.dumps(own))
    found = maps.evaluation({"paper": paper, "particle": lenient})["scans"]["particle"]["goodness"]
    assert found["verdict"]["status"] == "ok"
    assert found["estimators"]["narrow"]["above"] is None
    alone = maps.evaluation({"particle": particle})
    assert alone["headline"] is None
    assert alone["scans"]["particle"]["goodness"]["verdict"]["status"] == "untested"


def test_nothing_measured_gives_none_and_no_warning(paper: xr.Dataset) -> None:
    dark = paper.copy(deep=True)
    dark["status"][:] = "missing"
    dark["estimate"][:] = dark["goodness"][:] = np.nan
    found = maps.evaluation({"dark": dark})
    assert found["scans"]["dark"]["merit"]["estimators"]["likelihood"]["failures"]["share"] is None
    json.dumps(found, allow_nan=False)


def test_a_real_scan_has_no_figures_of_merit(particle: xr.Dataset) -> None:
    with pytest.raises(ScatterflowError, match="simulated"):
        maps.merit(particle)
    with pytest.raises(ScatterflowError, match="headline scan must be one of"):
        maps.evaluation({"particle": particle}, headline="particle")


def test_damaged_scans_are_named(paper: xr.Dataset) -> None:
    for damaged, message in (
        (paper.drop_vars("sd"), "sd in here must be there"),
        (paper.drop_vars("bound"), "bound in here must be there"),
        (paper.drop_vars("shown_row"), "shown_row in here"),
        (paper.assign(goodness=paper["goodness"].isel(row=0)), "goodness in here must have dimensions"),
        (paper.isel(row=slice(0)), "here must hold at least one point"),
        (paper.assign_coords(estimator=["a", "a", "b", "c"]), "estimator in here must name each entry once"),
        (paper.assign_attrs(relative="strain"), "relative in here must be a JSON list"),
        (paper.assign_attrs(thresholds="[]"), "thresholds in here must be a JSON dict"),
    ):
        with pytest.raises(StoreError, match=message):
            maps.checked(damaged, "here")
    turned = maps.checked(paper.transpose(), "here")
    assert maps.merit(turned) == maps.merit(paper)
