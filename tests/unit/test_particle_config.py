"""Options of particles: the engines' own words, one line for every mistake, optical constants from the tables."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import pytest

from scatterflow import sizes
from scatterflow.config.loading import validate
from scatterflow.config.particles import MaterialConfig, ParticleSampleConfig
from scatterflow.errors import ConfigError
from scatterflow.forward import particles as engines
from scatterflow.forward.dwba import formfactors

GOLD = {"name": "Au", "formula": "Au", "density_g_cm3": 19.3}
OXIDE = {"name": "SiO2", "formula": "SiO2", "density_g_cm3": 2.2}
ROUGH: dict[str, Any] = {"hurst": 0.6, "correlation_length_nm": 30}
FILM: dict[str, Any] = {"material": OXIDE, "thickness_nm": [1, 6], "roughness_nm": [0.2, 3], **ROUGH}
WAFER = {"material": {"name": "Si", "delta": 3.5e-6, "beta": 3.8e-8}, "roughness_nm": 0.3, **ROUGH}
ENERGY_KEV = 11.808


def test_the_words_of_the_configuration_are_the_engines() -> None:
    hints = get_type_hints(ParticleSampleConfig)
    assert get_args(hints["shape"]) == formfactors.SHAPES
    assert get_args(hints["interference"]) == get_args(engines.Interference)
    assert get_args(hints["transient"]) == get_args(engines.Transient)


def test_optical_constants_are_those_of_the_reference_sample() -> None:
    """At 0.14073 nm, where the multilayer's wafer has literature values: docs of its authors' script."""
    known = {"SiO2": (2.2, 5.93e-6, 7.42e-8), "Si": (2.33, 6.31e-6, 1.21e-7)}
    for formula, (density, delta, beta) in known.items():
        material = MaterialConfig(name=formula, formula=formula, density_g_cm3=density)
        found = sizes.optical_constants(material, 8.810)
        assert found[0] == pytest.approx(delta, rel=0.01)
        assert found[1] == pytest.approx(beta, rel=0.2)
    given = MaterialConfig(name="x", delta=1e-5, beta=1e-7)
    assert sizes.optical_constants(given, 8.8) == (1e-5, 1e-7)


@pytest.mark.parametrize("formula", ["Xx", "gold", "Si-2", " ", "Au0", "Cm", "1"])
def test_a_formula_that_no_table_knows(formula: str) -> None:
    material = MaterialConfig(name="dust", formula=formula, density_g_cm3=2.0)
    with pytest.raises(ConfigError, match=r"optical constants of dust at 11.808 keV must .*or give delta and beta"):
        sizes.optical_constants(material, ENERGY_KEV)


def test_an_energy_that_no_table_knows() -> None:
    gold = MaterialConfig(**GOLD)
    with pytest.raises(ConfigError, match=r"optical constants of Au at 1e\+06 keV must be in the tables, got .*delta"):
        sizes.optical_constants(gold, 1e6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "cone"}, "shape"),
        ({"material": {"name": "Au"}}, "material.*needs either formula and density_g_cm3 or delta and beta"),
        ({"material": GOLD | {"delta": 1e-5}}, "material.*needs either"),
        ({"material": GOLD | {"density_g_cm3": -1}}, "density_g_cm3"),
        ({"radius_nm": [15, 1]}, "radius_nm must ascend"),
        ({"radius_nm": [0, 15]}, "radius_nm must be above 0"),
        ({"sizes": 2}, "sizes"),
        ({"modes": {"number": 5}}, "modes.number"),
        ({"modes": {"law": "weibull"}}, "modes.law"),
        ({"modes": {"relative_width": [0.1, 1.5]}}, "relative_width must"),
        ({"modes": {"relative_width": [0.6, 0.7]}}, "relative_width must"),
        ({"modes": {"mean_radius_nm": [20, 30]}}, "modes.mean_radius_nm and the grid radius_nm end"),
        ({"modes": {"number": 4, "separation": 3}}, "lower modes.number"),
        ({"modes": {"number": 3}}, "distance_nm must start at 4.33 nm or more"),
        ({"distance_nm": [2, 20]}, "distance_nm must start at"),
        ({"distance_nm": [20, 4]}, "distance_nm must ascend"),
        ({"disorder": [0.05, 0.8]}, "disorder must end at most at 0.6"),
        ({"disorder": [0, 0.35]}, "disorder must be above 0"),
        ({"shape": "sphere", "aspect_ratio": 0.8}, "aspect_ratio of a sphere must be 1"),
        ({"shape": "sphere", "aspect_ratio": [0.8, 1]}, "aspect_ratio of a sphere must be 1"),
        ({"aspect_ratio": [0.5, 1.1]}, "aspect_ratio of a truncated sphere must be at most 1"),
        ({"aspect_ratio": 0}, "aspect_ratio must be above 0"),
        ({"aspect_ratio": [0.95, 1.0]}, "aspect_width must leave room"),
        ({"layer": 1}, "layer must be at most 0"),
        ({"layer": 1, "layers": [FILM]}, "thickness_nm of layer 1.* must be at least their height, up to 30 nm"),
        ({"layers": [FILM | {"thickness_nm": [0, 5]}]}, "thickness_nm of SiO2 must be above 0"),
        ({"layers": [FILM | {"roughness_nm": 2}]}, "roughness_nm of SiO2 must be at most thickness_nm: 2.0 > 1"),
        ({"layers": [FILM | {"thickness_nm": 2}]}, "roughness_nm of SiO2 must be at most thickness_nm: 3.0 > 2"),
        ({"layers": [FILM | {"roughness_nm": [-1, 2]}]}, "roughness_nm must not be negative"),
        ({"substrate": WAFER | {"thickness_nm": 5}}, "thickness_nm.* is unknown"),
        ({"radius": [1, 15]}, "radius_nm"),
    ],
)
def test_bad_configurations_name_the_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        validate(ParticleSampleConfig, {"material": GOLD, "substrate": WAFER} | options, "particles.yaml")
    assert "\n" not in str(caught.value)
