"""Which kernel serves a call: the one place that decides it, by device, dtype and shape.

- What the compiled libraries register for a device (csrc/cpu, csrc/cuda) serves every call there.
- An op in `TRITON` has kernels in artsy_ext/ops/<op>/triton.py for the calls on a GPU that it names. The file, and
  Triton with it, is loaded at the first of them.
- The definition serves the rest.
"""

import re
import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch

Kernel = Callable[..., Any]

OLDEST_TRITON = (3, 6)
OLDEST_NVIDIA = (8, 0)  # compute capability


class Served(NamedTuple):
    """The calls that an op's Triton kernels take: of these devices and dtypes, and where `fits` says so."""

    fits: Callable[..., bool] = lambda *args, **kwargs: True
    """Of the definition's arguments: whether the kernels have a tile for their shapes."""
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)
    devices: tuple[str, ...] = ("cuda",)


TRITON: dict[str, Served] = {"synapse_currents": Served(), "synapse_scores": Served()}


def triton_kernel(op: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Kernel | None:
    """The Triton kernel of `name` (the op itself, or its gradient) for these arguments of the op's definition.

    None where the definition is to run. It is called as the definition is; that of a gradient as `<op>_backward`, with
    the arguments of the definition in place of the flattened ones.
    """
    served = TRITON.get(op)
    if served is None:
        return None
    first = args[0]
    if first.device.type not in served.devices or first.dtype not in served.dtypes:
        return None
    if not served.fits(*args, **kwargs) or not _is_new_enough(first.device) or not _has_triton():
        return None
    return import_module(f"artsy_ext.ops.{op}.triton").KERNELS[name]


def _is_new_enough(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.hip is not None:
        return True
    return torch.cuda.get_device_capability(device) >= OLDEST_NVIDIA


@cache
def _has_triton() -> bool:
    """Whether there is a Triton that compiles the kernels; where there is none, says so once."""
    needed = ".".join(map(str, OLDEST_TRITON))
    try:
        import triton

        found = f"found {triton.__version__}"
        if tuple(map(int, re.findall(r"\d+", triton.__version__)[:2])) >= OLDEST_TRITON:
            return True
    except Exception as error:  # a broken installation may raise anything
        found = f"it does not load: {error}"
    warnings.warn(
        f"artsy_ext: Triton >= {needed} is needed for fast kernels of {', '.join(sorted(TRITON))}, {found}; they run "
        f"their definitions. To add it: pip install 'triton>={needed}'",
        stacklevel=2,
    )
    return False
