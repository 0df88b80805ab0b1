"""encode_spikes: values in [0, 1] as spike trains, rate or latency coded."""

from typing import Any

import torch
from torch import Tensor

from artsy_ext.ops._check import FLOATING, Check
from artsy_ext.ops._register import Arguments, call, register
from artsy_ext.ops.encode_spikes import reference

CODES = ("rate", "latency")


def encode_spikes(
    x: Tensor, steps: int, *, code: str = "rate", seed: int = 0, offset: int = 0, dtype: torch.dtype = torch.bool
) -> Tensor:
    """Encodes values as spikes over T time steps.

    "rate": at each step a spike with probability x, from the counter-based generator Philox-4x32-10 (Salmon et al., SC
    2011) with key `seed` and counter (element index + offset, step): the same spikes on every device, and for a chunk
    of x with its own offset the same as for the whole.
    "latency": one spike at step ⌊(1 − x)(T − 1) + ½⌋ where x > 0, none where x = 0.

    Args:
        x: [...] floating, in [0, 1]; smaller values count as 0, larger ones as 1.
        steps: T >= 0.
        code: "rate" or "latency".
        seed: key of the generator, a signed 64-bit integer.
        offset: index of x's first element in the whole, >= 0.
        dtype: of the spikes: bool, uint8 or floating.

    Returns:
        [T, *x.shape] of dtype. With "rate" and a floating dtype the gradient passes straight through (each spike counts
        as its probability); otherwise there is none.

    Raises:
        ValueError: x is not floating, steps or offset is negative, code or dtype is not one of the above.
    """
    return call(torch.ops.artsy.encode_spikes, x, steps, code=code, seed=seed, offset=offset, dtype=dtype)


def _arguments(
    x: Tensor, steps: int, *, code: str = "rate", seed: int = 0, offset: int = 0, dtype: torch.dtype | None = None
) -> Arguments:
    dtype = torch.bool if dtype is None else dtype
    check = Check("encode_spikes")
    check.tensor("x", x, "...", dtypes=FLOATING)
    check.word("code", code, CODES)
    if steps < 0:
        check.fail(f"steps must be >= 0, got {steps}")
    if offset < 0:
        check.fail(f"offset must be >= 0, got {offset}")
    if dtype not in (torch.bool, torch.uint8, *FLOATING):
        check.fail(f"dtype must be bool, uint8 or floating, got {str(dtype).removeprefix('torch.')}")
    return (x, steps), {"code": code, "seed": seed, "offset": offset, "dtype": dtype}


def _fake(x: Tensor, steps: int, *, dtype: torch.dtype, **_: Any) -> Tensor:
    return x.new_empty((steps, *x.shape), dtype=dtype)


register("encode_spikes", _arguments, reference.encode_spikes, _fake, differentiable=True)
