"""Images from tables on a device of torch's: the products of `tables`, of as many simulations at once as its memory takes.

Waves and structure factors in double precision, products of matrices in single. torch must not have been told to round
their factors (`torch.backends.cuda.matmul.allow_tf32`): they cancel.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scatterflow import instrument as geometry
from scatterflow.forward.dwba.engine import interfaces_of
from scatterflow.forward.dwba.fresnel import reflection
from scatterflow.forward.dwba.tables_making import PAIRS, Tables, middle, panels
from scatterflow.forward.particles import Arrangement, Particles, Stack, structure_factor

Array = NDArray[np.float64]
_BATCH_BYTES = {"cpu": 2**26, "cuda": 2**31}
_WAVE_BYTES = 8 * 40  # per simulation, layer and exit angle


class _Placed(NamedTuple):
    """Tables on a device; see `Tables`. squares (size x tilt, panel x pair x place), means in the same way."""

    squares: Tensor
    means: Tensor
    along: Tensor
    across: Tensor
    sines: Tensor
    q: Tensor
    levels: Tensor


@lru_cache(maxsize=2)
def _placed(table: Tables, device: torch.device) -> _Placed:
    def there(array: NDArray[np.floating]) -> Tensor:
        return torch.as_tensor(array, device=device)

    squares, means = (there(each.reshape(len(each), -1)) for each in (table.squares, table.means))
    parts = table.along, table.across, table.sines, table.q, table.levels
    return _Placed(squares, means, *(there(each) for each in parts))


def expected_counts(
    table: Tables, arrangement: Arrangement, stack: Stack, tilted: Array | None, device: str
) -> NDArray[np.float32]:
    """As `tables.expected_counts`, with the interpolation `tilted` (simulation, tilt) to the errors of the incidence."""
    where = torch.device(device)
    placed = _placed(table, where)
    result = np.empty((len(stack.layers), len(table.rows), len(table.columns)), dtype=np.float32)
    step = max(1, _BATCH_BYTES.get(where.type, _BATCH_BYTES["cpu"]) // _bytes(table, stack))
    with torch.no_grad():
        for start in range(0, len(result), step):
            part = slice(start, start + step)
            some = Arrangement(arrangement.shares[part], arrangement.distance_nm[part], arrangement.disorder[part])
            share = np.ones((len(some.shares), 1)) if tilted is None else tilted[part]
            result[part] = _images(table, placed, some, stack, part, torch.as_tensor(share, device=where)).cpu().numpy()
    return result


def _bytes(table: Tables, stack: Stack) -> int:
    """Memory [byte] that one simulation takes."""
    number, nodes, width = table.along.shape
    rows, columns = len(table.rows), len(table.columns)
    at_nodes = number * nodes * (36 * len(table.across) + 8 * width)
    return int(4 * (at_nodes + 4 * rows * columns) + _WAVE_BYTES * stack.layers.shape[1] * rows)


def _images(
    table: Tables, placed: _Placed, arrangement: Arrangement, stack: Stack, part: slice, share: Tensor
) -> Tensor:
    """Images (simulation, row, column)."""
    single = share.float()
    number, nodes, width = placed.along.shape
    columns = len(placed.across)
    shares = torch.as_tensor(arrangement.shares, device=share.device).float()
    shares = (shares[:, :, None] * single[:, None]).flatten(1)
    coefficients, weights = _of_the_stack(table, placed, arrangement, stack, part, share)
    one, other = torch.tensor(PAIRS, device=share.device).T
    pairs = (shares @ placed.squares).reshape(len(shares), number, len(PAIRS), -1)
    x = (shares @ placed.means).reshape(len(shares), number, 4, -1)
    # <|A|^2> and |<A>|^2 side by side: (simulation, panel, 4 x node, 2 x column node)
    both = torch.stack([coefficients @ pairs, coefficients @ (x[:, :, one] * x[:, :, other])], -2)
    both = both.reshape(len(shares), number, 4, 2, nodes, columns).transpose(3, 4)
    both = both.reshape(len(shares), number, 4 * nodes, 2 * columns)
    at_rows = both.new_empty(len(shares), len(table.rows), 2 * columns)
    for panel, rows in enumerate(panels(len(table.rows))):
        here = slice(int(rows[0]), int(rows[0]) + width)
        lines = (weights[:, :, None, here] * placed.along[panel]).flatten(1, 2)
        at_rows[:, here] = lines.transpose(1, 2) @ both[:, panel]
    others = _excess(table.particles, arrangement, torch.einsum("nt,tlc->nlc", share, placed.q)).float()
    levels = torch.einsum("nt,trl->nrl", single, placed.levels)
    images = at_rows[..., columns:] @ placed.across
    images *= levels @ others
    images += at_rows[..., :columns] @ placed.across
    if not table.mirrored:
        return images
    return torch.cat((images.flip(2)[..., : len(table.columns) - images.shape[2]], images), 2)


def _of_the_stack(
    table: Tables, placed: _Placed, arrangement: Arrangement, stack: Stack, part: slice, share: Tensor
) -> tuple[Tensor, Tensor]:
    """What multiplies the pairs of x (simulation, 1, 4, pair) and the rows (simulation, 4, row); see `tables`."""
    k = geometry.wavenumber(table.instrument)
    sines = share @ placed.sines
    layers = torch.as_tensor(stack.layers[part], dtype=torch.float64, device=share.device)
    *_, solvable = interfaces_of(layers, sines[:, None], k, stack.max_spatial_frequency_per_nm, stack.transient)
    found = reflection(solvable)
    mirror = torch.complex(found.re, found.im) * torch.exp(2j * k * middle(table.particles) * sines)
    rf, ri = mirror[:, :-1], mirror[:, -1]
    weights = torch.stack([torch.ones_like(rf.real), rf.real, rf.imag, rf.abs() ** 2], 1)
    one = torch.ones_like(ri)
    u, v = torch.stack([one, -1j * one, ri, -1j * ri]), torch.stack([ri, 1j * ri, one, 1j * one])
    a, b = torch.tensor(PAIRS, device=share.device).T
    density = torch.as_tensor(arrangement.density, device=share.device)
    twice = (1 + (a != b))[:, None] * density
    mixed = v[a] * u[b].conj() + u[a].conj() * v[b]
    both = torch.stack([(u[a] * u[b].conj()).real, mixed.real, -mixed.imag, (v[a] * v[b].conj()).real]) * twice
    return both.permute(2, 0, 1)[:, None].float(), weights.float()


def _excess(particles: Particles, arrangement: Arrangement, q: Tensor) -> Tensor:
    """S - 1 (simulation, level, column) at wave numbers `q` (simulation, level, column) [1/nm]; see `tables_structure`."""
    if particles.interference == "none":
        return torch.zeros_like(q)
    if particles.interference != "paracrystal":  # rows of few numbers: no matter where
        found = [
            structure_factor(particles, Arrangement(*one), each)
            for *one, each in zip(
                arrangement.shares[:, None], arrangement.distance_nm[:, None], arrangement.disorder[:, None],
                q.cpu().numpy(), strict=True,
            )
        ]  # fmt: skip
        return torch.as_tensor(np.concatenate(found), device=q.device) - 1
    distance, disorder = (
        torch.as_tensor(each, device=q.device)[:, None, None]
        for each in (arrangement.distance_nm, arrangement.disorder)
    )
    lost = -torch.expm1(-0.5 * (q * disorder * distance) ** 2 - distance / particles.damping_nm)
    twice = 2 * torch.sin(q * distance / 2) ** 2
    size = 1 - lost
    return 2 * size * (lost - twice) / (lost**2 + 2 * size * twice)
