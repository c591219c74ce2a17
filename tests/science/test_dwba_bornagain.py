"""Engine dwba against BornAgain 25: random samples of the paper's prior, views, extreme samples."""

import numpy as np
import pytest

from scatterflow import instrument as geometry
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.sample import LayerValues, SampleConfig
from scatterflow.forward import bornagain
from scatterflow.forward.dwba import expected_counts
from scatterflow.forward.layers import LAYER_PARAMETERS
from scatterflow.multilayer import multilayer_prior
from scatterflow.study import load_study
from tests import examples

pytestmark = pytest.mark.science
SAMPLES, INTERFACES = 200, 14
LOWEST_DEG = 0.05  # below, BornAgain loses digits: sqrt(n^2 - cos^2 alpha)
DEMO = load_study("config/demo.yaml", "multilayer").config


def paper_sample(interfaces: int, row: int, **options: object) -> tuple[SampleConfig, np.ndarray]:
    """A stack with so many interfaces and one sample (1, parameter) of the paper's prior."""
    content = DEMO.sample.model_dump(exclude={"expert"})
    whole = ("TaO", *("Ta", "Cu3N") * 5, "Ta")  # the paper's 12 free layers
    layers = whole[: max(1, interfaces - 2)]
    content |= {"layers": layers, "fixed": content["fixed"] if interfaces > 2 else (), **options}
    sample = SampleConfig.model_validate(content)
    theta = multilayer_prior(sample, 7).sample(1, start=row).values
    if interfaces > 1:
        return sample, theta
    values = dict(zip(LAYER_PARAMETERS, map(float, theta[0]), strict=True)) | {
        "material": "TaO",
        "thickness_nm": 0.0,
    }
    # a bare substrate, which no configuration asks for: nothing would be free
    return sample.model_copy(update={"layers": (), "substrate": LayerValues(**values)}), np.zeros((1, 0))


def coarse(**options: object) -> InstrumentConfig:
    """64 x 64 pixels over the paper's range of angles; with its margin for the resolution it begins above 0.05 deg."""
    config = InstrumentConfig(shape=(64, 64), pixel_mm=0.8, beam_z_px=14.4, beam_y_px=26.9, **options)
    lowest, _ = geometry.angles(config, np.array(-1.5), np.array(0.5))
    assert np.degrees(lowest) > LOWEST_DEG
    return config


@pytest.mark.parametrize(
    "options",
    [{"resolution_mm": 0.0, "background": 0.0}, {"resolution_mm": 0.32, "background": 60.0}],
    ids=["bare", "resolution-background"],
)
def test_reference_equals_bornagain(options: dict[str, float]) -> None:
    config = coarse(**options)
    frame = geometry.view(config, "full")
    worst = (0.0, "")
    for row in range(SAMPLES):
        interfaces, variant = row % INTERFACES + 1, row // INTERFACES % 4
        transient, cross = ("tanh", "erf")[variant % 2], (2000.0, None)[variant // 2]
        sample, theta = paper_sample(interfaces, row, transient=transient, cross_correlation_length_nm=cross)
        ours = expected_counts(sample, config, theta, ("full",), mode="reference")["full"][0]
        # in float64: the public function rounds to the store's float32
        theirs = bornagain._view_counts(sample, config, theta[0], frame)
        deviation = float(np.abs(ours / theirs - 1).max())
        worst = max(worst, (deviation, f"sample {row}, {interfaces} interfaces, {transient}, {cross}"))
    print(f"\nreference against BornAgain, {SAMPLES} samples, {options}: at most {worst[0]:.1e} ({worst[1]})")
    assert worst[0] <= 1e-9


@pytest.mark.parametrize(("mode", "tolerance"), [("reference", 1e-6), ("fast", 1e-6)])
def test_views_are_those_of_bornagain(mode: str, tolerance: float) -> None:
    """Profile and image of the demo: rows in two ranges, gauss3, bins that begin below the horizon."""
    theta = multilayer_prior(DEMO.sample, 7).sample(4).values
    names = tuple(DEMO.instrument.views)
    theirs = bornagain.expected_counts(DEMO.sample, DEMO.instrument, theta, names)
    ours = expected_counts(DEMO.sample, DEMO.instrument, theta, names, mode=mode)
    for name in names:
        assert ours[name].shape == theirs[name].shape
        deviation = np.abs(ours[name] / theirs[name] - 1).max(axis=(0, 2))
        print(f"\n{mode}, view {name}: at most {deviation.max():.1e} (float32 counts), in row {deviation.argmax()}")
        assert deviation.max() <= tolerance


def test_sampling_between_pixels_is_that_of_bornagain() -> None:
    config = examples.instrument(beam_z_px=14.4)  # above the horizon: BornAgain blurs light from below across it
    theta = examples.theta(3).values
    theirs = bornagain.expected_counts(examples.sample(), config, theta, ("profile", "image"))
    ours = expected_counts(examples.sample(), config, theta, ("profile", "image"), mode="reference")
    for name, counts in ours.items():
        np.testing.assert_allclose(counts, theirs[name], rtol=1e-6)


def extreme(case: str) -> np.ndarray:
    """One legal but extreme sample (parameter,) of two layers on silicon."""
    theta = examples.theta(1).values[0].reshape(2, 6)
    delta, beta, thickness, sigma, hurst, length = range(6)
    if case == "thick":
        theta[:, thickness] = 900.0, 400.0
    elif case == "rough":
        theta[:, sigma] = 12.0
    elif case == "absorbing":
        theta[:, [delta, beta]] = (1e-3, 9e-2), (5e-5, 5e-5)
    elif case == "thick, rough and absorbing":
        theta[:, [beta, thickness, sigma]] = (1e-3, 300.0, 8.0)
    elif case == "transparent":
        theta[:, beta] = 0.0
    elif case == "roughness near thickness":
        theta[:, sigma] = theta[:, thickness] * (1 - 1e-12)
    elif case == "thin":
        theta[:, [thickness, sigma]] = 1e-6, 1e-6
    elif case == "jagged":
        theta[:, hurst] = 1e-6
    elif case == "smooth":
        theta[:, hurst] = 1 - 1e-6
    else:
        theta[:, length] = 1e5
    return theta.ravel()


CASES = ("thick", "rough", "absorbing", "thick, rough and absorbing", "transparent", "roughness near thickness", "thin")
CASES += ("jagged", "smooth", "long-range")


@pytest.mark.parametrize("transient", ["tanh", "erf"])
@pytest.mark.parametrize("case", CASES)
def test_extreme_samples_are_finite_and_equal_bornagains(case: str, transient: str) -> None:
    sample = examples.sample(transient=transient)
    config = examples.instrument(beam_z_px=14.4, resolution_mm=0.0, background=0.0, views={})
    theta = extreme(case)[None]
    theirs = bornagain._view_counts(sample, config, theta[0], geometry.view(config, "full"))
    for mode, tolerance in (("reference", 2e-9), ("fast", 1e-5)):
        ours = expected_counts(sample, config, theta, ("full",), mode=mode)["full"][0]
        deviation = np.abs(ours / theirs - 1).max()
        print(f"\n{case}, {transient}, {mode}: {deviation:.1e}")
        assert np.isfinite(ours).all()
        assert deviation <= tolerance


def test_where_bornagain_overflows_the_answer_is_that_of_a_bare_substrate() -> None:
    """Nothing comes back through 4 um of an absorber, where BornAgain 25 has infinity times zero."""
    config = examples.instrument(beam_z_px=14.4, resolution_mm=0.0, background=0.0, views={})
    theta = examples.theta(1).values
    theta[0, [1, 2]] = 1e-2, 4e3
    frame = geometry.view(config, "full")
    assert not np.isfinite(bornagain._view_counts(examples.sample(), config, theta[0], frame)).all()
    substrate = dict(zip(LAYER_PARAMETERS, map(float, theta[0, :6]), strict=True))
    substrate |= {"material": "TaO", "thickness_nm": 0.0}
    bare = examples.sample().model_copy(update={"layers": (), "substrate": LayerValues(**substrate)})
    expected = bornagain._view_counts(bare, config, np.zeros(0), frame)
    ours = expected_counts(examples.sample(), config, theta, ("full",), mode="reference")["full"][0]
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


@pytest.mark.parametrize("side", [0.0, 1e-13, -1e-13])
def test_exit_at_a_critical_angle(side: float) -> None:
    """A transparent layer whose critical angle is a row's exit angle: kz = 0 there, or nearly."""
    config = examples.instrument(beam_z_px=14.4, resolution_mm=0.0, background=0.0, views={})
    row, column = 5, 20
    alpha, _ = geometry.angles(config, np.array(row + 0.5), np.array(column + 0.5))
    theta = examples.theta(1).values
    theta[0, :2] = 2 * np.sin(alpha / 2) ** 2 * (1 + side), 0.0  # 1 - cos alpha
    ours = expected_counts(examples.sample(), config, theta, ("full",), mode="reference")["full"][0]
    theirs = bornagain._view_counts(examples.sample(), config, theta[0], geometry.view(config, "full"))
    deviation = np.abs(ours / theirs - 1)
    print(f"\nat the critical angle {deviation[row].max():.1e}, anywhere {deviation.max():.1e}")
    assert deviation.max() <= 1e-9  # False if not finite
