"""Matrix products of many rows with tiled weights, see `packing`."""

from qsteer_ros.policies.fast.building import inner


def _tile(width):
    """The product of rows with one tile of a fixed width, four rows and four inputs at a time."""
    w1, w2, w3 = width, 2 * width, 3 * width

    @inner
    def product(weights, inputs, x, rows, bias, column, y, sums):
        b = bias[column : column + width]
        for r in range(0, rows, 4):
            for c in range(width):
                sums[c] = b[c]
                sums[w1 + c] = b[c]
                sums[w2 + c] = b[c]
                sums[w3 + c] = b[c]
            for k in range(0, inputs, 4):
                a00 = x[r, k]
                a01 = x[r, k + 1]
                a02 = x[r, k + 2]
                a03 = x[r, k + 3]
                a10 = x[r + 1, k]
                a11 = x[r + 1, k + 1]
                a12 = x[r + 1, k + 2]
                a13 = x[r + 1, k + 3]
                a20 = x[r + 2, k]
                a21 = x[r + 2, k + 1]
                a22 = x[r + 2, k + 2]
                a23 = x[r + 2, k + 3]
                a30 = x[r + 3, k]
                a31 = x[r + 3, k + 1]
                a32 = x[r + 3, k + 2]
                a33 = x[r + 3, k + 3]
                w = weights[k * width : (k + 4) * width]
                for c in range(width):
                    p = w[c]
                    q = w[w1 + c]
                    s = w[w2 + c]
                    t = w[w3 + c]
                    sums[c] += a00 * p + a01 * q + a02 * s + a03 * t
                    sums[w1 + c] += a10 * p + a11 * q + a12 * s + a13 * t
                    sums[w2 + c] += a20 * p + a21 * q + a22 * s + a23 * t
                    sums[w3 + c] += a30 * p + a31 * q + a32 * s + a33 * t
            for i in range(4):
                for c in range(width):
                    y[r + i, column + c] = sums[i * width + c]

    return product


tile_256, tile_128, tile_64, tile_32 = (_tile(width) for width in (256, 128, 64, 32))


@inner
def product(weights, place, inputs, outputs, x, rows, bias, y, sums):
    """Y = bias + x W for the first rows; rows is a multiple of 4, sizes are padded.

    ``sums`` is scratch of 1024 numbers.
    """
    c = 0
    while outputs - c >= 256:
        tile_256(weights[place + c * inputs :], inputs, x, rows, bias, c, y, sums)
        c += 256
    if outputs - c >= 128:
        tile_128(weights[place + c * inputs :], inputs, x, rows, bias, c, y, sums)
        c += 128
    if outputs - c >= 64:
        tile_64(weights[place + c * inputs :], inputs, x, rows, bias, c, y, sums)
        c += 64
    if outputs - c >= 32:
        tile_32(weights[place + c * inputs :], inputs, x, rows, bias, c, y, sums)
