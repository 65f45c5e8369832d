"""One chunk: the whole loop as matrix-vector products on one thread."""

import numba

from qsteer_ros.compiling import f32
from qsteer_ros.policies.fast.arithmetic import (
    ADD,
    CUT,
    FIRST,
    KEEP,
    MINIMUM,
    PULL,
    RHO,
    STEPS,
    activate,
    add_product,
    bend,
    combine,
    cut_clipped,
    dot_rows,
    judge_at,
    unactivate,
)
from qsteer_ros.policies.fast.building import compiled, fingerprint, inner
from qsteer_ros.policies.fast.packing import (
    BIAS,
    CHUNK,
    DEPTH,
    FEATURE_KERNEL,
    FEATURES,
    KERNEL,
    LAYERS,
    MEMBERS,
    NORM,
    ROW,
    SCALE,
    SHIFT,
    STRIDE,
    WIDEST,
    WIDTH,
    Packed,
    padded,
)

numbers_ = numba.float32[::1]
table_ = numba.float32[:, ::1]
steps_ = numba.float32[:, :, ::1]
integers_ = numba.int64[::1]
SIGNATURE = numba.void(
    *(integers_, numbers_, numbers_),  # choices, numbers, flow times
    *(integers_, numbers_, table_, numbers_),  # field: table, weights, along flow, features
    *(integers_, numbers_, numbers_),  # critic: table, weights, features
    *(table_, numbers_, table_),  # noise, scratch, chunk
    *(steps_,) * 5,  # velocity, guidance, slope, clean prediction, members' values
)


@inner
def condition(weights, base, table, features, start):
    """What features and bias contribute to the first layer."""
    row = table[LAYERS:]
    width = row[WIDTH]
    place = base + row[BIAS]
    for c in range(width):
        start[c] = weights[place + c]
    add_product(weights, base + table[FEATURE_KERNEL], table[FEATURES], features, start[:width])


@inner
def forward(weights, base, table, start, x, z, a, centred, slope, inverse, out, stride):
    """One network from a chunk to its outputs; keeps what `backward` needs.

    ``stride`` is the distance between the layers' notes: 0 overwrites what nobody needs.
    """
    depth = table[DEPTH]
    width = table[LAYERS + WIDTH]
    for c in range(width):
        z[c] = start[c]
    add_product(weights, base + table[LAYERS + KERNEL], table[CHUNK], x, z[:width])
    for layer in range(depth):
        row = table[LAYERS + ROW * layer :]
        width = row[WIDTH]
        scale = base + row[SCALE]
        shift = base + row[SHIFT]
        here = layer * stride
        inverse[layer] = activate(
            z[:width],
            weights[scale : scale + width],
            weights[shift : shift + width],
            row[NORM],
            a[:width],
            centred[here : here + width],
            slope[here : here + width],
        )
        after = row[ROW:]
        if layer < depth - 1:
            place = base + after[BIAS]
            for c in range(after[WIDTH]):
                z[c] = weights[place + c]
            add_product(weights, base + after[KERNEL], width, a, z[: after[WIDTH]])
    head = table[LAYERS + ROW * depth :]
    dot_rows(weights, base + head[KERNEL], a[:width], out)
    place = base + head[BIAS]
    for c in range(out.shape[0]):
        out[c] += weights[place + c]


@inner
def backward(weights, base, table, cotangent, g, other, centred, slope, inverse, out):
    """``out`` gets the cotangent's derivative by the chunk, after a `forward`."""
    depth, stride = table[DEPTH], table[WIDEST]
    row = table[LAYERS + ROW * (depth - 1) :]
    width = row[WIDTH]
    for c in range(width):
        g[c] = f32(0)
    add_product(weights, base + row[ROW:][KERNEL], cotangent.shape[0], cotangent, g[:width])
    for layer in range(depth - 1, -1, -1):
        row = table[LAYERS + ROW * layer :]
        width = row[WIDTH]
        here = layer * stride
        unactivate(
            g[:width],
            centred[here : here + width],
            slope[here : here + width],
            inverse[layer],
            row[NORM],
        )
        if layer > 0:
            below = table[LAYERS + ROW * (layer - 1) + WIDTH]
            dot_rows(weights, base + row[KERNEL], g[:width], other[:below])
            g, other = other, g
        else:
            dot_rows(weights, base + row[KERNEL], g[:width], out)


@inner
def sample(
    choices, numbers, times, ft, fw, along, features, ct, cw, seen, noise, scratch, chunk,
    velocities, guidances, slopes, cleans, values,
):  # fmt: skip
    """See `sample_one`."""
    steps, size, members = choices[STEPS], ft[CHUNK], ct[MEMBERS]
    asks = choices[FIRST] < steps
    # ---- scratch, every part on a cache line
    line = (size + 15) // 16 * 16
    o = 0
    x = scratch[o : o + size]
    u = scratch[o + line : o + line + size]
    clean = scratch[o + 2 * line : o + 2 * line + size]
    point = scratch[o + 3 * line : o + 3 * line + size]
    g = scratch[o + 4 * line : o + 4 * line + size]
    gx = scratch[o + 5 * line : o + 5 * line + size]
    o += 6 * line
    fwide, cwide = ft[WIDEST], ct[WIDEST]
    wide = max(fwide, cwide)
    base = scratch[o : o + fwide]
    start = scratch[o + fwide : o + 2 * fwide]
    o += 2 * fwide
    z = scratch[o : o + wide]
    a = scratch[o + wide : o + 2 * wide]
    o += 2 * wide
    m = ft[DEPTH] * fwide
    fcentred = scratch[o : o + m]
    fslope = scratch[o + m : o + 2 * m]
    o += 2 * m
    fdepth = (ft[DEPTH] + 15) // 16 * 16
    finverse = scratch[o : o + fdepth]
    o += fdepth
    cstart = scratch[o : o + members * cwide]
    o += members * cwide
    m = ct[DEPTH] * cwide
    ccentred = scratch[o : o + members * m]
    cslope = scratch[o + members * m : o + 2 * members * m]
    o += 2 * members * m
    cdepth = (ct[DEPTH] + 15) // 16 * 16
    cinverse = scratch[o : o + members * cdepth]
    o += members * cdepth
    q = scratch[o : o + members]
    share = scratch[o + (members + 15) // 16 * 16 :][:members]
    # ---- the loop
    noted = fwide if choices[PULL] else 0
    condition(fw, 0, ft, features, base)
    if asks:
        for e in range(members):
            condition(cw, e * ct[STRIDE], ct, seen, cstart[e * cwide :])
    for i in range(size):
        x[i] = noise[0, i]
    for k in range(steps):
        remaining = f32(1) - times[k]
        for i in range(along.shape[1]):
            start[i] = base[i] + along[k, i]
        forward(fw, 0, ft, start, x, z, a, fcentred, fslope, finverse, u, noted)
        asked = k >= choices[FIRST]
        if asked:
            judge_at(x, u, remaining, numbers, clean, point)
            for e in range(members):
                forward(
                    cw, e * ct[STRIDE], ct, cstart[e * cwide :], point, z, a,
                    ccentred[e * m :], cslope[e * m :], cinverse[e * cdepth :], q[e : e + 1],
                    cwide,
                )  # fmt: skip
            combine(q, choices[MINIMUM], numbers[RHO], share)
            for i in range(size):
                g[i] = f32(0)
            for e in range(members):
                if share[e] != f32(0):
                    backward(
                        cw, e * ct[STRIDE], ct, share[e : e + 1], z, a,
                        ccentred[e * m :], cslope[e * m :], cinverse[e * cdepth :], gx,
                    )  # fmt: skip
                    for i in range(size):
                        g[i] += gx[i]
            if choices[KEEP]:
                for i in range(size):
                    slopes[k, 0, i] = g[i]
                    cleans[k, 0, i] = clean[i]
                for e in range(members):
                    values[k, 0, e] = q[e]
            if choices[CUT]:
                cut_clipped(clean, numbers, g)
            if choices[PULL]:
                backward(fw, 0, ft, g, z, a, fcentred, fslope, finverse, gx)
                for i in range(size):
                    g[i] += remaining * gx[i]
            bend(choices, numbers, u, clean, remaining, g)
        if choices[KEEP]:
            for i in range(size):
                velocities[k, 0, i] = u[i]
                if asked:
                    guidances[k, 0, i] = g[i]
        if asked and choices[ADD]:
            for i in range(size):
                x[i] += (u[i] + g[i]) / f32(steps)
        else:
            for i in range(size):
                x[i] += u[i] / f32(steps)
    for i in range(size):
        chunk[0, i] = x[i]


def scratch_size(field: Packed, critic: Packed) -> int:
    """float32 numbers of scratch for a `sample_one`."""
    members, size = int(critic.table[MEMBERS]), int(field.table[CHUNK])
    fwide, cwide = int(field.table[WIDEST]), int(critic.table[WIDEST])
    fdepth, cdepth = int(field.table[DEPTH]), int(critic.table[DEPTH])
    ends = 6 * padded(size, 16) + 2 * fwide + 2 * max(fwide, cwide)
    path = 2 * fdepth * fwide + padded(fdepth, 16)
    asked = members * (cwide + 2 * cdepth * cwide + padded(cdepth, 16))
    return ends + path + asked + 2 * padded(members, 16)


def _kernel(version):
    def sample_one(
        choices, numbers, times, ft, fw, along, features, ct, cw, seen, noise, scratch, chunk,
        velocities, guidances, slopes, cleans, values,
    ):  # fmt: skip
        if version >= 0:
            sample(
                choices, numbers, times, ft, fw, along, features, ct, cw, seen, noise, scratch,
                chunk, velocities, guidances, slopes, cleans, values,
            )  # fmt: skip

    return compiled(SIGNATURE, sample_one)


sample_one = _kernel(fingerprint())
"""Denoise one chunk; arguments as in `SIGNATURE`, networks packed in rows."""
