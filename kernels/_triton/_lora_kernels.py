"""The five kernels of multi-scale LoRA. Letters: ``M`` rows, ``K`` reduced and ``N`` made features, ``R`` rank.

``P`` is ``[M, WIDTH]`` with ``WIDTH`` the rank rounded up to a multiple of 16; its columns from ``R`` on are zero. A rank
such as 80 is taken as 64 + 16 side by side where it is made and in chunks of 16 or 32 where it is used, so no rank has to
be a power of two. Factors may be of another dtype than the rows; they are cast when they are loaded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from asepsis.kernels._dropout import ROUNDS
from asepsis.kernels._triton._interp import dot

_ROUNDS = tl.constexpr(ROUNDS)


@triton.jit
def keep(seed, rows, first_group, COLUMNS: tl.constexpr, limit):
    """Mask ``[rows, COLUMNS]`` of the columns from ``8 * first_group`` on, as :mod:`asepsis.kernels._dropout` defines it."""
    groups = first_group + tl.arange(0, COLUMNS // 8)
    zero = tl.zeros([rows.shape[0], COLUMNS // 8], tl.int32)
    word0, word1, word2, word3 = tl.philox(
        seed, zero + groups[None, :], zero + rows[:, None], zero, zero, _ROUNDS
    )
    words = tl.join(tl.join(word0, word2), tl.join(word1, word3))
    halves = tl.join(words & 0xFFFF, words >> 16).to(tl.int32)
    return tl.reshape(halves, [rows.shape[0], COLUMNS]) < limit


@triton.jit(do_not_specialize=["M", "limit"])
def _multiscale_lora_shrink_kernel(
    x,
    factor,
    scale,
    out,
    seed,
    M,
    K,
    R,
    stride_xm,
    stride_fk,
    stride_fr,
    stride_om,
    limit,
    inverse,
    WIDTH: tl.constexpr,
    RANK_A: tl.constexpr,
    RANK_B: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    EVEN: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``out[m, r] = inverse * scale[r] * sum_k keep(m, k) x[m, k] factor[k, r]``."""
    first = tl.program_id(0) * BM
    row, column = tl.arange(0, BM), tl.arange(0, BK)
    inside = first + row < M
    rank_a = tl.program_id(1) * (RANK_A + RANK_B) + tl.arange(0, RANK_A)
    x_tile = x + first.to(tl.int64) * stride_xm + row[:, None] * stride_xm + column[None, :]
    a_tile = factor + column[:, None] * stride_fk + rank_a[None, :] * stride_fr
    acc_a = tl.zeros([BM, RANK_A], tl.float32)
    if RANK_B > 0:
        rank_b = tl.program_id(1) * (RANK_A + RANK_B) + RANK_A + tl.arange(0, RANK_B)
        b_tile = factor + column[:, None] * stride_fk + rank_b[None, :] * stride_fr
        acc_b = tl.zeros([BM, RANK_B], tl.float32)
    if DROPOUT:
        key = tl.load(seed)
    for k in range(0, K, BK):
        if EVEN:
            rows = tl.load(x_tile, mask=inside[:, None], other=0.0)
            part_a = tl.load(a_tile, mask=rank_a[None, :] < R, other=0.0)
        else:
            within = column < K - k
            rows = tl.load(x_tile, mask=inside[:, None] & within[None, :], other=0.0)
            part_a = tl.load(a_tile, mask=within[:, None] & (rank_a[None, :] < R), other=0.0)
        if DROPOUT:
            rows = tl.where(keep(key, first + row, k // 8, BK, limit), rows, tl.zeros_like(rows))
        acc_a = dot(rows, part_a.to(rows.dtype), acc_a, PRECISION)
        a_tile += BK * stride_fk
        if RANK_B > 0:
            if EVEN:
                part_b = tl.load(b_tile, mask=rank_b[None, :] < R, other=0.0)
            else:
                part_b = tl.load(b_tile, mask=within[:, None] & (rank_b[None, :] < R), other=0.0)
            acc_b = dot(rows, part_b.to(rows.dtype), acc_b, PRECISION)
            b_tile += BK * stride_fk
        x_tile += BK
    out_row = out + first.to(tl.int64) * stride_om + row[:, None] * stride_om
    scale_a = tl.load(scale + rank_a, mask=rank_a < R, other=0.0) * inverse
    tl.store(
        out_row + rank_a[None, :],
        (acc_a * scale_a[None, :]).to(out.dtype.element_ty),
        mask=inside[:, None] & (rank_a[None, :] < WIDTH),
    )
    if RANK_B > 0:
        scale_b = tl.load(scale + rank_b, mask=rank_b < R, other=0.0) * inverse
        tl.store(
            out_row + rank_b[None, :],
            (acc_b * scale_b[None, :]).to(out.dtype.element_ty),
            mask=inside[:, None] & (rank_b[None, :] < WIDTH),
        )


@triton.jit
def _low_rank(
    acc,
    p_row,
    f_tile,
    inside,
    made,
    R,
    stride_fr,
    WIDTH: tl.constexpr,
    BR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # after the main loop and in chunks: before it, or in one piece, the tiles do not fit beside the pipeline's buffers
    for r in tl.range(0, WIDTH, BR, num_stages=1):
        rank = r + tl.arange(0, BR)
        p = tl.load(p_row + rank[None, :], mask=inside[:, None], other=0.0)
        f = tl.load(f_tile + rank[:, None] * stride_fr, mask=(rank[:, None] < R) & made[None, :], other=0.0)
        acc = dot(p, f.to(p.dtype), acc, PRECISION)
    return acc


@triton.jit(do_not_specialize=["M", "limit"])
def _multiscale_lora_linear_kernel(
    x,
    weight,
    bias,
    p,
    factor,
    out,
    seed,
    M,
    N,
    K,
    R,
    stride_xm,
    stride_wn,
    stride_wk,
    stride_pm,
    stride_fn,
    stride_fr,
    stride_om,
    limit,
    WIDTH: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
    BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``out = x weight^T + bias + keep * (p factor^T)``: the product and, in its epilogue, the low-rank one."""
    program = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(M, BM), tl.cdiv(N, BN)
    # GROUP rows of tiles at a time, so that neighbors share what is in the L2
    group = program // (GROUP * tiles_n)
    height = tl.minimum(tiles_m - group * GROUP, GROUP)
    first = (group * GROUP + (program % (GROUP * tiles_n)) % height) * BM
    start = ((program % (GROUP * tiles_n)) // height) * BN
    row, column, depth = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    inside, made = first + row < M, start + column < N
    x_tile = x + first.to(tl.int64) * stride_xm + row[:, None] * stride_xm + depth[None, :]
    w_tile = (
        weight + start.to(tl.int64) * stride_wn + column[None, :] * stride_wn + depth[:, None] * stride_wk
    )
    acc = tl.zeros([BM, BN], tl.float32)
    for k in range(0, K, BK):
        if EVEN:
            rows = tl.load(x_tile, mask=inside[:, None], other=0.0)
            columns = tl.load(w_tile, mask=made[None, :], other=0.0)
        else:
            within = depth < K - k
            rows = tl.load(x_tile, mask=inside[:, None] & within[None, :], other=0.0)
            columns = tl.load(w_tile, mask=within[:, None] & made[None, :], other=0.0)
        acc = dot(rows, columns, acc, PRECISION)
        x_tile += BK
        w_tile += BK * stride_wk
    p_row = p + first.to(tl.int64) * stride_pm + row[:, None] * stride_pm
    f_tile = factor + start.to(tl.int64) * stride_fn + column[None, :] * stride_fn
    if DROPOUT:
        low = tl.zeros([BM, BN], tl.float32)
        low = _low_rank(low, p_row, f_tile, inside, made, R, stride_fr, WIDTH, BR, PRECISION)
        acc += tl.where(keep(tl.load(seed), first + row, start // 8, BN, limit), low, 0.0)
    else:
        acc = _low_rank(acc, p_row, f_tile, inside, made, R, stride_fr, WIDTH, BR, PRECISION)
    if BIAS:
        acc += tl.load(bias + start + column, mask=made, other=0.0).to(tl.float32)[None, :]
    out_tile = out + first.to(tl.int64) * stride_om + row[:, None] * stride_om + (start + column)[None, :]
    tl.store(out_tile, acc.to(out.dtype.element_ty), mask=inside[:, None] & made[None, :])


@triton.jit(do_not_specialize=["M", "limit"])
def _multiscale_lora_expand_kernel(
    p,
    factor,
    out,
    seed,
    M,
    N,
    R,
    stride_pm,
    stride_fn,
    stride_fr,
    stride_om,
    limit,
    WIDTH: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BR: tl.constexpr,
    ADD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``out[m, n] (+)= keep(m, n) sum_r p[m, r] factor[n, r]``: what a library's product cannot mask."""
    first, start = tl.program_id(0) * BM, tl.program_id(1) * BN
    row, column = tl.arange(0, BM), tl.arange(0, BN)
    inside, made = first + row < M, start + column < N
    p_row = p + first.to(tl.int64) * stride_pm + row[:, None] * stride_pm
    f_tile = factor + start.to(tl.int64) * stride_fn + column[None, :] * stride_fn
    low = tl.zeros([BM, BN], tl.float32)
    low = _low_rank(low, p_row, f_tile, inside, made, R, stride_fr, WIDTH, BR, PRECISION)
    low = tl.where(keep(tl.load(seed), first + row, start // 8, BN, limit), low, 0.0)
    out_tile = out + first.to(tl.int64) * stride_om + row[:, None] * stride_om + (start + column)[None, :]
    written = inside[:, None] & made[None, :]
    if ADD:
        low += tl.load(out_tile, mask=written, other=0.0).to(tl.float32)
    tl.store(out_tile, low.to(out.dtype.element_ty), mask=written)


@triton.jit(do_not_specialize=["boundary", "end", "chunk", "splits", "limit"])
def _multiscale_lora_gradient_kernel(
    x,
    p,
    partial,
    seed,
    first_column,
    D,
    R,
    boundary,
    end,
    chunk,
    splits,
    stride_xm,
    stride_pm,
    stride_ts,
    stride_td,
    stride_tr,
    limit,
    WIDTH: tl.constexpr,
    RANK_A: tl.constexpr,
    RANK_B: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``partial[s, d, r] = sum_m keep(m, d) x[m, d] p[m, r]`` over the rows of split ``s``.

    The first ``splits`` splits cover the rows before ``boundary``, the others those up to ``end``.
    """
    start, split = tl.program_id(0) * BD, tl.program_id(2)
    row, column = tl.arange(0, BM), tl.arange(0, BD)
    made = start + column < D
    rank_a = tl.program_id(1) * (RANK_A + RANK_B) + tl.arange(0, RANK_A)
    acc_a = tl.zeros([BD, RANK_A], tl.float32)
    if RANK_B > 0:
        rank_b = tl.program_id(1) * (RANK_A + RANK_B) + RANK_A + tl.arange(0, RANK_B)
        acc_b = tl.zeros([BD, RANK_B], tl.float32)
    if DROPOUT:
        key = tl.load(seed)
    is_first = split < splits
    low = tl.where(is_first, split * chunk, boundary + (split - splits) * chunk)
    high = tl.minimum(low + chunk, tl.where(is_first, boundary, end))
    x_tile = x + low.to(tl.int64) * stride_xm + row[:, None] * stride_xm
    x_tile += (first_column + start + column)[None, :]
    p_row = p + low.to(tl.int64) * stride_pm + row[:, None] * stride_pm
    for m in range(low, high, BM):
        inside = m + row < high
        rows = tl.load(x_tile, mask=inside[:, None] & made[None, :], other=0.0)
        if DROPOUT:
            mask = keep(key, m + row, (first_column + start) // 8, BD, limit)
            rows = tl.where(mask, rows, tl.zeros_like(rows))
        columns = tl.trans(rows)
        p_a = tl.load(p_row + rank_a[None, :], mask=inside[:, None] & (rank_a[None, :] < WIDTH), other=0.0)
        acc_a = dot(columns, p_a, acc_a, PRECISION)
        if RANK_B > 0:
            p_b = tl.load(
                p_row + rank_b[None, :], mask=inside[:, None] & (rank_b[None, :] < WIDTH), other=0.0
            )
            acc_b = dot(columns, p_b, acc_b, PRECISION)
        x_tile += BM * stride_xm
        p_row += BM * stride_pm
    tile = partial + split.to(tl.int64) * stride_ts + (start + column).to(tl.int64)[:, None] * stride_td
    tl.store(
        tile + rank_a[None, :] * stride_tr,
        acc_a.to(partial.dtype.element_ty),
        mask=made[:, None] & (rank_a[None, :] < R),
    )
    if RANK_B > 0:
        tl.store(
            tile + rank_b[None, :] * stride_tr,
            acc_b.to(partial.dtype.element_ty),
            mask=made[:, None] & (rank_b[None, :] < R),
        )


@triton.jit(do_not_specialize=["splits"])
def _multiscale_lora_sum_kernel(partial, out, n, stride, splits, BLOCK: tl.constexpr):
    """``out[i] = sum_s partial[s, i]``, in the order of the splits."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    acc = tl.zeros([BLOCK], tl.float32)
    for split in range(splits):
        acc += tl.load(partial + split * stride + at, mask=inside, other=0.0)
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=inside)
