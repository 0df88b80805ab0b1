"""synapse_currents: what the functional synapses of every sub-network transmit."""

from typing import Any

import torch
from torch import Tensor

from artsy_ext.ops._check import FLOATING, Check
from artsy_ext.ops._register import Arguments, call, register
from artsy_ext.ops.synapse_currents import reference


def synapse_currents(x: Tensor, weight: Tensor, functional: Tensor | None, bias: Tensor) -> Tensor:
    """Post-synaptic currents x · (weight ∘ functional)ᵀ + bias of all sub-networks.

    Silent synapses learn but do not transmit (Vardalaki et al., Nature 2022).

    Args:
        x: [B, I] floating, pre-synaptic activity, shared by the sub-networks.
        weight: [S, J, I], as x.
        functional: [S, J, I] bool, False where a synapse is silent; None where all transmit.
        bias: [S, J], as x.

    Returns:
        [B, S, J] as x. Differentiable in x, weight (0 where silent) and bias.

    Raises:
        ValueError: a rank, size, dtype or device disagrees.
    """
    return call(torch.ops.artsy.synapse_currents, x, weight, functional, bias)


def _arguments(x: Tensor, weight: Tensor, functional: Tensor | None, bias: Tensor) -> Arguments:
    check = Check("synapse_currents")
    check.tensor("x", x, "B I", dtypes=FLOATING)
    check.tensor("weight", weight, "S J I", like=x)
    if functional is not None:
        check.tensor("functional", functional, "S J I", dtypes=(torch.bool,), like=x)
    check.tensor("bias", bias, "S J", like=x)
    return (x, weight, functional, bias), {}


def _fake(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], *weight.shape[:2])


register("synapse_currents", _arguments, reference.synapse_currents, _fake, differentiable=True, autocast="lower")
