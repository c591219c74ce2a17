"""ABC over 500,000 profiles against scikit-learn's brute-force neighbours, same data, same run, one core.

pytest benchmarks/bench_abc.py --benchmark-only -s
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from scatterflow.baselines import fit
from scatterflow.config.baselines import BaselinesConfig
from scatterflow.prior import Parameter, Prior

LIBRARY, FEATURES, PARAMETERS = 500_000, 359, 18
TARGET_S = 0.2  # per observation; the paper states 45 s (Zhdanov et al. 2022, table 1)


@pytest.fixture(scope="module", autouse=True)
def one_core():
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def problem():
    """Synthetic profiles: smooth in the parameters, with noise, scaled like real ones."""
    prior = Prior(tuple(Parameter(f"p{i}", 0.0, 1.0) for i in range(PARAMETERS)))
    theta = prior.sample(LIBRARY, seed=0)
    rng = np.random.default_rng(0)
    waves = np.sin(np.linspace(0, 20, FEATURES) * np.linspace(0.5, 3, PARAMETERS)[:, None]) / PARAMETERS
    features = 0.5 + theta.values.astype(np.float32) @ waves.astype(np.float32)
    features += 0.02 * rng.standard_normal(features.shape, dtype=np.float32)
    return features, theta, prior


@pytest.fixture(scope="module")
def library(problem):
    features, theta, prior = problem
    return fit(features, theta, prior, BaselinesConfig())


@pytest.fixture(scope="module")
def peer_seconds(problem):
    """scikit-learn: same number of neighbours, seconds per observation for 1 and for 64 observations."""
    features = problem[0]
    peer = NearestNeighbors(n_neighbors=LIBRARY // 500, algorithm="brute").fit(features)
    seconds = {}
    for n in (1, 64):
        start = time.perf_counter()
        peer.kneighbors(features[:n])
        seconds[n] = (time.perf_counter() - start) / n
    return seconds


@pytest.mark.parametrize("observations", [1, 64])
@pytest.mark.parametrize("method", ["abc-kde", "abc-regression"])
def test_posterior(benchmark, problem, library, peer_seconds, method, observations):
    features = problem[0][:observations]
    library.posterior(features[:1], method)  # principal components are computed once
    benchmark.pedantic(library.posterior, (features, method), rounds=3)
    seconds = benchmark.stats["min"] / observations
    ratio = peer_seconds[observations] / seconds
    benchmark.extra_info.update(seconds_per_observation=seconds, times_faster_than_scikit_learn=ratio)
    print(
        f"\n{method}, {LIBRARY:,} profiles, {observations} observations: {seconds:.4f} s each (target {TARGET_S} s); "
        f"scikit-learn brute force, neighbours only: {peer_seconds[observations]:.4f} s each, {ratio:.1f} times ours"
    )
