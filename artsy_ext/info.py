"""What this installation consists of: the first thing to look at, and to send along, when something doesn't work.

`artsy info` and `python -m artsy_ext.info` print it; results.json takes its `versions`. Works without any extra.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["collect", "main", "missing_packages", "print_info", "versions"]


def versions() -> dict[str, str | None]:
    """Versions of what the numbers of a run depend on; None for a package that is not installed."""
    import torch

    return {
        "artsy_ext": _version("artsy_ext"),
        # With the local part (+cpu, +cu130), which the package's metadata may lack.
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "timm": _version("timm"),
        "pillow": _version("pillow"),
        "numpy": _version("numpy"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
    }


def missing_packages() -> dict[str, list[str]]:
    """Per extra of this package, the requirements that are not installed; extras that are complete are left out."""
    missing: dict[str, list[str]] = {}
    for requirement in metadata.requires("artsy_ext") or []:
        found = re.match(r"([\w.-]+).*;.*\bextra\s*==\s*['\"]([\w.-]+)['\"]", requirement)
        if found and _version(found[1]) is None:
            missing.setdefault(found[2], []).append(found[1])
    return missing


def collect() -> dict[str, Any]:
    """Everything that `artsy info` shows, ready for JSON.

    Returns:
        `versions`; `library` (`path` of the compiled library or None, `build`: what it contains); `cuda` (`path` of
        the library with the CUDA kernels or None, `contains`: compiler and architectures, `missing`: why it is not
        there or not used, and the command that changes that, or None); `devices` (`cpu` with the instruction set that
        PyTorch uses, what the processor has and the number of threads, and a list `cuda`); `missing` (as in
        `missing_packages`).
    """
    import torch

    from artsy_ext import _library

    path = _library.library_path()
    devices = {
        "cpu": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "features": _cpu_features(),
        },
        "cuda": [
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
            }
            for properties in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        ],
    }
    return {
        "versions": {**versions(), "cuda": torch.version.cuda},
        "library": {"path": None if path is None else str(path), "build": _library.build_info()},
        "cuda": _cuda_ops(),
        "devices": devices,
        "missing": missing_packages(),
    }


def print_info(as_json: bool = False) -> None:
    """Print `collect()` to stdout, for a person or as JSON."""
    info = collect()
    if as_json:
        print(json.dumps(info, indent=2, default=str))
        return
    for name, version in info["versions"].items():
        print(f"{name:<12}{version or '-'}")
    path = info["library"]["path"]
    print(f"{'library':<12}{path or 'not built'}")
    for key, value in info["library"]["build"].items():
        if key != "cuda":
            print(f"{'':<12}{key}: {value}")
    cuda = info["cuda"]
    print(f"{'cuda ops':<12}{cuda['path'] or 'not built'}")
    for line in filter(None, (cuda["contains"], cuda["missing"])):
        print(f"{'':<12}{line}")
    cpu = info["devices"]["cpu"]
    print(
        f"{'cpu':<12}{cpu['capability']}, {cpu['cores']} cores, {cpu['threads']} threads; {' '.join(cpu['features'])}"
    )
    for index, device in enumerate(info["devices"]["cuda"]):
        gib = device["memory_bytes"] / 2**30
        print(f"{f'cuda:{index}':<12}{device['name']}, sm_{device['capability'].replace('.', '')}, {gib:.0f} GiB")
    for extra, packages in info["missing"].items():
        print(f"{'optional':<12}not installed: {', '.join(packages)}; pip install 'artsy_ext[{extra}]'")


def main(arguments: list[str] | None = None) -> int:
    """`python -m artsy_ext.info [--json]`."""
    given = sys.argv[1:] if arguments is None else arguments
    if given not in ([], ["--json"]):
        print(f"artsy_ext.info: error: expected nothing or --json, got {' '.join(given)}", file=sys.stderr)
        return 2
    print_info(as_json=bool(given))
    return 0


def _cuda_ops() -> dict[str, str | None]:
    import torch

    from artsy_ext import _library, _toolkit

    path = _library.cuda_library_path()
    contains = missing = None
    if path is not None:
        contains = _library.build_info().get("cuda")
        if torch.version.cuda is None:
            missing = "not loaded: this torch is built without CUDA"
    else:
        try:
            toolkit, why = _toolkit.choose("auto", torch.version.cuda)
        except _toolkit.ToolkitError as error:
            toolkit, why = None, str(error)
        missing = f"{why}; to build: ARTSY_CUDA=1 pip install --no-build-isolation ." if toolkit else why
    return {"path": None if path is None else str(path), "contains": contains, "missing": missing}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    # On Linux platform.processor() is empty or repeats the architecture.
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpu_features() -> list[str]:
    """Of the instruction sets that kernels can choose at run time, those that this processor has."""
    flags = _cpuinfo("flags").split()
    return [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]


def _cpuinfo(field: str) -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = cpuinfo.exists() and re.search(rf"^{field}\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
    return found[1] if found else ""


if __name__ == "__main__":
    sys.exit(main())
