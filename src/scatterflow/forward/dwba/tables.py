"""Images of particles on a surface by matrix products: form factors are tabled once, for all sizes of a study.

In the vacuum the vertical wave numbers k_i and k_f are real, so only P = F(k_i + k_f) and M = F(k_f - k_i) differ and

    A = P* + R_i M* + R_f (M + R_i P) = sum over k of (u_k + R_f v_k) x_k,   x = (Re P, Im P, Re M, Im M),

with complex u, v that depend on the stack only, R_f on stack and row, and real x on size and pixel. So <A> and <|A|^2> are
linear in 4 and 10 real tables of all sizes. With u and v, which are constant over an image, those make four smooth images:
the factors of 1, Re R_f, Im R_f and |R_f|^2. They are needed in few rows and columns of pixels ("nodes") only and
interpolated from there, in rows together with the product with R_f. Along a row they are even functions of the distance
from the beam, so one side will do. Phases are those of a plane at half the height of the tallest particle: with them R_f
takes most of the fringes. The structure factor, which may be sharp, is computed for every column at few exit angles: its
wave number hardly changes along a column. Where the incidence has an error, each size is tabled at a few tilts of the
sample, as if these were sizes (`tables_incidence`). By numpy, whose products of small matrices are the fastest on a
processor, or on a GPU by torch (`tables_torch`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.linalg.blas import sgemm

from scatterflow import instrument as geometry
from scatterflow.forward.dwba import tables_incidence as incidence
from scatterflow.forward.dwba import tables_torch
from scatterflow.forward.dwba.particles import check
from scatterflow.forward.dwba.tables_making import PAIRS, TOLERANCE, Tables, middle, panels, tables
from scatterflow.forward.dwba.tables_structure import excess
from scatterflow.forward.dwba.tables_waves import reflected
from scatterflow.forward.particles import Arrangement, Stack

__all__ = ["TOLERANCE", "Tables", "expected_counts", "tables"]

Array = NDArray[np.float64]
Array32 = NDArray[np.float32]
# images at once, for their stacks, for sizes and nodes, and for their pixels: what is made stays in the caches
_CHUNK, _BLOCK, _PART = 96, 48, 4


def expected_counts(
    table: Tables, arrangement: Arrangement, stack: Stack, incidence_error_deg: ArrayLike | None = None,
    device: str | None = None,
) -> NDArray[np.float32]:  # fmt: skip
    """Counts (simulation, row, column) that particles scatter, as `dwba.particles.expected_counts` without `rough`.

    `incidence_error_deg` (simulation,) is what the incidence has beyond the instrument's, 0 by default. Holds about 30 MB
    beside the result and the tables, for 256 x 256 pixels and 30 sizes. By numpy, or by torch on a `device` ("cuda"), which
    takes up to 2 GiB there. Raises SimulationError.
    """
    check(table.particles, arrangement, stack)
    tilted = incidence.weights(table.tilts, incidence_error_deg, len(stack.layers))
    if device is not None:
        return tables_torch.expected_counts(table, arrangement, stack, tilted, device)
    result = np.empty((len(stack.layers), len(table.rows), len(table.columns)), dtype=np.float32)
    work = _Work.of(table, min(_BLOCK, len(result)))
    for start in range(0, len(result), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        images, layers = result[chunk], stack.layers[chunk]
        some = Arrangement(arrangement.shares[chunk], arrangement.distance_nm[chunk], arrangement.disorder[chunk])
        share = None if tilted is None else tilted[chunk]
        shares = incidence.spread(some.shares.astype(np.float32), share)
        others = excess(table.particles, some, incidence.between(share, table.q))
        levels = np.broadcast_to(incidence.between(share, table.levels), (len(shares), *table.levels.shape[1:]))
        sines = incidence.between(share, table.sines)
        coefficients, weights = _of_the_stack(table, stack, layers, some.density, sines)
        for first in range(0, len(shares), _BLOCK):
            block = slice(first, first + _BLOCK)
            squares, means = _at_the_nodes(table, shares[block], coefficients[block], work)
            for few in range(0, len(squares), _PART):
                part = slice(few, few + _PART)
                at_rows = _in_rows(table, squares[part], means[part], weights[block][part], work)
                _fill(images[block][part], table, *at_rows, others[block][part], levels[block][part], work)
    return result


@dataclass(frozen=True)
class _Work:
    """Memory that every block of simulations uses again, simulation first: fresh memory costs as much as arithmetic.

    pairs (., panel, pair, place), x (., panel, 4, place), tables (2, ., panel, 4, place): in all nodes of a panel. lines (.,
    panel, 4, node, row): from there to the rows. nodes (2, ., row, column node): <|A|^2> and |<A>|^2, times the density.
    mean (row, column): |<A>|^2 of one simulation. halves (., row, column): images, where the other side is the same.
    """

    pairs: Array32
    x: Array32
    tables: Array32
    lines: Array32
    nodes: Array32
    mean: Array32
    halves: Array32

    @staticmethod
    def of(table: Tables, count: int) -> _Work:
        """For `count` simulations at once."""
        number, nodes, width = table.along.shape
        places = nodes * len(table.across)
        few, half = min(count, _PART), (len(table.rows), table.across.shape[1])
        mirrored = few if table.mirrored else 0
        shapes = (
            (count, number, len(PAIRS), places), (count, number, 4, places), (2, count, number, 4, places),
            (few, number, 4, nodes, width), (2, few, len(table.rows), len(table.across)), half, (mirrored, *half),
        )  # fmt: skip
        work = _Work(*(np.empty(shape, dtype=np.float32) for shape in shapes))
        work.lines[:, :, 0] = table.along  # of which 1 is the factor
        return work


def _of_the_stack(table: Tables, stack: Stack, layers: Array, density: Array, sines: Array) -> tuple[Array32, Array32]:
    """What multiplies the pairs of x (simulation, 4, pair) and, but for a 1, the rows (simulation, 3, row) of `layers`.

    `sines` ((simulation,) row + 1) of the exit angles and of the incidence.
    """
    k = geometry.wavenumber(table.instrument)
    mirror = reflected(stack, layers, k, sines)
    mirror *= np.exp(2j * k * middle(table.particles) * sines).astype(np.complex64)
    rf = mirror[:, :-1]
    weights = np.empty((len(layers), 3, len(table.rows)), dtype=np.float32)
    weights[:, 0], weights[:, 1] = rf.real, rf.imag
    weights[:, 2] = rf.real**2 + rf.imag**2
    ri, one = mirror[:, -1], np.ones(len(layers))
    u, v = np.stack([one, -1j * one, ri, -1j * ri]), np.stack([ri, 1j * ri, one, 1j * one])
    a, b = np.array(PAIRS).T
    twice = (1 + (a != b))[:, None] * density
    mixed = twice * (v[a] * u[b].conj() + u[a].conj() * v[b])
    both = twice * (u[a] * u[b].conj()).real, mixed.real, -mixed.imag, twice * (v[a] * v[b].conj()).real
    return np.stack(both).transpose(2, 0, 1).astype(np.float32), weights


def _at_the_nodes(table: Tables, shares: Array32, coefficients: Array32, work: _Work) -> tuple[Array32, Array32]:
    """What makes <|A|^2> and |<A>|^2, times the density: four images (simulation, panel, 4, place) each, at all nodes."""
    count, sizes = shares.shape
    pairs, x = work.pairs[:count], work.x[:count]
    squares, means = work.tables[:, :count]
    np.matmul(shares, table.squares.reshape(sizes, -1), out=pairs.reshape(count, -1))
    np.matmul(coefficients[:, None], pairs, out=squares)
    np.matmul(shares, table.means.reshape(sizes, -1), out=x.reshape(count, -1))
    for number, (one, other) in enumerate(PAIRS):
        np.multiply(x[:, :, one], x[:, :, other], out=pairs[:, :, number])
    np.matmul(coefficients[:, None], pairs, out=means)
    return squares, means


def _in_rows(table: Tables, squares: Array32, means: Array32, weights: Array32, work: _Work) -> tuple[Array32, Array32]:
    """<|A|^2> and |<A>|^2 times the density, in all rows at the nodes of columns (simulation, row, node)."""
    _, nodes, width = table.along.shape
    count = len(squares)
    lines = work.lines[:count]
    for panel, rows in enumerate(panels(len(table.rows))):
        part = slice(rows[0], rows[0] + width)
        np.multiply(weights[:, :, None, part], table.along[panel], out=lines[:, panel, 1:])
        across = lines[:, panel].reshape(count, 4 * nodes, width).swapaxes(1, 2)
        for number, each in enumerate((squares, means)):
            np.matmul(across, each[:, panel].reshape(count, 4 * nodes, -1), out=work.nodes[number, :count, part])
    return work.nodes[0, :count], work.nodes[1, :count]


def _fill(
    result: Array32, table: Tables, squares: Array32, means: Array32, others: Array32, levels: Array32, work: _Work
) -> None:
    """Images (simulation, row, column) from <|A|^2>, |<A>|^2 (simulation, row, node), S - 1 (simulation, level, column).

    `levels` (simulation, row, level) interpolate the latter.
    """
    halves = work.halves[: len(result)] if table.mirrored else result
    for number, half in enumerate(halves):
        np.matmul(levels[number], others[number], out=half)
        half *= np.matmul(means[number], table.across, out=work.mean)
        # BLAS adds a product to what is there in the same pass; its matrices are transposed
        sgemm(1.0, table.across.T, squares[number].T, 1.0, half.T, overwrite_c=True)
    if table.mirrored:  # by torch, which copies backwards as fast as forwards, and writes the result once
        upper = torch.from_numpy(halves)
        lower = upper.flip(2)[..., : result.shape[2] - upper.shape[2]]
        torch.cat((lower, upper), 2, out=torch.from_numpy(result))
