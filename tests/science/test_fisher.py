"""Derivatives against BornAgain's differences, and the Fisher information against its definition."""

import numpy as np
import pytest

from scatterflow import fisher
from scatterflow import instrument as geometry
from scatterflow.forward import bornagain
from scatterflow.multilayer import MultilayerStudy
from scatterflow.stages.cross_check import comparable
from tests.workflow.checkout import ROOT

pytestmark = pytest.mark.science
STEP = 2e-5  # of a parameter's range


@pytest.fixture(scope="module")
def study() -> MultilayerStudy:
    from scatterflow import load_study

    return load_study(ROOT / "tests" / "workflow" / "tiny.yaml", "multilayer")


def test_derivatives_are_bornagains_differences(study: MultilayerStudy) -> None:
    theta = study.prior.sample(3)
    found = study.derivatives(theta)
    for index, name in enumerate(study.prior.names):
        step = np.zeros(len(study.prior.names))
        step[index] = STEP * (study.prior.upper - study.prior.lower)[index]
        up, down = (
            bornagain.expected_counts(
                study.config.sample, study.config.instrument, theta.values + sign * step, study.views
            )
            for sign in (1, -1)
        )
        for view in study.views:
            high = comparable(study.config.instrument, view)
            slope = ((up[view] - down[view]) / (2 * step[index]))[:, high]
            own = found[f"d_{view}"].sel(parameter=name).values[:, high]
            worst = np.abs(own - slope).max(axis=(1, 2)) / np.abs(slope).max(axis=(1, 2))
            assert worst.max() < 2e-6, (view, name)


def test_remaining_sd_is_that_of_the_normal_posterior(study: MultilayerStudy) -> None:
    """Summed by hand over bins, and inverted on one parameter at a time: more knowledge of the others never hurts."""
    theta = study.prior.sample(2)
    found = study.derivatives(theta)
    share = geometry.valid_share(study.config.instrument, "profile")
    width = study.prior.conditional_upper(theta.values) - study.prior.lower
    remaining = fisher.remaining_sd(study, theta, "profile")
    for row in range(len(theta)):
        total = np.diag(12 / width[row] ** 2)
        for z in range(share.shape[0]):
            if share[z, 0] < study.config.observe.min_valid_share:
                continue
            slope = found["d_profile"].values[row, :, z, 0] * share[z, 0]
            total = total + np.outer(slope, slope) / (found["profile"].values[row, z, 0] * share[z, 0])
        by_hand = np.sqrt(np.diag(np.linalg.inv(total))) / (width[row] / np.sqrt(12))
        np.testing.assert_allclose(remaining[row], by_hand, rtol=1e-6)
        alone = np.sqrt(1 / np.diag(total)) / (width[row] / np.sqrt(12))
        assert (alone <= remaining[row] * (1 + 1e-9)).all()


def test_without_light_the_prior_remains(study: MultilayerStudy) -> None:
    dark = MultilayerStudy(
        study.name,
        study.config.model_copy(
            update={"instrument": study.config.instrument.model_copy(update={"beam_intensity": 1e-6})}
        ),
        study.seed,
        study.run,
    )
    np.testing.assert_allclose(fisher.remaining_sd(dark, study.prior.sample(3), "image"), 1.0, atol=1e-6)
