"""routed_adapter on a GPU: rows of one sub-network in tiles, both products of a tile in one program.

A tile is up to BLOCK_M rows of one sub-network. `routed_adapter_tiles_kernel` lists them on the device, so that nothing
waits for it; the grid is an upper bound, and programs without a tile leave at once. The two passes over the rows then
have one shape: rows · weightᵀ over D gives BLOCK_M × R hidden values, which stay on the chip, and those times the other
weight give the rows of the result. The gradients of the weights are sums over rows: of chunks of rows, and where a
sub-network has several chunks, their sums are added in a fixed order.

Offsets within a tile are 32-bit; only where it begins is 64-bit.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.library import wrap_triton

from artsy_ext.ops._triton import Variant, dot, fp32_precision, narrow
from artsy_ext.ops.plan_routes.routes import Routes

PADDING = tl.constexpr(-1)
"""In place of a tile's sub-network: rows behind the plan's last pair."""
OVERFLOW = tl.constexpr(-2)
"""… all rows of a plan that overflowed."""


@triton.jit
def routed_adapter_tiles_kernel(offsets, overflow, tiles, S, P, N, size, G, EMPTY: tl.constexpr, BLOCK: tl.constexpr):
    """tiles [5, G] int64: sub-network, first row, row behind the last, the sub-network's tiles [from, to).

    In the order of the rows, at most `size` rows each; those without rows come last, and are PADDING. With EMPTY a
    sub-network without rows has one tile, too.
    """
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    overflowed = tl.load(overflow) != 0
    # Segments are the sub-networks and, as the last, the padding. Those that end before tile t are counted.
    b_segment = tl.zeros((BLOCK,), tl.int32)
    b_first = tl.zeros((BLOCK,), tl.int32)
    before = 0
    for start in range(0, S + 1, BLOCK):
        s = start + tl.arange(0, BLOCK)
        b_pairs = tl.load(offsets + s + 1, mask=s < S, other=P) - tl.load(offsets + s, mask=s <= S, other=P)
        b_pairs = tl.where(overflowed, tl.where(s == S, P, 0), b_pairs)
        b_tiles = ((b_pairs * N + size - 1) // size).to(tl.int32)
        if EMPTY:
            b_tiles = tl.where(s < S, tl.maximum(b_tiles, 1), b_tiles)
        b_end = before + tl.cumsum(b_tiles, 0)
        b_passed = (b_end[None, :] <= t[:, None]) & (s <= S)[None, :]
        b_segment += tl.sum(b_passed.to(tl.int32), 1)
        b_first = tl.maximum(b_first, tl.max(tl.where(b_passed, b_end[None, :], 0), 1))
        before += tl.sum(b_tiles, 0)
    is_subnetwork = (b_segment < S) & (t < G)
    is_padding = (b_segment == S) & (t < G)
    b_begin = tl.load(offsets + b_segment, mask=is_subnetwork | is_padding, other=0)
    b_end = tl.load(offsets + b_segment + 1, mask=is_subnetwork, other=0)
    b_end = tl.where(is_padding, P, b_end)
    b_begin = tl.where(overflowed, 0, b_begin)
    b_end = tl.where(overflowed & is_subnetwork, 0, b_end)
    b_row = b_begin * N + (t - b_first).to(tl.int64) * size
    b_stop = tl.minimum(b_row + size, b_end * N)
    b_count = tl.maximum((b_end - b_begin) * N + size - 1, size) // size  # EMPTY or not: nobody looks at no tile's
    b_other = tl.where(overflowed, OVERFLOW, PADDING)
    tl.store(tiles + t, tl.where(is_subnetwork, b_segment, b_other), mask=t < G)
    tl.store(tiles + G + t, b_row, mask=t < G)
    tl.store(tiles + 2 * G + t, b_stop, mask=t < G)
    tl.store(tiles + 3 * G + t, b_first, mask=t < G)
    tl.store(tiles + 4 * G + t, b_first + b_count, mask=t < G)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        return tl.where(x < 0, 0.0, x)  # NaN stays NaN
    if ACTIVATION == "gelu":
        return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    # x · (1 + tanh(u)) / 2 with u = √(2/π) · (x + 0.044715 x³)
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def backpropagate(grad, x, ACTIVATION: tl.constexpr):
    """The gradient of x from that of activate(x)."""
    if ACTIVATION == "relu":
        return tl.where(x <= 0, 0.0, grad)
    if ACTIVATION == "gelu":
        return grad * (0.5 * (1 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x))
    b_s = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    return grad * (b_s + x * b_s * (1 - b_s) * 1.5957691216057308 * (1 + 0.134145 * x * x))


@triton.jit
def to_hidden(
    p_rows, p_weight, stride_r, stride_d, count, D, R,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """rows [count, D] · weight [R, D]ᵀ as [BLOCK_M, BLOCK_R] fp32."""
    m = tl.arange(0, BLOCK_M)
    r = tl.arange(0, BLOCK_R)
    b_hidden = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    for start in tl.range(0, D, BLOCK_D, num_stages=STAGES):
        d = start + tl.arange(0, BLOCK_D)
        mask = (m[:, None] < count) & (d[None, :] < D)
        b_rows = tl.load(p_rows + m[:, None] * D + d[None, :], mask=mask, other=0.0)
        p_block = p_weight + d[:, None] * stride_d + r[None, :] * stride_r
        b_weight = tl.load(p_block, mask=(d[:, None] < D) & (r[None, :] < R), other=0.0)
        b_hidden = dot(b_rows, b_weight, b_hidden, PRECISION)
    return b_hidden


@triton.jit
def from_hidden(
    b_hidden, p_weight, stride_r, stride_d, p_bias, p_base, p_out, scale, count, D, R,
    HAS_BIAS: tl.constexpr, HAS_BASE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out [count, D] = base + scale · (hidden [BLOCK_M, BLOCK_R] · weight [D, R]ᵀ + bias)."""
    m = tl.arange(0, BLOCK_M)
    r = tl.arange(0, BLOCK_R)
    for start in tl.range(0, D, BLOCK_D, num_stages=STAGES):
        d = start + tl.arange(0, BLOCK_D)
        p_block = p_weight + r[:, None] * stride_r + d[None, :] * stride_d
        b_weight = tl.load(p_block, mask=(r[:, None] < R) & (d[None, :] < D), other=0.0)
        b_out = dot(b_hidden, b_weight, tl.zeros((BLOCK_M, BLOCK_D), tl.float32), PRECISION)
        if HAS_BIAS:
            b_out += tl.load(p_bias + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
        b_out *= scale
        at = m[:, None] * D + d[None, :]
        mask = (m[:, None] < count) & (d[None, :] < D)
        if HAS_BASE:
            b_base = tl.load(p_base + at, mask=mask, other=0.0)
            b_out += b_base.to(tl.float32)
        tl.store(p_out + at, narrow(b_out, p_out.dtype.element_ty), mask=mask)


@triton.jit
def fill(p_out, value, count, width, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """out [count, width] = value."""
    m = tl.arange(0, BLOCK_M)
    b_value = tl.zeros((BLOCK_M, BLOCK_D), tl.float32) + value
    for start in range(0, width, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        mask = (m[:, None] < count) & (d[None, :] < width)
        tl.store(p_out + m[:, None] * width + d[None, :], b_value.to(p_out.dtype.element_ty), mask=mask)


@triton.jit
def routed_adapter_fwd_kernel(
    x, tiles, down, down_bias, up, up_bias, base, y, hidden, scale, D, R, G,
    ACTIVATION: tl.constexpr, HAS_BASE: tl.constexpr, SAVE_HIDDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr, STAGES_OUT: tl.constexpr,
):  # fmt: skip
    """y, and with SAVE_HIDDEN the hidden values before activation, of one tile of rows."""
    t = tl.program_id(0)
    s = tl.load(tiles + t)
    begin = tl.load(tiles + G + t)
    count = (tl.load(tiles + 2 * G + t) - begin).to(tl.int32)
    if count <= 0:
        return
    m = tl.arange(0, BLOCK_M)
    r = tl.arange(0, BLOCK_R)
    if s < 0:
        value = tl.where(s == OVERFLOW, float("nan"), 0.0)
        fill(y + begin * D, value, count, D, BLOCK_M, BLOCK_D)
        if SAVE_HIDDEN:
            fill(hidden + begin * R, value, count, R, BLOCK_M, BLOCK_R)
        return
    b_hidden = to_hidden(
        x + begin * D, down + s * R * D, D, 1, count, D, R, BLOCK_M, BLOCK_D, BLOCK_R, PRECISION, STAGES
    )
    b_hidden += tl.load(down_bias + s * R + r, mask=r < R, other=0.0).to(tl.float32)[None, :]
    if SAVE_HIDDEN:
        p_hidden = hidden + begin * R + m[:, None] * R + r[None, :]
        tl.store(p_hidden, b_hidden, mask=(m[:, None] < count) & (r[None, :] < R))
    b_active = narrow(activate(b_hidden, ACTIVATION), x.dtype.element_ty)
    from_hidden(
        b_active, up + s * R * D, 1, R, up_bias + s * D, base + begin * D, y + begin * D, scale, count, D, R,
        True, HAS_BASE, BLOCK_M, BLOCK_D, BLOCK_R, PRECISION, STAGES_OUT,
    )  # fmt: skip


@triton.jit
def routed_adapter_bwd_kernel(
    grad, hidden, tiles, down, up, grad_x, grad_hidden, active, scale, D, R, G,
    ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr,
    HAS_X: tl.constexpr, HAS_HIDDEN: tl.constexpr, HAS_ACTIVE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr, STAGES_OUT: tl.constexpr,
):  # fmt: skip
    """Of one tile of rows the gradient of x, and for those of the weights that of the hidden values before activation,
    and the hidden values after it.
    """
    t = tl.program_id(0)
    s = tl.load(tiles + t)
    begin = tl.load(tiles + G + t)
    count = (tl.load(tiles + 2 * G + t) - begin).to(tl.int32)
    if count <= 0:
        return
    if s < 0:  # those of hidden values are not looked at
        if HAS_X:
            fill(grad_x + begin * D, 0.0, count, D, BLOCK_M, BLOCK_D)
        return
    m = tl.arange(0, BLOCK_M)
    r = tl.arange(0, BLOCK_R)
    at = m[:, None] * R + r[None, :]
    mask = (m[:, None] < count) & (r[None, :] < R)
    p_grad = grad + begin * D
    b_grad = to_hidden(p_grad, up + s * R * D, 1, R, count, D, R, BLOCK_M, BLOCK_D, BLOCK_R, PRECISION, STAGES)
    b_hidden = tl.load(hidden + begin * R + at, mask=mask, other=0.0)
    if HAS_ACTIVE:
        tl.store(active + begin * R + at, narrow(activate(b_hidden, ACTIVATION), grad.dtype.element_ty), mask=mask)
    b_short = narrow(backpropagate(scale * b_grad, b_hidden, ACTIVATION), grad.dtype.element_ty)
    if HAS_HIDDEN:
        tl.store(grad_hidden + begin * R + at, b_short, mask=mask)
    if HAS_X:
        from_hidden(
            b_short, down + s * R * D, D, 1, None, p_grad, grad_x + begin * D, 1.0, count, D, R,
            False, RESIDUAL, BLOCK_M, BLOCK_D, BLOCK_R, PRECISION, STAGES_OUT,
        )  # fmt: skip


@triton.jit
def slot(begin, size, is_last):
    """Where the sum of a chunk is kept that is not its sub-network's only one. No two chunks have the same: of those
    that begin within `size` rows at most one is full and at most one is its sub-network's last.
    """
    return 2 * (begin // size) + is_last.to(tl.int64)


@triton.jit
def routed_adapter_weight_kernel(
    hidden, rows, chunks, out, out_bias, partial, scale, D, R, G, size,
    UP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sums over a chunk of rows: with UP the gradients of up [D, R] and its bias [D], from hidden values after
    activation and y's gradient; else those of down [R, D] and its bias [R], from hidden values' gradient and x.
    """
    c = tl.program_id(0) // tl.cdiv(D, BLOCK_D)
    d = tl.program_id(0) % tl.cdiv(D, BLOCK_D) * BLOCK_D + tl.arange(0, BLOCK_D)
    s = tl.load(chunks + c)
    if s < 0:
        return
    begin = tl.load(chunks + G + c)
    count = (tl.load(chunks + 2 * G + c) - begin).to(tl.int32)
    last = tl.load(chunks + 4 * G + c) - 1
    is_only = tl.load(chunks + 3 * G + c) == last
    m = tl.arange(0, BLOCK_M)
    r = tl.arange(0, BLOCK_R)
    b_sum = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    b_bias = tl.zeros((BLOCK_M, BLOCK_D if UP else BLOCK_R), tl.float32)
    for start in tl.range(0, count, BLOCK_M, num_stages=STAGES):
        is_row = m[:, None] < count - start
        p_hidden = hidden + (begin + start) * R + m[:, None] * R + r[None, :]
        b_hidden = tl.load(p_hidden, mask=is_row & (r[None, :] < R), other=0.0)
        p_rows = rows + (begin + start) * D + m[:, None] * D + d[None, :]
        b_rows = tl.load(p_rows, mask=is_row & (d[None, :] < D), other=0.0)
        if UP:
            b_bias += b_rows.to(tl.float32)
        else:
            b_bias += b_hidden.to(tl.float32)
        b_sum = dot(tl.trans(b_hidden), b_rows, b_sum, PRECISION)
    b_sum *= scale
    b_bias = scale * tl.sum(b_bias, 0)
    if UP:
        at = d[None, :] * R + r[:, None]
        at_bias = d
        has_bias = d < D
    else:
        at = r[:, None] * D + d[None, :]
        at_bias = r
        has_bias = (r < R) & (tl.program_id(0) % tl.cdiv(D, BLOCK_D) == 0)
    mask = (r[:, None] < R) & (d[None, :] < D)
    if is_only:
        tl.store(out + s * R * D + at, narrow(b_sum, out.dtype.element_ty), mask=mask)
        tl.store(out_bias + s * (D if UP else R) + at_bias, narrow(b_bias, out.dtype.element_ty), mask=has_bias)
    else:
        p_partial = partial + slot(begin, size, c == last) * (R * D + (D if UP else R))
        tl.store(p_partial + at, b_sum, mask=mask)
        tl.store(p_partial + R * D + at_bias, b_bias, mask=has_bias)


@triton.jit
def routed_adapter_sum_kernel(chunks, partial, out, out_bias, numbers, biases, G, size, BLOCK: tl.constexpr):
    """Adds the sums of a sub-network's chunks, in their order: `numbers` of the weight, then `biases`."""
    blocks = tl.cdiv(numbers + biases, BLOCK)
    c = tl.program_id(0) // blocks
    s = tl.load(chunks + c)
    last = tl.load(chunks + 4 * G + c) - 1
    if s < 0 or c == last or tl.load(chunks + 3 * G + c) != c:  # the first of several chunks does it
        return
    i = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    begin = tl.load(chunks + G + c)
    b_sum = tl.zeros((BLOCK,), tl.float32)
    for chunk in range(c, (last + 1).to(tl.int32)):
        p_partial = partial + slot(begin + (chunk - c).to(tl.int64) * size, size, chunk == last) * (numbers + biases)
        b_sum += tl.load(p_partial + i, mask=i < numbers + biases, other=0.0)
    b_sum = narrow(b_sum, out.dtype.element_ty)
    tl.store(out + s * numbers + i, b_sum, mask=i < numbers)
    tl.store(out_bias + s * biases + i - numbers, b_sum, mask=(i >= numbers) & (i < numbers + biases))


def rows_config(dtype: torch.dtype, N: int, R: int, precision: str) -> dict[str, Any]:
    """Of the passes over the rows: how they are cut, and the warps of a program."""
    wide = R > 64
    if dtype != torch.float32:
        M, D, stages, stages_out, warps = (16, 128, 3, 2, 4) if N == 1 else (64 if wide else 128, 32, 4, 2, 8)
    elif precision == "tf32":
        of_tokens = (64, 32, 3, 1, 8) if wide else (64, 32, 4, 2, 4)
        M, D, stages, stages_out, warps = (16, 64, 3, 2, 4) if N == 1 else of_tokens
    else:  # without tensor cores on NVIDIA's GPUs: operands lie in registers
        of_tokens = (32, 16, 2, 1, 4) if wide else (64, 16, 2, 1, 8)
        M, D, stages, stages_out, warps = (16, 16, 2, 1, 4) if N == 1 else of_tokens
    blocks = {"BLOCK_M": M, "BLOCK_D": D, "BLOCK_R": max(16, triton.next_power_of_2(R)), "PRECISION": precision}
    return {**blocks, "STAGES": stages, "STAGES_OUT": stages_out, "num_warps": warps}


def weight_config(dtype: torch.dtype, R: int, precision: str) -> dict[str, Any]:
    """Of the sums over rows."""
    if dtype != torch.float32:
        M, D, stages, warps = 64, 128, 3, 8
    else:
        M, D, stages, warps = (32, 64, 3, 4) if precision == "tf32" else (16, 64, 2, 8)
    blocks = {"BLOCK_M": M, "BLOCK_D": D, "BLOCK_R": max(16, triton.next_power_of_2(R)), "PRECISION": precision}
    return {**blocks, "STAGES": stages, "num_warps": warps}


TILES_AT_ONCE = {"BLOCK": 64}
SUMS_AT_ONCE = {"BLOCK": 1024}
PROGRAMS = 512
"""That sum over rows, about: a few for each multiprocessor, but on all GPUs as many, so that they add in one order."""


class Sizes(NamedTuple):
    P: int
    N: int
    S: int
    R: int
    D: int


def sizes_of(x: Tensor, down: Tensor) -> Sizes:
    return Sizes(x.shape[0], x.shape[1] if x.dim() == 3 else 1, *down.shape)


def precision_of(x: Tensor) -> str:
    return fp32_precision() if x.dtype == torch.float32 else "ieee"


def make_tiles(routes: Routes, sizes: Sizes, size: Any, number: Any, *, empty: bool) -> Tensor:
    tiles = routes.offsets.new_empty(5, number)
    wrap_triton(routed_adapter_tiles_kernel)[(triton.cdiv(number, TILES_AT_ONCE["BLOCK"]),)](
        routes.offsets.contiguous(), routes.overflow, tiles, sizes.S, sizes.P, sizes.N, size, number,
        EMPTY=empty, **TILES_AT_ONCE,
    )  # fmt: skip
    return tiles


def row_tiles(routes: Routes, sizes: Sizes, size: int) -> Tensor:
    # Every sub-network that has rows, and the padding, has at most one tile that is not full.
    number = triton.cdiv(sizes.P * sizes.N, size) + torch.sym_min(sizes.S, sizes.P) + 1
    return make_tiles(routes, sizes, size, number, empty=False)


def row_chunks(routes: Routes, sizes: Sizes, columns: int) -> tuple[Tensor, Any]:
    """For sums over rows by programs for so many columns: the chunks, and how many rows they have at most."""
    rows, programs = sizes.P * sizes.N, triton.cdiv(sizes.D, columns)
    # Long enough that a chunk is more work than to add its sum to others.
    size = torch.sym_max(1024, triton.cdiv(triton.cdiv(rows * programs, PROGRAMS), 64) * 64)
    # Every sub-network, and the padding, has at most one chunk that is not full.
    return make_tiles(routes, sizes, size, rows // size + sizes.S + 1, empty=True), size


def routed_adapter(
    x: Tensor, routes: Routes, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor,
    *, scale: float, activation: str, base: Tensor | None, save_hidden: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    sizes, precision = sizes_of(x, down), precision_of(x)
    rows = x.contiguous()
    added = rows if base is None or base is x else base.contiguous()
    y = torch.empty_like(rows)
    hidden = x.new_empty((*x.shape[:-1], sizes.R) if save_hidden else (0,), dtype=torch.float32)
    config = rows_config(x.dtype, sizes.N, sizes.R, precision)
    tiles = row_tiles(routes, sizes, config["BLOCK_M"])
    weights = (weight.contiguous() for weight in (down, down_bias, up, up_bias))
    wrap_triton(routed_adapter_fwd_kernel)[(tiles.shape[1],)](
        rows, tiles, *weights, added, y, hidden, scale, sizes.D, sizes.R, tiles.shape[1],
        ACTIVATION=activation, HAS_BASE=base is not None, SAVE_HIDDEN=save_hidden, **config,
    )  # fmt: skip
    return y, hidden


def routed_adapter_backward(
    grad: Tensor, hidden: Tensor, x: Tensor, routes: Routes, down: Tensor, down_bias: Tensor, up: Tensor,
    up_bias: Tensor, *, scale: float, activation: str, base: Tensor | None, save_hidden: bool, needs: list[bool],
) -> list[Tensor]:  # fmt: skip
    if hidden.shape[:-1] != x.shape[:-1]:
        expected = "[P, N, R]" if x.dim() == 3 else "[P, R]"
        raise ValueError(f"routed_adapter: hidden must be {expected}, got {list(hidden.shape)}")
    sizes, precision = sizes_of(x, down), precision_of(x)
    wanted = {i for i, need in enumerate(needs) if need}  # by their places among the arguments of the schema
    of_x, of_down, of_up, of_base = 0 in wanted, wanted & {7, 8}, wanted & {9, 10}, 11 in wanted
    grad, hidden = grad.contiguous(), hidden.contiguous()
    gradients: dict[int, Tensor] = {0: grad.new_empty(x.shape if of_x else (0,))}
    grad_hidden = grad.new_empty(hidden.shape if of_down else (0,))
    active = grad.new_empty(hidden.shape if of_up else (0,))
    if of_x or of_down or of_up:
        config = rows_config(x.dtype, sizes.N, sizes.R, precision)
        tiles = row_tiles(routes, sizes, config["BLOCK_M"])
        wrap_triton(routed_adapter_bwd_kernel)[(tiles.shape[1],)](
            grad, hidden, tiles, down.contiguous(), up.contiguous(), gradients[0], grad_hidden, active,
            scale, sizes.D, sizes.R, tiles.shape[1], ACTIVATION=activation, RESIDUAL=base is x,
            HAS_X=of_x, HAS_HIDDEN=bool(of_down), HAS_ACTIVE=bool(of_up), **config,
        )  # fmt: skip
        if of_down or of_up:
            config = weight_config(x.dtype, sizes.R, precision)
            chunks, size = row_chunks(routes, sizes, config["BLOCK_D"])
        if of_down:
            gradients[7], gradients[8] = down.new_empty(down.shape), down_bias.new_empty(down_bias.shape)
            sum_over_rows(grad_hidden, x.contiguous(), chunks, size, gradients[7], gradients[8], 1.0, sizes, config)
        if of_up:
            gradients[9], gradients[10] = up.new_empty(up.shape), up_bias.new_empty(up_bias.shape)
            sum_over_rows(active, grad, chunks, size, gradients[9], gradients[10], scale, sizes, config, up=True)
    if of_base:
        used = torch.arange(sizes.P, device=x.device) < routes.offsets[-1]
        ignored = ~used | routes.overflow
        gradients[11] = grad.masked_fill(ignored.view(-1, *[1] * (x.dim() - 1)), 0)
    return [gradients[i] for i in sorted(wanted)]


def sum_over_rows(
    hidden: Tensor, rows: Tensor, chunks: Tensor, size: Any, weight: Tensor, bias: Tensor,
    scale: float, sizes: Sizes, config: dict[str, Any], *, up: bool = False,
) -> None:  # fmt: skip
    """The gradients of down and its bias, or of up and its bias, into `weight` and `bias`."""
    number, numbers, biases = chunks.shape[1], sizes.R * sizes.D, bias.shape[1]
    partial = rows.new_empty(2 * (sizes.P * sizes.N // size + 1), numbers + biases, dtype=torch.float32)
    wrap_triton(routed_adapter_weight_kernel)[(number * triton.cdiv(sizes.D, config["BLOCK_D"]),)](
        hidden, rows, chunks, weight, bias, partial, scale, sizes.D, sizes.R, number, size, UP=up, **config
    )
    if not statically_known_true(size >= sizes.P * sizes.N):  # else every sub-network has one chunk
        wrap_triton(routed_adapter_sum_kernel)[(number * triton.cdiv(numbers + biases, SUMS_AT_ONCE["BLOCK"]),)](
            chunks, partial, weight, bias, numbers, biases, number, size, **SUMS_AT_ONCE
        )


KERNELS = {"routed_adapter": routed_adapter, "routed_adapter_backward": routed_adapter_backward}


def _variant(kernel: Any, dtype: str, promises: tuple[str, ...], wide: tuple[str, ...], **constants: Any) -> Variant:
    """With D and R that are multiples of 16."""
    kinds = dict.fromkeys(("offsets", "tiles", "chunks"), "*i64") | dict.fromkeys(("hidden", "partial"), "*fp32")
    kinds |= dict.fromkeys(("S", "P", "N", "size", "G", "D", "R", "numbers", "biases"), "i32")
    kinds |= {"overflow": "*i1", "scale": "fp32"}
    if kernel is routed_adapter_weight_kernel:
        kinds["hidden"] = f"*{dtype}"
    num_warps = constants.pop("num_warps", 4)
    signature = {name: kinds.get(name, f"*{dtype}") for name in kernel.arg_names if name not in constants}
    aligned = tuple(n for n, kind in signature.items() if kind[0] == "*" or n in ("D", "R", "numbers", "biases"))
    return Variant(kernel, signature, constants, aligned, (*promises, "no global atomics"), wide, num_warps=num_warps)


def _variants() -> list[Variant]:
    short, tf32 = (torch.bfloat16, 197, 64, "ieee"), (torch.float32, 197, 64, "tf32")
    fwd = {"ACTIVATION": "relu", "HAS_BASE": True, "SAVE_HIDDEN": False}
    bwd = {"ACTIVATION": "relu", "RESIDUAL": True, "HAS_X": True, "HAS_HIDDEN": True, "HAS_ACTIVE": True}
    fast = ("newest tensor cores", "asynchronous copies", "128-bit loads")
    small = ("128-bit stores", "at most 128 registers", "at most 72 KiB of shared memory")
    rows = ("b_rows = tl.load", "b_weight = tl.load", "b_base = tl.load", "tl.store(p_out + at")
    sums = ("b_rows = tl.load",)
    one = (torch.bfloat16, 1, 64, "ieee")
    return [
        _variant(routed_adapter_tiles_kernel, "bf16", (), (), EMPTY=True, **TILES_AT_ONCE),
        _variant(routed_adapter_fwd_kernel, "bf16", (*fast, *small), rows, **fwd, **rows_config(*short)),
        _variant(routed_adapter_fwd_kernel, "bf16", ("tensor cores",), rows, **fwd, **rows_config(*one)),
        _variant(routed_adapter_fwd_kernel, "fp32", (*fast, "128-bit stores"), rows, **fwd, **rows_config(*tf32)),
        _variant(routed_adapter_bwd_kernel, "bf16", (*fast, *small), rows, **bwd, **rows_config(*short)),
        _variant(routed_adapter_weight_kernel, "bf16", fast, sums, UP=True, **weight_config(short[0], *short[2:])),
        _variant(routed_adapter_sum_kernel, "bf16", (), (), **SUMS_AT_ONCE),
    ]


VARIANTS = _variants()
