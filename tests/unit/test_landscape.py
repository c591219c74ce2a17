"""Losses of a frame around its truth are those of the estimators, and a descent on them is described rightly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import poisson
from torch.nn.functional import l1_loss

from scatterflow import landscape
from scatterflow.config.loading import parse_run
from scatterflow.config.nanodiffraction import FilmConfig
from scatterflow.config.regressor import DonutConfig
from scatterflow.errors import ScatterflowError, StoreError
from scatterflow.forward.nanodiffraction import kinematics, patterns
from scatterflow.models.donut import Donut
from scatterflow.models.nanophysics import Box
from scatterflow.nanodiffraction import NanodiffractionStudy
from scatterflow.study import study_of
from tests import made_scans

FILM, BEAM = FilmConfig(), made_scans.COARSE
BOX = np.array([[-0.005, -0.05, -0.1], [0.005, 0.05, 0.1]])
TRUTH = np.array([2e-4, 2e-3, -4e-3])
OWN, OTHER = (kinematics(BEAM, FILM, ring) for ring in (None, 2))


def a_frame() -> np.ndarray:
    light = patterns(OWN, TRUTH[None])[0].astype(float)
    return np.random.default_rng(0).poisson(made_scans.MAX_COUNTS * light / light.max()).astype(float)


@pytest.fixture(scope="module")
def found() -> xr.Dataset:
    return landscape.compute(a_frame(), TRUTH, OWN, OTHER, BOX)


def a_study(**forward: int) -> NanodiffractionStudy:
    simulate = {"simulations": 40, "shard_size": 20, "held_back": 10, "validation": 10}
    beam = {"shape": list(BEAM.shape), "pixel_mm": BEAM.pixel_mm}
    film = {"kind": "nanodiffraction", "beam": beam, "simulate": simulate, "models": {"lean": {"network": "lean"}},
            "forward": forward}  # fmt: skip
    study = study_of(parse_run({"run": "made", "seed": 3, "studies": {"film": film}}, "made"), "film")
    assert isinstance(study, NanodiffractionStudy)
    return study


def places(found: xr.Dataset) -> list[tuple[np.ndarray, np.ndarray]]:
    """Some parameters, within the box, and the losses of the landscape there."""
    rng, names = np.random.default_rng(1), list(landscape.NAMES)
    result = []
    for number, pair in enumerate(str(name).split() for name in found["plane_of"].values):
        for _ in range(3):
            at = rng.integers(landscape.STEPS // 2 - 3, landscape.STEPS // 2 + 4, 2)
            theta = TRUTH.copy()
            for name, step in zip(pair, at, strict=True):
                theta[names.index(name)] = found["axis"].values[names.index(name), step]
            result.append((theta, found["plane"].values[number, :, at[0], at[1]]))
    for number in range(3):
        step = int(rng.integers(landscape.FINE))
        theta = TRUTH.copy()
        theta[number] = found["cut_axis"].values[number, step]
        result.append((theta, found["cut"].values[number, :, step]))
    return result


def test_losses_are_those_that_the_estimators_minimise(found: xr.Dataset) -> None:
    counts = a_frame()
    ends = [tuple(values.tolist()) for values in BOX]
    for ring, error_at in ((None, 1), (2, 3)):
        at = kinematics(BEAM, FILM, ring)
        donut = Donut(DonutConfig(channels=(2,)), BEAM, FILM, Box(landscape.NAMES, ends[0], ends[1]))
        donut.physics._at[torch.device("cpu")] = at
        frames = torch.as_tensor(counts, dtype=torch.float32)[None]
        for theta, losses in places(found):
            light = patterns(at, theta[None])[0].astype(float)
            with torch.no_grad():
                modelled = (
                    donut.physics(donut.physics.box.to_unit(torch.as_tensor(theta)[None])) * donut._sum_of_frame()
                )
                error = float(l1_loss(modelled, donut._scaled(frames)))
            assert losses[error_at] == pytest.approx(error, rel=1e-4)
            if ring is None:
                raised = light + 1e-5 * light.max()
                expected = counts.sum() * raised / raised.sum()
                deviance = (
                    2 * (poisson.logpmf(counts, np.maximum(counts, 1e-300)) - poisson.logpmf(counts, expected)).sum()
                )
                assert losses[0] == pytest.approx(deviance, rel=1e-4)
                assert losses[2] == pytest.approx(-(light / light.sum() * counts).sum() / counts.sum(), rel=1e-4)


def test_the_truth_is_the_middle_of_every_plane_and_cut(found: xr.Dataset) -> None:
    np.testing.assert_allclose(found["axis"][:, landscape.STEPS // 2], TRUTH, rtol=1e-12)
    np.testing.assert_allclose(found["cut_axis"][:, landscape.FINE // 2], TRUTH, rtol=1e-12)
    middle = found["plane"].values[:, :, landscape.STEPS // 2, landscape.STEPS // 2]
    np.testing.assert_allclose(middle, np.broadcast_to(middle[0], middle.shape), rtol=1e-5)
    np.testing.assert_allclose(found["cut"].values[:, :, landscape.FINE // 2], middle, rtol=1e-5)


def test_the_published_ring_makes_steps_of_chi_and_the_integral_does_not(found: xr.Dataset) -> None:
    facts = landscape.facts(found)
    own, other = (facts[landscape.LOSSES[number]]["cuts"]["chi_deg"] for number in (1, 3))
    assert (own["stops"], own["basin"]) == (1, 1.0)
    assert own["flat"] < 0.1
    assert other["stops"] > 20
    assert other["flat"] > 0.5
    assert other["width"] < own["width"] / 4
    for entry in facts.values():  # as published: the landscape is convex, within the box
        assert all(plane["inside"] == 1 for plane in entry["planes"].values())


def by_hand(values: np.ndarray) -> tuple[int, np.ndarray]:
    """The same descent, point by point."""
    least = 1e-6 * np.ptp(values)

    def end(point: tuple[int, ...]) -> tuple[int, ...]:
        near = [tuple(np.add(point, shift) - 1) for shift in np.ndindex(*[3] * values.ndim)]
        near = [each for each in near if all(0 <= i < n for i, n in zip(each, values.shape, strict=True))]
        lowest = min(near, key=lambda each: values[each])
        return end(lowest) if values[lowest] < values[point] - least else point

    ends = {point: end(point) for point in np.ndindex(*values.shape)}
    middle = ends[tuple(n // 2 for n in values.shape)]
    led = np.array([ends[point] == middle for point in np.ndindex(*values.shape)]).reshape(values.shape)
    return sum(ends[point] == point for point in ends), led


@given(arrays(float, st.sampled_from([(7,), (5, 5), (4, 6)]), elements=st.integers(0, 50).map(float), unique=True))
def test_a_descent_goes_where_one_step_after_another_leads(values: np.ndarray) -> None:
    stops, basin = landscape.descent(values)
    expected_stops, expected = by_hand(values)
    assert stops == expected_stops
    np.testing.assert_array_equal(basin, expected)


def test_a_bowl_has_one_end_and_a_plateau_holds_all_its_points() -> None:
    x = np.linspace(-1, 1, 21)
    stops, basin = landscape.descent(np.hypot(*np.meshgrid(x, x)))
    assert (stops, basin.all()) == (1, True)
    stops, basin = landscape.descent((x**2 - 0.25) ** 2)
    assert stops == 2
    assert landscape.descent(np.zeros(9))[0] == 9


@pytest.mark.parametrize(("ring", "other"), [(None, "ring of 2 points per pixel"), (2, "integral over the ring")])
def test_a_scan_gives_a_landscape_that_reads_back(ring: int | None, other: str, tmp_path: Path) -> None:
    study = a_study(**({} if ring is None else {"ring_upsampling": ring}))
    scan = made_scans.scan(4)
    made = landscape.of_scan(study, scan)
    assert made.attrs["other_ring"] == other
    row, column = made.attrs["row"], made.attrs["column"]
    np.testing.assert_allclose(made["truth"], scan["truth"].values[row, column])
    assert made.attrs["counts"] == scan["intensity"].values[row, column]
    made.to_netcdf(tmp_path / landscape.FILE, engine="h5netcdf")
    xr.testing.assert_identical(landscape.read(tmp_path / landscape.FILE), made)


def test_what_cannot_be_computed_or_read_is_refused(found: xr.Dataset, tmp_path: Path) -> None:
    scan = made_scans.scan(4)
    for other in (scan.drop_vars(["truth", "bound"]), scan.drop_dims("shown"), scan.assign_attrs(fields="thick-film")):
        with pytest.raises(ScatterflowError, match="needs a simulated scan of the study's film"):
            landscape.of_scan(a_study(), other)
    path = tmp_path / "landscape.nc"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(StoreError, match=r"landscape\.nc must be a readable NetCDF file"):
        landscape.read(path)
    for damaged in (found.drop_vars("cut"), found.where(found["axis"] > 0), found.transpose(..., "plane_of")):
        damaged.to_netcdf(path, engine="h5netcdf")
        with pytest.raises(StoreError, match="must be there, finite, with dimensions"):
            landscape.read(path)
    found.drop_vars("unit").to_netcdf(path, engine="h5netcdf")
    with pytest.raises(StoreError, match=r"unit in .*landscape\.nc must name its entries"):
        landscape.read(path)
