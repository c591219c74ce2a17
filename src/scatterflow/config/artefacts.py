"""What real frames of grazing-incidence scattering have and a simulation lacks: ranges from which artefacts are drawn.

Lengths are pixels of the detector, not bins of a view. `probability: 0` switches an artefact off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from scatterflow.config.base import Section, option

P03 = "seen in Pilatus 2M frames of DESY P03"
PILATUS = "Dectris, Pilatus technical specification"

Pair = tuple[float, float]


def _between(low: float, high: float, above: bool = False) -> Callable[[Any], Any]:
    """Check of a range [smallest, largest]; `above`: the lower limit itself is no value."""

    def check(value: Any) -> Any:
        if value[0] > value[1]:
            raise ValueError(f"must ascend, got [{value[0]:g}, {value[1]:g}]; write the smaller value first")
        if value[0] < low or (above and value[0] == low) or value[1] > high:
            limits = f"{'above' if above else 'from'} {low:g} up to {high:g}"
            raise ValueError(f"must lie {limits}, got [{value[0]:g}, {value[1]:g}]")
        return value

    return check


def _each(low: int, high: int) -> Callable[[tuple[int, int]], tuple[int, int]]:
    """Check of two whole numbers in no order."""

    def check(value: tuple[int, int]) -> tuple[int, int]:
        if min(value) < low or max(value) > high:
            raise ValueError(f"both must lie from {low} to {high}, got {list(value)}")
        return value

    return check


Length = Annotated[Pair, AfterValidator(_between(0, 1e5))]
Place = Annotated[Pair, AfterValidator(_between(-1e5, 1e5))]
Positive = Annotated[Pair, AfterValidator(_between(0, 1e5, above=True))]
Counts = Annotated[Pair, AfterValidator(_between(0, 1e12, above=True))]
Share = Annotated[Pair, AfterValidator(_between(0, 10, above=True))]
Fraction = Annotated[Pair, AfterValidator(_between(0, 1))]
Relative = Annotated[Pair, AfterValidator(_between(0, 0.1))]
Angle = Annotated[Pair, AfterValidator(_between(-360, 360))]
Exponent = Annotated[Pair, AfterValidator(_between(0.1, 10))]


def _probability(default: float) -> float:
    number: float = option(default, ge=0, le=1, help="share of frames that have it; 0 switches it off")
    return number


class GeometryErrorConfig(Section):
    """What the true geometry differs by from the known one, and the blur of the beam; all uniform.

    Beam and distance are resampled from the expected counts. An error of the incidence changes the waves, so it is made
    where images are simulated, and is a parameter of the posterior as layers are.
    """

    beam_px: float = option(
        1.0, ge=0, le=100, help="largest error of the direct beam's row and column", unit="pixel",
        source="instrument file of P03",
    )  # fmt: skip
    distance: float = option(0.003, ge=0, le=0.1, help="largest relative error of the detector's distance")
    incidence_deg: float = option(
        0.0,
        ge=0,
        le=0.2,
        help="largest error of the incidence angle, 0 for none: adds parameter incidence_error_deg, uniform, to the prior; "
        "detector and instrument.beam stay, the sample is tilted: the horizon moves by it, the other beam by twice as much",
        unit="deg",
    )
    divergence_px: Length = option(
        (0.0, 1.0), help="standard deviation of the beam on the detector, along rows and columns each", unit="pixel"
    )
    bandwidth: Relative = option(
        (0.0, 0.002),
        help="relative standard deviation of the wavelength; blurs along y in proportion to the distance from the beam",
    )


class StopConfig(Section):
    """A round beam stop on a straight arm: what lies behind it is masked."""

    probability: float = _probability(1.0)
    radius_px: Positive = option((15.0, 30.0), help="radius of the stop", unit="pixel", source=P03)
    offset_px: float = option(
        8.0, ge=0, le=1e4, help="largest distance of its centre from the beam, in z and y each", unit="pixel"
    )
    arm_width_px: Length = option((2.0, 10.0), help="width of the arm", unit="pixel", source=P03)
    arm_angle_deg: Angle = option(
        (-180.0, 180.0), help="direction of the arm: 0 along y (to the right), 90 along z (upwards)", unit="deg"
    )
    margin_px: Length = option((0.0, 3.0), help="by how much the mask exceeds the shadow all around", unit="pixel")


class SpecularStopConfig(StopConfig):
    """A second stop, on the specular beam."""

    probability: float = _probability(0.7)
    offset_px: float = option(
        25.0, ge=0, le=1e4, help="largest distance of its centre from the specular beam, in z and y each", unit="pixel",
        source=P03 + ": 19",
    )  # fmt: skip


class GapsConfig(Section):
    """Gaps between the modules of the detector."""

    probability: float = _probability(1.0)
    place: Literal["known", "random"] = option(
        "known", help="known: the first module begins at the detector's first row and column; random: shifted at random"
    )
    module_px: Annotated[tuple[int, int], AfterValidator(_each(1, 100_000))] = option(
        (195, 487), help="rows and columns of a module", unit="pixel", source=PILATUS
    )
    gap_px: Annotated[tuple[int, int], AfterValidator(_each(0, 10_000))] = option(
        (17, 7), help="rows and columns between two modules", unit="pixel", source=PILATUS
    )


class ApertureConfig(Section):
    """The end of the flight tube: outside its circle only some of the flat background is left."""

    probability: float = _probability(1.0)
    radius_px: Positive = option((550.0, 900.0), help="radius of the circle", unit="pixel", source=P03 + ": 648")
    centre_z_px: Place = option(
        (-50.0, 250.0), help="row of its centre above the direct beam", unit="pixel", source=P03 + ": 141"
    )
    centre_y_px: Place = option(
        (-50.0, 50.0), help="column of its centre right of the direct beam", unit="pixel", source=P03 + ": 8"
    )
    edge_px: Length = option((0.0, 60.0), help="width of the penumbra", unit="pixel", source=P03 + ": 50")
    outside: Fraction = option(
        (0.0, 1.0), help="share of the flat background that is left outside", source=P03 + ": 0.05"
    )
    masked: float = option(0.5, ge=0, le=1, help="share of these frames in which all but its bright inside is masked")


class TailConfig(Section):
    """Scattering around the direct beam: (1 + (r / core)^2)^(-power / 2), by air, windows and slits."""

    probability: float = _probability(0.8)
    share: Share = option(
        (1e-3, 0.2), help="counts in the view over those of the sample's scattering, log-uniform", source=P03 + ": 0.01"
    )
    core_px: Positive = option((2.0, 30.0), help="radius of the core", unit="pixel")
    power: Exponent = option((1.0, 3.0), help="exponent of the decay", source=P03 + ": 1.3")


class StreaksConfig(Section):
    """Streaks of the slits through the direct beam below the horizon, one vertical and one horizontal."""

    probability: float = option(0.7, ge=0, le=1, help="share of frames that have each of the two; 0 switches them off")
    share: Share = option(
        (1e-4, 0.02),
        help="counts of a whole streak, hidden parts included, over those of the sample's scattering, log-uniform",
        source=P03 + ": 0.002",
    )
    angle_deg: float = option(2.0, ge=0, le=90, help="largest deviation from the vertical or horizontal", unit="deg")
    width_px: Positive = option((1.0, 4.0), help="standard deviation across", unit="pixel", source=P03 + ": 1.5")
    length_px: Positive = option(
        (20.0, 100.0), help="length over which it decays to 1/e", unit="pixel", source=P03 + ": 40"
    )


class HotPixelsConfig(Section):
    """Bins that hold what no scattering brought; most are detected and masked."""

    number: Annotated[tuple[int, int], AfterValidator(_between(0, 1000))] = option(
        (0, 20), help="range of their number in a frame; [0, 0] switches them off"
    )
    detected: float = option(0.8, ge=0, le=1, help="share of them that is masked")
    counts: Counts = option(
        (10.0, 1000.0),
        help="counts that an undetected one adds, log-uniform; the reader of frames removes isolated ones above 100",
        unit="counts",
    )


class ArtefactsConfig(Section):
    """From expected counts of a view to a frame as detectors record it."""

    noise: Literal["poisson", "none"] = option("poisson", help="counting noise", source="photon counting")
    total_counts: Counts | None = option(
        (1e3, 1e7),
        help="range of the sample's counts in the view, before shadows, log-uniform; null: those simulated",
        unit="counts",
    )
    background: Share | None = option(
        (1e-3, 0.3),
        help="counts of a flat background in the view over the sample's, log-uniform; null: none",
    )
    instrument_mask: bool = option(True, help="the rectangles that the instrument masks are masked in every frame")
    min_valid_share: float = option(
        0.5, gt=0, le=1, help="a bin is valid if at least this share of its pixels is; its counts are scaled up to all"
    )
    geometry: GeometryErrorConfig = option(GeometryErrorConfig(), help="errors of the geometry and the beam's blur")
    beam_stop: StopConfig = option(StopConfig(), help="stop on the direct beam")
    specular_stop: SpecularStopConfig = option(SpecularStopConfig(), help="stop on the specular beam")
    gaps: GapsConfig = option(GapsConfig(), help="gaps between modules")
    aperture: ApertureConfig = option(ApertureConfig(), help="end of the flight tube")
    tail: TailConfig = option(TailConfig(), help="scattering around the direct beam")
    streaks: StreaksConfig = option(StreaksConfig(), help="streaks below the horizon")
    hot_pixels: HotPixelsConfig = option(HotPixelsConfig(), help="hot pixels")


# Counting noise of the simulated counts and nothing else
NO_ARTEFACTS = ArtefactsConfig(
    total_counts=None,
    background=None,
    instrument_mask=False,
    geometry=GeometryErrorConfig(beam_px=0, distance=0, divergence_px=(0, 0), bandwidth=(0, 0)),
    beam_stop=StopConfig(probability=0),
    specular_stop=SpecularStopConfig(probability=0),
    gaps=GapsConfig(probability=0),
    aperture=ApertureConfig(probability=0),
    tail=TailConfig(probability=0),
    streaks=StreaksConfig(probability=0),
    hot_pixels=HotPixelsConfig(number=(0, 0)),
)
