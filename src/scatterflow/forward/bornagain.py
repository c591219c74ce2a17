"""Expected counts of rough multilayers by BornAgain 25 (the reference engine)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scatterflow import instrument as geometry
from scatterflow.config.instrument import InstrumentConfig, View
from scatterflow.config.sample import SampleConfig
from scatterflow.errors import ConfigError, SimulationError
from scatterflow.forward.layers import LAYER_PARAMETERS, check_theta

Array = NDArray[np.float64]
_MARGIN_SIGMAS = 4.0  # the convolution pads with zeros: rows and columns this many sigma around a view are computed too
GREY = (0.5, 0.5, 0.5)  # BornAgain wants a display colour per material


def check(instrument: InstrumentConfig) -> None:
    """Raise ConfigError if BornAgain cannot compute this instrument."""
    if instrument.geometry != "bornagain":
        raise ConfigError(
            "instrument.geometry",
            "must be bornagain for engine bornagain, which knows no flat detector",
            instrument.geometry,
            "set geometry: bornagain",
        )


def expected_counts(
    sample: SampleConfig, instrument: InstrumentConfig, theta: Array, view_names: tuple[str, ...]
) -> dict[str, Array]:
    """Noise-free expected counts of each view, (simulation, z, y), for parameters `theta` (simulation, parameter).

    `theta` holds the six parameters of each free layer from the top. Pixels at or below the horizon hold the background:
    a real wafer absorbs what BornAgain transmits there. Raises SimulationError naming row and parameter.
    """
    check(instrument)
    check_theta(sample, theta)
    result = {}
    for name in view_names:
        view = geometry.view(instrument, name)
        result[name] = np.stack([_view_counts(sample, instrument, row, view) for row in theta])
        finite = np.isfinite(result[name]).all(axis=(1, 2))
        if not finite.all():
            raise SimulationError(f"view {name} of row {int(np.argmin(finite))}", "must be finite", "NaN or infinity")
    return result


def _view_counts(sample: SampleConfig, instrument: InstrumentConfig, theta: Array, view: View) -> Array:
    """Expected counts (z, y) of one sample in one view."""
    bins = geometry.axes(view)
    samples_z, sampling_y = view.sampling
    columns = _column_edges(view, instrument)
    counts = []
    for start, stop, number in geometry.row_ranges(view):
        rows = np.linspace(start, stop, number * samples_z + 1)
        fine = _above_horizon(sample, instrument, theta, rows, columns)
        if sampling_y == "gauss3":
            # the three bins are narrower than the view: weigh their densities, not their counts
            density = fine * geometry.GAUSS3_WEIGHTS / (columns[1] - columns[0])
            fine = density.sum(axis=1, keepdims=True) * (view.columns[1] - view.columns[0]) / 2
        else:
            fine = fine.reshape(len(fine), view.bins[1], sampling_y).sum(axis=2)
        counts.append(fine.reshape(number, samples_z, -1).sum(axis=1))
    return np.asarray(np.concatenate(counts) + instrument.background * bins.pixels)


def _column_edges(view: View, instrument: InstrumentConfig) -> Array:
    """Edges (pixel coordinates) of the columns at which the view is sampled."""
    start, stop = (float(column) for column in view.columns)
    if view.sampling[1] != "gauss3":
        return np.linspace(start, stop, view.bins[1] * view.sampling[1] + 1)
    _, beam = geometry.foot_px(instrument)
    if np.isclose(start + stop, 2 * beam):
        start = beam  # symmetric around the beam: one half is enough, and 64 times more precise
    step = geometry.GAUSS3_STEP * (stop - start) / 2
    if instrument.resolution_mm / instrument.pixel_mm * _MARGIN_SIGMAS > step / 2:
        raise ConfigError(
            "sampling gauss3", "needs a view wide against the resolution", f"{stop - start:g} columns", "use an integer"
        )
    return (start + stop) / 2 + step * np.array([-1.5, -0.5, 0.5, 1.5])


def _above_horizon(
    sample: SampleConfig, instrument: InstrumentConfig, theta: Array, rows: Array, columns: Array
) -> Array:
    """Scattered counts on a grid of pixel edges, blurred by the resolution; 0 at and below the horizon."""
    scattered = np.zeros((len(rows) - 1, len(columns) - 1))
    above = (rows[:-1] + rows[1:]) / 2 > geometry.horizon_px(instrument)
    if not above.any():
        return scattered
    first = int(np.argmax(above))
    sigma = instrument.resolution_mm / instrument.pixel_mm
    margin_z = int(np.ceil(_MARGIN_SIGMAS * sigma / (rows[1] - rows[0]))) if sigma else 0
    margin_y = int(np.ceil(_MARGIN_SIGMAS * sigma / (columns[1] - columns[0]))) if sigma else 0
    below = 0 if first else margin_z  # nothing comes from below the horizon, where BornAgain transmits a little
    edges = _extend(rows[first:], margin_z)[margin_z - below :]
    stack = _sample(library(), sample, theta)
    try:
        field = simulated(stack, instrument, edges, _extend(columns, margin_y))
    except SimulationError as error:
        raise SimulationError("BornAgain", "must be able to compute the sample", f"{error.got} at {theta}") from None
    inner = field[below : len(field) - margin_z, margin_y : field.shape[1] - margin_y]
    scattered[first:] = inner
    return scattered


def _extend(edges: Array, margin: int) -> Array:
    """Uniform edges with `margin` more bins on both sides."""
    step = edges[1] - edges[0]
    outside = step * np.arange(1, margin + 1)
    return np.concatenate([edges[0] - outside[::-1], edges, edges[-1] + outside])


def simulated(sample: Any, instrument: InstrumentConfig, rows: Array, columns: Array) -> Array:
    """One simulation of a sample of BornAgain's on uniform pixel edges, (z, y). Raises SimulationError where it fails."""
    ba = library()
    v, _ = geometry.tangents(instrument, rows[[0, -1]], columns[[0, 0]])
    _, u = geometry.tangents(instrument, rows[[0, 0]], columns[[0, -1]])
    # BornAgain 25 calls these bounds angles and takes them as tangents
    detector = ba.SphericalDetector(len(columns) - 1, float(u[0]), float(u[1]), len(rows) - 1, float(v[0]), float(v[1]))
    if instrument.resolution_mm > 0:
        sigma = instrument.resolution_mm / instrument.distance_mm
        detector.setResolutionFunction(ba.ResolutionFunction2DGaussian(sigma, sigma))
    beam = ba.Beam(instrument.beam_intensity, instrument.wavelength_nm, float(np.radians(instrument.incidence_deg)))
    simulation = ba.ScatteringSimulation(beam, sample, detector)
    simulation.options().setNumberOfThreads(1)
    simulation.options().setUseAvgMaterials(False)
    try:
        return np.asarray(simulation.simulate().intensities())
    except RuntimeError as error:
        raise SimulationError("BornAgain", "must be able to compute the sample", str(error)) from None


def library() -> Any:
    """BornAgain. Raises ConfigError where it is not installed or its wheel does not load (an older C library)."""
    try:
        import bornagain
    except ImportError as error:
        remedy = "install it (its wheel needs glibc 2.35), or use the container or conda (envs/README.md)"
        raise ConfigError(
            "BornAgain", "must be installed for engine bornagain and for cross-check", f"{error}", remedy
        ) from None
    return bornagain


def _layers(sample: SampleConfig, theta: Array) -> Iterator[tuple[float, ...]]:
    """(delta, beta, thickness, roughness, Hurst exponent, correlation length) of each layer below the vacuum."""
    for values in theta.reshape(len(sample.layers), len(LAYER_PARAMETERS)):
        yield tuple(float(value) for value in values)
    for layer in (*sample.fixed, sample.substrate):
        yield tuple(float(getattr(layer, name)) for name in LAYER_PARAMETERS)


def _sample(ba: Any, sample: SampleConfig, theta: Array) -> Any:
    """The BornAgain sample of one row of parameters."""
    stack = ba.Sample()
    stack.addLayer(ba.Layer(ba.Vacuum()))
    options = sample.transient, sample.max_spatial_frequency_per_nm, sample.cross_correlation_length_nm
    for values in _layers(sample, theta):
        stack.addLayer(layer(ba, values, *options))
    return stack


def layer(ba: Any, values: tuple[float, ...], transient: str, max_frequency: float, cross_nm: float | None) -> Any:
    """A rough layer of BornAgain's of `LAYER_PARAMETERS`; one without thickness has no end."""
    delta, beta, thickness, sigma, hurst, length = values
    graded = {"tanh": ba.TanhTransient, "erf": ba.ErfTransient}[transient]()
    spectrum = ba.SelfAffineFractalModel(sigma, hurst, length, max_frequency)
    cross = () if cross_nm is None else (ba.CommonDepthCrosscorrelation(cross_nm),)
    roughness = ba.Roughness(spectrum, graded, *cross)
    material = ba.RefractiveMaterial("layer", GREY, delta, beta)
    return ba.Layer(*((material, thickness, roughness) if thickness > 0 else (material, roughness)))
