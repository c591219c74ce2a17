"""Instrument files of real frames: YAML with the options of `instrument`, or a calibration of pyFAI (.poni)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.loading import read_text, read_yaml, validate
from scatterflow.errors import ConfigError, FrameError
from scatterflow.instrument import horizon_px

# The defaults of these options are the paper's experiment. They are no defaults for another detector.
REQUIRED = ("wavelength_nm", "distance_mm", "pixel_mm", "shape", "beam", "beam_z_px", "beam_y_px")

# Pixels by which the detector's rotation may displace a corner of the frame from where an upright detector has it.
MAX_DISPLACEMENT_PX = 1.0

# Edge [mm] of the pixels and (rows, columns) by pyFAI's name of a detector, spaces and underscores removed. Detectors
# with pixels of several sizes are left out.
_SHAPES: dict[float, dict[str, tuple[int, int]]] = {
    0.172: {
        "pilatus100k": (195, 487),
        "pilatus200k": (407, 487),
        "pilatus300k": (619, 487),
        "pilatus300kw": (195, 1475),
        "pilatus900k": (619, 1475),
        "pilatus1m": (1043, 981),
        "pilatus2m": (1679, 1475),
        "pilatus6m": (2527, 2463),
    },
    0.15: {
        "pilatus4260k": (530, 513),
        "pilatus41m": (1080, 1033),
        "pilatus42m": (1630, 1553),
        "pilatus44m": (2180, 2073),
    },
    0.075: {
        "eiger500k": (514, 1030),
        "eiger1m": (1065, 1030),
        "eiger4m": (2167, 2070),
        "eiger9m": (3269, 3110),
        "eiger16m": (4371, 4150),
        "eiger2500k": (512, 1028),
        "eiger21m": (1062, 1028),
        "eiger24m": (2162, 2068),
        "eiger29m": (3262, 3108),
        "eiger216m": (4362, 4148),
    },
}
_DETECTORS = {name: (pixel, shape) for pixel, shapes in _SHAPES.items() for name, shape in shapes.items()}


def read_instrument(path: str | Path, incidence_deg: float | None = None) -> InstrumentConfig:
    """The instrument of real frames.

    Parameters
    ----------
    path : YAML with the options of the section `instrument` (at least those of `REQUIRED`; views are not needed,
        geometry is flat and normal is direct unless given), or a .poni file of pyFAI, format 1, 2 or 2.1.
    incidence_deg : angle between beam and surface [deg]; needed for .poni, replaces the value of a YAML file.

    Raises
    ------
    ConfigError : the file is unreadable, incomplete or describes a detector that is not perpendicular to the beam.
    FrameError : the horizon lies outside the frame (status wrong-instrument).
    """
    path = Path(path)
    if path.suffix.lower() == ".poni":
        content = _from_poni(path, _poni(path))
    else:
        content = read_yaml(path, "instrument file")
        if isinstance(content, dict):
            content = {"geometry": "flat", "normal": "direct"} | content
            missing = [name for name in REQUIRED if name not in content]
            if missing:
                raise ConfigError(f"option {missing[0]} in {path}", "is missing", remedy="an instrument file has no "
                                  "default for it")  # fmt: skip
    if isinstance(content, dict):
        if incidence_deg is not None:
            content["incidence_deg"] = incidence_deg
        if "incidence_deg" not in content:
            raise ConfigError(f"incidence_deg of {path}", "must be known", remedy="give --incidence-deg")
    config = validate(InstrumentConfig, content, f"instrument file {path}")
    _check_horizon(config, path)
    return config


def _check_horizon(config: InstrumentConfig, path: Path) -> None:
    """A frame whose horizon it does not hold has a wrong beam centre, distance or orientation."""
    horizon = horizon_px(config)
    if not 0 < horizon < config.shape[0]:
        raise FrameError(
            f"horizon of {path}",
            f"must lie on the frame, between rows 0 and {config.shape[0]} counted upwards",
            f"{horizon:.1f}",
            "check beam, distance, incidence and that beam_z_px counts upwards",
            status="wrong-instrument",
        )


def _poni(path: Path) -> dict[str, str]:
    """Entries of a .poni file by lower-case key; files hold every calibration, the last one counts."""
    entries: dict[str, str] = {}
    for line in read_text(path, "instrument file").splitlines():
        key, colon, value = line.partition(":")
        if colon and not line.startswith("#"):
            entries[key.strip().lower()] = value.strip()
    version = entries.get("poni_version", "1")
    if version not in ("1", "2", "2.1"):
        raise ConfigError(
            f"poni_version in {path}", "must be 1, 2 or 2.1", repr(version), "use an instrument file in YAML"
        )
    return entries


def _number(path: Path, entries: dict[str, str], key: str) -> float:
    if key not in entries:
        raise ConfigError(f"{key} in {path}", "is missing", remedy="add it or use an instrument file in YAML")
    try:
        value = float(entries[key])
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise ConfigError(f"{key} in {path}", "must be a number", repr(entries[key]))
    return value


def _from_poni(path: Path, entries: dict[str, str]) -> dict[str, Any]:
    """Options of the instrument of a calibration: the detector perpendicular to the beam at the direct beam's spot.

    Source: pyFAI's geometry, Kieffer and Karkoulis (2013), doi:10.1088/1742-6596/425/20/202012.
    """
    if entries.get("splinefile", "none").lower() != "none":
        raise ConfigError(f"splinefile in {path}", "must be none", entries["splinefile"], "correct the frames first")
    pixel_mm, shape, orientation = _detector(path, entries)
    poni1, poni2 = (1e3 * _number(path, entries, key) for key in ("poni1", "poni2"))
    distance_mm = 1e3 * _number(path, entries, "distance")
    rotations = [_number(path, entries, key) for key in ("rot1", "rot2", "rot3")]
    if np.cos(rotations[0]) * np.cos(rotations[1]) <= 0 or distance_mm <= 0:
        raise ConfigError(f"{path}", "must describe a detector that the direct beam meets",
                          f"distance {distance_mm:g} mm and rotations {rotations} rad")  # fmt: skip
    # the direct beam meets the detector at these offsets [mm] from the point of normal incidence
    offset1 = distance_mm * np.tan(rotations[1]) / np.cos(rotations[0])
    offset2 = -distance_mm * np.tan(rotations[0])
    direct_mm = distance_mm / (np.cos(rotations[0]) * np.cos(rotations[1]))
    corners = np.array([[0, 0, 1, 1], [0, 1, 0, 1]]) * np.array(shape)[:, None] * pixel_mm
    along1, along2 = corners - np.array([[poni1], [poni2]])
    laboratory = _rotation(rotations) @ np.stack([along1, along2, np.full(4, distance_mm)])
    seen = laboratory[:2] / laboratory[2] * direct_mm
    displaced = float(np.abs(seen - np.stack([along1 - offset1, along2 - offset2])).max()) / pixel_mm
    if not (displaced <= MAX_DISPLACEMENT_PX and (laboratory[2] > 0).all()):
        raise ConfigError(
            f"rotations in {path}",
            f"must displace no pixel by more than {MAX_DISPLACEMENT_PX:g} from a detector perpendicular to the beam",
            f"{displaced:.1f} pixels",
            "resample the frame to an upright detector",
        )
    row, column = (poni1 + offset1) / pixel_mm, (poni2 + offset2) / pixel_mm
    # orientations 1 and 2 measure from the far end of the rows, 1 and 4 from the far end of the columns
    row = shape[0] - row if orientation in (1, 2) else row
    column = shape[1] - column if orientation in (1, 4) else column
    return {
        "wavelength_nm": 1e9 * _number(path, entries, "wavelength"),
        "distance_mm": float(direct_mm),
        "pixel_mm": pixel_mm,
        "shape": list(shape),
        "beam": "direct",
        "beam_z_px": float(shape[0] - row),  # rows of files count from the top, ours upwards
        "beam_y_px": float(column),
        "normal": "direct",
        "geometry": "flat",
    }


def _rotation(rotations: list[float]) -> NDArray[np.float64]:
    """pyFAI's matrix rot3 rot2 rot1 from the detector's axes (rows, columns, along the normal) to the laboratory."""
    (c1, c2, c3), (s1, s2, s3) = np.cos(rotations), np.sin(rotations)
    first = np.array([[1, 0, 0], [0, c1, s1], [0, -s1, c1]])
    second = np.array([[c2, 0, -s2], [0, 1, 0], [s2, 0, c2]])
    third = np.array([[c3, -s3, 0], [s3, c3, 0], [0, 0, 1]])
    return np.asarray(third @ second @ first)


def _detector(path: Path, entries: dict[str, str]) -> tuple[float, tuple[int, int], int]:
    """Edge of a pixel [mm], (rows, columns) and orientation of the detector of a .poni file."""
    try:
        config = json.loads(entries.get("detector_config", "{}"))
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ConfigError(
            f"Detector_config in {path}", "must be a JSON object", entries.get("detector_config", "")[:60]
        )
    name = entries.get("detector", "Detector")
    key = "".join(name.lower().split()).replace("_", "").replace("cdte", "")
    if key != "detector" and key not in _DETECTORS:
        raise ConfigError(f"detector in {path}", "must be a known one with square pixels on a regular grid", repr(name),
                          "use an instrument file in YAML")  # fmt: skip
    known_pixel, known_shape = _DETECTORS.get(key, (None, None))
    shape = config.get("max_shape") or known_shape
    if not (isinstance(shape, list | tuple) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)):
        raise ConfigError(f"shape of the detector in {path}", "must be known", shape,
                          "add max_shape to Detector_config or use an instrument file in YAML")  # fmt: skip
    sizes = [config.get(f"pixel{axis}", entries.get(f"pixelsize{axis}")) for axis in (1, 2)]
    if sizes == [None, None] and known_pixel is not None:
        edges = [known_pixel, known_pixel]
    else:
        texts = {f"pixelsize{axis}": str(size) for axis, size in enumerate(sizes, 1) if size is not None}
        edges = [round(1e3 * _number(path, texts, f"pixelsize{axis}"), 9) for axis in (1, 2)]
    if edges[0] <= 0 or not np.isclose(edges[0], edges[1], rtol=1e-6, atol=0):
        raise ConfigError(f"pixels in {path}", "must be square", f"{edges[0]:g} x {edges[1]:g} mm", "bin the frames")
    orientation = config.get("orientation", 3)
    if orientation not in (0, 1, 2, 3, 4):
        raise ConfigError(f"orientation in {path}", "must be 1 to 4", orientation, "turn the frames")
    return edges[0], (shape[0], shape[1]), orientation
