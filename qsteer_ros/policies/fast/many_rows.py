"""Many chunks: each thread takes blocks of rows through the whole loop, without meeting others."""

import numba
import numpy as np

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
    bend,
    combine,
    cut_clipped,
    judge_at,
)
from qsteer_ros.policies.fast.building import compiled, fingerprint, inner
from qsteer_ros.policies.fast.network_of_rows import backward, forward, up
from qsteer_ros.policies.fast.one_row import condition, integers_, numbers_, steps_, table_
from qsteer_ros.policies.fast.packing import (
    CHUNK,
    DEPTH,
    LINE,
    MEMBERS,
    STRIDE,
    WIDEST,
    Packed,
    padded,
)

BLOCK = 256
"""Most rows that a thread takes through the loop together: they share every reading of weights."""

SIGNATURE = numba.void(
    *(integers_,),  # worker, workers, rows of a block
    *(integers_, numbers_, numbers_),  # choices, numbers, flow times
    *(integers_, numbers_, table_, numbers_),  # field: table, weights, along flow, features
    *(integers_, numbers_, numbers_),  # critic: table, weights, features
    *(table_, table_, table_),  # noise, scratch of each worker, chunks
    *(steps_,) * 5,  # velocity, guidance, slope, clean prediction, members' values
)


@inner
def block(
    low, high, choices, numbers, times, ft, fw, along, base, ct, cw, cstart, noise, rest, index,
    chunk, velocities, guidances, slopes, cleans, values,
):  # fmt: skip
    """Take rows ``low`` to ``high`` from noise to chunk."""
    steps, size, members = choices[STEPS], ft[CHUNK], ct[MEMBERS]
    count = high - low
    rows = (count + 3) // 4 * 4
    fwide, cwide, padded_size = ft[WIDEST], ct[WIDEST], up(size)
    wide = max(fwide, cwide)
    # ---- scratch
    sums = rest[:1024]
    zeros = rest[1024 : 1024 + max(wide, padded_size)]
    o = 1024 + max(wide, padded_size)
    start = rest[o : o + fwide]
    o += fwide
    n = rows * padded_size
    x = rest[o : o + n].reshape(rows, padded_size)
    u = rest[o + n : o + 2 * n].reshape(rows, padded_size)
    point = rest[o + 2 * n : o + 3 * n].reshape(rows, padded_size)
    g = rest[o + 3 * n : o + 4 * n].reshape(rows, padded_size)
    gx = rest[o + 4 * n : o + 5 * n].reshape(rows, padded_size)
    clean = rest[o + 5 * n : o + 6 * n].reshape(rows, padded_size)
    for i in range(6 * n):
        rest[o + i] = f32(0)
    o += 6 * n
    q = rest[o : o + rows * members].reshape(rows, members)
    o += rows * members
    share = rest[o : o + rows * members].reshape(rows, members)
    o += rows * members
    answer = rest[o : o + rows].reshape(rows, 1)
    o += rows
    o = (o + 15) // 16 * 16
    z = rest[o : o + rows * wide].reshape(rows, wide)
    o += rows * wide
    a = rest[o : o + rows * wide].reshape(rows, wide)
    o += rows * wide
    m = ft[DEPTH] * rows * fwide
    fcentred = rest[o : o + m]
    fslope = rest[o + m : o + 2 * m]
    o += 2 * m
    finverse = rest[o : o + ft[DEPTH] * rows]
    o += (ft[DEPTH] * rows + 15) // 16 * 16
    m = ct[DEPTH] * rows * cwide
    ccentred = rest[o : o + members * m]
    cslope = rest[o + members * m : o + 2 * members * m]
    o += 2 * members * m
    m_inverse = ct[DEPTH] * rows
    cinverse = rest[o : o + members * m_inverse]
    # ---- the loop
    for i in range(count):
        for j in range(size):
            x[i, j] = noise[low + i, j]
    for k in range(steps):
        remaining = f32(1) - times[k]
        for j in range(along.shape[1]):
            start[j] = base[j] + along[k, j]
        asked = k >= choices[FIRST]
        noted = rows * fwide if asked and choices[PULL] else 0
        forward(fw, 0, ft, start, x, rows, z, a, fcentred, fslope, finverse, u, sums, noted)
        if asked:
            for i in range(count):
                judge_at(
                    x[i, :size], u[i, :size], remaining, numbers, clean[i, :size], point[i, :size]
                )
            for e in range(members):
                forward(
                    cw, e * ct[STRIDE], ct, cstart[e * cwide : (e + 1) * cwide], point, rows, z,
                    a, ccentred[e * m :], cslope[e * m :], cinverse[e * m_inverse :], answer, sums,
                    rows * cwide,
                )  # fmt: skip
                for i in range(rows):
                    q[i, e] = answer[i, 0]
            for i in range(count):
                combine(q[i], choices[MINIMUM], numbers[RHO], share[i])
                for j in range(size):
                    g[i, j] = f32(0)
            for e in range(members):
                chosen = 0
                for i in range(count):
                    if share[i, e] != f32(0):
                        index[chosen] = i
                        answer[chosen, 0] = share[i, e]
                        chosen += 1
                if chosen > 0:
                    for i in range(chosen, rows):
                        answer[i, 0] = f32(0)
                    backward(
                        cw, e * ct[STRIDE], ct, answer, index, chosen, rows, z, a, zeros,
                        ccentred[e * m :], cslope[e * m :], cinverse[e * m_inverse :], gx, sums,
                    )  # fmt: skip
                    for i in range(chosen):
                        for j in range(size):
                            g[index[i], j] += gx[i, j]
            for i in range(count):
                if choices[KEEP]:
                    for j in range(size):
                        slopes[k, low + i, j] = g[i, j]
                        cleans[k, low + i, j] = clean[i, j]
                    for e in range(members):
                        values[k, low + i, e] = q[i, e]
                if choices[CUT]:
                    cut_clipped(clean[i, :size], numbers, g[i, :size])
            if choices[PULL]:
                for i in range(count):
                    index[i] = i
                backward(
                    fw, 0, ft, g, index, count, rows, z, a, zeros, fcentred, fslope, finverse,
                    gx, sums,
                )  # fmt: skip
                for i in range(count):
                    for j in range(size):
                        g[i, j] += remaining * gx[i, j]
            for i in range(count):
                bend(choices, numbers, u[i, :size], clean[i, :size], remaining, g[i, :size])
        for i in range(count):
            if choices[KEEP]:
                for j in range(size):
                    velocities[k, low + i, j] = u[i, j]
                    if asked:
                        guidances[k, low + i, j] = g[i, j]
            if asked and choices[ADD]:
                for j in range(size):
                    x[i, j] += (u[i, j] + g[i, j]) / f32(steps)
            else:
                for j in range(size):
                    x[i, j] += u[i, j] / f32(steps)
    for i in range(count):
        for j in range(size):
            chunk[low + i, j] = x[i, j]


@inner
def work(
    split, choices, numbers, times, ft, fw, along, features, ct, cw, seen, noise, scratch, chunk,
    velocities, guidances, slopes, cleans, values,
):  # fmt: skip
    """Every ``split[1]``-th block of ``split[2]`` rows, from number ``split[0]`` on."""
    members, cwide = ct[MEMBERS], ct[WIDEST]
    mine = scratch[split[0]]
    base = mine[: ft[WIDEST]]
    cstart = mine[ft[WIDEST] : ft[WIDEST] + members * cwide]
    rest = mine[ft[WIDEST] + members * cwide :]
    index = np.empty(BLOCK, np.int64)
    for c in range(ft[WIDEST]):
        base[c] = f32(0)
    condition(fw, 0, ft, features, base)
    if choices[FIRST] < choices[STEPS]:
        for c in range(members * cwide):
            cstart[c] = f32(0)
        for e in range(members):
            condition(cw, e * ct[STRIDE], ct, seen, cstart[e * cwide :])
    rows = noise.shape[0]
    for low in range(split[0] * split[2], rows, split[1] * split[2]):
        block(
            low, min(rows, low + split[2]), choices, numbers, times, ft, fw, along, base, ct, cw,
            cstart, noise, rest, index, chunk, velocities, guidances, slopes, cleans, values,
        )  # fmt: skip


def scratch_size(field: Packed, critic: Packed, rows: int) -> int:
    """float32 numbers of scratch for a worker that takes blocks of ``rows``."""
    members, size = int(critic.table[MEMBERS]), padded(int(field.table[CHUNK]))
    fwide, cwide = int(field.table[WIDEST]), int(critic.table[WIDEST])
    fdepth, cdepth = int(field.table[DEPTH]), int(critic.table[DEPTH])
    wide = max(fwide, cwide)
    shared = fwide + members * cwide + 1024 + max(wide, size) + fwide
    ends = rows * (6 * size + 2 * members + 1) + LINE
    path = 2 * rows * fdepth * fwide + padded(rows * fdepth, LINE)
    asked = 2 * rows * members * cdepth * cwide + members * cdepth * rows
    return padded(shared + ends + 2 * rows * wide + path + asked, LINE)


def _kernel(version):
    def sample_rows(
        split, choices, numbers, times, ft, fw, along, features, ct, cw, seen, noise, scratch,
        chunk, velocities, guidances, slopes, cleans, values,
    ):  # fmt: skip
        if version >= 0:
            work(
                split, choices, numbers, times, ft, fw, along, features, ct, cw, seen, noise,
                scratch, chunk, velocities, guidances, slopes, cleans, values,
            )  # fmt: skip

    return compiled(SIGNATURE, sample_rows)


sample_rows = _kernel(fingerprint())
"""Denoise a worker's share of the chunks; arguments as in `SIGNATURE`, networks in tiles."""
