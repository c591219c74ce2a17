"""A bundle of a real encoder with its study, untrained: what it answers means nothing, but is always the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from scatterflow.config.nanodiffraction import FilmConfig, NanobeamConfig
from scatterflow.config.regressor import LeanConfig
from scatterflow.config.scan import ScanConfig
from scatterflow.config.simulate import SimulateConfig
from scatterflow.config.study import NanodiffractionConfig
from scatterflow.forward.nanodiffraction import PARAMETERS, intensities, kinematics
from scatterflow.models.nanophysics import Box
from scatterflow.models.regressor import Regressor, build

BOX = Box(PARAMETERS[:3], (-0.005, -0.05, -0.1), (0.005, 0.05, 0.1))
BEAM = NanobeamConfig(shape=(32, 32), pixel_mm=0.22)  # the usual detector, binned: an eighth of the time


def bundle(folder: Path, threshold: float = 1.0, scans: tuple[ScanConfig, ...] = ()) -> Path:
    """Save it; frames of its study are 32 x 32 pixels, and its scans are cut as `scans` say."""
    torch.manual_seed(1)
    film, lean = FilmConfig(), LeanConfig()
    simulate = SimulateConfig(simulations=100, shard_size=10, held_back=20, validation=20)
    config = NanodiffractionConfig(beam=BEAM, film=film, models={"lean": lean}, simulate=simulate, scans=scans)
    study = {"name": "tiny", "run": "test", "seed": 1, "config": config.model_dump(mode="json")}
    meta: dict[str, Any] = {"study": study, "threshold": threshold}
    network = build(lean, BEAM, film, BOX)
    Regressor(lean, BEAM, film, BOX, network, 7.0, (1.0, 1.0, 1.0), meta=meta).save(folder)
    return folder


def films(number: int, counts: float = 7.0, seed: int = 0) -> np.ndarray:
    """Poisson counts (frame, z, y) of films within the box."""
    rng = np.random.default_rng(seed)
    theta = BOX.from_unit(torch.as_tensor(rng.uniform(-0.5, 0.5, (number, 3))))
    expected = intensities(kinematics(BEAM, FilmConfig()), theta).clamp_min(0).numpy()
    return rng.poisson(counts * expected / expected.max((1, 2), keepdims=True)).astype(np.uint16)


def on_detector(frames: np.ndarray, corner: tuple[int, int], shape: tuple[int, int] = (90, 100)) -> np.ndarray:
    """Frames (frame, row, column) of a whole detector, twice as fine, with `frames` (frame, z, y) cut from row `corner`.

    One count in four pixels is background, and the pixel (3, 5) is hot. The exit angle grows upwards.
    """
    rng = np.random.default_rng(5)
    whole = rng.poisson(0.25, (len(frames), *shape)).astype(np.uint16)
    rows, columns = corner
    fine = np.repeat(np.repeat(frames[:, ::-1], 2, 1), 2, 2)
    size = fine.shape[1:]
    whole[:, rows : rows + size[0], columns : columns + size[1]] += fine
    whole[:, 3, 5] = 900
    return whole
