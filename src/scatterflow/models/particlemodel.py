"""A trained dual-branch model of kind particles with its study: images in, p(R), spacing and disorder with intervals out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from scatterflow import estimates, imagecheck, refine
from scatterflow.config.dualbranch import DualBranchConfig
from scatterflow.errors import BundleError, ConfigError
from scatterflow.models import fastflow
from scatterflow.models.bundlefile import write_bundle
from scatterflow.models.dualbranch import SECOND, Ensemble, Reduction, Seen, build, reduction
from scatterflow.models.mixture import MixedPosterior
from scatterflow.models.particlecard import card
from scatterflow.models.posterior import ModeFit, Posterior
from scatterflow.models.regressor import limited_threads
from scatterflow.particles import VIEW, ParticlesStudy
from scatterflow.sizescores import mean_and_width
from scatterflow.verdict import FeatureScore, score_from_arrays

FORMAT = 1
KIND = "particles"
SIZES = "size_distribution"
QUANTITIES = ("distance_nm", "disorder", "mean_radius_nm", "width_nm")
_UNITS = {"distance_nm": "nm", "disorder": "1", "mean_radius_nm": "nm", "width_nm": "nm"}
EXTRA = "extra."  # prefix of arrays that are no weights of the networks
_ROWS = 128  # images at once: their samples of p(R) are 100 MB at most for 400 samples of 256 sizes
_REFINED = 2000  # validation images that refined answers are calibrated on
_OPEN = 0.6  # disorder up to which a paracrystal makes sense: the end of intervals at the upper end of the prior
_REGRESSED, _CURVED = 200, 1000  # validation images from which on calibration depends on exposure, and how
_SEEN = 1e-3  # share of the particles in a bin of radii below which it is empty for all purposes
_AGAIN = "train the model again, or copy the bundle again"
Array = NDArray[np.float64]


@dataclass(frozen=True)
class ParticleModel:
    """A trained model; made by `dualbranch_training` or `load_particle_model`. `name` is its name in the configuration.

    `fits`: what validation rows fixed of each member's posterior. `factors`, by quantity and for p(R)'s band: polynomial in
    the exposure (see `_exposure`), the logarithm of the factor by which the ends of the posterior's intervals are moved
    away from the median, so that they hold their share of the validation rows; `refined_factors` the same for refined
    answers. `scores` (plain JSON) are those on validation rows; `verdict` holds thresholds by score, and `arrays` what the
    feature score needs.
    """

    name: str
    study: ParticlesStudy
    config: DualBranchConfig
    networks: Ensemble
    fits: tuple[ModeFit, ...] = ()
    factors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    refined_factors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    identity: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    verdict: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    @cached_property
    def reduction(self) -> Reduction:
        """How images are made small before the networks."""
        return reduction(self.study.frame, self.config.trunk)

    @cached_property
    def quantities(self) -> tuple[str, ...]:
        """Quantities that have intervals."""
        return tuple(name for name in QUANTITIES if name != "disorder" or name in self.study.prior.names)

    @cached_property
    def feature_score(self) -> FeatureScore:
        """Score of images that no simulation looks like. Raises BundleError where the bundle has none yet."""
        return score_from_arrays(dict(self.arrays))

    @cached_property
    def _flows(self) -> tuple[fastflow.FastFlow, ...]:
        fits = self._fits
        flows = (fastflow.prepare(network.flow) for network in self.networks.networks)
        return tuple(fastflow.widened(flow, fit.widths, fit.shares) for flow, fit in zip(flows, fits, strict=True))

    @property
    def _fits(self) -> tuple[ModeFit, ...]:
        return self.fits or (ModeFit(),) * self.config.members

    def posterior(self, features: xr.Dataset) -> MixedPosterior:
        """Posterior of each image (`image`, `mask_image`: see `ParticlesStudy.preprocess`), all parameters.

        Raises BundleError for images of another shape, that are not finite or without valid bins.
        """
        return self._posterior(self._vectors(self._seen(features)))

    def _posterior(self, vectors: Sequence[torch.Tensor]) -> MixedPosterior:
        return MixedPosterior(
            tuple(
                Posterior(self.study.prior, None, flow, vector, None, None, 0, f"image, member {number}", fit)
                for number, (flow, vector, fit) in enumerate(zip(self._flows, vectors, self._fits, strict=True))
            )
        )

    def samples(self, features: xr.Dataset, n: int = 400, seed: int = 0, refined: bool | None = None) -> xr.DataArray:
        """`n` samples of each image, (observation, sample, parameter), from the posterior or, `refined`, from what
        `refine_steps` scoring steps on the image make of it; by default as configured. Raises as `posterior` does.
        """
        drawn = self.posterior(features).sample(n, seed)
        return drawn.copy(data=self._refined(features, drawn.values, seed)) if self._refines(refined) else drawn

    def _refines(self, refined: bool | None) -> bool:
        steps = self.config.refine_steps
        if refined and not steps:
            raise ConfigError("refine_steps", "must be above 0 to refine", steps, "set it and train the model again")
        return bool(steps) if refined is None else refined

    def _refined(self, features: xr.Dataset, samples: Array, seed: int) -> Array:
        """Refined samples of the images, as many as `samples` (image, sample, parameter)."""
        image, valid = checked(features, self.reduction.shape)
        found = refine.refine(self.study, np.median(samples, axis=1), image, valid, self.config.refine_steps)
        return refine.draw(self.study, found, refine.noise(seed, samples.shape))

    def predict(
        self,
        features: xr.Dataset,
        n: int = 400,
        seed: int = 0,
        refined: bool | None = None,
        samples: xr.DataArray | None = None,
    ) -> xr.Dataset:
        """Estimates and their intervals, over `simulation`, from `n` samples of each image (see `samples`).

        `samples` are these, where the caller has them already.

        `size_distribution` (simulation, radius), sum 1: the first branch's p(R), mean over the members, or, `refined`, the
        mean of the samples'; `_low`, `_high`: pointwise central band of the samples'. `<quantity>` of distance_nm, disorder
        (where the prior has it), mean_radius_nm and width_nm (mean and standard deviation of p(R)): median of the samples,
        with `_sd`, `_low` and `_high`: calibrated standard deviation and central interval of `inference.interval`; where the
        disorder is at the end of the prior's, its interval is open: up to the most that makes sense. The second branch's own
        answers: `distance_branch_nm`, `disorder_branch`. Modes: see `estimates.with_modes`. Raises as `posterior` does.
        """
        seen = self._seen(features)
        vectors = self._vectors(seen)
        first, second = self._branches(vectors)
        refined = self._refines(refined)
        drawn = self._posterior(vectors).drawn(n, seed) if samples is None else samples.values
        if refined and samples is None:
            drawn = self._refined(features, drawn, seed)
        if refined:
            first = self._mean_sizes(drawn)
        found = self._summaries(drawn, self._exposure(features), self.refined_factors if refined else self.factors)
        share = self.study.config.inference.interval
        attrs = {"units": "1", "long_name": "share of the particles"}
        dims = ("simulation", "radius")
        variables: dict[str, Any] = {SIZES: (dims, first, attrs)}
        for end in ("low", "high"):
            told = attrs | {"long_name": f"{end} end of the {share:.0%} band of the share of the particles"}
            variables[f"{SIZES}_{end}"] = (dims, found[SIZES][end], told)
        for name in self.quantities:
            attrs = {"units": _UNITS[name]}
            variables[name] = (
                "simulation",
                found[name]["median"],
                attrs | {"long_name": f"posterior median of {name}"},
            )
            for part in ("sd", "low", "high"):
                variables[f"{name}_{part}"] = ("simulation", found[name][part], attrs)
        for number, name in enumerate(("distance_branch_nm", "disorder_branch")[: second.shape[1]]):
            told = {"units": ("nm", "1")[number], "long_name": f"{SECOND[number]} of the second branch"}
            variables[name] = ("simulation", second[:, number], told)
        coords: dict[str, Any] = {"radius": self._radius}
        if "simulation" in features.coords:
            coords["simulation"] = ("simulation", features["simulation"].values)
        result = xr.Dataset(variables, coords, {"samples": n, "seed": seed, "interval": share, "model": self.name})
        return estimates.with_modes(result, self.study.prior.names, drawn)

    def _mean_sizes(self, samples: Array) -> Array:
        """Mean p(R) (image, radius) of samples (image, sample, parameter)."""
        return np.stack([self.study.size_distribution(each).values.mean(0) for each in samples])

    @cached_property
    def _radius(self) -> xr.DataArray:
        prior = self.study.prior
        return self.study.size_distribution(prior.from_normal(np.zeros((1, len(prior.names)))))["radius"]

    def _summaries(
        self, samples: Array, exposure: Array, factors: Mapping[str, Sequence[float]]
    ) -> dict[str, dict[str, Array]]:
        """median, sd, low, high of each quantity (image,), of p(R) (image, radius); `samples` (image, sample, parameter)."""
        parts = []
        for start in range(0, len(samples), _ROWS):
            rows = slice(start, start + _ROWS)
            parts.append(self._summary(samples[rows], exposure[rows], factors))
        return {
            name: {key: np.concatenate([part[name][key] for part in parts]) for key in parts[0][name]}
            for name in parts[0]
        }

    def _summary(
        self, samples: Array, exposure: Array, factors: Mapping[str, Sequence[float]]
    ) -> dict[str, dict[str, Array]]:
        images, number, _ = samples.shape
        drawn = self.quantities_of(samples.reshape(images * number, -1))
        tail = (1 - self.study.config.inference.interval) / 2
        found = {}
        for name, values in drawn.items():
            values = values.reshape(images, number, *values.shape[1:])
            low, median, high = np.quantile(values, (tail, 0.5, 1 - tail), axis=1)
            factor = np.exp(np.polynomial.polynomial.polyval(exposure, factors.get(name, (0.0,))))
            factor = factor.reshape(images, *(1,) * (median.ndim - 1))
            least, most = self._range(name)
            found[name] = {
                "median": median,
                "sd": factor * values.std(axis=1, ddof=1),
                "low": np.clip(median - factor * (median - low), least, most),
                "high": np.clip(median + factor * (high - median), least, most),
            }
            if name == "disorder":  # at the end of what the model knows there is only a lower limit
                at_end = (values > most - imagecheck.BORDER * (most - least)).mean(axis=1) > imagecheck.MOST
                found[name]["high"] = np.where(at_end, max(_OPEN, most), found[name]["high"])
        return found

    def _exposure(self, features: xr.Dataset) -> Array:
        """log10 of the recorded counts (image,) over those of the middle of the study's range, within that range.

        Intervals are calibrated in dependence of it: a network is too sure at one exposure, too careful at another.
        """
        counts = np.where(features[f"mask_{VIEW}"].values, features[VIEW].values, 0).sum((1, 2), dtype=np.float64)
        low, high = np.log10(self.study.config.artefacts.total_counts or (1e3, 1e7))
        middle, half = (low + high) / 2, max((high - low) / 2, 1e-3)
        return np.asarray(((np.log10(np.maximum(counts, 1)) - middle) / half).clip(-1, 1))

    def quantities_of(self, theta: Array) -> dict[str, Array]:
        """Every quantity (row,) and `size_distribution` (row, radius) of parameters (row, parameter)."""
        names = self.study.prior.names
        shares = self.study.size_distribution(theta)
        mean, width = mean_and_width(shares.values, shares["radius"].values)
        found = {name: theta[:, names.index(name)] for name in SECOND if name in names}
        return found | {"mean_radius_nm": mean, "width_nm": width, SIZES: shares.values}

    def _range(self, name: str) -> tuple[float, float]:
        """What values of a quantity are possible."""
        if name == SIZES:
            return 0.0, 1.0
        first, last = self.study.config.sample.radius_nm
        if name in ("mean_radius_nm", "width_nm"):
            return (first, last) if name == "mean_radius_nm" else (0.0, (last - first) / 2)
        index = self.study.prior.names.index(name)
        return float(self.study.prior.lower[index]), float(self.study.prior.upper[index])

    def _seen(self, features: xr.Dataset) -> Iterator[Seen]:
        """What the networks see of the images, some at a time."""
        image, valid = checked(features, self.reduction.shape)
        for start in range(0, len(image), _ROWS):
            rows = slice(start, start + _ROWS)
            yield self.reduction(image[rows], valid[rows])

    def _vectors(self, seen: Iterator[Seen]) -> list[torch.Tensor]:
        """The vectors (image, hidden) of every member."""
        if self.networks.training:
            self.networks.eval()
        with torch.inference_mode(), limited_threads(self.config.training.threads):
            parts = [[network.describe(*each) for network in self.networks.networks] for each in seen]
        return [torch.cat(each) for each in zip(*parts, strict=True)]

    def _branches(self, vectors: Sequence[torch.Tensor]) -> tuple[Array, Array]:
        """p(R) (image, radius) of the first branch and answers (image, quantity) of the second, means over members."""
        with torch.inference_mode(), limited_threads(self.config.training.threads):
            both = zip(self.networks.networks, vectors, strict=True)
            parts = [
                (network.sizes(vector).double().exp(), network.second(vector).double()) for network, vector in both
            ]
        sizes, second = (torch.stack(each).mean(0).numpy() for each in zip(*parts, strict=True))
        return sizes / sizes.sum(1, keepdims=True), second

    def calibrated(self, features: xr.Dataset, n: int, seed: int) -> ParticleModel:
        """The same with the `factors` at which intervals hold their share of `features` with known `parameters`.

        The refined ones are calibrated on the first `_REFINED` images: refining takes longer than answering.
        """
        drawn = self.posterior(features).drawn(n, seed)
        factors, refined = self._fitted_factors(features, drawn), dict[str, tuple[float, ...]]()
        if self.config.refine_steps:
            few = features.isel(simulation=slice(0, _REFINED))
            refined = self._fitted_factors(few, self._refined(few, drawn[:_REFINED], seed))
        return replace(self, factors=factors, refined_factors=refined)

    def _fitted_factors(self, features: xr.Dataset, samples: Array) -> dict[str, tuple[float, ...]]:
        """Factors from `samples` (image, sample, parameter) of images with known `parameters`.

        Quantile regression (Koenker & Bassett 1978, doi:10.2307/1913643) of the factors that single images would need on
        their exposure, a line from `_REGRESSED` images on, a parabola from `_CURVED` on.
        """
        from sklearn.linear_model import QuantileRegressor  # takes a second, and only training needs it

        theta, exposure = self.study.prior.values(features["parameters"]), self._exposure(features)
        found = self._summaries(samples, exposure, {})
        share, factors = self.study.config.inference.interval, dict[str, tuple[float, ...]]()
        powers = exposure[:, None] ** np.arange(1, 3 if len(theta) >= _CURVED else 2)
        for name, truth in self.quantities_of(theta).items():
            median, low, high = (found[name][key] for key in ("median", "low", "high"))
            apart = np.abs(truth - median) / np.maximum(np.where(truth > median, high - median, median - low), 1e-12)
            logarithm = np.log(apart.clip(1e-3, 1e3))
            if name == SIZES:  # bins that nobody takes for occupied would be inside at any factor, or at none
                factors[name] = (float(np.quantile(logarithm[(truth > _SEEN) | (high > _SEEN)], share)),)
            elif len(theta) < _REGRESSED:
                factors[name] = (float(np.quantile(logarithm, share)),)
            else:
                fitted = QuantileRegressor(quantile=share, alpha=0.0).fit(powers, logarithm)
                factors[name] = (float(fitted.intercept_), *map(float, fitted.coef_))
        return factors

    def facts(self) -> dict[str, Any]:
        """How the model was set up and trained, as plain JSON."""
        return {
            "kind": self.config.kind,
            "members": self.config.members,
            "trunk": self.config.trunk.model_dump(mode="json"),
            "folded": self.reduction.folded,
            "fits": [asdict(fit) for fit in self.fits],
            "factors": {name: list(each) for name, each in self.factors.items()},
            "refined_factors": {name: list(each) for name, each in self.refined_factors.items()},
            "scores": dict(self.scores),
            "training": dict(self.training),
            "identity": self.identity,
        }

    def save(self, folder: Path, texts: Mapping[str, str] | None = None) -> Path:
        """Write the bundle `folder`, complete or not at all; returns the path of its bundle.json.

        `texts` are further files by name. Raises StoreError where the disk refuses.
        """
        study = self.study
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.networks.state_dict().items()}
        for name, array in self.arrays.items():
            tensors[EXTRA + name] = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
        content = {
            "format": FORMAT,
            "kind": KIND,
            "model": self.config.model_dump(mode="json"),
            "prior": study.prior.spec(),
            "image": {"dims": ["simulation", "z_image", "y_image"], "shape": self.reduction.shape, "unit": "counts"},
            "fits": [asdict(fit) for fit in self.fits],
            "factors": {name: list(each) for name, each in self.factors.items()},
            "refined_factors": {name: list(each) for name, each in self.refined_factors.items()},
            "scores": dict(self.scores),
            "meta": {
                "name": self.name,
                "identity": self.identity,
                "training": dict(self.training),
                "verdict": dict(self.verdict),
                "study": {
                    "name": study.name,
                    "run": study.run,
                    "seed": study.seed,
                    "config": study.config.model_dump(mode="json"),
                },
            },
        }
        return write_bundle(folder, content, tensors, {"card.md": card(self), **(texts or {})})


def checked(features: xr.Dataset, shape: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Counts and mask (simulation, z, y) of features. Raises BundleError where they are not images that can be used."""
    for name in (VIEW, f"mask_{VIEW}"):
        if name not in features or features[name].ndim != 3 or features[name].shape[1:] != shape:
            got = features[name].shape if name in features else list(features)
            raise BundleError(
                "features", f"must hold {name} (simulation, {shape[0]}, {shape[1]})", got, "use study.observe"
            )
    image = np.asarray(features[VIEW].values, dtype=np.float32)
    valid = np.asarray(features[f"mask_{VIEW}"].values, dtype=np.bool_)
    # invalid bins count for nothing, but what is not finite or negative there was not made by `study.observe`
    for wrong, must in (
        (~np.isfinite(image).all((1, 2)), "must be finite"),
        ((image < 0).any((1, 2)), "must not be negative"),
        (~valid.any((1, 2)), "must have valid bins"),
    ):
        if wrong.any():
            raise BundleError(f"counts of image {np.argmax(wrong)}", must, remedy="mask or leave out such images")
    return image, valid


def untrained(study: ParticlesStudy, config: DualBranchConfig) -> Ensemble:
    """The networks of a configuration with random weights."""
    names = study.prior.names
    second = sum(quantity in names for quantity in SECOND)
    return build(config, reduction(study.frame, config.trunk), study.config.sample.sizes, second, len(names))
