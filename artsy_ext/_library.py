"""Loads the compiled libraries (schemas and kernels) into torch; every op module imports this first.

libartsy_ops.so holds the schemas and the CPU kernels. libartsy_ops_cuda.so holds the CUDA kernels; it is loaded where
torch is built with CUDA, and without it the ops run their definitions on a GPU.
"""

import mmap
import re
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

_LIBRARY = Path(__file__).parent / "libartsy_ops.so"
_CUDA_LIBRARY = Path(__file__).parent / "libartsy_ops_cuda.so"
_REINSTALL = "reinstall with `pip install --no-build-isolation .`"


def load() -> None:
    """Registers the `artsy` ops. Raises ImportError, with what to do, where the library is missing or does not fit."""
    if not _LIBRARY.exists():
        raise ImportError(
            "artsy_ext: the compiled library is missing; build it with "
            "`pip install --no-build-isolation -e .` in the source tree, or install the package"
        )
    try:
        torch.ops.load_library(str(_LIBRARY))
    except OSError as error:
        raise ImportError(
            f"artsy_ext: {_LIBRARY.name} does not load under torch {torch.__version__} (2.10 or newer is needed); "
            f"{_REINSTALL}: {error}"
        ) from None
    if torch.version.cuda is not None and _CUDA_LIBRARY.exists():
        _load_cuda(torch.version.cuda)


def _load_cuda(torch_cuda: str) -> None:
    # One build serves several versions of torch, but one major version of CUDA. Another's libcudart may well be found
    # on this machine; it would be a second one in the process.
    with _CUDA_LIBRARY.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = re.search(rb"libcudart\.so\.(\d+)", content)
        built_with = found[1].decode() if found else None
    try:
        if built_with not in (None, torch_cuda.partition(".")[0]):
            raise OSError(f"it is built with CUDA {built_with}, torch with {torch_cuda}")
        torch.ops.load_library(str(_CUDA_LIBRARY))
    except OSError as error:
        warnings.warn(
            f"artsy_ext: {_CUDA_LIBRARY.name} does not load under torch {torch.__version__}, so the ops run their "
            f"definitions on a GPU; {_REINSTALL}: {error}",
            stacklevel=3,
        )


def library_path() -> Path | None:
    """The compiled library that the ops use, None where it has not been built."""
    return _LIBRARY if _LIBRARY.exists() else None


def cuda_library_path() -> Path | None:
    """The library with the CUDA kernels, None where it has not been built."""
    return _CUDA_LIBRARY if _CUDA_LIBRARY.exists() else None


def build_info() -> dict[str, Any]:
    """What the build recorded; empty where the info module is missing.

    compiler, torch_version, torch_abi_target; cuda: the compiler and the architectures of the CUDA kernels, or "none"
    and why.
    """
    try:
        _build = import_module("artsy_ext._build")
    except ImportError:
        return {}
    return {name: getattr(_build, name) for name in ("compiler", "torch_version", "torch_abi_target", "cuda")}
