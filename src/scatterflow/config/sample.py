"""The multilayer sample: layers with their parameter ranges from the top, fixed layers below, substrate."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from scatterflow.config.base import Section, option

TABLE3 = "arXiv 2210.01543, table 3"
Range = tuple[float, float]


def _range(help: str, unit: str = "") -> Range:
    value: Range = option(help=help + ": lower and upper bound of the uniform prior", unit=unit, source=TABLE3)
    return value


class MaterialRanges(Section):
    """Prior ranges of a layer of this material. beta never exceeds delta, roughness never exceeds thickness."""

    delta: Range = _range("dispersion")
    beta: Range = _range("absorption; the upper bound is also capped by delta")
    thickness_nm: Range = _range("thickness", "nm")
    roughness_nm: Range = _range(
        "rms roughness of the layer's top; the upper bound is also capped by the thickness", "nm"
    )
    hurst: Range = _range("Hurst exponent of the roughness")
    correlation_length_nm: Range = _range("lateral correlation length of the roughness", "nm")

    @model_validator(mode="after")
    def _physical(self) -> Self:
        for name in type(self).model_fields:
            low, high = getattr(self, name)
            if not low < high:
                raise ValueError(f"{name} must ascend, got [{low}, {high}]; write the lower bound first")
            if name == "hurst" and not 0 < low < high < 1:
                raise ValueError(f"hurst must lie in (0, 1), got [{low}, {high}]")
            if low <= 0 and name != "roughness_nm":
                raise ValueError(f"{name} must be positive, got [{low}, {high}]")
        if self.roughness_nm[0] < 0:
            raise ValueError(f"roughness_nm must not be negative, got {list(self.roughness_nm)}")
        for name, cap in (("beta", "delta"), ("roughness_nm", "thickness_nm")):
            low, cap_low = getattr(self, name)[0], getattr(self, cap)[0]
            if low > cap_low:
                raise ValueError(f"{name} must not start above the lowest {cap}, which caps it: {low} > {cap_low}")
        return self


class LayerValues(Section):
    """One layer with known values."""

    material: str = option(help="name of the material")
    delta: float = option(gt=0, lt=0.1, help="dispersion")
    beta: float = option(ge=0, lt=0.1, help="absorption")
    thickness_nm: float = option(0.0, ge=0, help="thickness; 0 for the substrate, which has none", unit="nm")
    roughness_nm: float = option(ge=0, help="rms roughness of the layer's top", unit="nm")
    hurst: float = option(gt=0, lt=1, help="Hurst exponent of the roughness")
    correlation_length_nm: float = option(gt=0, help="lateral correlation length of the roughness", unit="nm")


class SampleConfig(Section):
    """air | free layers from the top | fixed layers | substrate."""

    materials: dict[str, MaterialRanges] = option(help="prior ranges by material", source=TABLE3)
    layers: tuple[str, ...] = option(min_length=1, help="materials of the free layers, from the top")
    fixed: tuple[LayerValues, ...] = option(
        (), help="layers below the free ones with known values, from the top", source="the authors' simulation script"
    )
    substrate: LayerValues = option(help="the half-space at the bottom", source="the authors' simulation script")
    expert: tuple[LayerValues, ...] = option(
        (), help="an expert's fit of the free layers: the known sample that is inferred like an experiment",
        source="Randolph et al., Phys. Rev. Research 4, 033038 (2022)",
    )  # fmt: skip
    transient: Literal["tanh", "erf"] = option("tanh", help="profile of the graded interfaces")
    cross_correlation_length_nm: float | None = option(
        2000.0, gt=0, help="depth over which roughness of different interfaces correlates; none: uncorrelated", unit="nm",
        source="the authors' simulation script",
    )  # fmt: skip
    max_spatial_frequency_per_nm: float = option(
        0.5, gt=0, help="cut-off of the roughness spectrum, q_par/2pi", unit="nm^-1", source="BornAgain 25's default"
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        for material in self.layers:
            if material not in self.materials:
                raise ValueError(f"layers must name materials of {sorted(self.materials)}, got {material!r}")
        if self.expert and [layer.material for layer in self.expert] != list(self.layers):
            raise ValueError(f"expert must list the materials of layers {list(self.layers)} in the same order")
        for layer in (*self.fixed, *self.expert):
            if layer.thickness_nm <= 0:
                raise ValueError(f"thickness_nm of {layer.material} must be positive, got {layer.thickness_nm}")
        return self


def layer_name(index: int, material: str) -> str:
    """Name of free layer `index` (counted from 1 at the top) in parameter names."""
    return f"layer{index:02d}_{material}"
