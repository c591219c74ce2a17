"""From features to a trained estimator. Importing this module imports Lightning (seconds)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from scatterflow import seeds
from scatterflow.config.model import ModelConfig
from scatterflow.data import split, to_tensors
from scatterflow.models.estimator import Estimator, modes
from scatterflow.models.networks import Networks, make_task, rows_of, tasks
from scatterflow.models.posterior import Array, ModeFit, Posterior
from scatterflow.prior import Prior
from scatterflow.progress import Tracker, say, track
from scatterflow.training import Epoch, History, end_helpers, fit, write_history

_DRAWS = (8, 256)  # numbers of z that are tried, by doubling
_TOLERANCE = 0.02  # change of the mean log density [nat] that counts as converged: well below its standard error
_FITTED_ROWS = 500  # validation rows that fix draws and prior share


@dataclass(frozen=True)
class Fitted:
    """A trained estimator and how it was trained."""

    estimator: Estimator
    histories: tuple[History, ...]

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """The epochs of all phases."""
        return tuple(epoch for history in self.histories for epoch in history.epochs)


def train_estimator(
    config: ModelConfig,
    features: xr.Dataset,
    prior: Prior,
    folder: Path,
    *,
    seed: int,
    identity: str = "",
    log: Callable[[str], None] = say,
    tracker: Tracker = track,
) -> Fitted:
    """Train on the rows of `features` with split "train", choose on those with "validation"; others are never read.

    `features` also holds `parameters` (simulation, parameter). `folder` receives checkpoints and `history.csv`; a
    stopped training of the same `identity` continues there. Raises StoreError, BundleError for unusable features.
    """
    parts = {role: split(features, role) for role in ("train", "validation")}
    tensors = {role: to_tensors(part) for role, part in parts.items()}
    normal = {role: _normal(prior, part) for role, part in parts.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(seed, "weights"))
        networks = Networks(config, tensors["train"].inputs, len(prior.names))
    networks.fit_scaling(tensors["train"].profile)
    histories: list[History] = []
    for name in tasks(config):
        task = make_task(name, networks)
        rows = {role: rows_of(task, networks, normal[role], tensors[role]) for role in parts}
        earlier = tuple(epoch for history in histories for epoch in history.epochs)
        phase = config.training.cvae if name == "cvae" else config.training.flow
        histories.append(
            fit(
                task, rows["train"], rows["validation"], phase, config.training, folder,
                name=name, seed=seeds.integer(seed, name), identity=identity, earlier=earlier, log=log, tracker=tracker,
            )
        )  # fmt: skip
    end_helpers(config.training)
    networks.eval().requires_grad_(False)
    estimator = Estimator(config, prior, tensors["train"].inputs, networks)
    chosen = parts["validation"].isel(simulation=slice(0, _FITTED_ROWS))
    fitted = Fitted(replace(estimator, fits=fit_modes(estimator, chosen, log)), tuple(histories))
    write_history(folder / "history.csv", fitted.epochs)
    return fitted


def fit_modes(estimator: Estimator, validation: xr.Dataset, log: Callable[[str], None] = say) -> dict[str, ModeFit]:
    """Number of z and share of the prior for each mode, from validation rows (see `ModeFit`)."""
    theta = estimator.prior.values(validation["parameters"])
    fits = {}
    for mode in modes(estimator.config):
        posterior = estimator.posterior(validation, mode)
        draws, change = 1, 0.0
        gain = posterior.information_gain(theta, draws).values
        if estimator.networks.latent:
            draws, gain, change = _enough(posterior, theta)
        share = prior_share(gain) if estimator.config.flow.mix_prior else 0.0
        mixed = np.logaddexp(math.log1p(-share) + gain, math.log(share)) if share else gain
        fits[mode] = ModeFit(
            draws, change, share, float(mixed.mean()), float(mixed.std(ddof=1) / math.sqrt(len(mixed)))
        )
        log(
            f"mode {mode}: information gain {fits[mode].gain:.2f} +- {fits[mode].gain_se:.2f} nat on {len(gain)} "
            f"validation rows, {draws} z, prior's share {share:.3g}"
        )
    return fits


def prior_share(gain: Array) -> float:
    """Weight w of the prior that maximises the mean of log((1 - w) exp(gain) + w), by expectation maximisation.

    At least 1 / (2 rows): fewer rows cannot show that no observation needs it.
    """
    least = 1 / (2 * len(gain))
    share = 0.5
    ratio = np.exp(np.clip(gain, -700, 700))
    for _ in range(500):
        share = float(np.mean(share / (share + (1 - share) * ratio)))
    return max(share, least)


def _enough(posterior: Posterior, theta: Array) -> tuple[int, Array, float]:
    """Double the number of z until the mean gain changes by less than the tolerance: number, gain, last change."""
    draws, most = _DRAWS
    gain = posterior.information_gain(theta, draws).values
    while True:
        finer = posterior.information_gain(theta, 2 * draws).values
        change = abs(float(finer.mean() - gain.mean()))
        if change < _TOLERANCE or 2 * draws >= most:
            return (draws, gain, change) if change < _TOLERANCE else (2 * draws, finer, change)
        draws, gain = 2 * draws, finer


def _normal(prior: Prior, features: xr.Dataset) -> torch.Tensor:
    return torch.from_numpy(prior.to_normal(features["parameters"]).astype(np.float32))
