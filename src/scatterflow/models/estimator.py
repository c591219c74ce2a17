"""A trained estimator: features in, posteriors, estimates and rebuilt images out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xarray as xr

from scatterflow import seeds
from scatterflow.config.model import MafProfileConfig, ModelConfig, SummaryMafConfig
from scatterflow.data import Inputs, to_tensors
from scatterflow.errors import BundleError, ConfigError
from scatterflow.models import fastflow
from scatterflow.models.networks import Networks
from scatterflow.models.posterior import ModeFit, Posterior
from scatterflow.prior import Prior

WITH_IMAGE, PROFILE = "image+profile", "profile"
_ROWS = 256  # observations rebuilt at once: bounds memory


@dataclass(frozen=True)
class Estimator:
    """Networks with what they mean: the prior of their parameters, the shape of their features, the fit of each mode."""

    config: ModelConfig
    prior: Prior
    inputs: Inputs
    networks: Networks
    fits: Mapping[str, ModeFit] = field(default_factory=dict)

    @property
    def modes(self) -> tuple[str, ...]:
        """Ways to infer (equation 1): from image and profile, or from the profile alone; the default first."""
        return modes(self.config)

    @property
    def rebuilds(self) -> bool:
        """True where images can be rebuilt from profiles."""
        return self.networks.cvae is not None

    @cached_property
    def fast(self) -> fastflow.FastFlow:
        """The flow's weights, ready for sampling."""
        return fastflow.prepare(self.networks.flow)

    def posterior(self, features: xr.Dataset, mode: str | None = None) -> Posterior:
        """Posterior of each row of `features` (see `study.preprocess`).

        Raises ConfigError for an unknown mode, BundleError for features of another shape.
        """
        chosen = mode or self.modes[0]
        if chosen not in self.modes:
            raise ConfigError("inference mode", f"must be one of {list(self.modes)}", chosen)
        tensors = to_tensors(features, self.inputs)
        fit = self.fits.get(chosen, ModeFit())
        with torch.inference_mode():
            described = self.networks.describe(tensors, image=chosen == WITH_IMAGE)
            mean, sd = self.networks.encode(tensors) if chosen == WITH_IMAGE and self.networks.latent else (None, None)
        flow = fastflow.widened(self.fast, fit.widths, fit.shares)
        latent = self.networks.latent
        return Posterior(self.prior, self.networks.encoder, flow, described, mean, sd, latent, chosen, fit)

    def predict(self, features: xr.Dataset, mode: str | None = None, n: int = 500, seed: int = 0) -> xr.Dataset:
        """Posterior median `<name>` and standard deviation `<name>_sd` of every parameter, (observation,)."""
        samples = self.posterior(features, mode).sample(n, seed)
        result = xr.Dataset(attrs={"estimate": f"median and standard deviation of {n} posterior samples", "seed": seed})
        median, sd = np.median(samples.values, axis=1), samples.values.std(axis=1, ddof=1)
        for index, (name, unit) in enumerate(zip(self.prior.names, self.prior.units, strict=True)):
            result[name] = (
                "observation",
                median[:, index],
                {"units": unit, "long_name": f"posterior median of {name}"},
            )
            spread = {"units": unit, "long_name": f"posterior standard deviation of {name}"}
            result[f"{name}_sd"] = ("observation", sd[:, index], spread)
        return result

    def reconstruct(self, features: xr.Dataset, n: int = 16, seed: int = 0) -> xr.Dataset:
        """Images rebuilt from the profile alone (the paper's figure 3).

        `image` and `image_sd` (observation, z_image, y_image) on the features' scale of 0 to 1: mean and standard
        deviation of p(image | profile) over `n` draws of z ~ p(z). Observation `i` depends on (seed, i) only. Raises
        BundleError for a model that has no decoder.
        """
        cvae = self.networks.cvae
        if cvae is None:
            raise BundleError("model", "must hold a decoder to rebuild images", remedy="use a model of kind cvae-maf")
        tensors = to_tensors(features, self.inputs)
        shape = (len(tensors), *self.inputs.image_shape)
        image, spread = np.empty(shape, np.float32), np.empty(shape, np.float32)
        together = max(1, _ROWS // n)
        for start in range(0, len(tensors), together):
            rows = slice(start, min(start + together, len(tensors)))
            count = rows.stop - start
            width = n * cvae.config.latent
            uniform = torch.from_numpy(seeds.uniforms(seed, "rebuilt images", start, count, width)).clamp(2.0**-53)
            latent = torch.special.ndtri(uniform).float().reshape(count * n, -1)
            with torch.inference_mode():
                condition = cvae.condition(tensors.profile[rows], tensors.valid_profile[rows])
                mean, sd = cvae.decode(condition.repeat_interleave(n, dim=0), latent)
            mean, sd = (part.reshape(count, n, *self.inputs.image_shape) for part in (mean, sd))
            image[rows] = mean.mean(dim=1)
            spread[rows] = (mean.var(dim=1, correction=0) + (sd**2).mean(dim=1)).sqrt()
        dims = ("observation", "z_image", "y_image")
        attrs = {"units": "1", "long_name": "image rebuilt from the profile"}
        return xr.Dataset(
            {
                "image": (dims, image, attrs),
                "image_sd": (dims, spread, attrs | {"long_name": "standard deviation of the rebuilt image"}),
            },
            attrs={"draws": n, "seed": seed},
        )

    def facts(self, mode: str) -> dict[str, Any]:
        """What validation rows fixed for `mode`, as plain JSON."""
        fit = self.fits[mode]
        return {
            "draws": fit.draws,
            "draws_change": fit.change,
            "widths": list(fit.widths),
            "width_shares": list(fit.shares),
            "prior_share": fit.prior_share,
            "validation_gain": fit.gain,
            "validation_gain_se": fit.gain_se,
        }


def modes(config: ModelConfig) -> tuple[str, ...]:
    """Modes of a model of this configuration, the default first."""
    if isinstance(config, MafProfileConfig):
        return (PROFILE,)
    if isinstance(config, SummaryMafConfig) and not config.summary.withheld:
        return (WITH_IMAGE,)  # the profile alone was never asked for
    return (WITH_IMAGE, PROFILE)
