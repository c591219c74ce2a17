"""The papers: tables and appendix of arXiv 2210.01543, methods of DONUT, against the defaults and the runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scatterflow.config import docs
from scatterflow.config.baselines import BaselinesConfig
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.loading import load_run
from scatterflow.config.model import CvaeMafConfig
from scatterflow.config.regressor import DonutConfig
from scatterflow.config.study import MultilayerConfig, NanodiffractionConfig
from scatterflow.config.training import TrainingConfig
from scatterflow.study import load_study
from scatterflow.units import energy_kev

ROOT = Path(__file__).parents[2]
DEMO, PAPER = ROOT / "config" / "demo.yaml", ROOT / "config" / "paper.yaml"


def multilayers(path: Path) -> list[MultilayerConfig]:
    """The studies of the paper's kind in a run."""
    return [study for study in load_run(path).studies.values() if isinstance(study, MultilayerConfig)]


def films() -> dict[str, NanodiffractionConfig]:
    """The studies of nanodiffraction in the paper run, by name."""
    studies = load_run(PAPER).studies
    return {name: study for name, study in studies.items() if isinstance(study, NanodiffractionConfig)}


def table_2(instrument: InstrumentConfig) -> dict[str, tuple[float, float]]:
    """Entries of table 2 and section A.3: (ours, the paper's) in the paper's units."""
    rows, columns = instrument.shape
    to_mm = instrument.pixel_mm
    # BornAgain <= 20.0, which the paper used, has rough scattering lower by 4 pi / wavelength^2 [nm^-2]
    intensity = instrument.beam_intensity * 4 * np.pi / instrument.wavelength_nm**2
    return {
        "pixel size, um": (to_mm * 1000, 50),
        "pixel y-direction": (columns, 512),
        "distance in y-direction, mm": (columns * to_mm, 25.6),
        "pixel z-direction": (rows, 1024),
        "distance in z-direction, mm": (rows * to_mm, 51.2),
        "sample detector distance, mm": (instrument.distance_mm, 1277),
        "y-position of specular reflection, mm": (instrument.beam_y_px * to_mm, 10.75),
        "z-position of specular reflection, mm": (instrument.beam_z_px * to_mm, 20.65),
        "wavelength, nm": (instrument.wavelength_nm, 0.14073),
        "photon energy, keV": (round(energy_kev(instrument.wavelength_nm), 2), 8.81),
        "incident angle, deg": (instrument.incidence_deg, 0.64),
        "azimuthal angle, deg": (instrument.azimuth_deg, 0),
        "beam intensity": (float(f"{intensity:.3g}"), 1e13),
        "constant background": (instrument.background, 60),
    }


def test_table_2_is_the_default_and_what_the_runs_use() -> None:
    studies = [study for path in (DEMO, PAPER) for study in multilayers(path)]
    for instrument in (InstrumentConfig(), *[study.instrument for study in studies]):
        assert instrument.beam == "specular"
        wrong = {name: pair for name, pair in table_2(instrument).items() if pair[0] != pytest.approx(pair[1])}
        assert wrong == {}


# table 3 in its own units: dispersion 1e-5, absorption 1e-7, lengths nm
TABLE_3 = {
    "Ta": {
        "delta": (1, 4),
        "beta": (0.1, 90),
        "thickness_nm": (0.3, 4.7),
        "roughness_nm": (0.3, 5),
        "hurst": (0.1, 0.9),
        "correlation_length_nm": (3, 30),
    },
    "Cu3N": {
        "delta": (0.8, 3),
        "beta": (0.1, 90),
        "thickness_nm": (0.3, 12.0),
        "roughness_nm": (0.3, 5),
        "hurst": (0.1, 0.9),
        "correlation_length_nm": (3, 30),
    },
}
TABLE_3_UNITS = {"delta": 1e-5, "beta": 1e-7}


@pytest.mark.parametrize("path", [DEMO, PAPER])
def test_table_3_are_the_ranges_of_the_runs(path: Path) -> None:
    for study in multilayers(path):
        for material, ranges in TABLE_3.items():
            ours = study.sample.materials[material].model_dump()
            assert set(ours) == set(ranges), "six parameters per layer"
            for name, limits in ranges.items():
                expected = np.array(limits) * TABLE_3_UNITS.get(name, 1.0)
                np.testing.assert_allclose(ours[name], expected, rtol=1e-12)


def test_section_3_are_the_studies_of_the_paper_run() -> None:
    """TaO-Ta-Cu3N..., 1e5 images for 3, 5 and 7 layers; TaO - 5 x (Ta - Cu3N) - Ta, 6e5 images; A.2: the splits."""
    studies = multilayers(PAPER)
    tower = ["TaO", *["Ta", "Cu3N"] * 5, "Ta"]
    sizes = {len(study.sample.layers): study.simulate.simulations for study in studies}
    assert sizes == {3: 10**5, 5: 10**5, 7: 10**5, 12: 6 * 10**5}
    for study in studies:
        assert list(study.sample.layers) == tower[: len(study.sample.layers)]
        assert study.simulate.held_back == 1000
        assert study.simulate.validation == study.simulate.simulations // 5
        assert [(layer.material, layer.thickness_nm) for layer in study.sample.fixed] == [("SiO2", 100.0)]
        assert study.sample.substrate.material == "Si"


# the fit of Randolph et al. (2022), from the authors' script: delta, beta, thickness [nm], rms roughness [nm]
EXPERT = {
    "TaO": (1.8e-5, 3.3e-7, 4.29, 0.46),
    "first Ta": (3.3e-5, 2.34e-6, 4.38, 0.46),
    "Ta": (3.27e-5, 2.34e-6, 4.38, 0.57),
    "Cu3N": (1.95e-5, 3.65e-7, 11.49, 0.39),
}


@pytest.mark.parametrize("path", [DEMO, PAPER])
def test_the_experts_values_are_those_of_the_experiment(path: Path) -> None:
    for study in multilayers(path):
        for index, layer in enumerate(study.sample.expert):
            key = "first Ta" if index == 1 else layer.material
            assert (layer.delta, layer.beta, layer.thickness_nm, layer.roughness_nm) == EXPERT[key]
            assert (layer.hurst, layer.correlation_length_nm) == (0.6, 30.0)
        assert len(study.sample.expert) == len(study.sample.layers)


def test_a1_is_the_default_network() -> None:
    """8 transforms of 2 layers with 128 hidden units; 6 blocks; a conditional encoder of 128 hidden units."""
    model = CvaeMafConfig()
    assert (model.flow.transforms, model.flow.layers, model.flow.hidden) == (8, 2, 128)
    assert (len(model.cvae.channels), model.cvae.encoder.hidden) == (6, 128)


def test_a2_is_the_default_training() -> None:
    """AdamW at 1e-3 and weight decay 1e-2, batches of 32; 30 epochs decaying every 10, 100 decaying every 30."""
    training = TrainingConfig()
    assert training.mode == "separate"
    for phase, epochs, every in ((training.cvae, 30, 10), (training.flow, 100, 30)):
        assert (phase.epochs, phase.decay_every, phase.decay_factor) == (epochs, every, 0.1)
        assert (phase.learning_rate, phase.weight_decay, phase.batch_size) == (1e-3, 1e-2, 32)
        assert phase.budget_s is None
    for study in multilayers(PAPER):
        assert {name: model.training for name, model in study.models.items()} == dict.fromkeys(study.models, training)


@pytest.mark.parametrize("path", [DEMO, PAPER])
def test_a5_is_the_profile_of_the_runs(path: Path) -> None:
    """30 central columns around the specular beam, two parts around the beam stop, 359 values."""
    for study in multilayers(path):
        view, beam = study.instrument.views["profile"], study.instrument.beam_y_px
        assert view.columns[1] - view.columns[0] == 30
        assert sum(view.columns) / 2 == beam
        assert (len(view.rows), view.bins) == (2, (359, 1))
        assert view.rows[0][1] <= study.instrument.masked[0].z[0] < study.instrument.masked[0].z[1] <= view.rows[1][0]


def test_section_3_are_the_default_baselines() -> None:
    """ABC with Euclidean distance, acceptance rate 0.002, Gaussian kernel of bandwidth 0.2."""
    assert (BaselinesConfig().acceptance, BaselinesConfig().kde_bandwidth) == (0.002, 0.2)
    assert "abc-kde" in BaselinesConfig().methods


def test_options_of_the_papers_tables_name_it_as_their_source() -> None:
    named = {path for path, _, _, field in docs.options() if "2210.01543" in str(field.json_schema_extra)}
    prefix = "studies.<study>."
    for entry in ("wavelength_nm", "incidence_deg", "background", "distance_mm", "pixel_mm", "shape", "beam_z_px"):
        assert f"{prefix}instrument.{entry}" in named
    for entry in TABLE_3["Ta"]:
        assert f"{prefix}sample.materials.<material>.{entry}" in named
    for entry in ("flow.transforms", "flow.hidden", "flow.layers", "cvae.channels", "training.flow.learning_rate"):
        assert f"{prefix}models.<model>.{entry}" in named


def test_methods_of_donut_are_the_geometry_of_the_paper_run() -> None:
    """In the paper's units; the focal length is the one that its program states, too."""
    for study in films().values():
        beam, film = study.beam, study.film
        ours = {
            "energy, keV": beam.energy_kev,
            "zone plate, um": beam.zone_plate_um,
            "central stop, um": beam.stop_um,
            "outermost zone, nm": beam.outer_zone_nm,
            "distance, m": beam.distance_mm / 1000,
            "two pixels, um": beam.pixel_mm * 1000,
            "out-of-plane lattice parameter, angstrom": film.lattice_nm * 10,
            "film, angstrom": film.thickness_nm * 10,
            "width of the peak, pixel": film.peak_width,
        }
        assert ours == pytest.approx(dict(zip(ours, (11.3, 149, 77, 16, 0.85, 2 * 55, 4.013, 117, 0.1), strict=True)))
        assert (beam.shape, film.order, film.peak_shape, study.forward.max_counts) == ((64, 64), 2, "gaussian", 7)


def test_the_library_of_donut_is_simulated_each_point_once() -> None:
    """41 images each in strain and both tilts, 68,921 in total, split 80 : 10 : 10."""
    study = load_study(PAPER, "film")
    numbers = study.config.simulate
    assert numbers.simulations == 41**3 == 68921
    assert numbers.held_back == numbers.validation == round(0.1 * 41**3)
    theta = study.prior.sample(numbers.simulations).values
    assert len(np.unique(theta, axis=0)) == 41**3
    for column, limit in zip(theta.T, (0.005, 0.05, 0.1), strict=True):
        np.testing.assert_allclose(np.unique(column), np.linspace(-limit, limit, 41), atol=1e-12)
    varied = load_study(PAPER, "film-thickness")
    assert varied.config.simulate == numbers
    assert varied.prior.names == (*study.prior.names, "film_thickness_nm")
    low, high = varied.prior.lower[-1], varied.prior.upper[-1]
    assert low < 11.7 - 0.8 < 11.7 + 0.8 < high, "the scan's own thickness lies within"


def test_donut_is_trained_with_both_recipes() -> None:
    """Paper: 30 epochs in batches of 16, AdamW at 1e-4, weights 1 and 5, no dropout; its program: batches of 256."""
    models = films()["film"].models
    donuts = {name: model for name, model in models.items() if isinstance(model, DonutConfig)}
    assert {name: (model.recipe, model.training.batch_size) for name, model in donuts.items()} == {
        "donut": ("paper", 16),
        "donut-code": ("code", 256),
    }
    for model in donuts.values():
        assert (model.training.epochs, model.training.learning_rate, model.training.schedule) == (30, 1e-4, "steps")
        assert (model.decoder_weight, model.physics_weight, model.dropout) == (1, 5, 0)
        assert model.channels == (16, 32, 64, 128, 256, 256)
    assert {model.network for model in models.values()} == {"donut", "nanobeam", "lean"}


def test_the_scans_are_those_of_the_paper() -> None:
    found = {name: [(scan.fields, scan.points) for scan in study.test_scans] for name, study in films().items()}
    assert found == {
        "film": [("paper", 64), ("paper-thickness", 64), ("thick-film", 64)],
        "film-thickness": [("paper-thickness", 64)],
    }
