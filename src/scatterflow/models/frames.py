"""A trained estimator of kind nanodiffraction with the study it was trained for: features in, labelled answers out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from scatterflow.config.loading import validate
from scatterflow.config.study import NanodiffractionConfig
from scatterflow.errors import BundleError, ScatterflowError
from scatterflow.models.regressor import Regressor, load_regressor
from scatterflow.nanodiffraction import VIEW, NanodiffractionStudy


@dataclass(frozen=True)
class FrameModel:
    """An estimator of single frames, as `load_model` gives it."""

    name: str
    study: NanodiffractionStudy
    regressor: Regressor
    threshold: float  # of a frame's deviance: above it the film model does not describe the frame

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return self.regressor.box.names

    def predict(self, features: xr.Dataset) -> xr.Dataset:
        """`<name>` and `<name>_sd` (simulation,) of every parameter, with units, of `frame` (simulation, z, y).

        Raises BundleError for features without frames, FrameError for frames of another shape or that show nothing.
        """
        if VIEW not in features or features[VIEW].ndim != 3:
            got = list(features)
            raise BundleError("features", f"must hold {VIEW} (simulation, z, y)", got, "use study.preprocess")
        first = features[VIEW].dims[0]
        values, sd = self.regressor.predict(features[VIEW].values)
        found = {}
        for number, (name, unit) in enumerate(zip(self.names, self.study.prior.units, strict=True)):
            found[name] = (first, values[:, number], {"units": unit})
            found[f"{name}_sd"] = (first, sd[:, number], {"units": unit})
        coords = {first: features[first]} if first in features.coords else {}
        return xr.Dataset(found, coords=coords)


def load_frame_model(folder: str | Path) -> FrameModel:
    """Read a bundle of kind nanodiffraction. Raises BundleError, in one line, for whatever is wrong with it."""
    regressor = load_regressor(folder)
    place = f"bundle {folder}"
    try:
        told = regressor.meta["study"]
        config = validate(NanodiffractionConfig, told["config"], place)
        study = NanodiffractionStudy(str(told["name"]), config, int(told["seed"]), str(told["run"]))
        threshold = float(regressor.meta["threshold"])
    except (KeyError, TypeError, ValueError, ScatterflowError) as error:
        raise BundleError(place, "must name its study and threshold", error, "train the model again") from None
    if not np.isfinite(threshold):
        raise BundleError(place, "must have a finite threshold", threshold, "train the model again")
    return FrameModel(Path(folder).name, study, regressor, threshold)
