"""Training of dual-branch models, on stored simulations that are recorded with other artefacts and noise as it goes on.

What an image shows in an epoch depends on (seed, epoch, simulation) only, so a training that was killed goes on as if
nothing had happened (see `training`).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from scatterflow import artefacts, seeds
from scatterflow.config.artefacts import NO_ARTEFACTS, ArtefactsConfig
from scatterflow.config.dualbranch import DualBranchConfig
from scatterflow.config.training import MACHINE, HardwareConfig, PhaseConfig, TrainingConfig
from scatterflow.data import Rows
from scatterflow.errors import ConfigError
from scatterflow.models.dualbranch import SECOND, Reduction, Seen
from scatterflow.models.particlebundle import work_folder
from scatterflow.models.particlemodel import (
    QUANTITIES,
    SIZES,
    ParticleModel,
    checked,
    untrained,
)
from scatterflow.particles import ParticlesStudy
from scatterflow.progress import Tracker, say, track
from scatterflow.provenance import digest, source_hash, versions
from scatterflow.sizescores import wasserstein

_MODULES = ("scatterflow.models", "scatterflow.training", "scatterflow.checkpoint", "scatterflow.data")
_SAMPLES = 400  # per validation image, to calibrate intervals
_SCORED = 200  # validation images whose refined answers give the scores: each takes as long as 50 without
_FITTED_ROWS = 2000  # validation rows that fix widths, prior share and intervals


class Labelled(NamedTuple):
    """Simulations: expected counts (row, z, y), parameters (row, parameter), and their indices `simulation` (row,)."""

    counts: NDArray[Any]
    theta: NDArray[Any]
    simulation: NDArray[np.integer[Any]]


class Recorded:
    """Source of what the network sees of simulations, recorded anew every `fresh_every` epochs (see `data.Source`).

    Epoch e shows draw 1 + e // fresh_every; draw 0 is what features hold. With `fresh_every` > 1 the rows of a draw stay in
    memory, and a thread records those of the next draw: beside the simulations, memory holds two draws of what the network
    sees, else two blocks. To be used in a `with` block, which ends the thread.
    """

    def __init__(
        self, study: ParticlesStudy, rows: Labelled, config: DualBranchConfig, reduced: Reduction, seed: int
    ) -> None:
        self.study, self.rows, self.reduction, self.seed = study, rows, reduced, seed
        self.config, self.training = recording(study, config), config.training
        self.targets = targets(study, rows.theta)
        self.kept: dict[tuple[int, int], Future[Rows]] = {}  # by draw and number of the block
        self.pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown(cancel_futures=True)

    def __len__(self) -> int:
        return len(self.rows.theta)

    def borders(self) -> list[int]:
        """See `data.Source`."""
        return [*range(0, len(self), self.training.block), len(self)]

    def block(self, epoch: int, number: int) -> Rows:
        """See `data.Source`."""
        draw = 1 + epoch // self.training.fresh_every
        if self.training.fresh_every == 1:
            return self.record(draw, number)
        last = 1 + (self.training.epochs - 1) // self.training.fresh_every
        for old in [key for key in self.kept if key[0] < draw]:
            del self.kept[old]
        for coming in range(draw, min(draw + 1, last) + 1):
            for block in range(len(self.borders()) - 1):
                if (coming, block) not in self.kept:
                    self.kept[coming, block] = self.pool.submit(self.record, coming, block)
        ahead = self.kept[draw, number]
        if ahead.cancel():  # the thread has not come to it yet
            own: Future[Rows] = Future()
            own.set_result(self.record(draw, number))
            self.kept[draw, number] = own
        return self.kept[draw, number].result()

    def record(self, draw: int, number: int) -> Rows:
        """A block as it is in a draw."""
        part = slice(*self.borders()[number : number + 2])
        counts, valid = artefacts.record(
            np.asarray(self.rows.counts[part]),
            self.rows.simulation[part],
            self.study.frame,
            self.config,
            self.seed,
            draw,
        )
        return Rows((*_small(self.reduction(counts, valid)), *(tensor[part] for tensor in self.targets)))


def train_dual_branch(
    study: ParticlesStudy,
    name: str,
    train: Labelled,
    validation: xr.Dataset,
    folder: Path,
    *,
    tell: Callable[[str], None] = say,
    tracker: Tracker = track,
) -> Path:
    """Train model `name` of `study` and write its bundle `folder`; returns the path of bundle.json.

    train : simulations to learn from; see `Recorded` for the memory.
    validation : features with `parameters` that choose the best weights, calibrate intervals and tell the scores; made by
        `recording`, as the training's.

    Checkpoints go to `<folder>.training/`, from which a stopped training of the same configuration, data and code
    continues; `training.fit` says which errors it raises. Raises ConfigError for an unknown name or unsound rows,
    BundleError for unusable features.
    """
    from scatterflow.models.fitting import fit_mode  # Lightning takes seconds to import
    from scatterflow.training import end_helpers, fit

    if name not in study.config.models:
        raise ConfigError("model", f"must be one of {sorted(study.config.models)}", repr(name))
    config = study.config.models[name]
    settings = config.training
    theta = _theta(study, train)
    number = {"train": len(theta), "validation": validation.sizes["simulation"]}
    identity = digest(
        {
            "model": config.model_dump(mode="json", exclude={"training": set(MACHINE)}),
            "features": study.features_identity(),
            "rows": number,
            "interval": study.config.inference.interval,
            "seed": study.seed,
            "source": source_hash(*_MODULES),
        }
    )
    seed = seeds.integer(study.seed, f"training {settings.seed}") if settings.seed else study.seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(seed, "weights"))
        networks = untrained(study, config)
    model = ParticleModel(name, study, config, networks, identity=identity)
    held = _held(model, validation)
    work = work_folder(folder)
    with Recorded(study, train._replace(theta=theta), config, model.reduction, seed) as recorded:
        log_counts, share, _, _, second = recorded.block(0, 0).tensors
        for network in networks.networks:
            network.fit_scaling(Seen(log_counts, share), second)
        history = fit(
            networks,
            recorded,
            held,
            PhaseConfig(**settings.model_dump(include=set(PhaseConfig.model_fields))),
            TrainingConfig(**settings.model_dump(include=set(HardwareConfig.model_fields))),
            work,
            name="dual-branch",
            seed=seeds.integer(seed, "dual-branch"),
            identity=identity,
            log=tell,
            tracker=tracker,
        )
    end_helpers(TrainingConfig(**settings.model_dump(include=set(HardwareConfig.model_fields))))
    networks.eval().requires_grad_(False)
    few = validation.isel(simulation=slice(0, _FITTED_ROWS)).load()
    truth = study.prior.values(few["parameters"])
    members = model.posterior(few).members
    model = replace(model, fits=tuple(fit_mode(member, truth, config.flow) for member in members))
    model = model.calibrated(few, _SAMPLES, seeds.integer(study.seed, "calibration"))
    training = {
        "kind": config.kind,
        "rows": number,
        "phases": [history.summary()],
        "seconds": round(history.seconds, 3),
        "weights": sum(weight.numel() for weight in networks.parameters()),
        "operations_per_image": _operations(model),
        "simulations": study.simulation_identity(),
        "features": study.features_identity(),
        "versions": versions(("torch", "lightning", "nflows", "numpy")),
    }
    model = replace(model, training=training, scores=_scores(model, few))
    tell(_told(model))
    return model.save(folder, {"history.csv": (work / "history.csv").read_text(encoding="utf-8")})


def targets(study: ParticlesStudy, theta: NDArray[np.float64]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What is learnt, (row, number) each: normal coordinates, p(R), and spacing with disorder."""
    names = study.prior.names
    columns = [names.index(name) for name in SECOND if name in names]
    arrays = study.prior.to_normal(theta), study.size_distribution(theta).values, theta[:, columns]
    normal, sizes, second = (torch.from_numpy(np.asarray(array, dtype=np.float32)) for array in arrays)
    return normal, sizes, second


def recording(study: ParticlesStudy, config: DualBranchConfig) -> ArtefactsConfig:
    """How images are recorded from which a model learns; the counts are the study's in any case."""
    own = study.config.artefacts
    return own if config.artefacts else NO_ARTEFACTS.model_copy(update={"total_counts": own.total_counts})


def _small(seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in fewer bytes: shares need no more than three digits."""
    return seen.log_counts, seen.share.half()


def _theta(study: ParticlesStudy, train: Labelled) -> NDArray[np.float64]:
    theta = study.prior.values(train.theta)
    expected = (len(theta), *study.frame.shape)
    if not len(theta) or train.counts.shape != expected or train.simulation.shape != (len(theta),):
        raise ConfigError("simulations", f"must be counts {expected} with as many indices", train.counts.shape)
    return theta


def _held(model: ParticleModel, validation: xr.Dataset) -> Rows:
    """Validation rows as the network sees them."""
    image, valid = checked(validation, model.reduction.shape)
    theta = model.study.prior.values(validation["parameters"])
    return Rows((*_small(model.reduction(image, valid)), *targets(model.study, theta)))


def _scores(model: ParticleModel, validation: xr.Dataset) -> dict[str, Any]:
    """Scores on rows that the intervals were calibrated on, as plain JSON: of answers on the first `answers` rows."""
    theta = model.study.prior.values(validation["parameters"])
    gain = model.posterior(validation).information_gain(theta).values
    some = validation.isel(simulation=slice(0, _SCORED if model.config.refine_steps else None))
    truth = model.quantities_of(theta[: some.sizes["simulation"]])
    found = model.predict(some, _SAMPLES, seeds.integer(model.study.seed, "scores"))
    apart = wasserstein(found[SIZES].values, truth[SIZES], found["radius"].values)
    scores: dict[str, Any] = {
        "rows": len(theta),
        "answers": len(apart),
        "gain": float(gain.mean()),
        "gain_se": float(gain.std(ddof=1) / np.sqrt(len(gain))),
        "median_wasserstein_nm": float(np.median(apart)),
    }
    for name in QUANTITIES:
        if name in found:
            error = np.abs(found[name].values - truth[name])
            inside = (found[f"{name}_low"].values <= truth[name]) & (truth[name] <= found[f"{name}_high"].values)
            scores[f"median_error_{name}"] = float(np.median(error))
            scores[f"coverage_{name}"] = float(inside.mean())
    return scores


def _operations(model: ParticleModel) -> int:
    """Floating-point operations of the trunks for one image."""
    empty = torch.zeros(1, *model.reduction.result)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        for network in model.networks.networks:
            network.describe(empty, empty)
    return int(counter.get_total_flops())


def _told(model: ParticleModel) -> str:
    """The scores, for people."""
    scores = model.scores
    errors = ", ".join(f"{name} {scores[key]:.3g}" for name in QUANTITIES if (key := f"median_error_{name}") in scores)
    return (
        f"on {scores['rows']} validation images: information gain {scores['gain']:.2f} +- {scores['gain_se']:.2f} nat; on "
        f"{scores['answers']} of them: Wasserstein distance of p(R) {scores['median_wasserstein_nm']:.3g} nm; median "
        f"errors {errors}"
    )
