"""The ops as their Triton kernels compute them in the interpreter: within `interpreted`, on tensors of the CPU."""

import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from interpreted.guard import guarded_launches

import artsy_ext.ops


def kernels() -> dict[str, Callable[..., Any]]:
    """By op, what `artsy_ext/ops/<op>/triton.py` registers for a GPU."""
    found: dict[str, Callable[..., Any]] = {}
    for path in sorted(Path(artsy_ext.ops.__file__).parent.glob("*/triton.py")):
        found |= importlib.import_module(f"artsy_ext.ops.{path.parent.name}.triton").KERNELS
    return found


@contextmanager
def interpreted(kernels: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Puts kernels in the place of the CPU's, and every tensor that they get into guarded memory."""
    library = torch.library.Library("artsy", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*overrid", category=UserWarning)
        for name, kernel in kernels.items():
            library.impl(name, kernel, "CPU", allow_override=True)
    try:
        with guarded_launches():
            yield
    finally:
        library._destroy()
