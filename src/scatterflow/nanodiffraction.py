"""Studies of kind `nanodiffraction`: strain and tilts of a film at each point of a scan."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow import observe as observing
from scatterflow import seeds
from scatterflow.config.nanodiffraction import FilmPriorConfig
from scatterflow.config.study import NanodiffractionConfig
from scatterflow.errors import ConfigError, SimulationError
from scatterflow.prior import Parameter, Prior
from scatterflow.study import Study
from scatterflow.units import UNITS

VIEW = "frame"
ENGINE = "kinematic"
_DARK = 1e-12  # intensity of what is no light but the model's floor; a ring on the detector has 1 to 1000
PARAMETERS = ("strain", "omega_deg", "chi_deg", "film_thickness_nm")
SIMULATION_MODULES = (
    "scatterflow.forward.nanodiffraction",
    "scatterflow.nanodiffraction",
    "scatterflow.config.nanodiffraction",
    "scatterflow.prior",
    "scatterflow.seeds",
)


@dataclass(frozen=True)
class GridPrior(Prior):
    """The box of a prior on a grid of `points` in each direction: row `i` is the same one of its points, scattered."""

    points: int = 41

    def sample(self, n: int, seed: int | None = None, start: int = 0) -> xr.DataArray:
        """Rows `start` to `start + n`; the first points^p are the whole grid, each once, then it begins again."""
        if n < 0 or start < 0:
            raise ConfigError("number of prior samples and start", "must not be negative", (n, start))
        size = len(self.parameters)
        number = self.points**size
        stride = next(step for step in range(int(0.618 * number), number) if np.gcd(step, number) == 1)
        first = seeds.integer(self.seed if seed is None else seed, "grid") % number
        index = (first + np.arange(start, start + n) * stride) % number
        steps = np.stack(np.unravel_index(index, (self.points,) * size), axis=1)
        return self.dataarray(self.from_box(steps / (self.points - 1)), start=start)


@dataclass(frozen=True)
class NanodiffractionStudy(Study):
    """A study of kind `nanodiffraction`."""

    config: NanodiffractionConfig

    @cached_property
    def prior(self) -> Prior:
        """Uniform prior over strain, tilts and maybe the film's thickness."""
        return film_prior(self.config.prior, self.seed)

    @property
    def views(self) -> tuple[str, ...]:
        """The one view: the frame."""
        return (VIEW,)

    def coordinates(self, view: str) -> dict[str, Any]:
        """Angles of the frame's rows and columns from its centre."""
        if view != VIEW:
            raise ConfigError("view", f"must be {VIEW!r}", repr(view))
        beam = self.config.beam
        found = {}
        for axis, pixels, angle in zip("zy", beam.shape, ("exit angle", "angle across"), strict=True):
            offset = (np.arange(pixels) - (pixels - 1) / 2) * beam.pixel_mm / beam.distance_mm
            attrs = {"units": "deg", "long_name": f"{angle}, from the frame's centre"}
            found[f"{axis}_deg_{VIEW}"] = (f"{axis}_{VIEW}", np.degrees(np.arctan(offset)), attrs)
        return found

    def simulate(
        self, theta: xr.DataArray, engine: str | None = None, views: tuple[str, ...] | None = None
    ) -> xr.Dataset:
        """Expected counts `frame` (simulation, z_frame, y_frame), float32; the brightest pixel has `forward.max_counts`.

        `theta` is (simulation, parameter) in physical units. Raises SimulationError for parameters without any light on
        the detector, naming the row, and ConfigError.
        """
        if (engine or ENGINE) != ENGINE:
            raise ConfigError("engine", f"must be {ENGINE!r} for kind {self.kind}", repr(engine))
        for view in views or ():
            self.coordinates(view)
        counts = self.expected(self.prior.values(theta))
        simulation = theta["simulation"].values if "simulation" in theta.coords else np.arange(len(counts))
        result = xr.Dataset(coords={"simulation": simulation}, attrs={"study": self.name, "kind": self.kind})
        attrs = {"units": "counts", "long_name": f"expected counts of view {VIEW}"}
        result = result.assign_coords(self.coordinates(VIEW))
        result[VIEW] = (("simulation", f"z_{VIEW}", f"y_{VIEW}"), counts, attrs)
        return result

    def expected(self, theta: NDArray[np.float64], at: Any = None) -> NDArray[np.float32]:
        """Expected counts (frame, z, y) of `theta` (frame, parameter), scaled to `forward.max_counts`.

        `at` takes the place of `kinematics`, for another film. Raises SimulationError for a frame without any light.
        """
        from scatterflow.forward.nanodiffraction import patterns  # torch is only needed here

        shown = patterns(at or self.kinematics, theta)
        highest = shown.max(axis=(1, 2), keepdims=True, initial=0)
        dark = np.flatnonzero(highest < _DARK)
        if len(dark):
            got = dict(zip(self.prior.names, theta[dark[0]].tolist(), strict=True))
            raise SimulationError(
                f"row {dark[0]}: {got}", "must throw light on the detector", remedy="narrow the prior"
            )
        return np.asarray(shown * (self.config.forward.max_counts / highest), dtype=np.float32)

    @cached_property
    def kinematics(self) -> Any:
        """What the forward model prepares once, see `forward.nanodiffraction.kinematics`."""
        from scatterflow.forward.nanodiffraction import kinematics

        return kinematics(self.config.beam, self.config.film, self.config.forward.ring_upsampling)

    def observe(self, counts: xr.Dataset, seed: int | None = None) -> xr.Dataset:
        """Recorded counts `frame` and `mask_frame` (True = valid), both (simulation, z_frame, y_frame).

        The noise of simulation `i` depends on (seed, i) only.
        """
        number = self.seed if seed is None else seed
        noisy = counts[VIEW].values
        if self.config.observe.noise == "poisson":
            noisy = observing.poisson(noisy, counts["simulation"].values, number, VIEW).astype(np.float32)
        result = counts.copy()
        result[VIEW] = (counts[VIEW].dims, noisy, {"units": "counts", "long_name": f"recorded counts of view {VIEW}"})
        attrs = {"units": "1", "long_name": f"valid pixels of view {VIEW}"}
        result[f"mask_{VIEW}"] = (counts[VIEW].dims, np.ones(noisy.shape, dtype=bool), attrs)
        return result

    def preprocess(self, noisy: xr.Dataset) -> xr.Dataset:
        """What estimators eat: the counts and their mask; each scales them in its own way."""
        return noisy[[VIEW, f"mask_{VIEW}"]]

    @property
    def simulation_modules(self) -> tuple[str, ...]:
        """The modules whose code determines the stored counts."""
        return SIMULATION_MODULES

    @property
    def engine(self) -> tuple[str, str]:
        """Engine of the simulations, and the package that computes the counts."""
        return ENGINE, "torch"

    def simulation_facts(self) -> dict[str, Any]:
        """The options that determine the stored counts."""
        return {
            name: getattr(self.config, name).model_dump(mode="json") for name in ("beam", "film", "prior", "forward")
        }

    def feature_facts(self) -> dict[str, Any]:
        """The options that determine the features, beside those of the simulations."""
        return {"observe": self.config.observe.model_dump(mode="json")}

    def stage_options(self, stage: str, model: str | None) -> dict[str, Any]:
        """The options that a stage after `preprocess` reads, as plain JSON: a change in any of them re-runs it."""
        config = self.config.model_dump(mode="json")
        if stage == "sweep":
            from scatterflow.trials import sweep_identity, trials  # they need studies

            return {"trials": sweep_identity(trials(self))}
        if stage == "train":
            assert model is not None
            return {"model": config["models"][model], "scans": config["scans"]}
        if stage in ("baseline", "infer"):
            return {name: config[name] for name in ("baselines", "test_scans", "scans")}
        return {}


def film_prior(config: FilmPriorConfig, seed: int) -> Prior:
    """The prior of a film: a box, at random or on a grid."""
    ranges = {name: getattr(config, name) for name in PARAMETERS}
    box = tuple(
        Parameter(name, limits[0], limits[1], UNITS[name]) for name, limits in ranges.items() if limits is not None
    )
    return GridPrior(box, seed, config.grid) if config.sampling == "grid" else Prior(box, seed)
