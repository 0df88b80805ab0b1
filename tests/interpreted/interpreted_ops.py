"""The ops as their Triton kernels compute them in the interpreter: within `interpreted`, on tensors of the CPU."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from interpreted.guard import guarded_launches

from artsy_ext.ops import _kernels, _register


@contextmanager
def interpreted() -> Iterator[None]:
    """The CPU does what a GPU would do, and every tensor that a kernel gets lies in guarded memory."""
    library = torch.library.Library("artsy", "IMPL")
    before = dict(_kernels.TRITON)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*overrid", category=UserWarning)
        for op, served in before.items():
            _kernels.TRITON[op] = served._replace(devices=("cpu",))
            for name in (op, f"{op}_backward"):
                if name in _register.KERNELS:
                    library.impl(name, _register.KERNELS[name], "CPU", allow_override=True)
    try:
        with guarded_launches():
            yield
    finally:
        _kernels.TRITON.update(before)
        library._destroy()
