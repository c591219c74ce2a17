"""From frames to features: the in-plane cut and the coarse image, scaled to [0, 1], with their masks.

Pure functions on xarray, lazy through Dask, the same for simulations and for real frames.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.preprocess import PreprocessConfig
from scatterflow.errors import FrameError
from scatterflow.instrument import axes, row_ranges, view
from scatterflow.observe import parasitic_weight
from scatterflow.preprocess.scaling import scale_image, scale_profile


def preprocess(noisy: xr.Dataset, instrument: InstrumentConfig, config: PreprocessConfig) -> xr.Dataset:
    """Features of recorded frames (float32, masks bool).

    `noisy` holds `profile`, `image` (simulation, z, y) in counts and their masks, as `observe` and
    `resample.to_views` return them. The result holds `profile`, `mask_profile` (simulation, profile_point) and `image`,
    `mask_image` (simulation, z_image, y_image). Raises FrameError where a frame has no contrast or too few valid bins.
    """
    return xr.merge(
        [profile_features(noisy, instrument, config), image_features(noisy, config)],
        combine_attrs="override",
    )


def profile_features(noisy: xr.Dataset, instrument: InstrumentConfig, config: PreprocessConfig) -> xr.Dataset:
    """`profile` in [0, 1], each part scaled for itself, and `mask_profile` (simulation, profile_point)."""
    cut = in_plane_cut(noisy, instrument)
    if noisy.attrs.get("parasitic"):
        cut["profile"] = cut["profile"] * parasitic_weight(cut["qz"], config.parasitic)
    profile = xr.apply_ufunc(
        scale_profile,
        cut["profile"],
        cut["mask_profile"],
        input_core_dims=[["profile_point"], ["profile_point"]],
        output_core_dims=[["profile_point"]],
        kwargs={
            "parts": profile_parts(instrument),
            "log": config.profile_log,
            "max_masked": config.max_masked_share,
            "max_masked_part": config.max_masked_part_share,
        },
        dask="parallelized",
        output_dtypes=[np.float32],
    )
    attrs = {"units": "1", "long_name": "in-plane profile, each part scaled to [0, 1]"}
    return cut.assign(profile=profile.assign_attrs(attrs))


def profile_parts(instrument: InstrumentConfig) -> NDArray[np.intp]:
    """Borders of the profile's parts, below and above the beam stop, along its points."""
    return np.cumsum([0, *(bins for *_, bins in row_ranges(view(instrument, "profile")))])


def image_features(noisy: xr.Dataset, config: PreprocessConfig) -> xr.Dataset:
    """`image` in [0, 1] and `mask_image` (simulation, z_image, y_image)."""
    core = ["z_image", "y_image"]
    image = xr.apply_ufunc(
        scale_image,
        noisy["image"],
        noisy["mask_image"],
        input_core_dims=[core, core],
        output_core_dims=[core],
        kwargs={"percentile": config.image_clip_percentile, "max_masked": config.max_masked_share},
        dask="parallelized",
        output_dtypes=[np.float32],
    )
    attrs = {"units": "1", "long_name": "log10 of the image, scaled to [0, 1]"}
    return xr.Dataset(
        {"image": image.assign_attrs(attrs), "mask_image": noisy["mask_image"]}, attrs=noisy.attrs
    ).drop_vars(["z_profile", "y_profile", "qz_profile", "qy_profile", "alpha_profile"], errors="ignore")


def in_plane_cut(noisy: xr.Dataset, instrument: InstrumentConfig) -> xr.Dataset:
    """Mean counts per pixel over the central columns: `profile` and `mask_profile` (simulation, profile_point), `qz`."""
    if "profile" not in noisy or "mask_profile" not in noisy:
        raise FrameError("frames", "must hold the view profile and its mask", sorted(map(str, noisy.data_vars)))
    pixels = axes(view(instrument, "profile")).pixels[:, 0]
    cut = noisy[["profile", "mask_profile"]].isel(y_profile=0, drop=True)
    cut = cut.drop_vars([name for name in cut.coords if str(name) not in ("simulation", "qz_profile")])
    cut = cut.rename(z_profile="profile_point", qz_profile="qz")
    cut["profile"] = cut["profile"] / xr.DataArray(pixels, dims="profile_point")
    cut["profile"].attrs = {"units": "counts per pixel", "long_name": "in-plane profile"}
    return cut
