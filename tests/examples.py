"""Small instruments and samples that several tests share; ours, not a user's."""

from typing import Any

from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.sample import SampleConfig
from scatterflow.multilayer import multilayer_prior

RANGES: dict[str, Any] = {
    "beta": (0.1e-7, 90e-7),
    "thickness_nm": (0.3, 4.7),
    "roughness_nm": (0.3, 5.0),
    "hurst": (0.1, 0.9),
    "correlation_length_nm": (3.0, 30.0),
}
SILICON = {
    "material": "Si", "delta": 6.31e-6, "beta": 1.21e-7, "roughness_nm": 0.54, "hurst": 0.6, "correlation_length_nm": 30.0
}  # fmt: skip


def sample(layers: tuple[str, ...] = ("TaO", "Ta"), **options: Any) -> SampleConfig:
    """A stack of the paper's materials on silicon."""
    content = {
        "materials": {"TaO": {**RANGES, "delta": (0.6e-5, 2e-5)}, "Ta": {**RANGES, "delta": (1e-5, 4e-5)}},
        "layers": layers,
        "substrate": SILICON,
        **options,
    }
    return SampleConfig.model_validate(content)


def instrument(**options: Any) -> InstrumentConfig:
    """A detector of 60 x 40 pixels in the paper's geometry, binned by hand so that its pixels are large."""
    content = {
        "shape": (60, 40),
        "pixel_mm": 0.8,
        "resolution_mm": 0.32,
        "beam_z_px": 25.0,
        "beam_y_px": 20.0,
        "views": {
            "profile": {"rows": ((20, 24), (28, 50)), "columns": (16, 24), "bins": (26, 1), "sampling": (1, 8)},
            "image": {"rows": ((0, 60),), "columns": (4, 36), "bins": (30, 8), "sampling": (2, 4)},
        },
        **options,
    }
    return InstrumentConfig.model_validate(content)


def theta(n: int, layers: tuple[str, ...] = ("TaO", "Ta"), seed: int = 3) -> Any:
    """Prior samples (n, parameter) of `sample(layers)`."""
    return multilayer_prior(sample(layers), seed).sample(n)
