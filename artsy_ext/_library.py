"""Loads the compiled library (schemas and kernels) into torch; every op module imports this first."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

_LIBRARY = Path(__file__).parent / "libartsy_ops.so"


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
            f"reinstall with `pip install --no-build-isolation .`: {error}"
        ) from None


def library_path() -> Path | None:
    """The compiled library that the ops use, None where it has not been built."""
    return _LIBRARY if _LIBRARY.exists() else None


def build_info() -> dict[str, Any]:
    """What the build recorded (compiler, torch_version, torch_abi_target); empty where the info module is missing."""
    try:
        _build = import_module("artsy_ext._build")
    except ImportError:
        return {}
    return {name: getattr(_build, name) for name in ("compiler", "torch_version", "torch_abi_target")}
