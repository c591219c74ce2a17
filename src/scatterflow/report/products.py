"""The products of a study as the report finds them, and what is missing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import pandas as pd
import xarray as xr
from pydantic import TypeAdapter, ValidationError

from scatterflow.errors import StoreError
from scatterflow.frames import file_name
from scatterflow.hdf5 import open_readable
from scatterflow.multilayer import MultilayerStudy
from scatterflow.products import read_json
from scatterflow.report.costs import study_costs
from scatterflow.report.metrics import CrossCheck, FrameVerdict, StudyMetrics, read_metrics
from scatterflow.study import Study
from scatterflow.trials import SweepManifest

HISTORY_COLUMNS = {"epoch", "train_loss", "val_loss"}


@dataclass(frozen=True)
class Missing:
    """Something that the report would show, and the command that makes it."""

    what: str
    command: str


@dataclass(frozen=True)
class Products:
    """What the stages before left for one study."""

    study: MultilayerStudy
    metrics: StudyMetrics
    raw_metrics: dict[str, Any]
    arrays: dict[str, xr.Dataset]
    frames: list[FrameVerdict]
    frame_arrays: dict[str, xr.Dataset]
    histories: dict[str, pd.DataFrame]
    manifest: dict[str, Any]
    sweep: SweepManifest | None = None
    missing: list[Missing] = field(default_factory=list)

    @property
    def samples(self) -> str:
        """Size of the evaluation and its seed, for captions."""
        held_back, draws = self.metrics.n_held_back, self.metrics.samples
        parts = [f"n = {held_back:,} held-back simulations"] if held_back else []
        parts += [f"{draws:,} posterior samples each"] if draws else []
        return ", ".join([*parts, f"seed {self.study.seed}"])


@dataclass(frozen=True)
class StudyFolder:
    """The folder `path` of a study, results/<run>/<study>/; what is looked for and not there is listed in `missing`."""

    study: Study
    path: Path
    missing: list[Missing] = field(default_factory=list)

    def there(self, relative: str, what: str, command: str) -> Path | None:
        """The product `relative`; where it is not there, it is missing: `what`, which `command` makes."""
        path = self.path / relative
        if path.exists():
            return path
        self.missing.append(Missing(f"{what} ({relative})", command))
        return None

    def manifest(self) -> dict[str, Any]:
        """Manifest of the simulations. Raises StoreError if it is damaged."""
        path = self.there("simulate/manifest.json", "manifest of the simulations", "snakemake simulate")
        return dict(read_json(path, "scatterflow simulate")) if path else {}

    def histories(self) -> dict[str, pd.DataFrame]:
        """Losses of the models that were trained, by name. Raises StoreError if some are damaged."""
        found = {}
        for model in self.study.config.models:
            if path := self.there(f"models/{model}/history.csv", f"losses of model {model}", "snakemake train"):
                found[model] = read_history(path)
        return found

    def sweep(self) -> SweepManifest | None:
        """Manifest of the sweep, where the study has one. Raises StoreError if it is damaged."""
        if self.study.config.sweep is None:
            return None
        path = self.there("sweep/manifest.json", "results of the sweep", "snakemake sweep")
        return read_sweep(path) if path else None


def read_groups(path: Path, remedy: str) -> dict[str, xr.Dataset]:
    """All groups of a NetCDF file by name, in memory. Raises StoreError if it is damaged."""
    try:
        with open_readable(path) as file:
            names = [name for name, item in file.items() if isinstance(item, h5py.Group)]
        groups = {}
        for name in names:
            with xr.open_dataset(path, group=name, engine="h5netcdf") as opened:
                groups[name] = opened.load()
        return groups
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(str(path), "must be a readable NetCDF file", str(error), remedy) from None


def read_history(path: Path) -> pd.DataFrame:
    """Losses of a training: columns epoch, train_loss, val_loss, maybe phase. Raises StoreError if it is damaged."""
    remedy = "run `scatterflow train` again"
    try:
        history = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise StoreError(str(path), "must be a table of losses", str(error), remedy) from None
    if not HISTORY_COLUMNS.issubset(history.columns):
        raise StoreError(str(path), f"must have columns {sorted(HISTORY_COLUMNS)}", list(history.columns), remedy)
    return history


def read_products(study: MultilayerStudy, folder: Path) -> Products:
    """Everything below `results/<run>/<study>/` that the report shows; what is not there is listed as missing."""
    at = StudyFolder(study, folder)
    raw: dict[str, Any] = {}
    metrics = StudyMetrics()
    if path := at.there("evaluate/metrics.json", "figures of merit", "snakemake evaluate"):
        raw, metrics = read_metrics(path)
    # the evaluation cannot know its own cost: the files beside the products are complete
    if costs := study_costs(folder):
        metrics = metrics.model_copy(update={"cost": costs})
        raw = raw | {"cost": {name: entry.model_dump(mode="json") for name, entry in costs.items()}}
    if path := at.there("cross-check/manifest.json", "comparison of the engines", "snakemake cross_check"):
        raw = raw | {"cross_check": read_json(path, "scatterflow cross-check")}
        metrics = metrics.model_copy(update={"cross_check": checked_cross_check(path, raw["cross_check"])})
    arrays: dict[str, xr.Dataset] = {}
    if path := at.there("evaluate/arrays.nc", "examples, ranks and coverage", "snakemake evaluate"):
        arrays = read_groups(path, "run `scatterflow evaluate` again")
    histories, manifest = at.histories(), at.manifest()
    if (sweep := at.sweep()) is not None:
        raw = raw | {"sweep": sweep.model_dump(mode="json")}
    frames, frame_arrays = list(metrics.frames), {}
    wanted = [name for frame_set in study.config.inference.frames for name in frame_set.files]
    if wanted:
        if (path := at.there("infer/frames.json", "verdicts on real frames", "snakemake infer")) and not frames:
            frames = _read_frames(path)
        if (path := folder / "infer" / "frames.nc").exists():
            frame_arrays = read_groups(path, "run `scatterflow infer` again")
        seen = {file_name(frame.file) for frame in frames if frame.status != "missing"}
        lost = [name for name in wanted if Path(name).name not in seen]
        if lost and (frames or (folder / "infer/frames.json").exists()):
            at.missing.append(Missing(f"{len(lost)} of {len(wanted)} real frames: {', '.join(lost)}", "make data"))
    return Products(study, metrics, raw, arrays, frames, frame_arrays, histories, manifest, sweep, at.missing)


def checked_cross_check(path: Path, content: Any) -> CrossCheck:
    """The comparison of the engines that `path` holds. Raises StoreError naming the field."""
    try:
        return CrossCheck.model_validate(content)
    except ValidationError as error:
        what, remedy = error.errors()[0], "run `scatterflow cross-check` again"
        place = ".".join(map(str, what["loc"]))
        raise StoreError(f"{place} in {path}", what["msg"], str(what["input"])[:80], remedy) from None


def read_sweep(path: Path) -> SweepManifest:
    """The manifest of a sweep. Raises StoreError if it is damaged."""
    remedy = "run `scatterflow sweep` again"
    try:
        return SweepManifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise StoreError(str(path), "must be readable", error.strerror) from None
    except ValidationError as error:
        raise StoreError(str(path), "must be the manifest of a sweep", error.errors()[0]["msg"], remedy) from None


def _read_frames(path: Path) -> list[FrameVerdict]:
    remedy = "run `scatterflow infer` again"
    try:
        return TypeAdapter(list[FrameVerdict]).validate_python(read_json(path, "scatterflow infer"))
    except ValidationError as error:
        raise StoreError(str(path), "must be a list of frames with their verdicts", str(error), remedy) from None
