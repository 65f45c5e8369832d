r"""What one row and many rows share: products, activations and guidance of a single row.

Every function works on flat slices that start at 0 and touches few arrays per loop, so that LLVM
vectorises it. Nothing here is finite when its input is not.
"""

import numpy as np

from qsteer_ros.compiling import f32, tanh
from qsteer_ros.ensemble import VARIANCE_FLOOR
from qsteer_ros.policies.fast.building import inner
from qsteer_ros.steering.ratio import NORM_FLOOR

# Choices of a call, int64.
STEPS, FIRST, MINIMUM, PULL, CUT, MATCH, ADD, LIMIT, PROJECT, KEEP, CHOICES = range(11)
# Numbers of a call, float32.
WEIGHT, RHO, RATIO, MAX_RATIO, LOW, HIGH, NUMBERS = range(7)

EPSILON = f32(1e-6)
FLOOR = f32(NORM_FLOOR)


@inner
def add_product(weights, place, rows, x, y):
    """Y += x W; W (rows, len(y)) at ``place``."""
    n = y.shape[0]
    i = 0
    while i + 4 <= rows:
        a0 = x[i]
        a1 = x[i + 1]
        a2 = x[i + 2]
        a3 = x[i + 3]
        o = place + i * n
        w0 = weights[o : o + n]
        w1 = weights[o + n : o + 2 * n]
        w2 = weights[o + 2 * n : o + 3 * n]
        w3 = weights[o + 3 * n : o + 4 * n]
        for c in range(n):
            y[c] += (a0 * w0[c] + a1 * w1[c]) + (a2 * w2[c] + a3 * w3[c])
        i += 4
    while i < rows:
        a0 = x[i]
        w0 = weights[place + i * n : place + i * n + n]
        for c in range(n):
            y[c] += a0 * w0[c]
        i += 1


@inner
def dot_rows(weights, place, x, y):
    """Y = W x; W (len(y), len(x)) at ``place``."""
    n = x.shape[0]
    rows = y.shape[0]
    r = 0
    while r + 4 <= rows:
        s0 = f32(0)
        s1 = f32(0)
        s2 = f32(0)
        s3 = f32(0)
        o = place + r * n
        w0 = weights[o : o + n]
        w1 = weights[o + n : o + 2 * n]
        w2 = weights[o + 2 * n : o + 3 * n]
        w3 = weights[o + 3 * n : o + 4 * n]
        for c in range(n):
            s0 += w0[c] * x[c]
            s1 += w1[c] * x[c]
            s2 += w2[c] * x[c]
            s3 += w3[c] * x[c]
        y[r] = s0
        y[r + 1] = s1
        y[r + 2] = s2
        y[r + 3] = s3
        r += 4
    while r < rows:
        s0 = f32(0)
        w0 = weights[place + r * n : place + r * n + n]
        for c in range(n):
            s0 += w0[c] * x[c]
        y[r] = s0
        r += 1


@inner
def moments(z, norm):
    """A LayerNorm's mean and 1/std; 0 and 1 where there is none."""
    n = z.shape[0]
    mean, inverse = f32(0), f32(1)
    if norm:
        for i in range(n):
            mean += z[i]
        mean = mean / f32(n)
        variance = f32(0)
        for i in range(n):
            variance += (z[i] - mean) * (z[i] - mean)
        inverse = f32(1) / np.sqrt(variance / f32(n) + EPSILON)
    return mean, inverse


@inner
def activate(z, scale, shift, norm, out, centred, slope):
    """LayerNorm, if there is one, and GELU; returns 1/std and keeps what the way back needs.

    ``centred`` gets the normalised signal, ``slope`` the activation's derivative times the scale.
    """
    n = z.shape[0]
    mean, inverse = moments(z, norm)
    for i in range(n):
        centred[i] = (z[i] - mean) * inverse
    for i in range(n):
        out[i] = centred[i] * scale[i] + shift[i]
    for i in range(n):
        y = out[i]
        square = y * y
        t = tanh(f32(0.7978845608028654) * y * (f32(1) + f32(0.044715) * square))
        half = f32(0.5) + f32(0.5) * t
        out[i] = y * half
        inside = f32(0.7978845608028654) * (f32(1) + f32(3 * 0.044715) * square)
        slope[i] = half + f32(0.5) * y * (f32(1) - t * t) * inside
    for i in range(n):
        slope[i] *= scale[i]
    return inverse


@inner
def activate_only(z, scale, shift, norm, out):
    """As `activate`, where there is no way back: half the time."""
    mean, inverse = moments(z, norm)
    for i in range(z.shape[0]):
        y = (z[i] - mean) * inverse * scale[i] + shift[i]
        t = tanh(f32(0.7978845608028654) * y * (f32(1) + f32(0.044715) * (y * y)))
        out[i] = y * (f32(0.5) + f32(0.5) * t)


@inner
def unactivate(gradient, centred, slope, inverse, norm):
    """In place: the gradient behind an activation becomes the gradient before its LayerNorm."""
    n = gradient.shape[0]
    if norm:
        a = f32(0)
        b = f32(0)
        for i in range(n):
            gradient[i] *= slope[i]
            a += gradient[i]
            b += gradient[i] * centred[i]
        a = a / f32(n)
        b = b / f32(n)
        for i in range(n):
            gradient[i] = inverse * (gradient[i] - a - centred[i] * b)
    else:
        for i in range(n):
            gradient[i] *= slope[i]


@inner
def combine(values, minimum, rho, share):
    """``share`` gets the derivative of the aggregated value by each member's.

    One member that is not finite spoils all.
    """
    if minimum:
        of_minimum(values, share)
    else:
        of_mean_less_spread(values, rho, share)
    spoiled = f32(0)
    for e in range(values.shape[0]):
        spoiled += values[e] * f32(0)
    for e in range(values.shape[0]):
        share[e] += spoiled


@inner
def of_minimum(values, share):
    """Members that tie share it."""
    least = values[0]
    for value in values:
        if value < least:
            least = value
    count = 0
    for value in values:
        if value == least:
            count += 1
    for e in range(values.shape[0]):
        share[e] = f32(1) / f32(count) if values[e] == least else f32(0)


@inner
def of_mean_less_spread(values, rho, share):
    """In float64: the spread is a difference of values that are close to one another."""
    members = values.shape[0]
    mean = 0.0
    for value in values:
        mean += value
    mean /= members
    variance = VARIANCE_FLOOR
    for value in values:
        variance += (value - mean) ** 2 / members
    deviation = np.sqrt(variance)
    for e in range(members):
        share[e] = f32((1.0 - rho * (values[e] - mean) / deviation) / members)


@inner
def norm(x):
    """Euclidean."""
    total = f32(0)
    for i in range(x.shape[0]):
        total += x[i] * x[i]
    return np.sqrt(total)


@inner
def judge_at(x, velocity, remaining, numbers, clean, point):
    """The clean prediction, and the point inside the bounds at which a critic is asked."""
    for i in range(x.shape[0]):
        v = x[i] + remaining * velocity[i]
        clean[i] = v
        v = numbers[LOW] if v < numbers[LOW] else v  # a NaN passes both
        point[i] = numbers[HIGH] if v > numbers[HIGH] else v


@inner
def cut_clipped(clean, numbers, gradient):
    """Through the clip: a component that was clipped has no gradient."""
    for i in range(clean.shape[0]):
        if clean[i] < numbers[LOW] or clean[i] > numbers[HIGH]:
            gradient[i] = f32(0)


@inner
def bend(choices, numbers, velocity, clean, remaining, gradient):
    """In place: a gradient becomes guidance, by weight or ratio and inside the limits."""
    n = gradient.shape[0]
    speed = norm(velocity)
    scale = numbers[WEIGHT]
    if choices[MATCH]:
        scale = numbers[WEIGHT] * speed / (norm(gradient) + FLOOR)
    for i in range(n):
        gradient[i] *= scale
    if numbers[RATIO] > f32(0):
        scale = numbers[RATIO] * speed / (norm(gradient) + FLOOR)
        for i in range(n):
            gradient[i] *= scale
    if choices[PROJECT]:
        for i in range(n):
            low = numbers[LOW] - clean[i]
            low = f32(0) if low > f32(0) else low / remaining
            high = numbers[HIGH] - clean[i]
            high = f32(0) if high < f32(0) else high / remaining
            g = gradient[i]
            g = low if g < low else g
            gradient[i] = high if g > high else g
    if choices[LIMIT]:
        length = norm(gradient)
        limit = numbers[MAX_RATIO] * speed
        if length > limit:
            for i in range(n):
                gradient[i] *= limit / length
