r"""Networks as flat arrays of weights and a table of where things lie.

A field and every member of a critic are the same thing to the kernels: hidden layers
``Dense, LayerNorm or not, GELU`` between a first layer, split into what features, chunk and flow
time contribute, and a linear head. Two layouts of the same weights:

rows
    Kernels (in, out), each on a cache line: one row at a time is a matrix-vector product, bound
    by how fast weights can be read.
tiles
    Kernels cut into column tiles of 256, 128, 64 or 32, sizes padded with zeros, a transposed
    copy for the way back: many rows share what was read.

LayerNorm never sees the padding: the kernels know true widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qsteer_ros.critics.networks import EnsembleMLP
from qsteer_ros.policies.networks import FlowMLP

Array = NDArray[np.float32]

LINE = 16
"""float32 numbers on a cache line."""
NARROWEST = 32
TILES = (256, 128, 64, NARROWEST)

# The table's first numbers; `LAYERS` is where its rows begin.
MEMBERS, STRIDE, DEPTH, CHUNK, FEATURES, OUTPUTS, WIDEST, FEATURE_KERNEL, LAYERS = range(9)
# A row of `ROW` numbers for every hidden layer, then one for the head.
WIDTH, KERNEL, BACK, BIAS, SCALE, SHIFT, NORM, ROW = range(8)


class Net(NamedTuple):
    """One network as plain arrays.

    Attributes:
        features: Kernel of the features, (F, W0).
        kernels: Of the chunk, (D, W0), then of every further hidden layer, (in, out).
        biases: Of every hidden layer.
        scales: LayerNorm's, of every hidden layer.
        shifts: LayerNorm's.
        norms: Whether a layer has a LayerNorm.
        head: (W, outputs).
        head_bias: (outputs,).
    """

    features: Array
    kernels: tuple[Array, ...]
    biases: tuple[Array, ...]
    scales: tuple[Array, ...]
    shifts: tuple[Array, ...]
    norms: tuple[bool, ...]
    head: Array
    head_bias: Array


class Packed(NamedTuple):
    """What the kernels read.

    Attributes:
        table: Sizes and offsets of a member, in float32 numbers; int64.
        weights: All members one after the other, on a cache line.
    """

    table: NDArray[np.int64]
    weights: Array


def padded(size: int, unit: int = NARROWEST) -> int:
    """The next multiple of ``unit``."""
    return -(-size // unit) * unit


def aligned(size: int) -> Array:
    """Zeros that start on a cache line; numpy's own large arrays start 16 bytes after one."""
    raw = np.zeros(size + LINE, np.float32)
    start = (-raw.ctypes.data // 4) % LINE
    return raw[start : start + size]


def field_net(network: FlowMLP) -> Net:
    """The weights of a velocity network, without what flow time contributes."""
    features, chunk = network.feature_dim, network.chunk_dim
    kernels = [_array(layer.weight).T for layer in network.layers]  # type: ignore[arg-type]
    first, width = kernels[0], network.hidden[-1]
    one, nothing = np.ones(width, np.float32), np.zeros(width, np.float32)
    return Net(
        first[:features],
        (first[features : features + chunk], *kernels[1:]),
        tuple(_array(layer.bias) for layer in network.layers),  # type: ignore[arg-type]
        (*(_array(norm.weight) for norm in network.norms), one),  # type: ignore[arg-type]
        (*(_array(norm.bias) for norm in network.norms), nothing),  # type: ignore[arg-type]
        (True,) * len(network.norms) + (False,),
        _array(network.head.weight).T,
        _array(network.head.bias),
    )


def along_flow(network: FlowMLP, flow_times: Sequence[float]) -> Array:
    """What flow time contributes to the first layer at each step, (T, W0).

    Summed in float64 by numpy: torch's product depends on the number of threads.
    """
    first = network.feature_dim + network.chunk_dim
    kernel = _array(network.layers[0].weight)[:, first:].astype(np.float64)  # type: ignore[arg-type]
    times = network.embed(torch.tensor(flow_times, dtype=torch.float32)).numpy()
    product: Array = (times[:, None, :] * kernel).sum(axis=2).astype(np.float32)
    return product


def critic_nets(network: EnsembleMLP, chunk_dim: int) -> tuple[Net, ...]:
    """The weights of every member of a critic."""
    features = network.in_dim - chunk_dim
    kernels = [_array(kernel) for kernel in network.kernels]
    biases, scales, shifts = (
        [_array(tensor)[:, 0] for tensor in group]
        for group in (network.biases, network.scales, network.shifts)
    )
    return tuple(
        Net(
            kernels[0][member, :features],
            (kernels[0][member, features:], *(kernel[member] for kernel in kernels[1:-1])),
            tuple(bias[member] for bias in biases[:-1]),
            tuple(scale[member] for scale in scales),
            tuple(shift[member] for shift in shifts),
            (True,) * len(scales),
            kernels[-1][member],
            biases[-1][member],
        )
        for member in range(network.members)
    )


def pack_rows(nets: Sequence[Net]) -> Packed:
    """The layout for one row."""
    return _pack(nets, tiled=False)


def pack_tiles(nets: Sequence[Net]) -> Packed:
    """The layout for many rows."""
    return _pack(nets, tiled=True)


def _pack(nets: Sequence[Net], *, tiled: bool) -> Packed:
    table, parts = _layout(nets[0], tiled)
    size = sum(padded(part.size, LINE) for part in parts)
    table[MEMBERS], table[STRIDE] = len(nets), size
    weights = aligned(len(nets) * size)
    for member, net in enumerate(nets):
        place = member * size
        for part in _layout(net, tiled)[1]:
            weights[place : place + part.size] = part.ravel()
            place += padded(part.size, LINE)
    return Packed(table, weights)


def _layout(net: Net, tiled: bool) -> tuple[NDArray[np.int64], list[Array]]:
    """The table of one member and its arrays in the order of their offsets."""
    depth, parts, place = len(net.kernels), [], 0
    table = np.zeros(LAYERS + ROW * (depth + 1), np.int64)

    def put(array: Array) -> int:
        nonlocal place
        parts.append(array)
        place += padded(array.size, LINE)
        return place - padded(array.size, LINE)

    def wide(array: Array) -> Array:
        return np.pad(array, (0, padded(array.size) - array.size)) if tiled else array

    widths = [bias.size for bias in net.biases]
    table[DEPTH], table[CHUNK], table[FEATURES] = depth, len(net.kernels[0]), len(net.features)
    table[OUTPUTS], table[WIDEST] = net.head.shape[1], padded(max(widths))
    table[FEATURE_KERNEL] = put(net.features)
    for layer, kernel in enumerate(net.kernels):
        row = table[LAYERS + ROW * layer :]
        row[WIDTH], row[NORM] = widths[layer], net.norms[layer]
        row[KERNEL] = put(_tiles(kernel) if tiled else kernel)
        row[BACK] = put(_tiles(kernel.T)) if tiled else row[KERNEL]
        row[BIAS] = put(wide(net.biases[layer]))
        row[SCALE], row[SHIFT] = put(net.scales[layer]), put(net.shifts[layer])
    row = table[LAYERS + ROW * depth :]
    row[WIDTH] = net.head.shape[1]
    as_tiles = tiled and net.head.shape[1] > 1
    row[KERNEL] = put(_tiles(net.head) if as_tiles else net.head.T)
    row[BACK] = put(_tiles(net.head.T)) if as_tiles else row[KERNEL]
    row[BIAS] = put(wide(net.head_bias))
    return table, parts


def _tiles(kernel: Array) -> Array:
    """Column tiles, widest first, each (in, tile) and contiguous; sizes padded with zeros."""
    rows, columns = (padded(size) for size in kernel.shape)
    whole = np.zeros((rows, columns), np.float32)
    whole[: kernel.shape[0], : kernel.shape[1]] = kernel
    tiles, start = [], 0
    while start < columns:
        width = next(width for width in TILES if width <= columns - start)
        tiles.append(whole[:, start : start + width].ravel())
        start += width
    return np.concatenate(tiles)


def _array(tensor: Tensor) -> Array:
    return tensor.detach().numpy()
