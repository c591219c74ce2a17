"""Studies of kind `particles`: sizes, spacing and disorder of nanoparticles from their GISAXS image."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from scatterflow import artefacts as recording
from scatterflow import instrument as geometry
from scatterflow import provenance, sizes
from scatterflow.config.artefacts import NO_ARTEFACTS, ArtefactsConfig
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.particle_stages import ParticleForwardConfig
from scatterflow.config.particles import ParticleSampleConfig
from scatterflow.config.study import ParticlesConfig
from scatterflow.errors import ConfigError, SimulationError, StoreError
from scatterflow.prior import Parameter, Prior
from scatterflow.progress import say
from scatterflow.sizescores import mean_and_width
from scatterflow.study import Study
from scatterflow.units import energy_kev

if TYPE_CHECKING:  # torch is only needed where images are made
    from scatterflow.baselines.cuts import Cuts
    from scatterflow.forward.dwba.tables import Tables
    from scatterflow.forward.particles import Arrangement, Particles, Stack

Array = NDArray[np.float64]
Counts = NDArray[np.float32]
VIEW = "image"
INCIDENCE = "incidence_error_deg"
QUANTITIES = ("distance_nm", "disorder", "mean_radius_nm", "width_nm")  # what a study is asked for, beside p(R)
ENGINES = ("dwba", "bornagain")
_PACKAGES = {"bornagain": "bornagain", "dwba": "torch"}
_FORWARD = {"bornagain": {"engine"}, "dwba": {"engine", "roughness", "table_tolerance"}}  # what numbers depend on
SIMULATION_MODULES = (
    "scatterflow.particles",
    "scatterflow.sizes",
    "scatterflow.units",
    "scatterflow.prior",
    "scatterflow.seeds",
    "scatterflow.instrument",
    "scatterflow.config.particles",
    "scatterflow.config.sample",
    "scatterflow.forward.particles",
    "scatterflow.forward.layers",
    "scatterflow.forward.dwba",
    "scatterflow.forward.bornagain",
    "scatterflow.forward.bornagain_particles",
)
RECORDING_MODULES = ("scatterflow.artefacts", "scatterflow.observe", "scatterflow.config.artefacts")


@dataclass(frozen=True)
class ParticlesStudy(Study):
    """A study of kind `particles`."""

    config: ParticlesConfig

    @cached_property
    def prior(self) -> Prior:
        """Prior of spacing, disorder, size modes, aspect ratio and layers (see `sizes.particle_prior`).

        Last, where `artefacts.geometry` has one, the error of the incidence: a uniform number.
        """
        prior = sizes.particle_prior(self.config.sample, self.seed)
        if not (largest := self.largest_tilt_deg):
            return prior
        return Prior((*prior.parameters, Parameter(INCIDENCE, -largest, largest, "deg")), self.seed)

    @property
    def largest_tilt_deg(self) -> float:
        """Largest error of the incidence [deg], to either side."""
        return self.config.artefacts.geometry.incidence_deg

    def _described(self, theta: xr.DataArray | ArrayLike) -> tuple[Array, Array | None]:
        """Parameters (..., parameter) of the sample, and errors of the incidence [deg] (...,), where the prior has them."""
        values = self.prior.values(theta)
        return (values[..., :-1], values[..., -1]) if self.largest_tilt_deg else (values, None)

    @property
    def views(self) -> tuple[str, ...]:
        """The one view: the image."""
        return (VIEW,)

    def coordinates(self, view: str) -> dict[str, Any]:
        """Coordinates of the view's rows and columns."""
        return geometry.coordinates(self.config.instrument, view)

    @property
    def energy_kev(self) -> float:
        """Photon energy [keV] of the instrument, at which all materials are taken."""
        return energy_kev(self.config.instrument.wavelength_nm)

    def simulate(
        self, theta: xr.DataArray, engine: str | None = None, views: tuple[str, ...] | None = None
    ) -> xr.Dataset:
        """Expected counts `image` (simulation, z_image, y_image), float32, without background and artefacts.

        `theta` is (simulation, parameter) in physical units. Raises SimulationError (naming the row) and ConfigError.
        """
        for view in views or ():
            if view != VIEW:
                raise ConfigError("view", f"must be {VIEW!r}", repr(view))
        values = self.prior.values(theta)
        counts = self.expected(values, engine)
        simulation = theta["simulation"].values if "simulation" in theta.coords else np.arange(len(values))
        result = xr.Dataset(coords={"simulation": simulation}, attrs={"study": self.name, "kind": self.kind})
        result = result.assign_coords(self.coordinates(VIEW))
        attrs = {"units": "counts", "long_name": f"expected counts of view {VIEW}"}
        result[VIEW] = (("simulation", f"z_{VIEW}", f"y_{VIEW}"), counts, attrs)
        return result

    def expected(self, theta: ArrayLike, engine: str | None = None) -> Counts:
        """Expected counts (simulation, z, y) of parameters `theta` (simulation, parameter)."""
        values = self.prior.values(np.asarray(theta, dtype=np.float64))
        chosen = engine or self.config.forward.engine
        if chosen not in ENGINES:
            raise ConfigError("engine", f"must be one of {list(ENGINES)}", repr(engine))
        by_dwba = partial(self._by_dwba, rough=self.config.forward.roughness)
        return self._binned(values, self._by_bornagain if chosen == "bornagain" else by_dwba)

    def of_particles(self, theta: ArrayLike) -> Counts:
        """As `expected` by engine dwba, without what rough interfaces scatter."""
        values = self.prior.values(np.asarray(theta, dtype=np.float64))
        return self._binned(values, partial(self._by_dwba, rough=False))

    def _binned(self, values: Array, compute: Callable[[Array, Array, Array], NDArray[Any]]) -> Counts:
        """Counts in bins (simulation, z, y), of those that `compute` makes of parameters, rows and columns of samples."""
        rows, columns, (z, y) = _samples(self.config.instrument)
        per_image = 8 * len(rows) * len(columns)
        step = max(1, self.config.forward.batch_bytes // (4 * per_image))
        result = np.empty((len(values), len(rows) // z, len(columns) // y), dtype=np.float32)
        for start in range(0, len(values), step):
            images = compute(values[start : start + step], rows, columns)
            # sums of the samples of a bin, each of which stands for its part of it
            result[start : start + step] = images.reshape(len(images), len(rows) // z, z, -1, y).sum((2, 4))
        wrong = ~np.isfinite(result).all((1, 2))
        if wrong.any():
            raise SimulationError(f"counts of row {int(np.argmax(wrong))}", "must be finite", "NaN or infinity")
        return result

    def _by_bornagain(self, theta: Array, rows: Array, columns: Array) -> Array:
        from scatterflow.forward import bornagain_particles

        up, along = np.append(rows[:, 0], rows[-1, 1]), np.append(columns[:, 0], columns[-1, 1])
        return self._tilted(theta, partial(bornagain_particles.expected_counts, rows=up, columns=along))

    def _tilted(
        self, theta: Array, counts: Callable[[Particles, Arrangement, Stack, InstrumentConfig], Array]
    ) -> Array:
        """Images of an engine that knows one incidence in a call: simulation by simulation, where it has errors."""
        sample, energy = self.config.sample, self.energy_kev
        values, errors = self._described(theta)
        told, instrument = sizes.particles(sample, energy), self.config.instrument
        if errors is None:
            return counts(told, sizes.arrangement(sample, values), sizes.stack(sample, values, energy), instrument)
        images = []
        for row, error in enumerate(errors.tolist()):
            one = values[row : row + 1]
            tilted = instrument.model_copy(update={"incidence_deg": instrument.incidence_deg + error})
            images.append(counts(told, sizes.arrangement(sample, one), sizes.stack(sample, one, energy), tilted))
        return np.concatenate(images)

    def _by_dwba(self, theta: Array, rows: Array, columns: Array, rough: bool) -> NDArray[Any]:
        sample = self.config.sample
        if sample.layer:
            from scatterflow.forward.dwba import particles

            return self._tilted(theta, partial(particles.expected_counts, rows=rows, columns=columns, rough=rough))
        from scatterflow import forward
        from scatterflow.forward.dwba import tables

        values, errors = self._described(theta)
        arrangement, stack = sizes.arrangement(sample, values), sizes.stack(sample, values, self.energy_kev)
        chosen = forward.device(self.config.forward.accelerator)
        images = tables.expected_counts(
            self.table, arrangement, stack, errors, device=None if chosen == "cpu" else chosen
        )
        if rough:
            images += self._diffuse(stack, errors, rows, columns, chosen)
        return images

    def _diffuse(
        self, stack: Stack, errors: Array | None, rows: Array, columns: Array, device: str
    ) -> NDArray[np.float32]:
        """Counts (simulation, row, column) that rough interfaces scatter."""
        from scatterflow.forward.dwba.diffuse import diffuse_counts

        # slopes by finite differences ask for many images of the same layers
        layers = stack.layers.reshape(len(stack.layers), -1)
        told = layers if errors is None else np.column_stack([layers, errors])
        _, first, which = np.unique(told, axis=0, return_index=True, return_inverse=True)
        some, tilts = replace(stack, layers=stack.layers[first]), None if errors is None else errors[first]
        return diffuse_counts(some, self.config.instrument, rows, columns, tilts, self.largest_tilt_deg, device)[which]

    def interfaces(self, theta: ArrayLike) -> Counts | None:
        """Expected counts (simulation, z, y) of rough interfaces alone; None where the study computes none beside tables."""
        if self.config.sample.layer or not self.config.forward.roughness:
            return None

        def compute(values: Array, rows: Array, columns: Array) -> NDArray[np.float32]:
            described, errors = self._described(values)
            stack = sizes.stack(self.config.sample, described, self.energy_kev)
            return self._diffuse(stack, errors, rows, columns, "cpu")

        return self._binned(self.prior.values(np.asarray(theta, dtype=np.float64)), compute)

    @property
    def table(self) -> Tables:
        """Form factors of the study's particles in the pixels of its view: made once, kept in a file, used again."""
        config = self.config
        return _table(_Key(config.sample, config.instrument, config.forward, self.largest_tilt_deg), self.energy_kev)

    def size_distribution(self, theta: xr.DataArray | ArrayLike) -> xr.DataArray:
        """p(R): shares of the particles' number by radius, (simulation, radius) [nm], sum 1."""
        return sizes.size_distribution(self.config.sample, self._of_the_sample(theta))

    def size_height_distribution(self, theta: xr.DataArray | ArrayLike) -> xr.DataArray:
        """p(R, height): shares by radius and aspect ratio, (simulation, radius, aspect_ratio), sum 1."""
        return sizes.size_height_distribution(self.config.sample, self._of_the_sample(theta))

    def _of_the_sample(self, theta: xr.DataArray | ArrayLike) -> xr.DataArray | ArrayLike:
        """Parameters without the error of the incidence; those of an array with names are found by them."""
        return theta if isinstance(theta, xr.DataArray) else self._described(theta)[0]

    @cached_property
    def cuts(self) -> Cuts:
        """The cuts of the view that analysts fit. Raises ConfigError for particles inside a layer."""
        from scatterflow.baselines.cuts import cuts

        view = geometry.view(self.config.instrument, VIEW)
        bins = geometry.axes(view)
        sampling = view.sampling[0], int(view.sampling[1])
        return cuts(self.config.sample, self.config.instrument, bins.z, bins.y, sampling)

    def quantities(self, theta: xr.DataArray | ArrayLike) -> dict[str, Array]:
        """QUANTITIES (...,) of parameters (..., parameter): spacing, disorder, mean and standard deviation of p(R) [nm].

        Without `disorder` where the prior has none.
        """
        values = self.prior.values(theta)
        flat = values.reshape(-1, values.shape[-1])
        found = {name: flat[:, self.prior.names.index(name)] for name in QUANTITIES[:2] if name in self.prior.names}
        p = self.size_distribution(flat)
        found["mean_radius_nm"], found["width_nm"] = mean_and_width(p.values, p["radius"].values)
        return {name: each.reshape(values.shape[:-1]) for name, each in found.items()}

    @cached_property
    def frame(self) -> recording.Frame:
        """The view as artefacts see it."""
        return recording.frame(self.config.instrument, VIEW)

    def observe(
        self, counts: xr.Dataset, seed: int | None = None, draw: int = 0, config: ArtefactsConfig | None = None
    ) -> xr.Dataset:
        """Recorded counts `image` and `mask_image` (True = valid), both (simulation, z_image, y_image).

        Artefacts and noise of simulation `i` depend on (seed, draw, i) only; `config` takes the place of the study's
        artefacts.
        """
        own = self.config.artefacts if config is None else config
        return recording.observe(counts, self.frame, own, self.seed if seed is None else seed, draw)

    def seen(self, recorded: xr.Dataset) -> xr.Dataset:
        """Features of a real frame's image: what the study masks in its own view is masked there, too."""
        features = self.preprocess(recorded).copy()
        known = self.frame.share >= self.config.artefacts.min_valid_share
        mask = features[f"mask_{VIEW}"] & known
        return features.assign({VIEW: features[VIEW].where(mask, 0), f"mask_{VIEW}": mask})

    def preprocess(self, noisy: xr.Dataset) -> xr.Dataset:
        """What estimators eat: the counts and their mask; each scales them in its own way."""
        return noisy[[VIEW, f"mask_{VIEW}"]]

    def artefacts_with(self, total_counts: float, artefacts: bool = True) -> ArtefactsConfig:
        """The study's artefacts, or noise alone, at exactly `total_counts` of the sample's scattering in the view."""
        own = self.config.artefacts if artefacts else NO_ARTEFACTS
        return own.model_copy(update={"total_counts": (total_counts, total_counts)})

    @property
    def simulation_modules(self) -> tuple[str, ...]:
        """The modules whose code determines the stored counts."""
        return SIMULATION_MODULES

    @property
    def engine(self) -> tuple[str, str]:
        """Engine of the simulations, and the package that computes the counts."""
        return self.config.forward.engine, _PACKAGES[self.config.forward.engine]

    def engines_hash(self) -> str:
        """Hash of code and versions of all engines: what a comparison of them depends on."""
        return provenance.digest([provenance.versions(_PACKAGES.values()), provenance.source_hash(*SIMULATION_MODULES)])

    def simulation_facts(self) -> dict[str, Any]:
        """The options that determine the stored counts."""
        config = self.config
        tilt = {INCIDENCE: self.largest_tilt_deg} if self.largest_tilt_deg else {}
        return tilt | {
            "instrument": config.instrument.model_dump(mode="json", exclude={"masked", "saturation"}),
            "sample": config.sample.model_dump(mode="json"),
            "forward": config.forward.model_dump(mode="json", include=_FORWARD[config.forward.engine]),
        }

    def feature_facts(self) -> dict[str, Any]:
        """The options that determine the features, beside those of the simulations."""
        return {
            "masked": self.config.instrument.model_dump(mode="json")["masked"],
            "artefacts": self.config.artefacts.model_dump(mode="json"),
            "source": provenance.source_hash(*RECORDING_MODULES),
        }

    def stage_options(self, stage: str, model: str | None) -> dict[str, Any]:
        """The options that a stage after `preprocess` reads, as plain JSON: a change in any of them re-runs it."""
        config = self.config.model_dump(mode="json")
        if stage == "cross-check":
            checked = {name: config["forward"][name] for name in ("cross_check", "tolerance")}
            return {"identity": self.simulation_identity(), "engines": self.engines_hash(), **checked}
        if stage == "sweep":
            from scatterflow.trials import sweep_identity, trials  # they need studies

            return {"trials": sweep_identity(trials(self))}
        if stage == "train":
            assert model is not None
            inference = {name: value for name, value in config["inference"].items() if name != "frames"}
            return {"model": config["models"][model], "inference": inference}
        if stage == "baseline":
            return {"baselines": config["baselines"], "evaluation": config["evaluation"]}
        if stage == "infer":
            return {"inference": config["inference"], "evaluation": config["evaluation"]}
        return {"evaluation": config["evaluation"]}


def _samples(instrument: InstrumentConfig) -> tuple[Array, Array, tuple[int, int]]:
    """Edges (sample, 2) of the rows and columns at which images are computed, and their number per bin (z, y)."""
    view = geometry.view(instrument, VIEW)
    bins = geometry.axes(view)
    z, y = view.sampling[0], int(view.sampling[1])
    return _split(bins.z, z), _split(bins.y, y), (z, y)


def _split(bins: Array, number: int) -> Array:
    """Each bin (bin, 2) in `number` equal parts (bin x number, 2)."""
    edges = np.linspace(bins[:, 0], bins[:, 1], number + 1, axis=1)
    return np.stack([edges[:, :-1], edges[:, 1:]], axis=-1).reshape(-1, 2)


@dataclass(frozen=True)
class _Key:
    """What a table depends on; compared by its text."""

    sample: ParticleSampleConfig
    instrument: InstrumentConfig
    forward: ParticleForwardConfig
    largest_tilt_deg: float

    def text(self) -> str:
        """All of it, as one text."""
        parts = [part.model_dump_json() for part in (self.sample, self.instrument, self.forward)]
        return "".join([*parts, f" tilt {self.largest_tilt_deg}"] if self.largest_tilt_deg else parts)

    def __hash__(self) -> int:
        return hash(self.text())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.text() == other.text()


@lru_cache(maxsize=2)
def _table(key: _Key, energy_kev: float) -> Tables:
    from scatterflow.forward.dwba import tables, tables_file

    told = sizes.particles(key.sample, energy_kev)
    rows, columns, _ = _samples(key.instrument)
    arguments = told, key.instrument, rows, columns, key.forward.table_tolerance, key.largest_tilt_deg
    try:
        return tables_file.kept(tables_folder() / f"{provenance.digest(key.text())[:32]}.safetensors", *arguments)
    except StoreError as error:
        say(f"the table of form factors is not kept: {error}")
        return tables.tables(*arguments)


def tables_folder() -> Path:
    """Where tables of form factors are kept: SCATTERFLOW_CACHE, default .cache/scatterflow of the home folder."""
    given = os.environ.get("SCATTERFLOW_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scatterflow"
