"""Nearest simulations: exact neighbours whatever the masks, the offset of the data and the memory."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from scatterflow.baselines import distance


def profiles():
    """1500 noisy profiles of 12 points."""
    rng = np.random.default_rng(3)
    waves = np.sin(3 * rng.random((1500, 1)) * np.linspace(0, 1, 12))
    return (waves + 0.1 * rng.standard_normal((1500, 12))).astype(np.float32)


@given(
    n=st.integers(1, 60),
    d=st.integers(1, 20),
    m=st.integers(1, 5),
    offset=st.floats(-1e3, 1e3),
    masks=st.sampled_from(["none", "observation", "library", "both"]),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=150)
def test_nearest_equals_double_precision(n, d, m, offset, masks, seed):
    rng = np.random.default_rng(seed)
    features = (offset + rng.standard_normal((n, d))).astype(np.float32)
    observations = (offset + rng.standard_normal((m, d))).astype(np.float32)
    valid = rng.random((n, d)) < 0.7 if masks in ("library", "both") else None
    seen = rng.random((m, d)) < 0.7 if masks in ("observation", "both") else np.ones((m, d), bool)
    index = distance.build(features, valid)
    k = int(rng.integers(1, n + 1))
    rows, distances = distance.nearest(index, observations, seen, k)

    # centring rounds each value to float32 once: compare with the distances of the rounded values
    mean = index.mean
    both = seen[:, None] & (np.ones((1, n, d), bool) if valid is None else valid[None])
    difference = (features - mean)[None].astype(np.float64) - (observations - mean)[:, None]
    shared = both.sum(axis=2)
    squares = np.where(both, difference**2, 0).sum(axis=2) * d / np.maximum(shared, 1)
    expected = np.sqrt(np.where(shared > 0, squares, np.inf))
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :k], rtol=1e-12)
    np.testing.assert_allclose(np.take_along_axis(expected, rows, axis=1), distances, rtol=1e-12)
    assert all(len(set(row)) == k for row in rows)


def test_nearest_is_euclidean_on_the_features_themselves():
    features = profiles()
    _, distances = distance.nearest(distance.build(features[100:]), features[:100], np.ones((100, 12), bool), 40)
    expected = cdist(features[:100].astype(np.float64), features[100:].astype(np.float64))
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :40], rtol=1e-5)


def test_float32_alone_would_pick_other_neighbours():
    # rows differ from the observation by less than float32 resolves in |x|^2 - 2 x.y + |y|^2: the exact step decides
    rng = np.random.default_rng(0)
    wide = 100 * rng.standard_normal((200, 30)).astype(np.float32)
    near = (np.float32(100) + 0.01 * rng.standard_normal((200, 30))).astype(np.float32)
    index = distance.build(np.concatenate([wide, near]))
    observation = np.full((1, 30), 100, np.float32)
    rows, _ = distance.nearest(index, observation, np.ones((1, 30), bool), 20)
    centred = index.centred.astype(np.float64)
    expected = np.argsort(((centred - (observation - index.mean)) ** 2).sum(axis=1))[:20]
    np.testing.assert_array_equal(rows[0], expected)
    product, _ = distance._squares(index, observation - index.mean, np.ones((1, 30), bool))
    assert set(np.argsort(product[0])[:20]) != set(expected)


def test_equal_distances_go_to_the_lower_row():
    index = distance.build(np.tile(np.float32([[1, 0], [0, 1]]), (10, 1)))
    rows, distances = distance.nearest(index, np.zeros((1, 2), np.float32), np.ones((1, 2), bool), 7)
    np.testing.assert_array_equal(rows[0], np.arange(7))
    np.testing.assert_allclose(distances, 1)


def test_blocks_do_not_change_the_neighbours(monkeypatch):
    features = profiles()
    valid = np.random.default_rng(1).random(features.shape) < 0.9
    expected = distance.nearest(distance.build(features, valid), features[:9], valid[:9], 30)
    monkeypatch.setattr(distance, "_BLOCK_BYTES", 4 * len(features) * 2)
    monkeypatch.setattr(distance, "_ROWS", 7)
    found = distance.nearest(distance.build(features, valid), features[:9], valid[:9], 30)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-14)
