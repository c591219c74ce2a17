"""The public interface of a study: names, units, shapes, errors; simulate, observe, preprocess by real BornAgain."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import scatterflow as sf
from scatterflow import experiment
from scatterflow.errors import ConfigError, FrameError

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "config" / "demo.yaml"


def demo() -> sf.Study:
    return sf.load_study(DEMO, "multilayer")


def test_parameters_are_named_from_the_top_with_units() -> None:
    study = demo()
    assert study.prior.names[:7] == (
        "layer01_TaO.delta",
        "layer01_TaO.beta",
        "layer01_TaO.thickness_nm",
        "layer01_TaO.roughness_nm",
        "layer01_TaO.hurst",
        "layer01_TaO.correlation_length_nm",
        "layer02_Ta.delta",
    )
    assert dict(zip(study.prior.names, study.prior.units, strict=True))["layer03_Cu3N.thickness_nm"] == "nm"


def test_beta_stays_below_delta_and_roughness_below_thickness() -> None:
    theta = demo().prior.sample(2000)
    for layer in ("layer01_TaO", "layer02_Ta", "layer03_Cu3N"):
        assert (theta.sel(parameter=f"{layer}.beta") <= theta.sel(parameter=f"{layer}.delta")).all()
        assert (theta.sel(parameter=f"{layer}.roughness_nm") <= theta.sel(parameter=f"{layer}.thickness_nm")).all()


def test_from_prior_to_features() -> None:
    study = demo()
    theta = study.prior.sample(3, start=10)
    counts = study.simulate(theta)
    assert counts["profile"].dims == ("simulation", "z_profile", "y_profile")
    assert counts["image"].shape == (3, 128, 16)
    assert list(counts["simulation"]) == [10, 11, 12]
    noisy = study.observe(counts)
    assert {"mask_profile", "mask_image"} <= set(noisy.data_vars)
    features = study.preprocess(noisy)
    assert features["profile"].shape == (3, 359)
    assert features["profile"].dtype == features["image"].dtype == np.float32
    assert float(features["image"].max()) == 1
    for name, array in {**counts.data_vars, **noisy.data_vars, **features.data_vars}.items():
        assert array.attrs["units"], name
        assert array.attrs["long_name"], name
    for name, coordinate in counts.coords.items():
        if name != "simulation":
            assert coordinate.attrs["units"], name


def test_one_row_alone_is_the_row_of_the_batch() -> None:
    study = demo()
    batch, alone = study.simulate(study.prior.sample(2)), study.simulate(study.prior.sample(1, start=1))
    for view in ("profile", "image"):
        np.testing.assert_array_equal(batch[view].values[1:], alone[view].values)


def test_the_experts_sample_is_in_the_prior() -> None:
    study = demo()
    expert = study.expert()
    assert expert is not None
    assert np.isfinite(study.prior.log_prob(expert)).all()
    assert sf.load_study(DEMO, "multilayer", {"sample.expert": []}).expert() is None


def test_an_experiment_needs_its_parasitic_scattering_removed() -> None:
    """Preprocessing removes what `experiment` adds: features agree but for noise; without removal they do not."""
    study = sf.load_study(DEMO, "multilayer", {"observe.noise": "none"})
    counts = study.simulate(study.expert())
    clean = study.preprocess(study.observe(counts))["profile"].values
    recorded = study.observe(counts, experiment=True)
    np.testing.assert_allclose(study.preprocess(recorded)["profile"].values, clean, atol=1e-4)
    recorded.attrs["parasitic"] = 0
    assert np.abs(study.preprocess(recorded)["profile"].values - clean).max() > 0.1


def test_studies_travel_between_processes() -> None:
    study = demo()
    copy = pickle.loads(pickle.dumps(study))
    assert copy == study
    assert copy.simulation_identity() == study.simulation_identity()


def test_errors_name_what_is_known() -> None:
    with pytest.raises(ConfigError, match="multilayer"):
        sf.load_study(DEMO, "multilyer")
    with pytest.raises(ConfigError, match="bornagain"):
        demo().simulate(demo().prior.sample(1), engine="bornagian")
    with pytest.raises(ConfigError, match="did you mean 'simulations'"):
        sf.load_study(DEMO, "multilayer", {"simulate.simulatoins": 5})
    with pytest.raises(FrameError, match="view profile"):
        demo().preprocess(demo().observe(demo().simulate(demo().prior.sample(1), views=("image",))))
    with pytest.raises(AttributeError, match="no attribute 'load_studdy'"):
        _ = sf.load_studdy


def test_the_coarse_image_samples_what_the_readme_says() -> None:
    """README, Limits: one sample per bin is a few per cent off the sum over the bin's pixels, typically 0.1 %."""
    coarse, theta = demo(), demo().prior.sample(8)
    fine = sf.load_study(DEMO, "multilayer", {"instrument.views.image.sampling": [8, 3]})
    counts = [study.simulate(theta, views=("image",))["image"].values for study in (coarse, fine)]
    deviation = np.abs(counts[0] / counts[1] - 1)
    assert 0.005 < deviation.max() < 0.08
    assert np.median(deviation) < 0.002


def test_only_values_on_the_border_are_moved_inside() -> None:
    study = sf.load_study(DEMO, "multilayer")
    expert = study.expert()
    assert expert is not None
    moved = experiment.off_the_border(study, expert)
    on_border = study.prior.to_cube(expert)[0] > 0.999
    assert [name for name, flag in zip(study.prior.names, on_border, strict=True) if flag] == [
        name for name in study.prior.names if name.endswith("correlation_length_nm")
    ]
    np.testing.assert_allclose(moved[0, ~on_border], expert.values[0, ~on_border], rtol=1e-9)
    np.testing.assert_allclose(study.prior.to_cube(moved)[0, on_border], 0.99)
    assert study.prior.inside(moved).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: nothing to refuse")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    study = sf.load_study(DEMO, "multilayer", {"forward.accelerator": "gpu"})
    with pytest.raises(ConfigError, match=r"forward\.accelerator must be cpu where torch finds no GPU"):
        study.simulate(study.prior.sample(1))


def test_bornagain_that_is_not_installed_is_missed_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the C library is too old for its wheel; the other engine does without it."""
    monkeypatch.setitem(sys.modules, "bornagain", None)
    study = sf.load_study(DEMO, "multilayer")
    theta = study.prior.sample(1)
    study.simulate(theta)
    with pytest.raises(ConfigError, match=r"BornAgain must be installed .*envs/README\.md"):
        study.simulate(theta, engine="bornagain")
