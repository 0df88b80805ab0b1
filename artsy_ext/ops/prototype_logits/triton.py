"""prototype_logits on a GPU: the cosines of all rows in one launch, the samples' answers in a second; its gradients, too.

Rows are the P pairs, those of a sub-network together, and behind them the B samples in E0's space (the base), which count
as the rows of one more sub-network, S. Their cosines to their own sub-network's classes are kept, [P + B, C] in fp32.
A tile of rows belongs to one sub-network: no table is needed to find it, since the tiles of sub-network s may begin at
offsets[s] // BM + s, which leaves room for each and rises with s. The grid is an upper bound; the rest leaves at once.

Backwards, with u the gradient of a row's answer on a class, w the weight and x, y the row and the prototype:
the gradient of w is Σ_p u·cos, that of x is Σ_c u·w·(y/|y| − cos·x/|x|)/|x|, and that of y the same with x and y exchanged.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.library import wrap_triton

from artsy_ext.ops._triton import Variant, dot, fp32_precision, narrow
from artsy_ext.ops.plan_routes.routes import Routes

SHORTEST = tl.constexpr(1e-12)
"""As in torch.nn.functional.normalize: what is shorter counts as that long."""


@triton.jit
def rows_of(offsets, overflow, s, S, P, B):
    """The rows of sub-network s, [first, stop); none where the plan overflowed."""
    first, stop = P.to(tl.int64), (P + B).to(tl.int64)
    if s < S:
        first, stop = tl.load(offsets + s), tl.load(offsets + s + 1)
    if tl.load(overflow) != 0:
        stop = first
    return first, stop


@triton.jit
def tile_of(offsets, overflow, tile, S, P, B, BM: tl.constexpr):
    """The sub-network of a tile of rows, its first row, and the row behind its last."""
    s = S
    base = P // BM + S
    skipped = tile - base
    if tile < base:
        passed = 0
        for start in range(0, S, 1024):
            i = start + tl.arange(0, 1024)
            begin = tl.load(offsets + i, mask=i < S, other=0)
            passed += tl.sum(((begin // BM + i <= tile) & (i < S)).to(tl.int32))
        s = passed - 1
        skipped = tile - (tl.load(offsets + s) // BM + s).to(tl.int32)
    first, stop = rows_of(offsets, overflow, s, S, P, B)
    return s.to(tl.int64), first + skipped.to(tl.int64) * BM, stop
