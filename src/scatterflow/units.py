"""Units and constants: one table of what each quantity is measured in, as written on axes and in files."""

from __future__ import annotations

# h c in keV nm, exact in the SI of 2019: h = 6.62607015e-34 J s, c = 299792458 m/s, e = 1.602176634e-19 C
HC_KEV_NM = 1.2398419843320026

UNITS: dict[str, str] = {
    "delta": "1",
    "beta": "1",
    "thickness_nm": "nm",
    "roughness_nm": "nm",
    "hurst": "1",
    "correlation_length_nm": "nm",
    "strain": "1",
    "omega_deg": "deg",
    "chi_deg": "deg",
    "film_thickness_nm": "nm",
    "counts": "counts",
    "qz": "nm^-1",
    "qy": "nm^-1",
    "alpha_f": "deg",
    "phi_f": "deg",
}

LONG_NAMES: dict[str, str] = {
    "delta": "dispersion delta",
    "beta": "absorption beta",
    "thickness_nm": "thickness",
    "roughness_nm": "rms roughness",
    "hurst": "Hurst exponent",
    "correlation_length_nm": "lateral correlation length",
    "strain": "out-of-plane strain",
    "omega_deg": "tilt in the scattering plane",
    "chi_deg": "tilt out of the scattering plane",
    "film_thickness_nm": "film thickness",
}


def wavelength_nm(energy_kev: float) -> float:
    """Wavelength [nm] of photons of `energy_kev` [keV]."""
    return HC_KEV_NM / energy_kev


def energy_kev(wavelength_nm: float) -> float:
    """Photon energy [keV] at `wavelength_nm` [nm]."""
    return HC_KEV_NM / wavelength_nm
