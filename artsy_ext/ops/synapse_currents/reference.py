"""The definition of synapse_currents."""

import torch
from torch import Tensor


def synapse_currents(x: Tensor, weight: Tensor, functional: Tensor | None, bias: Tensor) -> Tensor:
    if functional is not None:
        weight = torch.where(functional, weight, 0)
    return torch.einsum("bi,sji->bsj", x, weight) + bias
