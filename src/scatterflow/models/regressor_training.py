"""Training of the estimators of nanodiffraction, on simulations with fresh noise in every epoch and on a scan's frames.

What is stored are expected counts; what a frame shows in an epoch depends on (seed, epoch, block) only, so a training that
was killed goes on as if nothing had happened (see `training`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scatterflow import seeds
from scatterflow.config.nanodiffraction import FilmConfig, NanobeamConfig
from scatterflow.config.regressor import DonutConfig, LeanConfig, RegressorConfig, RegressorPhaseConfig
from scatterflow.config.training import HardwareConfig, PhaseConfig, TrainingConfig
from scatterflow.data import Rows, Source
from scatterflow.errors import ConfigError, FrameError
from scatterflow.history import Epoch
from scatterflow.models.lean import Lean, LeanOnFrames
from scatterflow.models.nanophysics import Box, Physics
from scatterflow.models.regressor import Regressor, build
from scatterflow.progress import Tracker, say, track
from scatterflow.provenance import digest

ONE_SD = 0.6826894921370859  # share of a normal distribution within one standard deviation
_HELD = 0.1  # share of a scan's frames that tells when to stop
_ESTIMATES, _DRAWS = 20_000, 10  # that calibrate errors, to 0.3 % of coverage; draws of a frame's noise at most


class Labelled(NamedTuple):
    """Simulations: expected counts (frame, z, y), in any unit, and parameters (frame, parameter)."""

    frames: NDArray[Any]
    theta: NDArray[Any]


@dataclass(frozen=True)
class Looks(Rows):
    """Counts (frame, z, y) and parameters in units of the box, `number` times over; every second time `mirrored` in chi."""

    number: int = 1
    mirrored: bool = False

    def __len__(self) -> int:
        return self.number * len(self.tensors[0])

    def take(self, rows: Tensor) -> tuple[Tensor, ...]:
        """See `data.Rows`."""
        frames = len(self.tensors[0])
        counts, unit = super().take(rows % frames)
        if self.mirrored and self.number > 1:
            turned = rows // frames % 2 == 1
            counts[turned] = counts[turned].flip(2)
            unit[turned, 2] *= -1
        return counts, unit


@dataclass(frozen=True)
class Noisy:
    """Source of counts (frame, z, y) and parameters in units of the box, drawn anew in every epoch if `fresh`.

    A block is every n-th row, so that ordered rows are mixed. Frames are mirrored along y at random where the box is
    symmetric in chi: the model is, too. Expected counts have a maximum of `max_counts` times a factor from `exposure`.
    Drawing the noise costs more than a step of a small network: an epoch shows each frame `looks` times, if `fresh`.
    """

    rows: Labelled
    box: Box
    max_counts: float
    seed: int
    size: int
    exposure: tuple[float, float] = (1.0, 1.0)
    fresh: bool = True
    looks: int = 1

    def __len__(self) -> int:
        return self.looks * len(self.rows.theta)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-len(self.rows.theta) // self.size)

    def borders(self) -> list[int]:
        """See `data.Source`."""
        rows = len(self.rows.theta)
        sizes = [self.looks * len(range(number, rows, self.blocks)) for number in range(self.blocks)]
        return [0, *accumulate(sizes)]

    def block(self, epoch: int, number: int) -> Rows:
        """See `data.Source`."""
        name = f"noise of epoch {epoch if self.fresh else 0}, block {number}"
        random = torch.Generator().manual_seed(seeds.integer(self.seed, name))
        expected = torch.from_numpy(self.expected(slice(number, None, self.blocks)))
        unit = self.box.to_unit(torch.from_numpy(np.array(self.rows.theta[number :: self.blocks]))).float()
        if self.fresh:
            low, high = np.log(self.exposure)
            expected *= (low + (high - low) * torch.rand(len(expected), 1, 1, generator=random)).exp()
        counts = torch.poisson(expected, generator=random)
        symmetric = self.fresh and self.box.low[2] == -self.box.high[2]
        if symmetric:
            mirrored = torch.rand(len(counts), generator=random) < 0.5
            counts[mirrored] = counts[mirrored].flip(2)
            unit[mirrored, 2] *= -1
        counts[counts.sum((1, 2)) == 0] = 1  # a frame without counts tells nothing; it has no mean to divide by
        return Looks((counts, unit), self.looks, symmetric)

    def expected(self, part: slice) -> NDArray[np.float32]:
        """Expected counts (frame, z, y) of some rows. Raises FrameError where they are not finite or dark."""
        frames = np.array(self.rows.frames[part], dtype=np.float32)
        np.maximum(frames, 0, out=frames)  # rounding makes some values negative; NaN stays
        brightest = frames.max((1, 2), keepdims=True)
        if not (np.isfinite(frames).all() and (brightest > 0).all()):
            raise FrameError("expected counts", "must be finite, with some above 0", remedy="simulate them again")
        frames *= self.max_counts / brightest
        return frames


def train_regressor(
    config: RegressorConfig,
    beam: NanobeamConfig,
    film: FilmConfig,
    box: Box,
    train: Labelled | None,
    validation: Labelled,
    max_counts: float,
    folder: Path,
    *,
    seed: int,
    frames: NDArray[Any] | None = None,
    identity: str = "",
    meta: dict[str, Any] | None = None,
    log: Callable[[str], None] = say,
    tracker: Tracker = track,
) -> Path:
    """Train an estimator and write its bundle `folder`; returns the path of bundle.json.

    train : simulations to learn from; None where DONUT sees only a scan.
    validation : simulations that choose the best weights, and with noise of its own calibrate the errors and tell the
        scores: several draws of a frame's noise, where there are few frames.
    frames : counts (frame, z, y) of a scan without labels, for `lean` (afterwards) and DONUT (`train_on`).

    Continues from the checkpoint in `folder`'s neighbour `<folder>.training`, which `training.fit` describes with its
    errors. Memory beside the arrays: three blocks, and four times the validation frames. Raises ConfigError where arrays
    do not fit, or those needed are not given; FrameError for frames that cannot be used.
    """
    for rows in (train, validation):
        if rows is not None:
            _check(rows, beam, box)
    own = {"seed": seed, "max_counts": max_counts, "network": config.model_dump(mode="json"), "caller": identity}
    settings = digest([own, beam.model_dump(mode="json"), film.model_dump(mode="json"), str(box)])
    held_seed, member = seeds.integer(seed, "validation"), config.training.seed  # all members are judged by the same
    seed = seeds.integer(seed, f"training {member}") if member else seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(seed, "weights"))
        network = build(config, beam, film, box)
    regressor = Regressor(config, beam, film, box, network, max_counts, threads=config.training.threads)
    scan = None if frames is None else regressor.checked(frames)
    work = folder.with_name(folder.name + ".training")
    number = len(validation.theta)
    held = Noisy(validation, box, max_counts, held_seed, number, fresh=False).block(0, 0)
    known = None
    if train is not None:
        exposure = config.exposure if isinstance(config, LeanConfig) else (1.0, 1.0)
        fresh = isinstance(config, LeanConfig)  # the published ones see the same noise in every epoch
        looks = config.training.looks if isinstance(config, LeanConfig) else 1
        own_seed, size = seeds.integer(seed, "training"), config.training.block
        known = Noisy(train, box, max_counts, own_seed, size, exposure, fresh, looks)
    epochs: tuple[Epoch, ...] = ()

    def fit(module: torch.nn.Module, sources: tuple[Source, Source], phase: RegressorPhaseConfig, name: str) -> None:
        from scatterflow.training import fit as fit_phase  # Lightning takes seconds to import

        nonlocal epochs
        plain = PhaseConfig(**phase.model_dump(include=set(PhaseConfig.model_fields)))
        run = TrainingConfig(**phase.model_dump(include=set(HardwareConfig.model_fields)))
        history = fit_phase(
            module, *sources, plain, run, work, name=name, seed=seed, identity=settings, earlier=epochs, log=log,
            tracker=tracker,
        )  # fmt: skip
        epochs += history.epochs

    if isinstance(config, DonutConfig) and config.train_on != "simulated":
        fit(network, _mixed(config, known, held, scan), config.training, config.network)
    elif known is None:
        raise ConfigError("train", f"must hold simulations for {config.network}", None, "simulate some first")
    else:
        if isinstance(network, Lean):
            part = slice(None, None, max(1, len(known.rows.theta) // 4000))
            unit = box.to_unit(torch.from_numpy(np.array(known.rows.theta[part])))
            network.prepare(torch.from_numpy(known.expected(part)), unit, seeds.integer(seed, "components"))
        fit(network, (known, held), config.training, config.network)
        if isinstance(config, LeanConfig) and isinstance(network, Lean) and scan is not None:
            physics = Physics(beam, film, box)
            module = LeanOnFrames(network, physics, config.frames.background)
            fit(module, _parted(scan), config.frames, "lean-frames")
    # DONUT's estimates cost forty times as much, and it is far from the bound: one draw
    draws = 1 if isinstance(config, DonutConfig) else min(_DRAWS, -(-_ESTIMATES // number))
    calibration = (
        Noisy(validation, box, max_counts, seeds.integer(held_seed, f"calibration {n}"), number, fresh=False)
        for n in range(draws)
    )
    regressor = _calibrated(regressor, (each.block(0, 0).tensors for each in calibration))
    regressor = replace(regressor, identity=identity or settings, meta=meta or {})
    log(_told(regressor))
    history = (work / "history.csv").read_text(encoding="utf-8")
    return regressor.save(folder, {"history.csv": history})


def _check(rows: Labelled, beam: NanobeamConfig, box: Box) -> None:
    theta = np.asarray(rows.theta)
    shape = (len(theta), *beam.shape)
    if rows.frames.shape != shape or theta.shape != (len(theta), len(box.names)) or not len(theta):
        raise ConfigError("simulations", f"must be {shape} with {len(box.names)} parameters", rows.frames.shape)
    unit = box.to_unit(torch.from_numpy(np.array(theta)))
    if not bool((unit.abs() <= 1 + 1e-6).all()):
        raise ConfigError("parameters of simulations", f"must lie between {box.low} and {box.high}")


def _mixed(config: DonutConfig, known: Noisy | None, held: Rows, scan: NDArray[Any] | None) -> tuple[Source, Source]:
    """What DONUT sees of a scan, with or without simulations; labels are not looked at. Raises ConfigError."""
    if scan is None:
        raise ConfigError("frames", f"must be given for train_on={config.train_on}", None, "name a scan")
    seen, later = _parted(scan)
    if config.train_on == "frames":
        return seen, later
    if known is None:
        raise ConfigError("train", "must hold simulations for train_on=both", None, "simulate some first")
    return Both(known, seen), Rows((torch.cat([held.tensors[0], later.tensors[0]]),))


@dataclass(frozen=True)
class Both:
    """Source of counts of simulations, and of a scan as one more block."""

    simulated: Noisy
    scan: Rows

    def __len__(self) -> int:
        return len(self.simulated) + len(self.scan)

    def borders(self) -> list[int]:
        """See `data.Source`."""
        return [*self.simulated.borders(), len(self)]

    def block(self, epoch: int, number: int) -> Rows:
        """See `data.Source`."""
        if number == self.simulated.blocks:
            return self.scan
        return Rows(self.simulated.block(epoch, number).tensors[:1])


def _parted(scan: NDArray[Any]) -> tuple[Rows, Rows]:
    """Frames to learn from, and every tenth to stop by."""
    counts = torch.from_numpy(np.array(scan, dtype=np.float32))
    later = torch.zeros(len(counts), dtype=torch.bool)
    later[:: round(1 / _HELD)] = True
    if later.all():
        raise ConfigError("frames", "must be at least 2", len(counts))
    return Rows((counts[~later],)), Rows((counts[later],))


def _calibrated(regressor: Regressor, draws: Iterable[tuple[Tensor, ...]]) -> Regressor:
    """The same with standard deviations of which 68.3 % of the validation errors are smaller, and the scores.

    One factor per parameter scales them. Of n errors it has a relative error of 1 / sqrt(n), half of that in coverage,
    whatever the network: hence several `draws` of the same frames' noise.
    """
    found = [(*regressor.predict(counts.numpy()), regressor.box.from_unit(unit).numpy()) for counts, unit in draws]
    values, sd, truth = (np.stack(each) for each in zip(*found, strict=True))  # (draw, frame, parameter)
    if not (np.isfinite(values).all() and np.isfinite(sd).all() and (sd > 0).all()):
        raise FrameError("estimates of validation frames", "must be finite", remedy="lower training.learning_rate")
    error = np.abs(values - truth)
    factor = np.maximum(np.quantile(error / sd, ONE_SD, axis=(0, 1)), 1e-6)
    sd = sd * factor
    # what normal distributions with these errors know of the truth beyond the box, as independent ones
    gain = (np.log(2 * regressor.box.half.numpy() / sd) - ((error / sd) ** 2 + np.log(2 * np.pi)) / 2).sum(2).mean(0)
    scores = {
        "rows": len(gain),
        "draws": len(error),
        "rms": np.sqrt((error**2).mean((0, 1))).tolist(),
        "bias": (values - truth).mean((0, 1)).tolist(),
        "median_sd": np.median(sd, axis=(0, 1)).tolist(),
        "coverage": (error <= sd).mean((0, 1)).tolist(),
        "gain": float(gain.mean()),
        "gain_se": float(gain.std() / np.sqrt(len(gain))),
    }
    return replace(regressor, sd_factor=tuple(factor.tolist()), scores=scores)


def _told(regressor: Regressor) -> str:
    """The errors, for people."""
    rms = zip(regressor.box.names, regressor.scores["rms"], strict=True)
    return "rms error on validation frames: " + ", ".join(f"{name} {error:.3g}" for name, error in rms)
