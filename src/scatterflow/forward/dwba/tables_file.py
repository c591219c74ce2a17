"""Tables of form factors as files: made once for a region of the detector, checksummed, used again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from scatterflow.config.instrument import InstrumentConfig
from scatterflow.errors import StoreError
from scatterflow.files import disk_errors
from scatterflow.forward.dwba.tables import TOLERANCE, Tables, tables
from scatterflow.forward.dwba.tables_incidence import reach_deg
from scatterflow.forward.particles import Particles
from scatterflow.products import replacing
from scatterflow.progress import say
from scatterflow.provenance import source_hash

Array = NDArray[np.float64]
FORMAT = 3
_ARRAYS = ("squares", "means", "along", "across", "tilts", "sines", "q", "levels")
_PARTS = "tables_making", "tables_nodes", "tables_incidence", "formfactors", "detector"
_MODULES = tuple(f"scatterflow.forward.dwba.{name}" for name in _PARTS)
_NOT_OF_THE_BEAM = {"views", "masked", "saturation", "background", "resolution_mm"}
_AGAIN = "delete it, and it is made anew"
_WHAT = {
    "format": "a table of this version of scatterflow",
    "code": "made by this version of scatterflow",
    "particles": "of these particles and sizes",
    "instrument": "of this instrument",
    "pixels": "of these pixels",
    "tolerance": "of this tolerance",
    "incidence": "of these errors of the incidence",
}


def kept(
    path: Path,
    particles: Particles,
    instrument: InstrumentConfig,
    rows: Array,
    columns: Array,
    tolerance: float = TOLERANCE,
    incidence_error_deg: float = 0.0,
) -> Tables:
    """The table in the file `path`, if it is one of these; otherwise made, and kept there. Arguments as of `tables`.

    A damaged file, or one of another table, is replaced, which is said in one line. Raises
    what `tables` raises, and StoreError where the disk refuses.
    """
    try:
        return read(path, particles, instrument, rows, columns, tolerance, incidence_error_deg)
    except StoreError as error:
        if path.exists():
            say(str(StoreError(error.what, error.must, error.got, "it is made anew")))
        table = tables(particles, instrument, rows, columns, tolerance, incidence_error_deg)
        write(path, table, tolerance)
        return table


def write(path: Path, table: Tables, tolerance: float = TOLERANCE) -> None:
    """Write a table, complete or not at all. Raises StoreError where the disk refuses."""
    parts = {name: np.ascontiguousarray(getattr(table, name)) for name in _ARRAYS}
    largest = reach_deg(table.tilts)
    about = _about(table.particles, table.instrument, table.rows, table.columns, tolerance, largest)
    told = {"about": json.dumps(about), "mirrored": str(int(table.mirrored)), "sha256": _checksum(parts)}
    with replacing(path) as temporary:
        temporary.write_bytes(save(parts, told))


def read(
    path: Path,
    particles: Particles,
    instrument: InstrumentConfig,
    rows: Array,
    columns: Array,
    tolerance: float = TOLERANCE,
    incidence_error_deg: float = 0.0,
) -> Tables:
    """The table in the file `path`. Raises StoreError where it is missing, damaged, or of something else."""
    what = f"table {path}"
    if not path.is_file():
        raise StoreError(what, "must exist")
    try:
        with disk_errors(path), safe_open(path, framework="np") as file:
            told = file.metadata() or {}
            parts = {name: file.get_tensor(name) for name in sorted(file.keys())}
        about = json.loads(told["about"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise StoreError(what, "must be a table of form factors", " ".join(str(error).split())[:100], _AGAIN) from None
    wanted = _about(particles, instrument, rows, columns, tolerance, incidence_error_deg)
    for name, must in _WHAT.items():
        if not isinstance(about, dict) or about.get(name) != wanted[name]:
            raise StoreError(what, f"must be {must}", "another", _AGAIN)
    if set(parts) != set(_ARRAYS) or told.get("sha256") != _checksum(parts):
        raise StoreError(what, "must be as it was written", "another checksum", _AGAIN)
    return Tables(particles, instrument, rows, columns, mirrored=told.get("mirrored") == "1", **parts)


def _about(
    particles: Particles, instrument: InstrumentConfig, rows: Array, columns: Array, tolerance: float, largest_deg: float
) -> dict[str, Any]:  # fmt: skip
    """All that determines a table, as plain JSON."""
    told = {name: each.tolist() if isinstance(each, np.ndarray) else each for name, each in asdict(particles).items()}
    for name in ("interference", "damping_nm"):  # of which form factors know nothing
        del told[name]
    return {
        "format": FORMAT,
        "code": source_hash(*_MODULES),
        "particles": told,
        "instrument": instrument.model_dump(mode="json", exclude=_NOT_OF_THE_BEAM),
        "pixels": [rows.tolist(), columns.tolist()],
        "tolerance": tolerance,
        "incidence": round(largest_deg, 9),  # it is computed from the tilts, too
    }


def _checksum(parts: Mapping[str, NDArray[Any]]) -> str:
    found = hashlib.sha256()
    for name in sorted(parts):
        found.update(f"{name} {tuple(parts[name].shape)} {parts[name].dtype}".encode())
        found.update(parts[name].tobytes())
    return found.hexdigest()
