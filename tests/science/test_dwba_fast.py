"""Mode fast against mode reference: whole frames of the paper's detector, and instruments of other kinds."""

import numpy as np
import pytest

from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.sample import SampleConfig
from scatterflow.forward.dwba import expected_counts
from scatterflow.multilayer import multilayer_prior
from scatterflow.study import load_study

pytestmark = pytest.mark.science
PAPER = load_study("config/paper.yaml", "layers12").config
TOLERANCE = {"bornagain": 1e-5, "flat": 1e-4}
COLUMNS, ROWS = (0, 214, 511), (81, 300, 1023)  # whole columns meet all critical angles, whole rows all columns
SAMPLES = 6
STRIPS = {
    **{f"c{y}": {"rows": ((0, 1024),), "columns": (y, y + 1), "bins": (1024, 1)} for y in COLUMNS},
    **{f"r{z}": {"rows": ((z, z + 1),), "columns": (0, 512), "bins": (1, 512)} for z in ROWS},
}


def paper_samples() -> np.ndarray:
    """Prior samples (simulation, 72); half of them absorb as little as it allows: kinks at the critical angles."""
    theta = multilayer_prior(PAPER.sample, 11).sample(SAMPLES).values.copy()
    theta[SAMPLES // 2 :, 1::6] = 1.001e-8
    return theta


@pytest.mark.parametrize(
    ("shape", "normal"), [("bornagain", "surface"), ("flat", "surface"), ("flat", "reflected"), ("flat", "direct")]
)
def test_full_frames(shape: str, normal: str) -> None:
    """1024 x 512 pixels, 12 free layers, the paper's background of 60 counts per pixel."""
    config = InstrumentConfig(geometry=shape, normal=normal, views=STRIPS)
    assert config.shape == (1024, 512)
    assert config.background == 60.0
    theta = paper_samples()
    fast = expected_counts(PAPER.sample, config, theta, ("full",))["full"]
    exact = expected_counts(PAPER.sample, config, theta, tuple(STRIPS), mode="reference", batch_bytes=2**28)
    worst = 0.0
    for name, counts in exact.items():
        index = int(name[1:])
        strip = fast[:, :, index : index + 1] if name[0] == "c" else fast[:, index : index + 1]
        worst = max(worst, float(np.abs(strip / counts - 1).max()))
    print(f"\nfast against reference, geometry {shape}, normal to {normal}: at most {worst:.1e}")
    assert worst <= TOLERANCE[shape]


INSTRUMENTS = {
    "coarse pixels": {"pixel_mm": 0.8},
    "close": {"distance_mm": 200.0, "pixel_mm": 0.2},
    "steep": {"incidence_deg": 5.0, "beam_z_px": 60.0},
    "short waves": {"wavelength_nm": 0.02, "pixel_mm": 0.1},
    "long waves": {"wavelength_nm": 1.5, "pixel_mm": 1.5},
    "sharp and dark": {"resolution_mm": 0.0, "background": 0.0, "pixel_mm": 0.8},
    "blurred": {"resolution_mm": 3.0, "pixel_mm": 0.8},
}


@pytest.mark.parametrize("shape", ["bornagain", "flat"])
@pytest.mark.parametrize("kind", INSTRUMENTS)
def test_other_instruments(kind: str, shape: str) -> None:
    """Nodes and angles are chosen for the instrument: the same bounds, also relative to counts without background."""
    options = {"shape": (96, 128), "beam_z_px": 40.0, "beam_y_px": 50.0, "background": 1e-3, **INSTRUMENTS[kind]}
    config = InstrumentConfig(geometry=shape, **options)
    theta = paper_samples()[[0, -1]]
    fast = expected_counts(PAPER.sample, config, theta, ("full",))["full"]
    exact = expected_counts(PAPER.sample, config, theta, ("full",), mode="reference")["full"]
    dark = exact == 0.0  # below the horizon, without background
    np.testing.assert_array_equal(fast[dark], 0.0)
    worst = np.abs(fast[~dark] / exact[~dark] - 1).max()
    print(f"\n{kind}, geometry {shape}: at most {worst:.1e}")
    assert worst <= TOLERANCE[shape]


@pytest.mark.parametrize("shape", ["bornagain", "flat"])
def test_thick_layers_take_more_angles(shape: str) -> None:
    """Fringes much finer than the prior's: limits follow the samples."""
    config = InstrumentConfig(shape=(96, 128), beam_z_px=40.0, beam_y_px=50.0, pixel_mm=0.4, geometry=shape)
    sample = SampleConfig.model_validate(PAPER.sample.model_dump() | {"layers": ("Ta", "Cu3N"), "expert": ()})
    theta = multilayer_prior(sample, 3).sample(2).values.copy()
    theta[:, [2, 8]] = 700.0, 1300.0
    fast = expected_counts(sample, config, theta, ("full",))["full"]
    exact = expected_counts(sample, config, theta, ("full",), mode="reference")["full"]
    np.testing.assert_allclose(fast, exact, rtol=TOLERANCE[shape])


def test_spectrum_ends_at_its_cut_off() -> None:
    """Pixels beyond the largest spatial frequency hold the background, on both sides of the edge to the last one."""
    content = PAPER.sample.model_dump() | {"max_spatial_frequency_per_nm": 0.05}
    sample = SampleConfig.model_validate(content)
    config = InstrumentConfig(shape=(96, 128), beam_z_px=40.0, beam_y_px=50.0, pixel_mm=0.4, resolution_mm=0.0)
    theta = paper_samples()[:2]
    fast = expected_counts(sample, config, theta, ("full",))["full"]
    exact = expected_counts(sample, config, theta, ("full",), mode="reference")["full"]
    dark = exact == 60.0
    assert 0.1 < dark[:, 60:].mean() < 0.9
    np.testing.assert_array_equal(fast == 60.0, dark)
    np.testing.assert_allclose(fast, exact, rtol=1e-5)
