"""Estimators of nanodiffraction against the forward model, its Fisher information and known parameters."""

from pathlib import Path

import numpy as np
import pytest
import torch

from scatterflow.baselines.likelihood import bound
from scatterflow.config.nanodiffraction import FilmConfig, NanobeamConfig
from scatterflow.config.regressor import DonutConfig, LeanConfig
from scatterflow.forward.nanodiffraction import PARAMETERS, intensities, kinematics, patterns
from scatterflow.models.donut import Donut
from scatterflow.models.lean import Lean, LeanOnFrames, _stabilised
from scatterflow.models.nanophysics import Box, Physics
from scatterflow.models.regressor import load_regressor
from scatterflow.models.regressor_training import Labelled, train_regressor
from scatterflow.progress import quiet

pytestmark = pytest.mark.science
BEAM, FILM = NanobeamConfig(), FilmConfig()
BOX = Box(("strain", "omega_deg", "chi_deg"), (-5e-3, -0.05, -0.1), (5e-3, 0.05, 0.1))
AT = kinematics(BEAM, FILM)
MAX_COUNTS = 7.0


def simulated(n: int, seed: int) -> Labelled:
    """Expected counts of parameters from the box."""
    theta = (2 * torch.rand(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1) * BOX.half
    with torch.no_grad():
        frames = torch.cat([intensities(AT, part).clamp_min(0) for part in theta.split(64)])
    return Labelled((MAX_COUNTS * frames / frames.amax((1, 2), keepdim=True)).numpy(), theta.numpy())


def noisy(rows: Labelled, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).poisson(rows.frames).astype(np.float32)


@pytest.fixture(scope="module")
def training_rows() -> Labelled:
    return simulated(3000, 1)


def test_the_ring_is_moved_to_where_it_is_without_tilts() -> None:
    """Chi moves frames along y exactly: by whole pixels, the moved frame is the one without chi."""
    lean = Lean(LeanConfig(), BEAM, FILM, BOX)
    columns = 4
    unit = torch.tensor([[0.0, 0.2, 0.0], [0.0, 0.2, columns / lean.moves[1][1]]], dtype=torch.float64)
    frames = intensities(AT, BOX.from_unit(unit))
    moved, rest = lean._move(frames, unit.float())
    inside = slice(columns, -columns)
    assert float((moved[0] - moved[1])[:, inside].abs().max() / moved.max()) < 1e-3
    assert float(rest[:, 1].abs().max()) < 1e-5
    assert float((frames[0] - frames[1])[:, inside].abs().max() / moved.max()) > 0.1


def test_omega_moves_the_edges_of_the_ring_along_z() -> None:
    """The sums of rows of a thin film, whose envelope is flat, move by what is said, to a tenth of a pixel."""
    lean = Lean(LeanConfig(), BEAM, FILM, BOX)
    thin = kinematics(BEAM, FilmConfig(thickness_nm=1e-3))
    rows = 4
    unit = torch.tensor([[0.0, 0.0, 0.0], [0.0, rows / lean.moves[0][1], 0.0]], dtype=torch.float64)
    moved, _ = lean._move(intensities(thin, BOX.from_unit(unit)), unit.float())
    inside = slice(rows + 1, -rows - 1)
    profiles = moved.sum(2)[:, inside]
    step = (profiles[0, 2:] - profiles[0, :-2]) / 2
    shift = ((profiles[1] - profiles[0])[1:-1] * step).sum() / step.square().sum()
    assert abs(float(shift)) < 0.1


def test_the_components_hold_the_fisher_information(training_rows: Labelled) -> None:
    """The Cramer-Rao bound from the projections of moved frames is the one from all pixels, within 3 %."""
    lean = Lean(LeanConfig(components=64), BEAM, FILM, BOX)
    unit = BOX.to_unit(torch.from_numpy(training_rows.theta))
    lean.prepare(torch.from_numpy(training_rows.frames), unit, 0)
    directions = torch.linalg.qr(lean.components.double())[0]
    at = BOX.to_unit(torch.from_numpy(simulated(40, 9).theta)) * 0.95
    sizes = torch.tensor([1e-2, 1e-3, 1e-3], dtype=torch.float64)
    scale = MAX_COUNTS / intensities(AT, BOX.from_unit(at)).amax((1, 2), keepdim=True)
    slopes = []
    for number, size in enumerate(sizes):
        change = torch.zeros(3, dtype=torch.float64)
        change[number] = size
        ends = [
            2 * (scale * intensities(AT, BOX.from_unit(at + sign * change)).clamp_min(0)).sqrt() for sign in (1, -1)
        ]
        slopes.append(lean._move((ends[0] - ends[1]) / (2 * size), at.float())[0].flatten(1))
    slope = torch.stack(slopes, dim=2).double()  # of counts with variance 1
    seen = torch.einsum("fpk,pc->fck", slope, directions)
    whole, kept = (
        torch.linalg.inv(each.transpose(1, 2) @ each).diagonal(dim1=1, dim2=2).sqrt() for each in (slope, seen)
    )
    loss = (kept / whole).median(0).values
    print("nanodiffraction, bound with 64 components over the bound with all pixels:", loss.numpy().round(4))
    assert float(loss.max()) < 1.03


@pytest.mark.parametrize("seed", [0, 1])
def test_the_lean_encoder_learns(training_rows: Labelled, tmp_path: Path, seed: int) -> None:
    """A training of seconds already comes near the bound, on every seed, with honest errors."""
    config = LeanConfig(training={"epochs": 2, "batch_size": 32})
    path = train_regressor(
        config, BEAM, FILM, BOX, training_rows, simulated(600, 2), MAX_COUNTS, tmp_path / "lean", seed=seed,
        log=print, tracker=quiet,
    )  # fmt: skip
    regressor = load_regressor(path.parent)
    held = simulated(600, 3)
    values, sd = regressor.predict(noisy(held, 4))
    least = bound(held.theta, AT, MAX_COUNTS)
    ratio = np.sqrt((((values - held.theta) / least) ** 2).mean(0))
    coverage = (np.abs(values - held.theta) <= sd).mean(0)
    size = f"{config.training.epochs} epochs of {len(training_rows.theta)} frames, seed {seed}"
    print(f"nanodiffraction, lean encoder, {size}: error over the bound {ratio.round(2)}, coverage {coverage.round(3)}")
    assert (ratio < 7).all()  # 700 steps: a full training ends at 1.1
    assert (np.abs(coverage - 0.683) < 0.09).all()  # 600 frames to calibrate with, 600 to judge
    # the amplitude of a frame does not matter to its values: twice the counts, the same answer
    doubled, _ = regressor.predict(2 * noisy(held, 4))
    assert (np.abs(doubled - values) < 0.5 * sd).mean() > 0.9


def test_thickness_is_a_fourth_parameter(tmp_path: Path) -> None:
    """Trainings of seconds learn all four parameters: errors well below the prior's standard deviation."""
    beam = NanobeamConfig(shape=(32, 32), pixel_mm=0.22)
    box = Box(PARAMETERS, (-5e-3, -0.01, -0.02, 8.0), (5e-3, 0.01, 0.02, 16.0))
    at, random = kinematics(beam, FILM), np.random.default_rng(0)

    def rows(number: int) -> Labelled:
        theta = random.uniform(box.low, box.high, (number, 4))
        frames = patterns(at, theta)
        return Labelled(MAX_COUNTS * frames / frames.max((1, 2), keepdims=True), theta)

    train, validation, held = rows(1200), rows(300), rows(300)
    counts, prior_sd = noisy(held, 1), box.half.numpy() / np.sqrt(3)
    donut = {"channels": (4, 8, 16, 32), "training": {"epochs": 4, "learning_rate": 5e-4}}
    for config, most in (
        (LeanConfig(training={"epochs": 2, "batch_size": 32}), 0.3),
        (DonutConfig(**donut), 0.8),  # without labels: the forward model tells it what thickness is
    ):
        path = train_regressor(
            config, beam, FILM, box, train, validation, MAX_COUNTS, tmp_path / config.network, seed=0,
            log=lambda _: None, tracker=quiet,
        )  # fmt: skip
        values, sd = load_regressor(path.parent).predict(counts)
        error = values - held.theta
        ratio, coverage = np.sqrt((error**2).mean(0)) / prior_sd, (np.abs(error) <= sd).mean(0)
        print(
            f"nanodiffraction, {config.network} with thickness: error over the prior's sd {ratio.round(3)}, bias "
            f"{(error.mean(0) / prior_sd).round(3)}, coverage {coverage.round(3)}"
        )
        assert (ratio < most).all()
        assert (np.abs(coverage - 0.683) < 0.12).all()  # 300 frames to calibrate with, 300 to judge


def test_the_bound_on_a_scan_leads_a_biased_encoder_back(training_rows: Labelled) -> None:
    """Frames without labels correct an encoder that is off by several errors, in the mean over frames."""
    torch.manual_seed(0)
    physics = Physics(BEAM, FILM, BOX)
    rows = simulated(48, 5)
    frames, truth = torch.from_numpy(noisy(rows, 6)), BOX.to_unit(torch.from_numpy(rows.theta)).float()
    sd = torch.from_numpy(bound(rows.theta, AT, MAX_COUNTS) / BOX.half.numpy()).float()

    class Offset(torch.nn.Module):
        """The truth, moved by the same number of standard deviations in every frame."""

        def __init__(self) -> None:
            super().__init__()
            self.number = torch.nn.Parameter(torch.tensor([5.0, -5.0, 5.0]))

        def forward(self, _: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return truth + self.number * sd, sd

    encoder = Offset()
    task = LeanOnFrames(encoder, physics, LeanConfig().frames.background)
    # in standard deviations the curvature of a frame's likelihood is about 1, and the loss is per pixel
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.4 * frames[0].numel())
    for _ in range(15):
        optimizer.zero_grad()
        task.loss(frames).mean().backward()
        optimizer.step()
    assert float(encoder.number.detach().abs().max()) < 1


def test_the_physics_term_of_donut_is_flat_outside_the_box() -> None:
    """Why DONUT is fragile: where its output can reach but its frames do not, hardly anything leads back."""
    physics = Physics(BEAM, FILM, BOX)
    generator = torch.Generator().manual_seed(0)
    truth = (2 * torch.rand(40, 3, generator=generator) - 1) * 0.5
    frames = physics(truth)
    reach = 2 * 1.7159
    inside, outside = (2 * torch.rand(2, 40, 3, generator=generator) - 1) * torch.tensor([0.5, reach])[:, None, None]
    outside[:, 0] = reach * outside[:, 0].sign()
    towards = []
    for unit in (inside, outside):
        unit.requires_grad_()
        error = (physics(unit) - frames).abs().sum((1, 2))
        slope = torch.autograd.grad(error.sum(), unit)[0]
        direction = torch.nn.functional.normalize(unit.detach() - truth, dim=1)
        towards.append((slope * direction).sum(1))  # how fast the error falls on the straight way to the truth
    print(f"nanodiffraction, slope of DONUT's physics term towards the truth: {towards[0].mean():.3f} from inside the box, "
          f"{towards[1].mean():.3f} from outside")  # fmt: skip
    assert float((towards[0] > 0).float().mean()) > 0.95
    assert float(towards[1].mean()) < 0.25 * float(towards[0].mean())


def test_donut_learns_without_labels(training_rows: Labelled) -> None:
    """The loss of few, noiseless frames falls below that of a dark frame, and the latent variables order as the truth."""
    torch.manual_seed(0)
    donut = Donut(DonutConfig(channels=(8, 16, 32, 32)), BEAM, FILM, BOX)
    frames = torch.from_numpy(training_rows.frames[:32])
    truth = BOX.to_unit(torch.from_numpy(training_rows.theta[:32]))
    optimizer = torch.optim.AdamW(donut.parameters(), lr=1e-3)
    before = float(donut.loss(frames).mean().detach())
    for _ in range(80):
        optimizer.zero_grad()
        loss = donut.loss(frames).mean()
        loss.backward()
        optimizer.step()
    after = float(loss.detach())
    donut.eval()
    with torch.no_grad():
        values = donut(frames)[0]
    correlation = [float(np.corrcoef(values[:, k], truth[:, k])[0, 1]) for k in range(3)]
    print(
        f"nanodiffraction, DONUT on 32 frames: loss {before:.3f} to {after:.3f}, correlation {np.round(correlation, 2)}"
    )
    assert after < 0.5 * before
    assert min(correlation) > 0.75


def test_stabilised_counts_have_the_same_variance() -> None:
    """Square roots of Poisson counts: 4 var(sqrt n) is 1 within 25 % from 4 counts on, whatever the intensity."""
    counts = torch.poisson(torch.tensor([4.0, 7.0, 30.0])[:, None, None].expand(3, 300, 300))
    variance = (_stabilised(counts) * counts.mean((1, 2), keepdim=True).sqrt()).var((1, 2))
    assert float((variance - 1).abs().max()) < 0.25
