"""Gradients of expected counts with respect to every parameter, in both modes of the engine and of autograd."""

import numpy as np
import pytest
import torch

from scatterflow.config.instrument import InstrumentConfig
from scatterflow.forward.dwba import Engine, limits
from scatterflow.multilayer import multilayer_prior
from scatterflow.study import load_study
from tests import examples

pytestmark = [
    pytest.mark.science,
    # torch 2.13 itself, at the first use of forward mode
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
]
# parameters differ by nine orders of magnitude: differentiate with respect to their logarithms
VIEWS = {
    "profile": {"rows": ((20, 23), (30, 36)), "columns": (17, 23), "bins": (9, 1), "sampling": (1, 2)},
    "image": {"rows": ((18, 26),), "columns": (10, 30), "bins": (2, 4)},
}


def engine_of(mode: str, geometry: str = "bornagain", **options: object) -> tuple[Engine, torch.Tensor]:
    sample = examples.sample(**options)
    config = examples.instrument(geometry=geometry, views=VIEWS)
    log_theta = torch.tensor(examples.theta(2).values).log()
    return Engine(sample, config, ("profile", "image"), limits(sample), mode), log_theta


@pytest.mark.parametrize(
    ("transient", "cross", "geometry"), [("tanh", 2000.0, "bornagain"), ("erf", None, "flat"), ("erf", 30.0, "flat")]
)
def test_gradcheck_of_mode_reference(transient: str, cross: float | None, geometry: str) -> None:
    engine, log_theta = engine_of("reference", geometry, transient=transient, cross_correlation_length_nm=cross)

    def log_counts(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([counts.flatten() for counts in engine(x.exp()).values()]).log()

    x = log_theta.requires_grad_(True)
    assert torch.autograd.gradcheck(log_counts, (x,), eps=1e-5, atol=1e-7, rtol=1e-6, check_forward_ad=True)


@pytest.mark.parametrize("geometry", ["bornagain", "flat"])
def test_finite_differences_of_mode_fast(geometry: str) -> None:
    """Float32 counts bear differences of a few per cent of a parameter only: their error is that of the third order."""
    engine, log_theta = engine_of("fast", geometry)
    step = 5e-3
    shifts = step * torch.eye(log_theta.shape[1], dtype=torch.float64)
    exact = torch.func.jacrev(lambda x: engine(x.exp()[None])["image"][0])(log_theta[0])
    with torch.no_grad():
        up, down = (engine((log_theta[0] + sign * shifts).exp())["image"] for sign in (1, -1))
    difference = ((up.double() - down.double()) / (2 * step)).movedim(0, -1)
    counts = engine(log_theta[:1].exp())["image"][0].detach()
    relative = (difference - exact) / counts[..., None]
    print(f"\ngeometry {geometry}: differences of d log counts / d log parameter: at most {relative.abs().max():.1e}")
    assert relative.abs().max() <= 1e-3
    assert (exact / counts[..., None]).abs().amax(dim=(0, 1)).min() > 1e-3  # every parameter of this sample matters


def test_forward_mode_gives_the_same_jacobian() -> None:
    """As a Fisher matrix wants it: few parameters, many counts."""
    engine, log_theta = engine_of("fast")

    def profile(x: torch.Tensor) -> torch.Tensor:
        return engine(x.exp()[None])["profile"][0, :, 0]

    forward, reverse = torch.func.jacfwd(profile)(log_theta[0]), torch.func.jacrev(profile)(log_theta[0])
    torch.testing.assert_close(forward.double(), reverse, rtol=1e-4, atol=1e-4 * float(reverse.abs().max()))


@pytest.mark.parametrize("geometry", ["bornagain", "flat"])
def test_gradient_of_a_likelihood_of_72_parameters(geometry: str) -> None:
    """Rows of the paper's detector that meet critical angles: fast against reference, in the Poisson log-likelihood."""
    study = load_study("config/paper.yaml", "layers12").config
    views = {"v": {"rows": ((200, 230),), "columns": (150, 300), "bins": (30, 150)}}
    config = InstrumentConfig(geometry=geometry, views=views)
    theta = torch.tensor(multilayer_prior(study.sample, 5).sample(2).values)
    gradients = []
    for mode in ("fast", "reference"):
        engine = Engine(study.sample, config, ("v",), limits(study.sample), mode)
        with torch.no_grad():
            observed = Engine(study.sample, config, ("v",), limits(study.sample), "reference")(theta)["v"].round()
        x = theta[:1].log().requires_grad_(True)
        counts = engine(x.exp())["v"]
        gradients.append(torch.autograd.grad((observed[1:] * counts.log() - counts).sum(), x)[0])
    assert np.isfinite(gradients[0].numpy()).all()
    deviation = (gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max()
    print(f"\ngeometry {geometry}: gradient of the log-likelihood, fast against reference: {deviation:.1e}")
    assert deviation <= 1e-4
