"""The Faddeeva function against scipy (Steven Johnson's), where the engine uses it and beyond."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import wofz

from scatterflow.forward.dwba.faddeeva import faddeeva_pair
from scatterflow.forward.dwba.pairs import Complex

PRECISION = {12: 1e-13, 8: 1e-9}  # relative; by number of points
# (kf +- ki) sigma / sqrt(2): at most (2 pi / 0.14 nm) 5 nm; the upper bound leaves room for other instruments
PART = st.one_of(st.floats(-300, 300), st.floats(-10, 10), st.floats(-1e-6, 1e-6), st.just(0.0))
POINTS = arrays(np.float64, (2, 40), elements=PART)


def ours(z: np.ndarray, points: int, first_quadrant: bool = False) -> tuple[np.ndarray, np.ndarray]:
    pair = faddeeva_pair(Complex(torch.tensor(z.real), torch.tensor(z.imag)), points, first_quadrant=first_quadrant)
    return tuple(w.re.numpy() + 1j * w.im.numpy() for w in pair)


def error(value: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Relative error in the upper half-plane; in the lower one relative to the two terms of w(z) = 2 exp(-z^2) - w(-z)."""
    with np.errstate(over="ignore", invalid="ignore"):
        size = np.exp(np.minimum((-(z**2)).real, 700.0))
        exact = wofz(z)
        scale = np.where(z.imag >= 0, np.abs(exact), 2 * size + np.abs(wofz(-z)))
        return np.where((-(z**2)).real < 690.0, np.abs(value - exact) / scale, 0.0)  # else 1e300 and more


@pytest.mark.parametrize("points", PRECISION)
@given(parts=POINTS)
def test_whole_plane(points: int, parts: np.ndarray) -> None:
    z = parts[0] + 1j * parts[1]
    plus, minus = ours(z, points)
    assert np.isfinite(plus).all()
    assert error(plus, z).max() <= PRECISION[points]
    assert error(minus, -z).max() <= PRECISION[points]


@pytest.mark.parametrize("points", PRECISION)
@given(parts=POINTS)
def test_first_quadrant_needs_no_reflection(points: int, parts: np.ndarray) -> None:
    z = np.abs(parts[0]) + 1j * np.abs(parts[1])
    for short, whole in zip(ours(z, points, first_quadrant=True), ours(z, points), strict=True):
        np.testing.assert_array_equal(short, whole)


@pytest.mark.parametrize("points", PRECISION)
def test_borders_of_the_rules(points: int) -> None:
    """On a fine grid around the poles of both rules and the lines where one takes over from the other."""
    step = math.sqrt(math.pi / points)
    x = np.add.outer(np.arange(0, 30) * step / 4, np.array([-1e-9, 0, 1e-9])).ravel()
    y = np.concatenate([[0, 1e-300, 1e-12, 1e-3], np.linspace(0, 2 * math.pi / step, 50)])
    z = (x[:, None] + 1j * y).ravel()
    plus, minus = ours(z, points)
    print(f"\n{points} points: at most {max(error(plus, z).max(), error(minus, -z).max()):.1e}")
    assert error(plus, z).max() <= PRECISION[points]
    assert error(minus, -z).max() <= PRECISION[points]


@given(parts=arrays(np.float64, (2, 20), elements=st.floats(-4, 4)))
def test_gradient_is_analytic(parts: np.ndarray) -> None:
    """dw/dz = -2 z w + 2i / sqrt(pi): the gradient of Re w is (Re w', -Im w'), that of Im w is (Im w', Re w')."""
    z = parts[0] + 1j * parts[1]
    for sign, index in ((1, 0), (-1, 1)):
        slope = sign * (-2 * sign * z * wofz(sign * z) + 2j / math.sqrt(math.pi))
        for part, (to_re, to_im) in (("re", (slope.real, -slope.imag)), ("im", (slope.imag, slope.real))):
            x, y = (torch.tensor(v, requires_grad=True) for v in parts)
            value = getattr(faddeeva_pair(Complex(x, y))[index], part)
            got = torch.autograd.grad(value.sum(), (x, y))
            scale = 1 + np.abs(slope)
            np.testing.assert_allclose(got[0].numpy() / scale, to_re / scale, atol=1e-11)
            np.testing.assert_allclose(got[1].numpy() / scale, to_im / scale, atol=1e-11)
