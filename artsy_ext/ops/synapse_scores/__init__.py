"""synapse_scores: the two-layer gates of all sub-networks at once."""

import torch
from torch import Tensor

from artsy_ext.ops._check import FLOATING, Check
from artsy_ext.ops._register import Arguments, call, register
from artsy_ext.ops.synapse_scores import reference


def synapse_scores(features: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
    """Scores relu(features · down_sᵀ + down_bias_s) · up_s + up_bias_s of S gates (S_t of arXiv 2410.05899).

    Args:
        features: [B, D] floating.
        down: [S, R, D]. down_bias: [S, R]. up: [S, R]. up_bias: [S]. All as features.

    Returns:
        [B, S] as features. Differentiable in all arguments.

    Raises:
        ValueError: a rank, size, dtype or device disagrees.
    """
    return call(torch.ops.artsy.synapse_scores, features, down, down_bias, up, up_bias)


def _arguments(features: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Arguments:
    check = Check("synapse_scores")
    check.tensor("features", features, "B D", dtypes=FLOATING)
    check.tensor("down", down, "S R D", like=features)
    check.tensor("down_bias", down_bias, "S R", like=features)
    check.tensor("up", up, "S R", like=features)
    check.tensor("up_bias", up_bias, "S", like=features)
    return (features, down, down_bias, up, up_bias), {}


def _fake(features: Tensor, down: Tensor, *_: Tensor) -> Tensor:
    return features.new_empty(features.shape[0], down.shape[0])


register("synapse_scores", _arguments, reference.synapse_scores, _fake, differentiable=True, autocast="lower")
