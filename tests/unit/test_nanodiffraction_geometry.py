"""The geometry that a scan's frames show, beside a configuration that is right, or wrong."""

import json
from typing import Any

import numpy as np
import pytest

from scatterflow.config.study import NanodiffractionConfig
from scatterflow.forward import fields
from scatterflow.forward.nanodiffraction import kinematics, patterns
from scatterflow.stages.nanodiffraction import geometry
from scatterflow.stages.nanodiffraction.scans import Scan

BEAM = {"shape": [36, 36], "pixel_mm": 0.195}
FITTED = ("film_thickness_nm", "peak_width", "outer_zone_nm", "stop_um", "ring_outer_px", "ring_inner_px")


def config(**options: Any) -> NanodiffractionConfig:
    """A study with coarse pixels; `options` are those of beam, film and prior."""
    beam = {name: options.pop(name) for name in ("outer_zone_nm", "stop_um", "energy_kev") if name in options}
    film = {name: options.pop(name) for name in ("thickness_nm", "lattice_nm", "peak_width") if name in options}
    content = {"beam": BEAM | beam, "film": film, "prior": options, "models": {"lean": {"network": "lean"}}}
    return NanodiffractionConfig.model_validate(content | {"simulate": {"simulations": 2000}})


def scan(true: NanodiffractionConfig, seed: int = 0, points: int = 16) -> Scan:
    """The published test scan of the `true` geometry, with a background and a masked column, as if it were measured."""
    theta = fields.test_scan((points, points), "flat").reshape(-1, 4)
    theta[:, 3] = true.film.thickness_nm
    at = kinematics(true.beam, true.film)
    frames = patterns(at, theta)
    expected = 7 * frames / frames.max(axis=(1, 2), keepdims=True) + 0.05
    counts = np.random.default_rng(seed).poisson(expected).astype(np.float32)
    mask = np.ones(true.beam.shape, dtype=bool)
    mask[:, 20] = False
    return Scan("made", (points, points), counts * mask, np.full(points**2, "ok"), at, mask=mask)


def entries(found: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(found["estimated_geometry"])
    return told


def test_a_right_configuration_agrees() -> None:
    right = config()
    found = geometry.attributes(scan(right), right)
    told = entries(found)
    assert [name for name, entry in told.items() if entry["agrees"]] == [n for n in FITTED if n != "peak_width"]
    assert told["peak_width"]["why"].startswith(
        "the frames only tell that it is below 0."
    )  # tilts within a mean widen it
    inner, outer = right.beam.ring_px
    for name, truth in (("ring_inner_px", inner), ("ring_outer_px", outer), ("film_thickness_nm", 11.7)):
        assert told[name]["config"] == pytest.approx(truth)
        assert told[name]["value"] == pytest.approx(truth, abs=geometry.BEYOND * told[name]["sd"])
        assert told[name]["sd"] < 0.02 * truth
    assert found["estimated_geometry_fits"] == 1
    assert 3 <= found["estimated_geometry_frames"] <= 256


def test_what_is_wrong_is_named_with_its_right_value() -> None:
    """The film is thicker, the zone plate coarser and its stop smaller than the configuration says."""
    true = {"outer_zone_nm": 16.6, "stop_um": 72.0, "thickness_nm": 13.0}
    told = entries(geometry.attributes(scan(config(**true)), config()))
    wrong = [name for name, entry in told.items() if entry["agrees"] is False]
    assert wrong == [name for name in FITTED if name != "peak_width"]
    for name, value in true.items():
        entry = told["film_thickness_nm" if name == "thickness_nm" else name]
        assert entry["value"] == pytest.approx(value, abs=4 * entry["sd"])


def test_a_wide_peak_is_told_and_a_wrong_one_contradicted() -> None:
    for true, configured, agrees in ((2.0, 2.0, True), (2.0, 0.1, False), (0.1, 2.0, False)):
        entry = entries(geometry.attributes(scan(config(peak_width=true)), config(peak_width=configured)))["peak_width"]
        assert entry["agrees"] is agrees
        assert entry["value"] == pytest.approx(true, abs=3 * entry["sd"])


def test_what_frames_do_not_tell_is_relative() -> None:
    """Energy and lattice spacing, 4 % off with one Bragg angle: all that is seen is another ring and another fringe."""
    true = config(energy_kev=11.3 * 1.04, lattice_nm=0.4013 / 1.04)
    told = entries(geometry.attributes(scan(true), config()))
    for name, options in (("energy_kev", config().beam), ("lattice_nm", config().film), ("distance_mm", config().beam)):
        assert (told[name]["value"], told[name]["sd"], told[name]["agrees"]) == (None, None, None)
        assert told[name]["config"] == getattr(options, name)
        assert told[name]["why"].startswith("degenerate with")
    assert told["outer_zone_nm"]["value"] == pytest.approx(16 * 1.04, rel=5e-3)
    assert told["outer_zone_nm"]["agrees"] is False
    free = entries(geometry.attributes(scan(config()), config(film_thickness_nm=[9.0, 15.0])))["film_thickness_nm"]
    assert (free["config"], free["agrees"], free["why"]) == (None, None, "a parameter: every point has its own")
    assert free["value"] == pytest.approx(11.7, abs=4 * free["sd"])


def test_frames_of_no_film_are_not_believed() -> None:
    """A scan whose frames are sheared, as a particle's out of focus are, and one without any light."""
    right = config()
    made = scan(right, points=8)
    sheared = np.stack([np.roll(row, n // 2, axis=-1) for n, row in enumerate(np.moveaxis(made.frames, 1, 0))], axis=1)
    other = Scan("sheared", made.shape, sheared, made.status, made.kinematics, mask=None)
    found = geometry.attributes(other, right)
    assert found["estimated_geometry_fits"] == 0
    assert found["estimated_geometry_unexplained"] > 2 * geometry.FITS
    assert all(entry["agrees"] is not False and entry["why"] for entry in entries(found).values())
    dark = Scan("dark", made.shape, made.frames * 0, made.status, made.kinematics, mask=made.mask)
    assert geometry.attributes(dark, right) == {"estimated_geometry_missing": "no frame with counts"}
    broken = Scan("broken", made.shape, made.frames, np.full(64, "unreadable"), made.kinematics, mask=made.mask)
    assert geometry.attributes(broken, right) == {"estimated_geometry_missing": "no frame with counts"}
