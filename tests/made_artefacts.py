"""A small frame with the beam in it, images and drawn artefacts for it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scatterflow import artefacts
from scatterflow.config.artefacts import NO_ARTEFACTS, ArtefactsConfig
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.loading import validate

BIN = 4.0  # detector pixels


def instrument(**options: Any) -> InstrumentConfig:
    """A detector with the direct beam at (60, 130), the horizon at 100.2 and the specular spot at 140.4."""
    content = {
        "shape": (400, 300), "pixel_mm": 0.2, "distance_mm": 1152.0, "incidence_deg": 0.4, "beam": "direct",
        "beam_z_px": 60.0, "beam_y_px": 130.0, "normal": "direct", "geometry": "flat",
        "views": {
            "image": {"rows": ((20, 284),), "columns": (10, 250), "bins": (66, 60)},
            "odd": {"rows": ((21, 182),), "columns": (9, 240), "bins": (23, 33)},
            "two": {"rows": ((20, 60), (80, 120)), "columns": (10, 250), "bins": (20, 60)},
        },
        **options,
    }  # fmt: skip
    return InstrumentConfig.model_validate(content)


FRAME = artefacts.frame(instrument(), "image")


def only(**sections: Any) -> ArtefactsConfig:
    """Without noise and without artefacts but these."""
    content = NO_ARTEFACTS.model_dump(mode="json") | {"noise": "none"}
    for name, section in sections.items():
        content[name] = content[name] | section if isinstance(section, dict) else section
    return validate(ArtefactsConfig, content, "test")


def scene(n: int = 1, of: artefacts.Frame = FRAME) -> NDArray[np.float32]:
    """An image with a bright and a dim part, brighter in later rows."""
    z, y = np.meshgrid(*of.centres, indexing="ij")
    image = 3 + 200 * np.exp(-(((z - 150) / 30) ** 2) - ((y - 150) / 50) ** 2)
    return (image * np.arange(1, n + 1)[:, None, None]).astype(np.float32)


def recorded(
    config: ArtefactsConfig, n: int = 1, seed: int = 1, draw: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    return artefacts.record(scene(n), np.arange(n), FRAME, config, seed, draw)


def fixed(**values: Any) -> artefacts.Drawn:
    """Values of one simulation without any artefact but these."""
    plain = artefacts.drawn(NO_ARTEFACTS, 0, np.array([0]))
    return plain | {name: np.atleast_1d(value) for name, value in values.items()}
