"""The flow without torch: exact samples at the price of one pass, and densities of many samples of few observations.

An autoregressive network gives parameter k from parameters 1..k-1, so its inverse goes parameter by parameter. nflows
runs the whole network each time. Here hidden units are sorted by the number of parameters they may see: with parameter
k known, exactly the units of degree k become final, and all others stay cached. NumPy, because its calls cost a
fraction of torch's and each step is small; arrays are (unit, row), so that the units of one degree are contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scatterflow.models.flow import SCALE_FLOOR, ConditionalFlow

Array = NDArray[np.float32]
Index = NDArray[np.intp]
_ROWS = 512  # rows at once: the activations of a transform stay in the cache
_FAR = np.float32(1e6)  # far outside any prior; keeps a flow that expands without bound finite


@dataclass(frozen=True)
class Block:
    """One residual block: h + second(relu(first(relu(h)) + condition))."""

    condition: Array
    bias: Array
    first: Array
    second: Array
    second_bias: Array


@dataclass(frozen=True)
class Autoregressive:
    """Weights of one autoregressive transform with masks applied and units sorted by degree."""

    ends: tuple[int, ...]  # ends[d]: number of units that see at most d parameters
    condition: Array
    condition_bias: Array
    first: Array
    first_bias: Array
    blocks: tuple[Block, ...]
    last: Array
    last_bias: Array  # (parameter, 2, 1): raw scale and shift

    def entry(self, given: Array) -> Array:
        """Share of the condition (number, row) in the first layer, (unit, row)."""
        entry = np.maximum(self.condition @ given + self.condition_bias[:, None], 0) + self.first_bias[:, None]
        return np.asarray(entry, np.float32)

    def added(self, given: Array) -> list[Array]:
        """Share of the condition (number, row) in each block, (unit, row)."""
        return [block.condition @ given + block.bias[:, None] for block in self.blocks]


@dataclass(frozen=True)
class FastFlow:
    """A flow's weights, ready for `draw` and `log_density`; `steps` go from parameters to noise, permutations as indices."""

    parameters: int
    base: Array
    base_bias: Array
    steps: tuple[Autoregressive | Index, ...]
    widths: tuple[float, ...] = (1.0,)  # of the base, as a mixture
    shares: tuple[float, ...] = (1.0,)


def prepare(flow: ConditionalFlow) -> FastFlow:
    """Copy the flow's weights, as they are now (nflows is untyped: see its MADE)."""
    steps: list[Autoregressive | Index] = []
    for transform in flow.transform._transforms:
        network = getattr(transform, "autoregressive_net", None)
        steps.append(_integers(transform._permutation) if network is None else _autoregressive(network))
    base = flow.base._context_encoder
    return FastFlow(base.out_features // 2, _numpy(base.weight), _numpy(base.bias), tuple(steps))


def widened(flow: FastFlow, widths: Sequence[float], shares: Sequence[float]) -> FastFlow:
    """The flow with a mixture of normal distributions as its base: `shares` (sum 1) of `widths` times its own width.

    The density stays exact; samples come from noise that is scaled by a width.
    """
    return replace(flow, widths=tuple(widths), shares=tuple(shares))


def draw(flow: FastFlow, noise: Array, condition: Array) -> Array:
    """Samples (row, parameter) from normal `noise` (row, parameter) and `condition` (row, number).

    One row of `condition` may stand for several rows of noise, the same number for each: what depends on it alone is
    computed once then.
    """
    result = np.empty(noise.shape, dtype=np.float32)
    each = len(noise) // max(1, len(condition))
    for start in range(0, len(noise), _ROWS):
        rows = slice(start, min(start + _ROWS, len(noise)))
        first = start // each
        given = np.ascontiguousarray(condition[first : (rows.stop - 1) // each + 1].T, dtype=np.float32)
        of = np.arange(rows.start, rows.stop) // each - first  # column of `given` of every row
        mean, log_sd = (part[:, of] for part in _base(flow, given))
        with np.errstate(over="ignore"):  # what overflows is clipped
            value = np.clip(mean + np.exp(log_sd) * noise[rows].T.astype(np.float32), -_FAR, _FAR)
            for step in reversed(flow.steps):
                value = _invert(step, value, given, of) if isinstance(step, Autoregressive) else value[np.argsort(step)]
        result[rows] = value.T
    return result


def log_density(flow: FastFlow, normal: Array, condition: Array) -> NDArray[np.float64]:
    """Natural log density (group, row) of `normal` (group, row, parameter) given `condition` (group, number)."""
    groups, rows, _ = normal.shape
    result = np.empty((groups, rows))
    together = max(1, _ROWS // rows)  # groups at once
    for first in range(0, groups, together):
        group = slice(first, first + together)
        given = np.ascontiguousarray(condition[group].T, dtype=np.float32)
        for start in range(0, rows, _ROWS):
            row = slice(start, start + _ROWS)
            value = np.ascontiguousarray(np.moveaxis(normal[group, row], 2, 0), dtype=np.float32)
            result[group, row] = _log_density(flow, value, given)
    return result


def _log_density(flow: FastFlow, value: Array, given: Array) -> NDArray[np.float64]:
    """(group, row) of value (parameter, group, row) and given (number, group)."""
    total = np.zeros(value.shape[1:])
    for step in flow.steps:
        if not isinstance(step, Autoregressive):
            value = value[step]
            continue
        state = _product(step.first, value)
        state += step.entry(given)[:, :, None]
        for block, added in zip(step.blocks, step.added(given), strict=True):
            middle = _product(block.first, np.maximum(state, 0))
            middle += added[:, :, None]
            state += _product(block.second, np.maximum(middle, 0, out=middle))
            state += block.second_bias[:, None, None]
        out = _product(step.last, state)
        out += step.last_bias.reshape(-1, 1, 1)
        scale = _scale(out[0::2])
        value = scale * value + out[1::2]
        total += np.log(scale).sum(axis=0, dtype=np.float64)
    mean, log_sd = _base(flow, given)
    standard = (value - mean[:, :, None]) * np.exp(-log_sd)[:, :, None]
    radius = (standard**2).sum(axis=0, dtype=np.float64)
    base = np.full(radius.shape, -np.inf)
    for width, share in zip(flow.widths, flow.shares, strict=True):
        base = np.logaddexp(base, math.log(share) - flow.parameters * math.log(width) - 0.5 * radius / width**2)
    total += base - log_sd.sum(axis=0)[:, None]
    return total - 0.5 * flow.parameters * math.log(2 * math.pi)


def _invert(step: Autoregressive, noise: Array, given: Array, of: Index) -> Array:
    """u (parameter, row) with noise = scale(u) u + shift(u); `of` (row,) are the columns of `given` (number, column)."""
    rows = noise.shape[1]
    entry, added = step.entry(given)[:, of], [each[:, of] for each in step.added(given)]
    units = len(entry)
    before = [np.empty((units, rows), np.float32) for _ in step.blocks]
    after = [np.empty((units, rows), np.float32) for _ in step.blocks]
    hidden = np.empty((units, rows), np.float32)
    u = np.zeros_like(noise)
    start = 0
    for k in range(len(noise)):
        stop = step.ends[k]
        if stop > start:  # the units that see exactly the first k parameters
            new = slice(start, stop)
            state = step.first[new, :k] @ u[:k]
            state += entry[new]
            for block, added_by, relu_in, relu_mid in zip(step.blocks, added, before, after, strict=True):
                np.maximum(state, 0, out=relu_in[new])
                middle = block.first[new, :stop] @ relu_in[:stop]
                middle += added_by[new]
                np.maximum(middle, 0, out=relu_mid[new])
                state += block.second[new, :stop] @ relu_mid[:stop]
                state += block.second_bias[new, None]
            hidden[new] = state
            start = stop
        raw, shift = step.last[2 * k : 2 * k + 2, :stop] @ hidden[:stop] + step.last_bias[k]
        np.divide(noise[k] - shift, _scale(raw), out=u[k])
        np.minimum(np.maximum(u[k], -_FAR, out=u[k]), _FAR, out=u[k])
    return u


def _scale(raw: Array) -> Array:
    """softplus(raw) plus nflows' floor."""
    return np.maximum(raw, 0) + np.log1p(np.exp(-np.abs(raw))) + np.float32(SCALE_FLOOR)


def _base(flow: FastFlow, given: Array) -> tuple[Array, Array]:
    """Mean and log standard deviation of the base, (parameter, row) each."""
    both = flow.base @ given + flow.base_bias[:, None]
    return both[: flow.parameters], both[flow.parameters :]


def _product(weight: Array, value: Array) -> Array:
    """weight (output, input) times value (input, group, row)."""
    return (weight @ value.reshape(len(value), -1)).reshape(len(weight), *value.shape[1:])


def _autoregressive(network: Any) -> Autoregressive:
    entry, last = network.initial_layer, network.final_layer
    degrees = _integers(entry.degrees)
    order = np.argsort(degrees, kind="stable")
    parameters = entry.in_features
    blocks = []
    for block in network.blocks:
        first, second = block.linear_layers
        blocks.append(
            Block(
                _numpy(block.context_layer.weight)[order],
                (_numpy(block.context_layer.bias) + _numpy(first.bias))[order],
                _masked(first)[np.ix_(order, order)],
                _masked(second)[np.ix_(order, order)],
                _numpy(second.bias)[order],
            )
        )
    return Autoregressive(
        tuple(int(np.searchsorted(degrees[order], degree, side="right")) for degree in range(parameters)),
        _numpy(network.context_layer.weight)[order],
        _numpy(network.context_layer.bias)[order],
        _masked(entry)[order],
        _numpy(entry.bias)[order],
        tuple(blocks),
        np.ascontiguousarray(_masked(last)[:, order]),
        _numpy(last.bias).reshape(parameters, 2, 1),
    )


def _masked(layer: Any) -> Array:
    return _numpy(layer.weight * layer.mask)


def _numpy(tensor: Tensor) -> Array:
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype=np.float32)


def _integers(tensor: Tensor) -> Index:
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.intp)
