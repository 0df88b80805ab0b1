"""The definition of encode_spikes, with its counter-based generator."""

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox-4x32-10 (Salmon et al., SC 2011): four 32-bit words (in int64) from four counter, two key words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 wraps as uint64 does; masking takes the high word out unsigned.
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((b >> 32) & _MASK) ^ c1 ^ k0, b & _MASK, ((a >> 32) & _MASK) ^ c3 ^ k1, a & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def uniform(shape: torch.Size, steps: int, seed: int, offset: int, device: torch.device) -> Tensor:
    """[T, *shape] float32 in [0, 1), 24 bits: word t mod 4 of the counter (index + offset, t div 4)."""
    index = torch.arange(shape.numel(), device=device).reshape(1, *shape) + offset
    block = torch.arange((steps + 3) // 4, device=device).view(-1, *[1] * len(shape))
    index, block = torch.broadcast_tensors(index, block)
    counter = (index & _MASK, (index >> 32) & _MASK, block, torch.zeros_like(block))
    words = philox(counter, (seed & _MASK, (seed >> 32) & _MASK))
    word = torch.stack(words, 1).flatten(0, 1)[:steps]
    return (word >> 8).to(torch.float32) * 2.0**-24


def encode_spikes(
    x: Tensor, steps: int, *, code: str = "rate", seed: int = 0, offset: int = 0, dtype: torch.dtype = torch.bool
) -> Tensor:
    if code == "rate":
        spikes = (uniform(x.shape, steps, seed, offset, x.device) < x).to(dtype)
        if dtype.is_floating_point:
            straight_through = (x - x.detach()).nan_to_num().to(dtype)  # 0, with the gradient 1; ∞ − ∞ is NaN
            spikes = spikes + straight_through
        return spikes
    step = torch.floor((1 - x.to(torch.promote_types(x.dtype, torch.float32)).clamp(max=1)) * (steps - 1) + 0.5)
    time = torch.arange(steps, device=x.device).view(-1, *[1] * x.dim())
    return ((time == step) & (x > 0)).to(dtype)
