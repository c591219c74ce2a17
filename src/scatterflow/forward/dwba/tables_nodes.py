"""Interpolative decompositions: the few rows and columns of pixels from which a family of functions follows.

Of functions in n places, of which r are independent to some tolerance, r places chosen by QR with pivoting give all others
by a matrix of small entries: with about 2 / pi of the nodes that polynomials need, whatever the functions.
Source: Cheng, Gimbutas, Martinsson & Rokhlin, SIAM J. Sci. Comput. 26, 1389 (2005), doi:10.1137/030602678.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import qr, solve_triangular

Array = NDArray[np.float64]


def decomposed(family: Array, allowed: Array, least: int = 1) -> tuple[NDArray[np.intp], Array]:
    """Nodes (node,) and the interpolation (node, place) from them that takes `family` (function, place) to itself.

    It is off by at most `allowed` (function, place). At least `least` nodes; all places where fewer do not do.
    """
    weight = 1 / allowed.max(axis=1, keepdims=True)
    family, allowed = family * weight, allowed * weight
    triangle, order = qr(np.linalg.qr(family, mode="r"), mode="r", pivoting=True)
    places = family.shape[1]
    independent = int((np.abs(np.diag(triangle)) > 1).sum())
    for count in range(max(least, independent // 2), places):
        nodes, between = order[:count], np.empty((count, places))
        between[:, nodes] = np.eye(count)
        between[:, order[count:]] = solve_triangular(triangle[:count, :count], triangle[:count, count:])
        if (np.abs(family[:, nodes] @ between - family) <= allowed).all():
            return nodes, between
    return np.arange(places), np.eye(places)
