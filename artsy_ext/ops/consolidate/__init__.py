"""consolidate: synapses become functional when strong and silent when weak, with hysteresis."""

from typing import Any

import torch
from torch import Tensor

from artsy_ext.ops._check import REAL, Check
from artsy_ext.ops._register import Arguments, call, register
from artsy_ext.ops.consolidate import reference


def consolidate(weight: Tensor, functional: Tensor, on: float, off: float) -> Tensor:
    """Which synapses transmit: |weight| ≥ on makes one functional, |weight| < off silent, between they stay.

    Args:
        weight: [S, J, I] float32 or float64.
        functional: [S, J, I] bool, the state so far.
        on, off: 0 ≤ off ≤ on, in units of weight.

    Returns:
        [S, J, I] bool. A NaN weight is silent.

    Raises:
        ValueError: a rank, size, dtype or device disagrees, or the thresholds do not satisfy 0 ≤ off ≤ on.
    """
    return call(torch.ops.artsy.consolidate, weight, functional, on, off)


def check_state(check: Check, weight: Tensor, functional: Tensor, on: float, off: float) -> None:
    check.tensor("functional", functional, "S J I", dtypes=(torch.bool,), like=weight)
    if not 0 <= off <= on:
        check.fail(f"on and off must satisfy 0 <= off <= on, got on={on}, off={off}")


def _arguments(weight: Tensor, functional: Tensor, on: float, off: float) -> Arguments:
    check = Check("consolidate")
    check.tensor("weight", weight, "S J I", dtypes=REAL)
    check_state(check, weight, functional, on, off)
    return (weight, functional, on, off), {}


def _fake(weight: Tensor, functional: Tensor, *_: Any) -> Tensor:
    return functional.new_empty(functional.shape)


register("consolidate", _arguments, reference.consolidate, _fake, autocast="float32")
