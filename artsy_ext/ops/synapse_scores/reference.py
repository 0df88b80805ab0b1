"""The definition of synapse_scores."""

import torch
from torch import Tensor


def synapse_scores(features: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
    hidden = torch.relu(torch.einsum("bd,srd->bsr", features, down) + down_bias)
    return torch.einsum("bsr,sr->bs", hidden, up) + up_bias
