"""Encoder, CVAE, posterior and estimator on random weights: shapes, masks, modes, batches, errors."""

import numpy as np
import pytest
import torch
import xarray as xr
from pydantic import TypeAdapter, ValidationError
from scipy.stats import norm

from scatterflow.config.model import CvaeConfig, EncoderConfig, ModelConfig
from scatterflow.data import Inputs, split, to_tensors
from scatterflow.errors import BundleError, ConfigError, StoreError
from scatterflow.models.cvae import Cvae
from scatterflow.models.encoder import Encoder
from scatterflow.models.estimator import Estimator, modes
from scatterflow.models.fitting import fit_modes, mixture_shares
from scatterflow.models.networks import Networks
from scatterflow.models.posterior import ModeFit
from scatterflow.prior import Parameter, Prior

PRIOR = Prior(
    (
        Parameter("a.thickness_nm", 0.3, 4.7, "nm"),
        Parameter("a.roughness_nm", 0.3, 5.0, "nm", "a.thickness_nm"),
        Parameter("a.hurst", 0.1, 0.9),
    )
)
POINTS, SHAPE, ROWS = 20, (13, 6), 30
KINDS = {
    "cvae-maf": ("image+profile", "profile"),
    "summary-maf": ("image+profile", "profile"),
    "maf-profile": ("profile",),
}


def features(n: int = ROWS, seed: int = 0) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    mask = np.ones((n, *SHAPE), dtype=bool)
    mask[:, 3:5, 2] = False
    dims = ("simulation", "z_image", "y_image")
    return xr.Dataset(
        {
            "profile": (("simulation", "profile_point"), rng.random((n, POINTS), dtype=np.float32)),
            "mask_profile": (("simulation", "profile_point"), np.ones((n, POINTS), dtype=bool)),
            "image": (dims, np.where(mask, rng.random((n, *SHAPE), dtype=np.float32), 0)),
            "mask_image": (dims, mask),
        }
    )


def config_of(kind: str, **flow) -> ModelConfig:
    small = {"hidden": 16, "transforms": 3, "encoder": {"hidden": 8, "outputs": 6}, **flow}
    content = {"kind": kind, "flow": small}
    if kind == "cvae-maf":
        content["cvae"] = {"channels": [4, 6], "latent": 2, "encoder": {"hidden": 8, "outputs": 6}}
    if kind == "summary-maf":
        small.pop("encoder")
        content["summary"] = {"profile_components": 8, "image_components": 10, "hidden": 8, "outputs": 6}
    return TypeAdapter(ModelConfig).validate_python(content)


def estimator_of(kind: str, spread: float = 0.3, **flow) -> Estimator:
    """An estimator with random weights; its density is as good as any other."""
    torch.manual_seed(3)
    config = config_of(kind, **flow)
    networks = Networks(config, Inputs(POINTS, SHAPE), len(PRIOR.names)).eval().requires_grad_(False)
    if kind == "summary-maf":
        networks.fit_scaling(to_tensors(features(200, seed=8)))
    for weight in networks.parameters():
        weight += spread * torch.randn_like(weight) / np.sqrt(max(weight.shape))
    fits = {mode: ModeFit(draws=16 if kind == "cvae-maf" else 1, prior_share=0.1) for mode in KINDS[kind]}
    return Estimator(config, PRIOR, Inputs(POINTS, SHAPE), networks, fits)


@pytest.fixture(scope="module", params=list(KINDS))
def estimator(request) -> Estimator:
    return estimator_of(request.param)


def test_modes(estimator):
    assert estimator.modes == KINDS[estimator.config.kind]
    with pytest.raises(ConfigError, match="inference mode must be one of"):
        estimator.posterior(features(), mode="guess")


def test_samples_are_labelled_reproducible_and_independent_of_the_batch(estimator):
    for mode in estimator.modes:
        posterior = estimator.posterior(features(), mode)
        samples = posterior.sample(40, seed=5)
        assert samples.dims == ("observation", "sample", "parameter")
        assert samples.shape == (ROWS, 40, 3)
        assert list(samples.parameter.values) == list(PRIOR.names)
        assert list(samples.unit.values) == list(PRIOR.units)
        assert PRIOR.inside(samples).all()
        np.testing.assert_array_equal(samples, posterior.sample(40, seed=5))
        assert not np.array_equal(samples, posterior.sample(40, seed=6))
        first = estimator.posterior(features().isel(simulation=slice(0, 4)), mode).sample(40, seed=5)
        np.testing.assert_allclose(first, samples[:4], rtol=1e-4, atol=1e-6)
        assert posterior.sample(0).shape == (ROWS, 0, 3)
        with pytest.raises(ConfigError, match="must not be negative"):
            posterior.sample(-1)


def test_density_shapes_batches_and_names(estimator):
    theta = PRIOR.sample(ROWS, seed=2)
    for mode in estimator.modes:
        posterior = estimator.posterior(features(), mode)
        density = posterior.log_prob(theta)
        assert density.dims == ("observation",)
        assert density.attrs["units"] == "nat"
        many = np.stack([theta.values] * 3, axis=1)
        each = posterior.log_prob(many)
        assert each.dims == ("observation", "sample")
        np.testing.assert_allclose(each, np.repeat(density.values[:, None], 3, axis=1), rtol=1e-4, atol=1e-4)
        few = estimator.posterior(features().isel(simulation=slice(0, 4)), mode)
        np.testing.assert_allclose(few.log_prob(theta[:4]), density[:4], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(posterior.log_prob(theta.isel(parameter=[2, 0, 1])), density, rtol=1e-6)
        gain = posterior.information_gain(theta)
        np.testing.assert_allclose(density - PRIOR.log_prob_box(theta), gain, atol=1e-9)
        with pytest.raises(ConfigError, match="one row per observation"):
            posterior.log_prob(theta[:4])


def test_no_density_and_no_gain_outside_the_support(estimator):
    outside = np.tile([1.0, 2.0, 0.5], (ROWS, 1))  # roughness above thickness
    posterior = estimator.posterior(features())
    assert (posterior.log_prob(outside).values == -np.inf).all()
    assert (posterior.log_prob(np.full((ROWS, 3), np.nan)).values == -np.inf).all()
    with pytest.raises(ConfigError, match=f"{ROWS} rows outside"):
        posterior.information_gain(outside)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_density_is_that_of_the_samples(kind, share):
    """E_q[f / q] = 1 for the prior f: samples and density belong together: mixture over z, widening, prior's share."""
    base = estimator_of(kind, spread=0.5)
    fits = {mode: ModeFit(draws=512, widths=(0.9, 1.2), shares=(0.7, 0.3), prior_share=share) for mode in base.modes}
    estimator = Estimator(base.config, base.prior, base.inputs, base.networks, fits)
    for mode in estimator.modes:
        posterior = estimator.posterior(features(2), mode)
        samples = posterior.sample(4000, seed=1)
        gain = posterior.log_prob(samples, draws=64).values - PRIOR.log_prob_box(samples)
        assert np.abs(gain).mean() > 0.02, "the density must differ from the prior for the test to mean something"
        ratio = np.exp(-gain)
        error = ratio.std(axis=1) / np.sqrt(4000)
        assert (np.abs(ratio.mean(axis=1) - 1) < 5 * error + 0.02).all()


def test_the_prior_bounds_the_density_from_below():
    estimator = estimator_of("maf-profile", spread=3.0)
    theta = PRIOR.sample(ROWS, seed=1)
    gain = estimator.posterior(features()).information_gain(theta).values
    assert gain.min() >= np.log(0.1) - 1e-6
    without = Estimator(estimator.config, PRIOR, estimator.inputs, estimator.networks, {"profile": ModeFit()})
    assert without.posterior(features()).information_gain(theta).values.min() < np.log(0.1)


@pytest.mark.parametrize("kind", ["cvae-maf", "summary-maf"])
def test_the_profile_mode_does_not_see_the_image(kind):
    estimator = estimator_of(kind)
    other = features().assign(image=features(seed=9)["image"])
    theta = PRIOR.sample(ROWS, seed=2)
    same = [estimator.posterior(each, "profile").log_prob(theta).values for each in (features(), other)]
    np.testing.assert_array_equal(*same)
    differ = [estimator.posterior(each, "image+profile").log_prob(theta).values for each in (features(), other)]
    assert np.abs(differ[0] - differ[1]).max() > 1e-4


def test_masked_image_bins_have_no_influence():
    cvae = estimator_of("cvae-maf").networks.cvae
    told = features()
    image, mask = (torch.from_numpy(told[name].values) for name in ("image", "mask_image"))
    condition = torch.zeros(ROWS, 6)
    changed = torch.where(mask, image, torch.tensor(7.0))
    for first, second in zip(cvae.encode(condition, image, mask), cvae.encode(condition, changed, mask), strict=True):
        torch.testing.assert_close(first, second)
    losses = []
    for each in (image, changed):
        torch.manual_seed(0)
        losses.append(cvae.loss(condition, each, mask)[0])
    torch.testing.assert_close(*losses)


def test_a_withheld_image_and_masked_bins_have_no_influence_on_the_summary():
    networks = estimator_of("summary-maf").networks
    told = to_tensors(features())
    profile, image = (told.profile, told.valid_profile), (told.image, told.valid_image)
    changed = torch.where(told.valid_image, told.image, torch.tensor(7.0))
    seen = networks.encoder(*profile, *image)
    torch.testing.assert_close(networks.encoder(*profile, changed, told.valid_image), seen)
    given = torch.arange(ROWS) % 2 == 0
    mixed = networks.encoder(*profile, *image, given)
    torch.testing.assert_close(mixed[given], seen[given])
    torch.testing.assert_close(mixed[~given], networks.encoder(*profile)[~given])
    assert float((seen - networks.encoder(*profile)).abs().min()) > 0


def test_without_withheld_images_the_profile_alone_is_no_mode():
    config = config_of("summary-maf")
    always = config.model_copy(update={"summary": config.summary.model_copy(update={"withheld": 0.0})})
    assert modes(config) == ("image+profile", "profile")
    assert modes(always) == ("image+profile",)


def test_a_mixture_as_base_keeps_the_density_exact():
    """A flow that is the prior, with a base of two widths: each parameter has their mean variance."""
    widths, shares = np.array([0.8, 2.0]), np.array([0.75, 0.25])
    plain = estimator_of("maf-profile", spread=0.0)
    fit = ModeFit(widths=tuple(widths), shares=tuple(shares))
    posterior = Estimator(plain.config, PRIOR, plain.inputs, plain.networks, {"profile": fit}).posterior(features())
    theta = PRIOR.sample(ROWS, seed=2)
    normal = PRIOR.to_normal(theta)
    each = norm.logpdf(normal[..., None], scale=widths).sum(axis=1)
    expected = np.log((shares * np.exp(each)).sum(axis=1)) - norm.logpdf(normal).sum(axis=1)
    np.testing.assert_allclose(posterior.information_gain(theta), expected, atol=1e-4)
    found = PRIOR.to_normal(posterior.sample(4000)).var()
    assert found == pytest.approx((shares * widths**2).sum(), rel=0.02)


@pytest.mark.parametrize("factor", [0.9, 1.6])
def test_recalibration_finds_a_width_that_is_wrong(factor):
    """The parameters come from the flow that is the prior, but its base is told to be 1 / factor as wide."""
    estimator = estimator_of("maf-profile", spread=0.0, mix_prior=False)
    estimator.networks.flow.base._context_encoder.bias[3:] -= float(np.log(factor))
    rows = features(2000).assign(parameters=PRIOR.sample(2000, seed=4))
    fit = fit_modes(estimator, rows, log=lambda _: None)["profile"]
    assert fit.mean_width == pytest.approx(factor, rel=0.05)
    assert fit.gain == pytest.approx(0, abs=5e-3)


def test_recalibration_finds_heavy_tails():
    """One parameter vector in four is twice as far out as the flow believes: the log density it gains is the exact one."""
    estimator = estimator_of("maf-profile", spread=0.0)
    rows, rng = 4000, np.random.default_rng(0)
    scale = np.where(rng.random(rows) < 0.25, 2.0, 1.0)
    normal = (scale[:, None] * rng.standard_normal((rows, 3))).clip(-5, 5)
    told = features(rows).assign(parameters=PRIOR.dataarray(PRIOR.from_normal(normal)))
    fit = fit_modes(estimator, told, log=lambda _: None)["profile"]
    each = norm.logpdf(normal[..., None], scale=[1.0, 2.0]).sum(axis=1)
    exact = np.log((np.array([0.75, 0.25]) * np.exp(each)).sum(axis=1)) - norm.logpdf(normal).sum(axis=1)
    assert fit.gain == pytest.approx(exact.mean(), abs=0.02)
    assert exact.mean() > 0.1, "or there is nothing to find"


def test_cvae_loss_is_the_negative_evidence_lower_bound():
    """Against torch's own distributions, for one sample of z."""
    cvae = estimator_of("cvae-maf", spread=0.1).networks.cvae
    image, mask = (torch.from_numpy(features()[name].values) for name in ("image", "mask_image"))
    condition = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    loss, latent = cvae.loss(condition, image, mask)
    normal = torch.distributions.Normal
    posterior = normal(*cvae.encode(condition, image, mask))
    divergence = torch.distributions.kl_divergence(posterior, normal(0.0, 1.0)).sum(dim=1)
    likelihood = (normal(*cvae.decode(condition, latent)).log_prob(image) * mask).sum(dim=(1, 2))
    torch.testing.assert_close(loss, divergence - likelihood, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(128, 16), (30, 8), (13, 6), (7, 5), (1, 1)])
def test_decoder_mirrors_the_encoder_for_any_image(shape):
    config = CvaeConfig(channels=(3, 4, 5, 6, 7, 8), encoder=EncoderConfig(outputs=5))
    cvae = Cvae(POINTS, shape, config).eval()
    image = torch.rand(2, *shape)
    mean, sd = cvae.encode(torch.zeros(2, 5), image, torch.ones(2, *shape, dtype=torch.bool))
    rebuilt, spread = cvae.decode(torch.zeros(2, 5), mean)
    assert mean.shape == sd.shape == (2, 4)
    assert rebuilt.shape == spread.shape == image.shape
    assert float(spread.detach().min()) > config.sd_floor
    assert len(cvae.encoder) == len(cvae.decoder) == 6


def test_encoder_scaling_whitens_and_ignores_masks_it_never_saw():
    profile = torch.randn(500, POINTS) @ torch.randn(POINTS, POINTS)
    valid = torch.ones(500, POINTS, dtype=torch.bool)
    for components in (None, 5):
        encoder = Encoder(POINTS, 0, EncoderConfig(components=components))
        encoder.fit_scaling(profile)
        scaled = (profile - encoder.mean) @ encoder.projection
        assert scaled.shape[1] == (components or POINTS)
        np.testing.assert_allclose(scaled.mean(dim=0), 0, atol=1e-4)
        np.testing.assert_allclose(scaled.var(dim=0), 1, rtol=1e-3)
        if components:
            np.testing.assert_allclose(torch.cov(scaled.T), np.eye(components), atol=1e-3)
        holes = valid.clone()
        holes[:, 3:7] = False
        torch.testing.assert_close(encoder(profile, holes), encoder(profile, valid))


def test_predict_is_median_and_spread_of_the_posterior(estimator):
    samples = estimator.posterior(features()).sample(500, seed=4).values
    found = estimator.predict(features(), n=500, seed=4)
    assert set(found) == {name + end for name in PRIOR.names for end in ("", "_sd")}
    for index, name in enumerate(PRIOR.names):
        np.testing.assert_allclose(found[name], np.median(samples[:, :, index], axis=1))
        np.testing.assert_allclose(found[f"{name}_sd"], samples[:, :, index].std(axis=1, ddof=1))
        assert found[name].attrs["units"] == PRIOR.units[index]


def test_map_is_the_densest_sample(estimator):
    posterior = estimator.posterior(features(5))
    best = posterior.map(50, seed=2)
    assert best.dims == ("observation", "parameter")
    densest = posterior.log_prob(posterior.sample(50, seed=2)).max("sample")
    np.testing.assert_allclose(posterior.log_prob(best), densest, rtol=1e-4, atol=1e-4)


def test_reconstruct(estimator):
    if not estimator.rebuilds:
        with pytest.raises(BundleError, match="must hold a decoder"):
            estimator.reconstruct(features())
        return
    rebuilt = estimator.reconstruct(features(), n=64, seed=1)
    assert rebuilt["image"].dims == rebuilt["image_sd"].dims == ("observation", "z_image", "y_image")
    assert rebuilt["image"].shape == (ROWS, *SHAPE)
    first = estimator.reconstruct(features().isel(simulation=slice(0, 3)), n=64, seed=1)
    np.testing.assert_allclose(first["image"], rebuilt["image"][:3], atol=1e-5)
    other = estimator.reconstruct(features().assign(image=features(seed=9)["image"]), n=64, seed=1)
    xr.testing.assert_allclose(other, rebuilt)  # the image is no input
    assert float(rebuilt["image_sd"].min()) > estimator.config.cvae.sd_floor


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop_vars("mask_image"), "must hold mask_image"),
        (lambda f: f.isel(profile_point=slice(0, 7)), "must have the model's shape"),
        (lambda f: f.isel(simulation=0), "must hold profile"),
        (lambda f: f.assign(profile=f["profile"] * np.nan), "features profile must be finite"),
    ],
)
def test_features_that_do_not_fit_are_refused_in_one_line(estimator, change, message):
    with pytest.raises(BundleError, match=message) as error:
        estimator.posterior(change(features()))
    assert "\n" not in str(error.value)


def test_split():
    roles = np.array(["held_back"] * 5 + ["train"] * (ROWS - 5))
    told = features().assign_coords(split=("simulation", roles))
    assert split(told, "train").sizes["simulation"] == ROWS - 5
    with pytest.raises(StoreError, match="must hold validation rows"):
        split(told, "validation")
    with pytest.raises(StoreError, match="coordinate `split`"):
        split(features(), "train")


def test_mixture_shares_are_the_best_ones():
    rng = np.random.default_rng(0)
    gain = rng.normal(2, 1, 300)
    gain[:15] = -20  # an estimator that is sure and wrong now and then

    def score(share):
        return np.logaddexp(np.log1p(-share) + gain, np.log(share)).mean()

    best = mixture_shares(np.stack([gain, np.zeros(300)], axis=1))
    assert best.sum() == pytest.approx(1)
    assert score(best[1]) >= max(score(share) for share in np.linspace(0.001, 0.5, 500)) - 1e-6


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"kind": "cvae"}, "cvae"),
        ({"kind": "maf-profile", "cvae": {}}, "cvae"),
        ({"kind": "maf-profile", "flow": {"family": "spline"}}, "family"),
        ({"kind": "maf-profile", "flow": {"dropout": 1.0}}, "dropout"),
        ({"kind": "maf-profile", "training": {"flow": {"budget_s": 0}}}, "budget_s"),
        ({"kind": "cvae-maf", "cvae": {"channels": []}}, "channels"),
        ({"kind": "summary-maf", "flow": {"encoder": {}}}, "encoder"),
        ({"kind": "summary-maf", "summary": {"withheld": 1.0}}, "withheld"),
        ({"kind": "maf-profile", "training": {"data": "fresh"}}, "data"),
    ],
)
def test_wrong_configuration_is_refused(change, where):
    with pytest.raises(ValidationError, match=where):
        TypeAdapter(ModelConfig).validate_python(change)
