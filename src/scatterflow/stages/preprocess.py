"""Stage preprocess: stored counts to features, with noise and masks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import dask
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow import provenance
from scatterflow.errors import StoreError
from scatterflow.manifest import Place, StoreManifest, read
from scatterflow.products import read_json, replacing, write_json
from scatterflow.progress import duration, say
from scatterflow.store import open_store
from scatterflow.study import Study

FORMAT = 1
SPLITS = ("held_back", "validation", "train")


def run(study: Study, folder: Path, tell: Callable[[str], None] = say) -> Path:
    """Write `preprocess/features-<identity>.zarr` and its manifest below `folder`; returns the manifest's path.

    Works shard by shard through Dask: memory holds a few shards per thread. Raises StoreError for a store that is missing
    or of another identity.
    """
    start = time.monotonic()
    config = study.config.simulate
    store = simulations(study, folder)
    features = study.preprocess(study.observe(store[list(study.views)]))
    # texts have no stable type in Zarr v3: parameters are named again at loading, splits are numbers with meanings
    features["parameters"] = store["parameters"].drop_vars(["parameter", "unit"], errors="ignore")
    flags = {"flag_values": list(range(len(SPLITS))), "flag_meanings": " ".join(SPLITS)}
    features["split"] = ("simulation", splits(study).astype(np.uint8), flags)
    features.attrs = {"study": study.name, "kind": study.kind, "identity": study.features_identity()}
    target = folder / "preprocess" / f"features-{features.attrs['identity'][:12]}.zarr"
    with replacing(target) as temporary, dask.config.set(scheduler="threads"):
        _plain(features).to_zarr(temporary, zarr_format=3, consolidated=False)
    tell(f"{config.simulations} simulations to features in {duration(time.monotonic() - start)}")
    return write_json(
        folder / "preprocess" / "manifest.json",
        {
            "format": FORMAT,
            "identity": features.attrs["identity"],
            "features": target.name,
            "simulations": config.simulations,
            "splits": dict(zip(SPLITS, np.bincount(splits(study), minlength=len(SPLITS)).tolist(), strict=True)),
            "seconds": round(time.monotonic() - start, 3),
            "versions": provenance.versions(("numpy", "xarray", "zarr")),
        },
    )


def simulations(study: Study, folder: Path) -> xr.Dataset:
    """Stored parameters and expected counts, lazy. Raises StoreError if they are missing or of another identity."""
    place, number = Place(folder, study.simulation_identity()), study.config.simulate.simulations
    entry = read(place.manifest, StoreManifest)
    if entry.identity != place.identity or entry.simulations < number:
        raise StoreError(
            f"{place.manifest}", "must be of this configuration, code and number", remedy="run `scatterflow simulate`"
        )
    return open_store(place.manifest).isel(simulation=slice(0, number))


def splits(study: Study) -> NDArray[np.intp]:
    """Role of each simulation as an index of SPLITS: held back first, then validation, then training rows."""
    config = study.config.simulate
    borders = [config.held_back, config.held_back + config.validation]
    return np.searchsorted(borders, np.arange(config.simulations), side="right")


def load(study: Study, folder: Path) -> xr.Dataset:
    """Features as written by `run`, lazy. Raises StoreError if missing or of another identity."""
    manifest = read_json(folder / "preprocess" / "manifest.json", "scatterflow preprocess")
    if manifest["identity"] != study.features_identity():
        raise StoreError(
            "features",
            "must be of this configuration and code",
            manifest["identity"][:12],
            "run `scatterflow preprocess`",
        )
    path = folder / "preprocess" / manifest["features"]
    if not path.is_dir():
        raise StoreError(f"{path}", "must exist", remedy="run `scatterflow preprocess`")
    features: xr.Dataset = xr.open_zarr(path, consolidated=False)
    roles = np.array(SPLITS)[features["split"].values]
    return features.assign_coords(
        split=("simulation", roles), parameter=list(study.prior.names), unit=("parameter", list(study.prior.units))
    )


def rows(features: xr.Dataset, *split: str) -> xr.Dataset:
    """The simulations of one or more splits."""
    return features.isel(simulation=np.flatnonzero(np.isin(features["split"].values, split)))


def _plain(dataset: xr.Dataset) -> xr.Dataset:
    """Without the store's encodings, whose shards are not those of the features."""
    plain: xr.Dataset = dataset.drop_encoding().chunk(simulation=dataset.chunksizes.get("simulation", -1))
    return plain
