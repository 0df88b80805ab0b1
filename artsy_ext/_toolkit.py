"""Finds the CUDA toolkit that the kernels are built with: for setup.py, `artsy info` and the tests of compiled code.

Standard library only and nothing of this package: setup.py loads the file by its path, before there is a package.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

OLDEST = (8, 0)
"""Compute capability of the oldest GPU that the kernels are for."""

# Each comes with a package of its own, so that a toolkit made of packages may lack any: a torch install alone leaves
# headers and libcudart without a compiler.
_NEEDED = (
    "bin/nvcc",
    "bin/ptxas",
    "nvvm/bin/cicc",
    "include/cuda_runtime.h",
    "include/crt/host_config.h",
    "include/cccl/cuda/std/version",
)


class ToolkitError(Exception):
    """One line: what was asked for, and why it is not to be had."""


class Toolkit(NamedTuple):
    root: Path
    origin: str
    """Where it was found: CUDA_HOME, the pip toolkit, PATH."""
    version: str
    """Of nvcc: 13.0.88."""
    cudart: Path

    @property
    def nvcc(self) -> Path:
        return self.root / "bin" / "nvcc"

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])

    @property
    def release(self) -> tuple[int, int]:
        major, minor, *_ = self.version.split(".")
        return int(major), int(minor)


def install_command(torch_cuda: str | None) -> str:
    """What to do for a toolkit that fits this torch (`torch.version.cuda`)."""
    major = torch_cuda.partition(".")[0] if torch_cuda else "13"
    if int(major) < 13:  # pip spreads older ones over many folders
        return f"install CUDA {major} and set CUDA_HOME"
    return f'pip install "cuda-toolkit[nvcc,cccl,cudart]=={major}.*"'


def find(major: int | None = None) -> Toolkit:
    """The first complete toolkit, of that major version if one is given: CUDA_HOME, the pip toolkit, PATH.

    Raises:
        ToolkitError: there is none; says of each candidate why not.
    """
    refused = []
    for origin, root in _candidates():
        found = _inspect(origin, root)
        if isinstance(found, str):
            refused.append(found)
        elif major is not None and found.major != major:
            refused.append(f"{origin} ({root}) is CUDA {found.version} and torch needs {major}")
        else:
            return found
    raise ToolkitError("; ".join(refused) or "CUDA_HOME is not set, no pip toolkit, no nvcc on PATH")


def choose(setting: str, torch_cuda: str | None) -> tuple[Toolkit | None, str]:
    """What ARTSY_CUDA (0, 1 or auto) means under a torch with `torch.version.cuda`: a toolkit or None, and why.

    Raises:
        ToolkitError: the setting is none of them, or it is 1 and the CUDA ops cannot be built.
    """
    if setting not in ("0", "1", "auto"):
        raise ToolkitError(f"ARTSY_CUDA must be 0, 1 or auto, got {setting!r}")
    if setting == "0":
        return None, "ARTSY_CUDA=0"
    try:
        if torch_cuda is None:
            raise ToolkitError("this torch is built without CUDA; install one that is built with it")
        toolkit = find(int(torch_cuda.partition(".")[0]))
    except ToolkitError as error:
        add = f"; to add a toolkit: {install_command(torch_cuda)}" if torch_cuda else ""
        if setting == "1":
            raise ToolkitError(f"ARTSY_CUDA=1, but: {error}{add}") from None
        return None, f"{error}{add}"
    return toolkit, f"nvcc {toolkit.version} of {toolkit.origin} ({toolkit.root})"


def architectures(wanted: str | None, toolkit: Toolkit) -> list[str]:
    """TORCH_CUDA_ARCH_LIST ("8.0;9.0a+PTX") in the words of CMake (80-real, 90a-real, 90a-virtual).

    None stands for what the kernels are inspected for, as far as the toolkit knows it, and PTX of the newest.
    Architectures older than the kernels need are left out.

    Raises:
        ToolkitError: an entry is not understood, or none is left.
    """
    if not wanted or not wanted.strip():
        wanted = "8.0;9.0;10.0+PTX" if toolkit.release >= (12, 8) else "8.0;9.0+PTX"
    chosen = []
    for entry in re.split(r"[;,\s]+", wanted.strip()):
        found = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        if not found:
            raise ToolkitError(f"TORCH_CUDA_ARCH_LIST must hold entries like 8.0 or 9.0a+PTX, got {entry!r}")
        if (int(found[1]), int(found[2])) < OLDEST:
            continue
        name = found[1] + found[2] + found[3]
        chosen += [f"{name}-real", f"{name}-virtual"] if found[4] else [f"{name}-real"]
    if not chosen:
        raise ToolkitError(f"TORCH_CUDA_ARCH_LIST must hold 8.0 or newer, got {wanted!r}")
    return list(dict.fromkeys(chosen))


def _candidates() -> Iterator[tuple[str, Path]]:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield variable, Path(os.environ[variable])
    packages = importlib.util.find_spec("nvidia")
    for location in (packages and packages.submodule_search_locations) or ():
        for root in sorted(Path(location).glob("cu[0-9]*"), reverse=True):
            yield "the pip toolkit", root
    nvcc = shutil.which("nvcc")
    if nvcc:
        yield "PATH", _root_of(nvcc)


def _root_of(nvcc: str) -> Path:
    # What lies on PATH may be a link or a script: the compiler itself knows where it stands.
    shown = _output([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull])
    top = re.search(r"^#\$ TOP=(.+)$", shown, re.MULTILINE)
    return Path(top[1].strip()).resolve() if top else Path(nvcc).resolve().parents[1]


def _inspect(origin: str, root: Path) -> Toolkit | str:
    """The toolkit, or in words what it lacks."""
    missing = [name for name in _NEEDED if not (root / name).exists()]
    if "include/cccl/cuda/std/version" in missing and (root / "include/cuda/std/version").exists():  # before CUDA 13
        missing.remove("include/cccl/cuda/std/version")
    folders = [root / name for name in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib")]
    cudart = [library for folder in folders for library in sorted(folder.glob("libcudart.so*"))]
    if not cudart:
        missing.append("libcudart.so")
    if missing:
        return f"{origin} ({root}) lacks {', '.join(missing)}"
    version = re.search(r"\bV(\d+\.\d+\.\d+)", _output([str(root / "bin" / "nvcc"), "--version"]))
    if not version:
        return f"{origin} ({root}) has an nvcc that does not run"
    return Toolkit(root, origin, version[1], cudart[0])


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout + done.stderr
