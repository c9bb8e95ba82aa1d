"""The kernels of linear_sample_loss; ``sample_loss.py`` beside it says what they are for and launches them."""

from __future__ import annotations

import triton
import triton.language as tl

from asepsis.kernels._triton._interp import dot

_VARYING = ("n", "n_classes", "n_parts", "begin", "chunk")  # batches of all sizes run the same code


@triton.jit
def _logits(
    hidden, weight, bias, rows, cols, n_classes, width, stride_h, stride_w,
    HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Logits ``[BM, BN]`` in float32; those of columns beyond the vocabulary are -inf."""
    held = tl.minimum(cols, n_classes - 1).to(
        tl.int64
    )  # beyond the end the last row is read again, not masked
    ks = tl.arange(0, BK)
    h = hidden + rows[:, None] * stride_h + ks[None, :]
    w = weight + held[None, :] * stride_w + ks[:, None]
    acc = tl.zeros([BM, BN], tl.float32)
    for k in range(0, width, BK):
        if EVEN:
            acc = dot(tl.load(h), tl.load(w), acc, PRECISION)
        else:
            left = ks < width - k
            acc = dot(
                tl.load(h, mask=left[None, :], other=0.0),
                tl.load(w, mask=left[:, None], other=0.0),
                acc,
                PRECISION,
            )
        h += BK
        w += BK
    if HAS_BIAS:
        acc += tl.load(bias + held).to(tl.float32)[None, :]
    return tl.where((cols < n_classes)[None, :], acc, float("-inf"))


@triton.jit(do_not_specialize=_VARYING)
def _forward(
    hidden, weight, bias, labels, order, n_counted, partials, picked, n, n_classes, width, stride_h, stride_w,
    HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    counted = tl.load(n_counted)
    first = tl.program_id(0) * BM
    if first < counted:
        part = tl.program_id(1)
        place = first + tl.arange(0, BM)
        there = place < counted
        rows = tl.load(order + place, mask=there, other=0)
        label = tl.load(labels + rows, mask=there, other=-1)
        most = tl.full([BM], float("-inf"), tl.float32)
        total = tl.zeros([BM], tl.float32)
        start = part * (PARTS * BN)
        for at in range(start, tl.minimum(start + PARTS * BN, n_classes), BN):
            cols = at + tl.arange(0, BN)
            acc = _logits(
                hidden, weight, bias, rows, cols, n_classes, width, stride_h, stride_w,
                HAS_BIAS, EVEN, PRECISION, BM, BN, BK,
            )  # fmt: skip
            mine = there & (label >= at) & (label < tl.minimum(at + BN, n_classes))
            chosen = tl.sum(tl.where(cols[None, :] == label[:, None], acc, 0.0), axis=1)
            tl.store(picked + rows, chosen, mask=mine)
            new = tl.maximum(most, tl.max(acc, axis=1))
            base = tl.where(new == float("-inf"), 0.0, new)
            total = total * tl.exp(most - base) + tl.sum(tl.exp(acc - base[:, None]), axis=1)
            most = new
        n_parts = tl.num_programs(1)
        tl.store(partials + part * n + place, most, mask=there)
        tl.store(partials + (n_parts + part) * n + place, total, mask=there)


@triton.jit(do_not_specialize=_VARYING)
def _combine(order, n_counted, partials, picked, losses, norms, n, n_parts, ROWS: tl.constexpr):
    """Losses, and of each position the maximum and the logarithm of the sum apart: their sum would lose small losses."""
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = place < tl.load(n_counted)
    rows = tl.load(order + place, mask=there, other=0)
    most = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for part in range(n_parts):
        one = tl.load(partials + part * n + place, mask=there, other=0.0)
        new = tl.maximum(most, one)
        base = tl.where(new == float("-inf"), 0.0, new)
        more = tl.load(partials + (n_parts + part) * n + place, mask=there, other=1.0)
        total = total * tl.exp(most - base) + more * tl.exp(one - base)
        most = new
    log = tl.log(total)
    tl.store(losses + rows, (most - tl.load(picked + rows, mask=there, other=0.0)) + log, mask=there)
    tl.store(norms + rows, most, mask=there)
    tl.store(norms + n + rows, log, mask=there)


@triton.jit(do_not_specialize=_VARYING)
def _grad_logits(
    hidden, weight, bias, labels, order, n_counted, norms, grad, out, n, begin, n_classes, width,
    stride_h, stride_w, line,
    HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    counted = tl.load(n_counted)
    first = tl.program_id(0) * BM
    if begin + first < counted:
        inner = first + tl.arange(0, BM)
        there = begin + inner < counted
        rows = tl.load(order + begin + inner, mask=there, other=0)
        label = tl.load(labels + rows, mask=there, other=-1)
        cols = tl.program_id(1) * BN + tl.arange(0, BN)
        acc = _logits(
            hidden, weight, bias, rows, cols, n_classes, width, stride_h, stride_w,
            HAS_BIAS, EVEN, PRECISION, BM, BN, BK,
        )  # fmt: skip
        most = tl.load(norms + rows, mask=there, other=0.0)
        log = tl.load(norms + n + rows, mask=there, other=0.0)
        factor = tl.load(grad + rows, mask=there, other=0.0)
        share = tl.exp((acc - most[:, None]) - log[:, None])
        share -= tl.where(cols[None, :] == label[:, None], 1.0, 0.0)
        share = tl.where(there[:, None] & (cols < n_classes)[None, :], share * factor[:, None], 0.0)
        places = out + inner.to(tl.int64)[:, None] * line + cols[None, :]
        tl.store(places, share.to(out.dtype.element_ty), mask=(cols < line)[None, :])


@triton.jit(do_not_specialize=_VARYING)
def _grad_hidden(
    shares, weight, order, n_counted, out, begin, n_classes, width, line, stride_w, stride_out,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    counted = tl.load(n_counted)
    first = tl.program_id(0) * BM
    if begin + first < counted:
        inner = first + tl.arange(0, BM)
        there = begin + inner < counted
        cols = tl.program_id(1) * BN + tl.arange(0, BN)
        ks = tl.arange(0, BK)
        # rows of the last block beyond `counted` were written as zeros; `line` is a multiple of BK
        left = shares + inner.to(tl.int64)[:, None] * line + ks[None, :]
        acc = tl.zeros([BM, BN], tl.float32)
        for k in range(0, line, BK):
            classes = tl.minimum(k + ks, n_classes - 1).to(tl.int64)  # shares beyond the vocabulary are zero
            right = tl.load(
                weight + classes[:, None] * stride_w + cols[None, :], mask=(cols < width)[None, :], other=0.0
            )
            acc = dot(tl.load(left), right, acc, PRECISION)
            left += BK
        rows = tl.load(order + begin + inner, mask=there, other=0)
        places = out + rows[:, None] * stride_out + cols[None, :]
        tl.store(places, acc.to(out.dtype.element_ty), mask=there[:, None] & (cols < width)[None, :])


@triton.jit(do_not_specialize=_VARYING)
def _grad_weight(
    shares, hidden, order, n_counted, out, begin, chunk, n_classes, width, line, stride_h,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Add to ``out`` [V, D] float32 what this chunk of positions gives."""
    last = tl.minimum(tl.load(n_counted) - begin, chunk)
    if last > 0:
        classes = tl.program_id(0) * BM + tl.arange(0, BM)
        cols = tl.program_id(1) * BN + tl.arange(0, BN)
        ks = tl.arange(0, BK)
        acc = tl.zeros([BM, BN], tl.float32)
        for k in range(0, last, BK):
            inner = k + ks
            there = inner < last
            rows = tl.load(order + begin + inner, mask=there, other=0)
            left = tl.load(
                shares + inner.to(tl.int64)[:, None] * line + classes[None, :],
                mask=there[:, None] & (classes < line)[None, :],
                other=0.0,
            )
            right = tl.load(
                hidden + rows[:, None] * stride_h + cols[None, :],
                mask=there[:, None] & (cols < width)[None, :],
                other=0.0,
            )
            acc = dot(tl.trans(left), right, acc, PRECISION)
        places = out + classes.to(tl.int64)[:, None] * width + cols[None, :]
        inside = (classes < n_classes)[:, None] & (cols < width)[None, :]
        tl.store(places, tl.load(places, mask=inside, other=0.0) + acc, mask=inside)


@triton.jit(do_not_specialize=_VARYING)
def _grad_bias(shares, n_counted, out, begin, chunk, n_classes, line, BM: tl.constexpr, BN: tl.constexpr):
    last = tl.minimum(tl.load(n_counted) - begin, chunk)
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = cols < n_classes
    acc = tl.zeros([BM, BN], tl.float32)
    for k in range(0, last, BM):
        inner = k + tl.arange(0, BM)
        mask = (inner < last)[:, None] & inside[None, :]
        acc += tl.load(shares + inner.to(tl.int64)[:, None] * line + cols[None, :], mask=mask, other=0.0).to(
            tl.float32
        )
    tl.store(out + cols, tl.load(out + cols, mask=inside, other=0.0) + tl.sum(acc, axis=0), mask=inside)
