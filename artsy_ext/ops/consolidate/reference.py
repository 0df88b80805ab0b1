"""The definition of consolidate."""

import torch
from torch import Tensor


def consolidate(weight: Tensor, functional: Tensor, on: float, off: float) -> Tensor:
    strength = weight.abs()
    return torch.where(functional, strength >= off, strength >= on)
