"""Fast exact inverse of the flow: samples of p parameters at the price of one pass instead of p.

An autoregressive network gives parameter k from parameters 1..k-1, so its inverse goes parameter by parameter. nflows
runs the whole network each time. Here hidden units are sorted by the number of parameters they may see: with parameter
k known, exactly the units of degree k become final, and all others stay cached. NumPy, because its calls cost a
fraction of torch's and each step is small; arrays are (unit, row) so that the units of one degree are contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from scatterflow.models.flow import SCALE_FLOOR, ConditionalFlow

Array = NDArray[np.float32]
_ROWS = 512  # rows at once: the activations of a transform stay in the cache
_FAR = np.float32(1e6)  # far outside any prior; keeps a flow that expands without bound finite


@dataclass(frozen=True)
class Block:
    """One residual block, its units sorted by degree: h + second(relu(first(relu(h)) + condition))."""

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


@dataclass(frozen=True)
class Sampler:
    """A flow's weights, ready for `draw`."""

    base: Array
    base_bias: Array
    steps: tuple[Autoregressive | NDArray[np.intp], ...]  # in the order of sampling; an index array is a permutation


def prepare(flow: ConditionalFlow) -> Sampler:
    """Copy the flow's weights into the layout of `draw`."""
    steps: list[Autoregressive | NDArray[np.intp]] = []
    for transform in reversed(list(flow.transform._transforms)):
        if hasattr(transform, "autoregressive_net"):
            steps.append(_autoregressive(transform.autoregressive_net))
        else:
            steps.append(np.argsort(transform._permutation.cpu().numpy()))
    base = flow.base._context_encoder
    return Sampler(_numpy(base.weight), _numpy(base.bias), tuple(steps))


def draw(sampler: Sampler, noise: Array, condition: Array) -> Array:
    """Samples (row, parameter) of the flow from standard normal `noise` (row, parameter) and `condition` (row, number)."""
    result = np.empty_like(noise, dtype=np.float32)
    for start in range(0, len(noise), _ROWS):
        rows = slice(start, start + _ROWS)
        given = np.ascontiguousarray(condition[rows].T, dtype=np.float32)
        mean, log_sd = np.split(sampler.base @ given + sampler.base_bias[:, None], 2)
        value = mean + np.exp(log_sd) * noise[rows].T
        for step in sampler.steps:
            value = _invert(step, value, given) if isinstance(step, Autoregressive) else value[step]
        result[rows] = value.T
    return result


def _invert(step: Autoregressive, noise: Array, given: Array) -> Array:
    """u (parameter, row) with noise = scale(u) u + shift(u)."""
    rows = noise.shape[1]
    entry = np.maximum(step.condition @ given + step.condition_bias[:, None], 0) + step.first_bias[:, None]
    added = [block.condition @ given + block.bias[:, None] for block in step.blocks]
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
            state = entry[new] + step.first[new, :k] @ u[:k]
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
        scale = np.maximum(raw, 0) + np.log1p(np.exp(-np.abs(raw))) + np.float32(SCALE_FLOOR)
        np.clip((noise[k] - shift) / scale, -_FAR, _FAR, out=u[k])
    return u


def _autoregressive(network: nn.Module) -> Autoregressive:
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


def _masked(layer: nn.Module) -> Array:
    return _numpy(layer.weight * layer.mask)


def _numpy(tensor: Tensor) -> Array:
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype=np.float32)


def _integers(tensor: Tensor) -> NDArray[np.int64]:
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.int64)
