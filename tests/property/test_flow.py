"""The flow as mathematics, for any weights: a normalised, invertible density that starts as the prior."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scatterflow.config.model import FlowConfig
from scatterflow.models import fastflow
from scatterflow.models.flow import ConditionalFlow, log_prior
from scatterflow.models.posterior import sobol
from scatterflow.prior import Parameter, Prior

CONDITION = 6
shapes = st.fixed_dictionaries(
    {
        "parameters": st.integers(1, 9),
        "hidden": st.integers(1, 24),
        "transforms": st.integers(1, 4),
        "layers": st.integers(1, 3),
        "permutation": st.sampled_from(["random", "reverse"]),
        "seed": st.integers(0, 2**31 - 1),
    }
)


def flow_of(parameters: int, seed: int, spread: float = 0.3, **options) -> ConditionalFlow:
    """A flow with random weights."""
    torch.manual_seed(seed)
    flow = ConditionalFlow(parameters, CONDITION, FlowConfig(**options)).eval().requires_grad_(False)
    for weight in flow.parameters():
        weight += spread * torch.randn_like(weight) / np.sqrt(max(weight.shape))
    return flow


def draws(flow_seed: int, rows: int, width: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(flow_seed))


@settings(max_examples=30, deadline=None)
@given(shapes)
def test_untrained_flow_is_the_prior(shape):
    flow = flow_of(spread=0.0, **shape)
    normal, condition = draws(1, 40, shape["parameters"]), 10 * draws(2, 40, CONDITION)
    gain = flow.log_prob(normal, condition) - log_prior(normal)
    assert float(gain.abs().max()) < 1e-4  # float32 rounding of |log q| of some tens
    noise = draws(3, 40, shape["parameters"]).numpy()
    samples = fastflow.draw(fastflow.prepare(flow), noise, condition.numpy())
    # the noise itself, in the order of the permutations
    np.testing.assert_allclose(np.sort(samples, axis=1), np.sort(noise, axis=1), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_fast_samples_equal_those_of_nflows(shape):
    flow = flow_of(**shape)
    noise, condition = draws(1, 30, shape["parameters"]), draws(2, 30, CONDITION)
    mean, log_sd = flow.base._compute_params(condition)
    expected = flow.transform.inverse(mean + torch.exp(log_sd) * noise, condition)[0].numpy()
    found = fastflow.draw(fastflow.prepare(flow), noise.numpy(), condition.numpy())
    np.testing.assert_allclose(found, expected, atol=5e-6 * max(1.0, np.abs(expected).max()))


@settings(max_examples=10, deadline=None)
@given(shapes)
def test_a_condition_may_stand_for_many_samples(shape):
    flow, each = fastflow.prepare(flow_of(**shape)), 150  # so that blocks of rows end within one
    noise, condition = draws(1, 4 * each, shape["parameters"]).numpy(), draws(2, 4, CONDITION).numpy()
    expected = fastflow.draw(flow, noise, np.repeat(condition, each, axis=0))
    found = fastflow.draw(flow, noise, condition)
    np.testing.assert_allclose(found, expected, atol=5e-6 * max(1.0, np.abs(expected).max()))


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(1, 5))
def test_fast_density_equals_that_of_nflows(shape, rows):
    flow = flow_of(**shape)
    condition = draws(2, 7, CONDITION)
    normal = draws(1, 7 * rows, shape["parameters"])
    expected = flow.log_prob(normal, condition.repeat_interleave(rows, dim=0)).numpy().reshape(7, rows)
    grouped = normal.numpy().reshape(7, rows, -1)
    found = fastflow.log_density(fastflow.prepare(flow), grouped, condition.numpy())
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_sampling_inverts_the_map_to_noise(shape):
    flow = flow_of(**shape)
    noise, condition = draws(1, 30, shape["parameters"]), draws(2, 30, CONDITION)
    samples = torch.from_numpy(fastflow.draw(fastflow.prepare(flow), noise.numpy(), condition.numpy()))
    back, _ = flow.transform(samples, condition)
    mean, log_sd = flow.base._compute_params(condition)
    torch.testing.assert_close((back - mean) / torch.exp(log_sd), noise, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_density_integrates_to_one(seed):
    flow = flow_of(2, seed, hidden=16, transforms=3)
    condition = draws(seed, 1, CONDITION)
    noise = draws(seed + 9, 2000, 2).numpy()
    samples = fastflow.draw(fastflow.prepare(flow), noise, condition.expand(2000, -1).numpy())
    first, second = (
        torch.linspace(float(middle - 10 * sd), float(middle + 10 * sd), 801)
        for middle, sd in zip(samples.mean(axis=0), samples.std(axis=0), strict=True)
    )
    grid = torch.cartesian_prod(first, second)
    density = flow.log_prob(grid, condition.expand(len(grid), -1)).double().exp()
    assert float(density.sum() * (first[1] - first[0]) * (second[1] - second[0])) == pytest.approx(1, abs=2e-3)
    moment = (density[:, None] * grid).sum(dim=0) / density.sum()  # and its samples are its samples
    np.testing.assert_allclose(moment, samples.mean(axis=0), atol=5 * samples.std(axis=0).max() / np.sqrt(2000))


@pytest.mark.parametrize("seed", range(3))
def test_log_determinant_is_that_of_the_jacobian(seed):
    flow = flow_of(5, seed, hidden=16).double()
    normal, condition = draws(seed, 1, 5).double(), draws(seed + 9, 1, CONDITION).double()
    jacobian = torch.autograd.functional.jacobian(lambda u: flow.transform(u[None], condition)[0][0], normal[0])
    _, log_determinant = flow.transform(normal, condition)
    assert float(torch.linalg.slogdet(jacobian)[1]) == pytest.approx(float(log_determinant), abs=1e-7)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0.1, 5))
def test_no_sample_leaves_the_support_whatever_the_weights(seed, spread):
    names = ("delta", "beta", "thickness", "roughness")
    caps = ("", "delta", "", "thickness")
    prior = Prior(
        tuple(Parameter(n, 0.1, 1.0 + 3 * i, "nm", c) for i, (n, c) in enumerate(zip(names, caps, strict=True)))
    )
    flow = fastflow.prepare(flow_of(4, seed, spread=spread, hidden=16))
    normal = fastflow.draw(flow, draws(1, 300, 4).numpy(), draws(2, 300, CONDITION).numpy())
    assert np.isfinite(normal).all()
    assert prior.inside(prior.from_normal(normal)).all()


def test_fast_samples_of_the_papers_size_equal_those_of_nflows():
    torch.manual_seed(0)
    flow = ConditionalFlow(72, 96, FlowConfig()).eval().requires_grad_(False)
    for weight in flow.parameters():
        weight += 0.02 * torch.randn_like(weight)
    noise, condition = draws(1, 500, 72), draws(2, 500, 96)
    mean, log_sd = flow.base._compute_params(condition)
    expected = flow.transform.inverse(mean + torch.exp(log_sd) * noise, condition)[0].numpy()
    found = fastflow.draw(fastflow.prepare(flow), noise.numpy(), condition.numpy())
    assert np.abs(found - expected).max() < 5e-6 * max(1.0, np.abs(expected).max())


@given(st.integers(1, 6), st.sampled_from([64, 256]))
@settings(max_examples=12, deadline=None)
def test_latent_points_are_standard_normal(dimensions, n):
    points = sobol(n, dimensions).numpy()
    assert points.shape == (n, dimensions)
    assert np.isfinite(points).all()
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=3 / n)  # far below the 1 / sqrt(n) of random points
    np.testing.assert_allclose(points.var(axis=0), 1, atol=10 / n)
    np.testing.assert_array_equal(points, sobol(n, dimensions).numpy())
