"""From features to a trained estimator. Importing this module imports Lightning (seconds)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import nn

from scatterflow import seeds
from scatterflow.config.model import MafConfig, ModelConfig
from scatterflow.data import Blocks, Loader, Rows, Source, split, stored, to_tensors
from scatterflow.history import Epoch, History, write_history
from scatterflow.models import fastflow
from scatterflow.models.encoder import ROWS
from scatterflow.models.estimator import Estimator, modes
from scatterflow.models.networks import Networks, make_task, rows_of, tasks
from scatterflow.models.posterior import Array, ModeFit, Posterior
from scatterflow.prior import Prior
from scatterflow.progress import Tracker, say, track
from scatterflow.training import end_helpers, fit

_DRAWS = (8, 256)  # numbers of z that are tried, by doubling
_TOLERANCE = 0.02  # change of the mean log density [nat] that counts as converged: well below its standard error
_FITTED_ROWS = 2000  # validation rows that fix draws, widening and prior share
_WIDTHS = tuple(
    np.geomspace(0.7, 3.0, 20).tolist()
)  # of the base, relative to the trained one; their shares are fitted
_WIDTH_DRAWS = 16  # numbers of z at most while fitting the shares: they hardly depend on it
_SMALLEST_SHARE = 1e-3  # of a width: less is left out
_ITERATIONS = 300


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
    load: Loader | None = None,
    log: Callable[[str], None] = say,
    tracker: Tracker = track,
) -> Fitted:
    """Train on the rows of `features` with split "train", choose on those with "validation"; others are never read.

    `features` also holds `parameters` (simulation, parameter); lazy, unless `config.training.data` is resident, memory
    holds blocks of it. `load` replaces the training rows in each epoch (see `data`); their number stays. `folder`
    receives checkpoints and `history.csv`; a stopped training of the same `identity` continues there. Raises StoreError,
    BundleError for unusable features.
    """
    training = config.training
    parts = {role: split(features, role) for role in ("train", "validation")}
    first = to_tensors(parts["train"].isel(simulation=slice(0, ROWS)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(seed, "weights"))
        networks = Networks(config, first.inputs, len(prior.names))
    networks.fit_scaling(first)
    histories: list[History] = []
    for name in tasks(config):
        task = make_task(name, networks)

        def make(part: xr.Dataset, task: nn.Module = task) -> Rows:
            return rows_of(task, networks, _normal(prior, part), to_tensors(part, first.inputs))

        rows: dict[str, Source]
        if training.data == "resident":
            rows = {role: make(part) for role, part in parts.items()}
        else:
            loaders = {"train": load or stored(parts["train"]), "validation": stored(parts["validation"])}
            rows = {
                role: Blocks(part.sizes["simulation"], training.block, loaders[role], make)
                for role, part in parts.items()
            }
        earlier = tuple(epoch for history in histories for epoch in history.epochs)
        phase = training.cvae if name == "cvae" else training.flow
        histories.append(
            fit(
                task, rows["train"], rows["validation"], phase, training, folder,
                name=name, seed=seeds.integer(seed, name), identity=identity, earlier=earlier, log=log, tracker=tracker,
            )
        )  # fmt: skip
    end_helpers(training)
    networks.eval().requires_grad_(False)
    estimator = Estimator(config, prior, first.inputs, networks)
    chosen = parts["validation"].isel(simulation=slice(0, _FITTED_ROWS)).load()
    fitted = Fitted(replace(estimator, fits=fit_modes(estimator, chosen, log)), tuple(histories))
    write_history(folder / "history.csv", fitted.epochs)
    return fitted


def fit_modes(estimator: Estimator, validation: xr.Dataset, log: Callable[[str], None] = say) -> dict[str, ModeFit]:
    """Number of z, widths of the base and share of the prior for each mode, from validation rows (see `ModeFit`)."""
    theta = estimator.prior.values(validation["parameters"])
    config = estimator.config.flow
    fits = {}
    for mode in modes(estimator.config):
        posterior = estimator.posterior(validation, mode)
        draws, change = _enough(posterior, theta) if estimator.networks.latent else (1, 0.0)
        fits[mode] = found = fit_mode(posterior, theta, config, draws, change)
        log(
            f"mode {mode}: information gain {found.gain:.2f} +- {found.gain_se:.2f} nat on {len(theta)} validation rows, "
            f"{draws} z, base {found.mean_width:.3g} times as wide, prior's share {found.prior_share:.3g}"
        )
    return fits


def fit_mode(posterior: Posterior, theta: Array, config: MafConfig, draws: int = 1, change: float = 0.0) -> ModeFit:
    """Widths of the base and share of the prior, from validation rows with parameters `theta` (observation, parameter)."""
    widths, shares, prior_share = _recalibrated(posterior, theta, min(draws, _WIDTH_DRAWS), config)
    posterior = replace(posterior, flow=fastflow.widened(posterior.flow, widths, shares))
    gain = posterior.information_gain(theta, draws).values
    if prior_share:
        gain = np.logaddexp(math.log1p(-prior_share) + gain, math.log(prior_share))
    error = float(gain.std(ddof=1) / math.sqrt(len(gain)))
    return ModeFit(draws, change, widths, shares, prior_share, float(gain.mean()), error)


def _recalibrated(
    posterior: Posterior, theta: Array, draws: int, config: MafConfig
) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Widths of the base, their shares (sum 1), and the share of the prior: the mixture that is best on these rows."""
    widths = _WIDTHS if config.recalibrate else (1.0,)
    gains = [
        replace(posterior, flow=fastflow.widened(posterior.flow, (width,), (1.0,)))
        .information_gain(theta, draws)
        .values
        for width in widths
    ]
    prior = [np.zeros(len(theta))] if config.mix_prior else []
    shares = mixture_shares(np.stack([*gains, *prior], axis=1))
    prior_share = 0.0
    if config.mix_prior:  # fewer rows cannot show that no observation needs the prior, or that all do
        least = 1 / (2 * len(theta))
        prior_share = float(np.clip(shares[-1], least, 1 - least))
        shares = shares[:-1]
    kept = shares >= min(_SMALLEST_SHARE, shares.max())
    shares = shares[kept] / shares[kept].sum()
    return tuple(np.asarray(widths)[kept].tolist()), tuple(shares.tolist()), prior_share


def mixture_shares(log_density: Array) -> Array:
    """Weights (component,) of a mixture that maximise the mean of its log density, by expectation maximisation.

    `log_density` (row, component) up to a constant per row.
    """
    density = np.exp(log_density - log_density.max(axis=1, keepdims=True))
    shares = np.full(density.shape[1], 1 / density.shape[1])
    for _ in range(_ITERATIONS):
        weighted = density * shares
        shares = (weighted / weighted.sum(axis=1, keepdims=True)).mean(axis=0)
    return np.asarray(shares)


def _enough(posterior: Posterior, theta: Array) -> tuple[int, float]:
    """Double the number of z until the mean gain changes by less than the tolerance: number and last change."""
    draws, most = _DRAWS
    gain = posterior.information_gain(theta, draws).values.mean()
    while True:
        finer = posterior.information_gain(theta, 2 * draws).values.mean()
        change = abs(float(finer - gain))
        if change < _TOLERANCE or 2 * draws >= most:
            return (draws if change < _TOLERANCE else 2 * draws), change
        draws, gain = 2 * draws, finer


def _normal(prior: Prior, features: xr.Dataset) -> torch.Tensor:
    return torch.from_numpy(prior.to_normal(features["parameters"]).astype(np.float32))
