"""Particles on a stack of layers or inside one: what is known of them, and the ranges of what is not."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import model_validator

from scatterflow.config.base import Section, option

ZHAI = "Zhai et al. 2025, public settings of the dual-branch network"
Range = tuple[float, float]

# A mode of the size distribution keeps this many standard deviations from the ends of the size grid, so that less than
# 2.3 % of it lies beyond either end of a Gaussian, 4.5 % beyond the upper one of a log-normal. Cutting it there adds less
# than CUT to its mean and to its mean square.
WITHIN_SD = 2.0
CUT = 1.025
NARROWEST_BINS = 0.5  # least standard deviation in bins of the grid: the histogram keeps mean and width of its mode
MOST_COVERED = 0.7  # share of the plane under hard disks up to which the engines take them for a fluid


def ends(value: Range | float) -> Range:
    """Both ends of a range; a known value is both of its ends."""
    return value if isinstance(value, tuple) else (value, value)


def _ordered(section: Section, name: str, lowest: float = 0.0) -> None:
    """Refuse a range that does not ascend, and one that begins below `lowest`."""
    value = getattr(section, name)
    low, high = ends(value)
    if isinstance(value, tuple) and not low < high:
        raise ValueError(f"{name} must ascend, got {_shown(value)}; write the lower bound first")
    if low < lowest:
        raise ValueError(f"{name} must {'be above 0' if lowest else 'not be negative'}, got {_shown(value)}")


def _shown(value: Range | float) -> str:
    return str(list(value) if isinstance(value, tuple) else value)


class MaterialConfig(Section):
    """A material: formula and density, which give n = 1 - delta + i beta at the study's energy, or delta and beta."""

    name: str = option(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$", help="name in tables and parameters")
    formula: str | None = option(None, min_length=1, max_length=64, help="chemical formula")
    density_g_cm3: float | None = option(None, gt=0, le=30, help="mass density", unit="g/cm^3")
    delta: float | None = option(None, gt=0, lt=0.1, help="dispersion, in place of formula and density")
    beta: float | None = option(None, ge=0, lt=0.1, help="absorption, in place of formula and density")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        made = [value is not None for value in (self.formula, self.density_g_cm3)]
        given = [value is not None for value in (self.delta, self.beta)]
        if not (all(made) and not any(given)) and not (all(given) and not any(made)):
            raise ValueError(f"{self.name} needs either formula and density_g_cm3 or delta and beta")
        return self


class SubstrateConfig(Section):
    """The half-space at the bottom."""

    material: MaterialConfig = option(help="what it is made of")
    roughness_nm: Range | float = option(help="rms roughness of its top: known, or a range", unit="nm")
    hurst: float = option(gt=0, lt=1, help="Hurst exponent of the roughness")
    correlation_length_nm: float = option(gt=0, help="lateral correlation length of the roughness", unit="nm")

    @model_validator(mode="after")
    def _rough(self) -> Self:
        _ordered(self, "roughness_nm")
        return self


class FilmLayerConfig(SubstrateConfig):
    """A layer of the stack. Its roughness never exceeds its thickness."""

    thickness_nm: Range | float = option(help="thickness: known, or a range", unit="nm")

    @model_validator(mode="after")
    def _physical(self) -> Self:
        _ordered(self, "thickness_nm")
        thinnest = ends(self.thickness_nm)[0]
        if thinnest <= 0:
            raise ValueError(f"thickness_nm of {self.material.name} must be above 0, got {_shown(self.thickness_nm)}")
        # a range of roughness is cut at the thickness, so that only its start must lie below every thickness
        free = isinstance(self.roughness_nm, tuple) and isinstance(self.thickness_nm, tuple)
        most = ends(self.roughness_nm)[0 if free else 1]
        if most > thinnest:
            raise ValueError(f"roughness_nm of {self.material.name} must be at most thickness_nm: {most} > {thinnest}")
        return self


class SizeModesConfig(Section):
    """The size distribution: a mixture of modes, ordered by their mean radius, with shares that add up to 1."""

    number: int = option(1, ge=1, le=4, help="modes of the mixture")
    law: Literal["log-normal", "gaussian"] = option("log-normal", help="distribution of the radii of a mode")
    mean_radius_nm: Range = option(
        (1.0, 15.0),
        help="range of the mean radius of each mode, where the mode fits on the grid",
        unit="nm",
        source=ZHAI,
    )
    relative_width: Range = option(
        (0.05, 0.4),
        help="range of the standard deviation of a mode's radii over their mean; cut where the mode is narrower than half a "
        "bin of the size grid or reaches beyond it",
    )
    separation: float = option(
        1.2, ge=1, le=4, help="least ratio of the mean radii of neighbouring modes; it tells them apart"
    )

    @model_validator(mode="after")
    def _physical(self) -> Self:
        for name in ("mean_radius_nm", "relative_width"):
            _ordered(self, name, lowest=1e-9)
        if self.relative_width[1] > 1 or self.relative_width[0] * WITHIN_SD >= 1:
            raise ValueError(
                f"relative_width must start below 0.5 and end at most at 1, got {list(self.relative_width)}"
            )
        return self


class ParticleSampleConfig(Section):
    """air | particles on or in layers from the top | substrate, with the prior of what is not known."""

    shape: Literal["sphere", "truncated-sphere", "hemi-ellipsoid", "spheroid", "cylinder", "box"] = option(
        "truncated-sphere", help="shape of the particles; the radius of a box is half its edge"
    )
    material: MaterialConfig = option(help="what the particles are made of")
    layer: int = option(
        0, ge=0, help="where they stand: 0 on the surface, n on the bottom of the nth layer from the top"
    )
    radius_nm: Range = option((1.0, 15.0), help="ends of the size grid", unit="nm", source=ZHAI)
    sizes: int = option(30, ge=8, le=512, help="bins of the size grid, of equal width")
    modes: SizeModesConfig = option(SizeModesConfig(), help="the size distribution")
    aspect_ratio: Range | float = option(
        1.0, help="height over diameter (over radius for hemi-ellipsoid): known, or the ends of its grid"
    )
    aspect_ratios: int = option(8, ge=6, le=64, help="bins of the grid of a range of aspect ratios, of equal width")
    aspect_width: Range = option(
        (0.02, 0.1), help="range of the standard deviation of the aspect ratio, where that is a range"
    )
    distance_nm: Range = option(
        (4.0, 20.0), help="range of the distance D of neighbours; no mode's mean diameter exceeds it", unit="nm", source=ZHAI
    )  # fmt: skip
    clearance_sd: float = option(
        0.0,
        ge=0,
        le=3,
        help="standard deviations of a mode's radii that lie below half the distance, beside their mean",
    )
    disorder: Range = option(
        (0.05, 0.35),
        help="range of w / D of the paracrystal; up to 0.6, but above 0.35 no measurement can be precise",
    )
    interference: Literal["none", "paracrystal", "hard-disks"] = option(
        "paracrystal", help="order of the particles in their plane"
    )
    damping_nm: float = option(1e4, gt=0, help="damping length of the paracrystal", unit="nm")
    layers: tuple[FilmLayerConfig, ...] = option((), help="layers above the substrate, from the top")
    substrate: SubstrateConfig = option(help="the half-space at the bottom")
    transient: Literal["tanh", "erf"] = option("tanh", help="profile of the graded interfaces")
    cross_correlation_length_nm: float | None = option(
        None, gt=0, help="depth over which roughness of different interfaces correlates; none: uncorrelated", unit="nm"
    )
    max_spatial_frequency_per_nm: float = option(
        0.5, gt=0, help="cut-off of the roughness spectrum, q_par/2pi", unit="nm^-1", source="BornAgain 25's default"
    )

    @property
    def least_width_nm(self) -> float:
        """Least standard deviation of a mode's radii [nm] that the grid resolves."""
        return NARROWEST_BINS * (self.radius_nm[1] - self.radius_nm[0]) / self.sizes

    @property
    def mean_radii_nm(self) -> Range:
        """Range of mean radii [nm] at which the narrowest mode fits on the grid."""
        (first, last), least, (narrow, wide) = self.radius_nm, self.least_width_nm, self.modes.relative_width
        low = max(first / (1 - WITHIN_SD * narrow), first + WITHIN_SD * least, least / wide)
        high = min(last / (1 + WITHIN_SD * narrow), last - WITHIN_SD * least)
        return max(self.modes.mean_radius_nm[0], low), min(self.modes.mean_radius_nm[1], high)

    @property
    def room(self) -> float:
        """Greatest mean radius over the distance, without clearance: neighbours touch, or hard disks are a fluid."""
        touching = 1 / (2 * CUT)
        if self.interference != "hard-disks":
            return touching
        # disks of pi <r^2> on a hexagonal lattice; binning adds a twelfth of a squared bin, a third of the variance
        disk = 2 + ends(self.aspect_ratio)[1] ** 2 if self.shape == "box" else 1.0
        square = CUT * disk * (1 + 4 / 3 * self.modes.relative_width[1] ** 2)
        return min(touching, math.sqrt(MOST_COVERED * math.sqrt(3) / (2 * math.pi * square)))

    @property
    def least_aspect_width(self) -> float:
        """Least standard deviation of the aspect ratio that its grid resolves and its range allows."""
        low, high = ends(self.aspect_ratio)
        return max(self.aspect_width[0], NARROWEST_BINS * (high - low) / self.aspect_ratios)

    @property
    def tallest_nm(self) -> float:
        """Upper bound of the particles' heights [nm]."""
        of_radius = 1 if self.shape == "hemi-ellipsoid" else 2
        return of_radius * self.radius_nm[1] * ends(self.aspect_ratio)[1]

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for name in ("radius_nm", "distance_nm", "disorder", "aspect_width"):
            _ordered(self, name, lowest=1e-9)
        if self.disorder[1] > 0.6:
            raise ValueError(f"disorder must end at most at 0.6, got {list(self.disorder)}")
        return self

    @model_validator(mode="after")
    def _aspect(self) -> Self:
        _ordered(self, "aspect_ratio", lowest=1e-3)
        low, high = ends(self.aspect_ratio)
        if self.shape == "sphere" and (low, high) != (1, 1):
            raise ValueError(f"aspect_ratio of a sphere must be 1, got {_shown(self.aspect_ratio)}; use spheroid")
        if self.shape == "truncated-sphere" and high > 1:
            raise ValueError(f"aspect_ratio of a truncated sphere must be at most 1, got {_shown(self.aspect_ratio)}")
        room = (high - low) / (2 * WITHIN_SD)
        if low < high and not self.least_aspect_width < min(self.aspect_width[1], room):
            least, most = self.least_aspect_width, min(self.aspect_width[1], room)
            raise ValueError(
                f"aspect_width must leave room between {least:.3g}, its start or half a bin, and {most:.3g}, its end or "
                f"a quarter of the range of aspect_ratio; raise aspect_ratios or change aspect_width"
            )
        return self

    @model_validator(mode="after")
    def _modes(self) -> Self:
        low, high = self.mean_radii_nm
        modes = self.modes
        smallest = low * modes.separation ** (modes.number - 1)
        if not smallest < high:
            raise ValueError(
                f"modes: {modes.number} of them need mean radii from {low:.3g} to above {smallest:.3g} nm, but "
                f"modes.mean_radius_nm and the grid radius_nm end at {high:.3g} nm; widen them or lower modes.number"
            )
        touching = max(
            smallest * (1 + self.clearance_sd * modes.relative_width[0]),
            smallest + self.clearance_sd * self.least_width_nm,
        )
        least = touching / self.room
        if not self.distance_nm[0] >= least:
            raise ValueError(
                f"distance_nm must start at {least:.3g} nm or more, else {modes.number} mode(s) with mean radii up to "
                f"{smallest:.3g} nm overlap, got {list(self.distance_nm)}"
            )
        return self

    @model_validator(mode="after")
    def _fits_into_layer(self) -> Self:
        if self.layer > len(self.layers):
            raise ValueError(f"layer must be at most {len(self.layers)}, the number of layers, got {self.layer}")
        if self.layer:
            thinnest = ends(self.layers[self.layer - 1].thickness_nm)[0]
            if self.tallest_nm > thinnest:
                raise ValueError(
                    f"thickness_nm of layer {self.layer}, in which the particles lie, must be at least their height, up to "
                    f"{self.tallest_nm:.3g} nm, got {thinnest:g}"
                )
        return self
