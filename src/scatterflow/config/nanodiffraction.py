"""Beam, detector and film of scanning X-ray nanodiffraction."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from scatterflow.config.base import Section, option

DONUT = "DONUT, Methods"
HC_KEV_NM = 1.2398419843320026  # CODATA 2018, exact


class NanobeamConfig(Section):
    """A beam focused by a Fresnel zone plate with a central stop, and the detector around one Bragg peak."""

    energy_kev: float = option(11.3, gt=0.1, le=200, help="photon energy", unit="keV", source=DONUT)
    zone_plate_um: float = option(149.0, gt=0, help="diameter of the zone plate", unit="um", source=DONUT)
    stop_um: float = option(77.0, ge=0, help="diameter of the central stop", unit="um", source=DONUT)
    outer_zone_nm: float = option(16.0, gt=0, help="width of the outermost zone", unit="nm", source=DONUT)
    distance_mm: float = option(850.0, gt=0, help="distance from sample to detector", unit="mm", source=DONUT)
    pixel_mm: float = option(0.110, gt=0, help="edge of a (binned) pixel", unit="mm", source=DONUT)
    shape: tuple[int, int] = option((64, 64), help="pixels (z, y) around the Bragg peak; z ascends with the exit angle", source=DONUT)

    @property
    def wavelength_nm(self) -> float:
        """Wavelength [nm]."""
        return HC_KEV_NM / self.energy_kev

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
