"""One network for many rows, forwards and backwards."""

from qsteer_ros.compiling import f32
from qsteer_ros.policies.fast.arithmetic import activate, activate_only, unactivate
from qsteer_ros.policies.fast.building import inner
from qsteer_ros.policies.fast.packing import (
    BACK,
    BIAS,
    CHUNK,
    DEPTH,
    KERNEL,
    LAYERS,
    NORM,
    OUTPUTS,
    ROW,
    SCALE,
    SHIFT,
    WIDEST,
    WIDTH,
)
from qsteer_ros.policies.fast.product import product


@inner
def up(size):
    """The next multiple of the narrowest tile."""
    return (size + 31) // 32 * 32


@inner
def forward(
    weights, base, table, start, x, rows, z, a, centred, slope, inverse, out, sums, stride
):  # fmt: skip
    """As `one_row.forward`, for the first rows; ``out`` (rows, padded outputs).

    Of layers ``stride`` apart, what the way back needs is kept; 0: there is no way back.
    """
    depth, wide = table[DEPTH], table[WIDEST]
    width = table[LAYERS + WIDTH]
    inputs = up(table[CHUNK])
    product(weights, base + table[LAYERS + KERNEL], inputs, up(width), x, rows, start, z, sums)
    for layer in range(depth):
        row = table[LAYERS + ROW * layer :]
        width = row[WIDTH]
        scale = weights[base + row[SCALE] : base + row[SCALE] + width]
        shift = weights[base + row[SHIFT] : base + row[SHIFT] + width]
        for i in range(rows):
            if stride:
                here = layer * stride + i * wide
                inverse[layer * rows + i] = activate(
                    z[i, :width],
                    scale,
                    shift,
                    row[NORM],
                    a[i, :width],
                    centred[here : here + width],
                    slope[here : here + width],
                )
            else:
                activate_only(z[i, :width], scale, shift, row[NORM], a[i, :width])
            for c in range(width, up(width)):
                a[i, c] = f32(0)
        after = row[ROW:]
        if layer < depth - 1 or table[OUTPUTS] > 1:
            outputs = up(after[WIDTH])
            bias = weights[base + after[BIAS] : base + after[BIAS] + outputs]
            target = z if layer < depth - 1 else out
            product(weights, base + after[KERNEL], up(width), outputs, a, rows, bias, target, sums)
        else:
            head = weights[base + after[KERNEL] : base + after[KERNEL] + width]
            for i in range(rows):
                total = f32(0)
                for c in range(width):
                    total += a[i, c] * head[c]
                out[i, 0] = total + weights[base + after[BIAS]]


@inner
def backward(
    weights, base, table, cotangent, index, count, rows, g, other, zeros, centred, slope,
    inverse, out, sums,
):  # fmt: skip
    """As `one_row.backward`, for ``count`` rows, row i of them being row index[i] of ``rows``.

    The cotangent's rows are gathered already, their number padded to a multiple of 4.
    """
    depth, wide = table[DEPTH], table[WIDEST]
    stride = rows * wide
    filled = (count + 3) // 4 * 4
    head = table[LAYERS + ROW * depth :]
    width = table[LAYERS + ROW * (depth - 1) + WIDTH]
    if table[OUTPUTS] > 1:
        product(
            weights, base + head[BACK], up(head[WIDTH]), up(width), cotangent, filled, zeros, g,
            sums,
        )  # fmt: skip
    else:
        for i in range(filled):
            for c in range(width):
                g[i, c] = cotangent[i, 0] * weights[base + head[BACK] + c]
    for layer in range(depth - 1, -1, -1):
        row = table[LAYERS + ROW * layer :]
        width = row[WIDTH]
        for i in range(count):
            here = layer * stride + index[i] * wide
            unactivate(
                g[i, :width],
                centred[here : here + width],
                slope[here : here + width],
                inverse[layer * rows + index[i]],
                row[NORM],
            )
        for i in range(filled):
            for c in range(width if i < count else 0, up(width)):
                g[i, c] = f32(0)
        below = table[CHUNK] if layer == 0 else table[LAYERS + ROW * (layer - 1) + WIDTH]
        target = out if layer == 0 else other
        product(weights, base + row[BACK], up(width), up(below), g, filled, zeros, target, sums)
        g, other = other, g
