"""Beam, detector and film of scanning X-ray nanodiffraction."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from scatterflow.config.base import Section, option
from scatterflow.units import wavelength_nm

DONUT = "DONUT, Methods"
LUO = "Luo et al. 2025, Sci. Rep. 15, 21736"


class NanobeamConfig(Section):
    """A beam focused by a Fresnel zone plate with a central stop, and the detector around one Bragg peak."""

    energy_kev: float = option(11.3, gt=0.1, le=200, help="photon energy", unit="keV", source=DONUT)
    zone_plate_um: float = option(149.0, gt=0, help="diameter of the zone plate", unit="um", source=DONUT)
    stop_um: float = option(77.0, ge=0, help="diameter of the central stop", unit="um", source=DONUT)
    outer_zone_nm: float = option(16.0, gt=0, help="width of the outermost zone", unit="nm", source=DONUT)
    distance_mm: float = option(850.0, gt=0, help="distance from sample to detector", unit="mm", source=DONUT)
    pixel_mm: float = option(0.110, gt=0, help="edge of a (binned) pixel", unit="mm", source=DONUT)
    shape: tuple[int, int] = option(
        (64, 64), help="pixels (z, y) around the Bragg peak; z ascends with the exit angle", source=DONUT
    )
    exit_angle_rule: Literal["tangent", "sine"] = option(
        "tangent",
        help="what a row's distance from the middle is of its exit angle, over the distance of the detector; sine: as the "
        "program of NanobeamNN has it, 3e-5 of a pixel off on 64 rows",
        source=DONUT + ": tangent",
    )

    @property
    def wavelength_nm(self) -> float:
        """Wavelength [nm]."""
        return wavelength_nm(self.energy_kev)

    @property
    def ring_px(self) -> tuple[float, float]:
        """Inner and outer radius of the ring that the zone plate throws on the detector [pixel].

        Half the diameters seen from the focus, whose distance is diameter times outermost zone over wavelength.
        """
        focus_mm = self.zone_plate_um * 1e-3 * self.outer_zone_nm / self.wavelength_nm
        scale = self.distance_mm / (2 * focus_mm * self.pixel_mm)
        return self.stop_um * 1e-3 * scale, self.zone_plate_um * 1e-3 * scale

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.stop_um >= self.zone_plate_um:
            raise ValueError(f"stop_um={self.stop_um} must be smaller than zone_plate_um={self.zone_plate_um}")
        if min(self.shape) < 2:
            raise ValueError(f"shape must be at least 2 pixels each way, got {list(self.shape)}")
        if self.exit_angle_rule == "sine" and self.shape[0] * self.pixel_mm >= 2 * self.distance_mm:
            raise ValueError(f"exit_angle_rule=sine needs half the frame's height below distance_mm={self.distance_mm}")
        return self


class FilmConfig(Section):
    """A crystalline film and the reflection that is measured."""

    lattice_nm: float = option(
        0.4013, gt=0, help="out-of-plane lattice parameter without strain", unit="nm", source=DONUT
    )
    order: int = option(2, ge=1, help="order l of the symmetric reflection (0 0 l)", source=DONUT)
    thickness_nm: float = option(11.7, gt=0, help="thickness where it is not a parameter", unit="nm", source=DONUT)
    peak_width: float = option(
        0.1, gt=0, help="width of the Bragg peak along the surface, in pixels of the detector", source=DONUT
    )
    peak_shape: Literal["gaussian", "box"] = option(
        "gaussian",
        help="the Bragg peak along the surface; gaussian: exp(-q^2 / peak_width^2); box: 1 within peak_width and 0 beyond, "
        "as in the program of NanobeamNN, where it is 0.675",
        source=DONUT + ": gaussian",
    )


class FilmPriorConfig(Section):
    """Where the film's parameters lie: uniform in a box, drawn at random or on the grid of the published library."""

    strain: tuple[float, float] = option((-0.005, 0.005), help="range of the out-of-plane strain", source=DONUT)
    omega_deg: tuple[float, float] = option(
        (-0.05, 0.05), help="range of the tilt in the scattering plane", unit="deg", source=DONUT
    )
    chi_deg: tuple[float, float] = option(
        (-0.1, 0.1), help="range of the tilt out of the scattering plane", unit="deg", source=DONUT
    )
    film_thickness_nm: tuple[float, float] | None = option(
        None, help="range of the thickness; none: it is known (film.thickness_nm) and no parameter", unit="nm"
    )
    sampling: Literal["random", "grid"] = option(
        "random",
        help="random: every simulation is drawn anew; grid: the points of the library, in scattered order",
        source=DONUT + ": grid",
    )
    grid: int = option(41, ge=2, le=1000, help="points of the grid in each direction", source=DONUT)

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        for name in ("strain", "omega_deg", "chi_deg", "film_thickness_nm"):
            limits = getattr(self, name)
            if limits is not None and limits[0] >= limits[1]:
                raise ValueError(f"{name} must be ascending, got {list(limits)}")
        if self.film_thickness_nm is not None and self.film_thickness_nm[0] <= 0:
            raise ValueError(f"film_thickness_nm must be above 0, got {list(self.film_thickness_nm)}")
        return self


class KinematicConfig(Section):
    """The forward model, engine `kinematic`."""

    engine: Literal["kinematic"] = option("kinematic", help="engine of the simulations", source=DONUT)
    ring_upsampling: int | None = option(
        None,
        ge=1,
        le=64,
        help="points of the zone plate's ring per pixel and direction; 2 is the published sum, whose frames change with "
        "the tilt in jerks; none: the integral over the ring",
        source=DONUT + ": 2",
    )
    max_counts: float = option(
        7.0, gt=0, help="expected counts of a frame's brightest pixel", unit="counts", source=DONUT
    )


class CountsConfig(Section):
    """Counting noise of a frame."""

    noise: Literal["poisson", "none"] = option("poisson", help="counting noise", source="photon counting")


class MapBaselinesConfig(Section):
    """Methods that need no training."""

    methods: tuple[Literal["likelihood", "correlation", "centroid"], ...] = option(
        ("likelihood", "correlation", "centroid"),
        min_length=1,
        help="likelihood: maximum likelihood of each frame with its Fisher errors; correlation: the published fit by a "
        "library of patterns; centroid: tilts from the centre of the counts",
        source=DONUT + ": correlation",
    )
    library: int = option(41, ge=3, le=101, help="patterns of the library in each direction", source=DONUT)


class SimulatedScanConfig(Section):
    """A simulated scan with known strain and tilts."""

    name: str = option("film", pattern=r"^[A-Za-z0-9_-]+$", help="short name of the scan")
    fields: Literal["paper", "paper-thickness", "random", "thick-film"] = option(
        "paper",
        help="paper: the published fields of strain and tilts; paper-thickness: with a thickness that varies; random: "
        "smooth random fields; thick-film: the published fields on a film of 55 nm",
        source=DONUT,
    )
    points: int = option(64, ge=4, le=1024, help="points of the map in each direction", source=DONUT)
