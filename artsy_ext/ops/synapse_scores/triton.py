"""synapse_scores on a GPU: the hidden values of a tile become scores where they are computed; its gradients, too.

With U = S·R hidden units, z their values before relu and g the gradient of the scores, the gradients of the weights
come from G[u] = Σ_b [z > 0]·g[b, s]·features[b] and m[u] = Σ_b [z > 0]·g[b, s]: that of down is up·G, that of up is
G·down + m·down_bias, that of down_bias is up·m. So all that they need of the hidden values is a bit for each.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from artsy_ext.ops._triton import Variant, dot, fp32_precision, narrow


@triton.jit
def synapse_scores_kernel(
    features, down, down_bias, up, up_bias, out, B, S, R, D,
    PRECISION: tl.constexpr, BM: tl.constexpr, GATES: tl.constexpr, UNITS: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Scores [B, S]; where `up` is None the signs of the hidden values, [B, S, words] with a bit for each.

    A tile has BM samples and, of each of GATES sub-networks, UNITS hidden units at a time.
    """
    tiles = tl.cdiv(B, BM)  # those that share weights follow each other
    gate = (tl.program_id(0) // tiles).to(tl.int64) * GATES
    b = (tl.program_id(0) % tiles).to(tl.int64) * BM + tl.arange(0, BM)
    n = tl.arange(0, GATES * UNITS)
    k = tl.arange(0, BK)
    s = gate + n // UNITS
    inside_b = b[:, None] < B
    b_score = tl.zeros((BM, GATES), tl.float32)
    for first in range(0, R, UNITS):
        r = first + n % UNITS
        unit = s * R + r
        inside_n = (s < S) & (r < R)
        p_features = features + b[:, None] * D + k[None, :]
        p_down = down + unit[None, :] * D + k[:, None]
        b_hidden = tl.zeros((BM, GATES * UNITS), tl.float32)
        for start in range(0, D, BK):
            inside_k = k < D - start
            b_features = tl.load(p_features, mask=inside_b & inside_k[None, :], other=0.0)
            b_down = tl.load(p_down, mask=inside_k[:, None] & inside_n[None, :], other=0.0)
            b_hidden = dot(b_features, b_down, b_hidden, PRECISION)
            p_features += BK
            p_down += BK
        b_hidden += tl.load(down_bias + unit, mask=inside_n, other=0.0).to(tl.float32)[None, :]
        if up is None:
            b_bits = tl.where(b_hidden <= 0, 0, 1) << (n % 32)[None, :]
            b_words = tl.sum(tl.reshape(b_bits, (BM, GATES * UNITS // 32, 32)), 2)
            q = tl.arange(0, GATES * UNITS // 32) * 32
            words, word, s_word = tl.cdiv(R, 32), (first + q % UNITS) // 32, gate + q // UNITS
            inside_q = ((s_word < S) & (word < words))[None, :]
            tl.store(
                out + (b[:, None] * S + s_word[None, :]) * words + word[None, :], b_words, mask=inside_b & inside_q
            )
        else:
            b_up = tl.load(up + unit, mask=inside_n, other=0.0).to(tl.float32)[None, :]
            b_shares = tl.maximum(b_hidden, 0.0, propagate_nan=tl.PropagateNan.ALL) * b_up
            b_score += tl.sum(tl.reshape(b_shares, (BM, GATES, UNITS)), 2)
    if up is not None:
        s_out = gate + tl.arange(0, GATES)
        b_score += tl.load(up_bias + s_out, mask=s_out < S, other=0.0).to(tl.float32)[None, :]
        p_out = out + b[:, None] * S + s_out[None, :]
        tl.store(p_out, narrow(b_score, out.dtype.element_ty), mask=inside_b & (s_out < S)[None, :])


@triton.jit
def synapse_scores_grad_weights_kernel(
    grad, signs, features, down, down_bias, up, grad_down, grad_down_bias, grad_up, B, S, R, D,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """grad_down [U, D], grad_down_bias [U] and, of every tile of features by itself, grad_up [tiles, U]; or None."""
    U = tl.cast(S, tl.int64) * R
    tiles = tl.cdiv(U, BM)
    tile = tl.program_id(0) // tiles
    u = (tl.program_id(0) % tiles).to(tl.int64) * BM + tl.arange(0, BM)
    d = tile.to(tl.int64) * BN + tl.arange(0, BN)
    inside_u, inside_d = u < U, d < D
    s, r, words = u // R, (u % R).to(tl.int32), tl.cdiv(R, 32)
    b_sum = tl.zeros((BM,), tl.float32)
    b_product = tl.zeros((BM, BN), tl.float32)
    for start in range(0, B, BK):
        b = start + tl.arange(0, BK).to(tl.int64)
        inside_b = b[:, None] < B
        at = b[:, None] * S + s[None, :]
        b_word = tl.load(signs + at * words + (r // 32)[None, :], mask=inside_b & inside_u[None, :], other=0)
        b_passed = tl.load(grad + at, mask=inside_b & inside_u[None, :], other=0.0)
        b_passed = tl.where((b_word >> (r % 32)[None, :]) & 1 != 0, b_passed, 0.0)
        b_features = tl.load(features + b[:, None] * D + d[None, :], mask=inside_b & inside_d[None, :], other=0.0)
        b_sum += tl.sum(b_passed.to(tl.float32), 0)
        b_product = dot(tl.trans(b_passed), b_features, b_product, PRECISION)
    b_up = tl.load(up + u, mask=inside_u, other=0.0).to(tl.float32)
    at = u[:, None] * D + d[None, :]
    inside = inside_u[:, None] & inside_d[None, :]
    if grad_down is not None:
        tl.store(grad_down + at, narrow(b_product * b_up[:, None], grad_down.dtype.element_ty), mask=inside)
    if grad_up is not None:
        b_grad_up = tl.sum(b_product * tl.load(down + at, mask=inside, other=0.0).to(tl.float32), 1)
        if tile == 0:
            b_grad_up += b_sum * tl.load(down_bias + u, mask=inside_u, other=0.0).to(tl.float32)
        tl.store(grad_up + tile.to(tl.int64) * U + u, b_grad_up, mask=inside_u)
    if grad_down_bias is not None and tile == 0:
        tl.store(grad_down_bias + u, narrow(b_sum * b_up, grad_down_bias.dtype.element_ty), mask=inside_u)


@triton.jit
def synapse_scores_grad_features_kernel(
    grad, signs, down, up, grad_features, B, S, R, D,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """grad_features [B, D]: the sum over all units of the gradient that passes, up and down."""
    tiles = tl.cdiv(B, BM)
    b = (tl.program_id(0) % tiles).to(tl.int64) * BM + tl.arange(0, BM)
    d = (tl.program_id(0) // tiles).to(tl.int64) * BN + tl.arange(0, BN)
    n = tl.arange(0, 32)
    words = tl.cdiv(R, 32)
    inside_b, inside_d = b < B, d[None, :] < D
    b_out = tl.zeros((BM, BN), tl.float32)
    for i in range(0, S * words):
        s = (i // words).to(tl.int64)
        r = i % words * 32 + n
        b_word = tl.load(signs + b * (S * words) + i, mask=inside_b, other=0)
        b_grad = tl.load(grad + b * S + s, mask=inside_b, other=0.0).to(tl.float32)
        b_up = tl.load(up + s * R + r, mask=r < R, other=0.0).to(tl.float32)
        b_passed = tl.where((b_word[:, None] >> n[None, :]) & 1 != 0, b_grad[:, None] * b_up[None, :], 0.0)
        b_down = tl.load(down + (s * R + r)[:, None] * D + d[None, :], mask=(r < R)[:, None] & inside_d, other=0.0)
        b_out = dot(narrow(b_passed, down.dtype.element_ty), b_down, b_out, PRECISION)
    p_out = grad_features + b[:, None] * D + d[None, :]
    tl.store(p_out, narrow(b_out, grad_features.dtype.element_ty), mask=inside_b[:, None] & inside_d)


def _depth(dtype: torch.dtype) -> int:
    return 64 if dtype != torch.float32 else 32 if fp32_precision() == "tf32" else 16


def _launch(
    features: Tensor, down: Tensor, down_bias: Tensor, up: Tensor | None, up_bias: Tensor | None, out: Tensor
) -> Tensor:
    (B, D), (S, R, _) = features.shape, down.shape
    if out.numel() > 0:
        width = 64
        units = min(max(triton.next_power_of_2(int(R)), 32), width)
        rows, gates = 16 if B <= 16 else 64, width // units
        grid = (triton.cdiv(B, rows) * triton.cdiv(S, gates),)
        torch.library.wrap_triton(synapse_scores_kernel)[grid](
            features, down, down_bias, up, up_bias, out, B, S, R, D,
            PRECISION=fp32_precision(), BM=rows, GATES=gates, UNITS=units, BK=_depth(features.dtype),
        )  # fmt: skip
    return out


def synapse_scores(features: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
    features, down, down_bias, up, up_bias = (t.contiguous() for t in (features, down, down_bias, up, up_bias))
    out = features.new_empty(features.shape[0], down.shape[0])
    return _launch(features, down, down_bias, up, up_bias, out)


def synapse_scores_backward(
    grad: Tensor,
    features: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    up_bias: Tensor,
    *,
    needs: Sequence[bool],
) -> list[Tensor]:
    grad, features, down, down_bias, up = (t.contiguous() for t in (grad, features, down, down_bias, up))
    (B, D), (S, R, _) = features.shape, down.shape
    precision = fp32_precision()
    tiles = max(1, triton.cdiv(D, 64))
    grad_features, grad_down, grad_down_bias, grad_up = (
        torch.empty_like(t) if need else None
        for t, need in zip(
            (features, down, down_bias, up.new_empty(tiles, S, R, dtype=torch.float32)), needs, strict=False
        )
    )
    if any(needs[:4]):
        signs = features.new_empty(B, S, triton.cdiv(R, 32), dtype=torch.int32)
        _launch(features, down, down_bias, None, None, signs)
    if any(needs[1:4]) and S * R > 0:
        grid = (triton.cdiv(S * R, 64) * tiles,)
        torch.library.wrap_triton(synapse_scores_grad_weights_kernel)[grid](
            grad, signs, features, down, down_bias, up, grad_down, grad_down_bias, grad_up, B, S, R, D,
            PRECISION=precision, BM=64, BN=64, BK=32,
        )  # fmt: skip
    if grad_features is not None and B * D > 0:
        rows = 32 if features.dtype == torch.float32 else 64
        grid = (triton.cdiv(B, rows) * triton.cdiv(D, 64),)
        torch.library.wrap_triton(synapse_scores_grad_features_kernel)[grid](
            grad, signs, down, up, grad_features, B, S, R, D, PRECISION=precision, BM=rows, BN=64
        )
    found = [grad_features, grad_down, grad_down_bias, None if grad_up is None else grad_up.sum(0).to(up.dtype)]
    return [*(t for t in found if t is not None), *([grad.sum(0)] if needs[4] else [])]


KERNELS = {"synapse_scores": synapse_scores, "synapse_scores_backward": synapse_scores_backward}


def _variant(kernel: Any, tensors: str, **constants: Any) -> Variant:
    kinds = dict.fromkeys(tensors.split(), "*bf16") | dict.fromkeys("BSRD", "i32")
    kinds |= {name: kind for name, kind in (("signs", "*i32"), ("grad_up", "*fp32")) if name in kinds}
    promises = ("tensor cores", "128-bit loads", "asynchronous copies", "no global atomics")
    return Variant(kernel, kinds, {"PRECISION": "ieee"} | constants, aligned=tuple(kinds), promises=promises)


VARIANTS = [
    _variant(synapse_scores_kernel, "features down down_bias up up_bias out", BM=64, GATES=2, UNITS=32, BK=64),
    _variant(
        synapse_scores_grad_weights_kernel,
        "grad signs features down down_bias up grad_down grad_down_bias grad_up",
        BM=64,
        BN=64,
        BK=32,
    ),
    _variant(synapse_scores_grad_features_kernel, "grad signs down up grad_features", BM=64, BN=64),
]
