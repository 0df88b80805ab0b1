"""Drives CMakeLists.txt with ninja against the torch that is installed; everything else is in pyproject.toml."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def toolkit_module() -> ModuleType:
    """artsy_ext/_toolkit.py by itself: the package can't be imported before it is built."""
    spec = importlib.util.spec_from_file_location("_toolkit", ROOT / "artsy_ext" / "_toolkit.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pybind11_directory() -> list[str]:
    """For the info module, which is left out where there is no pybind11."""
    try:
        import pybind11
    except ImportError:
        return []
    return [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]


def cuda_arguments(torch_cuda: str | None) -> tuple[list[str], str]:
    """CMake's arguments for the CUDA ops, and in a line what is built of them or why nothing is.

    ARTSY_CUDA and TORCH_CUDA_ARCH_LIST decide, and the toolkits on this machine; its GPUs are not asked.
    """
    toolkits = toolkit_module()
    try:
        toolkit, why = toolkits.choose(os.environ.get("ARTSY_CUDA", "auto").strip().lower() or "auto", torch_cuda)
        if toolkit is None:
            return [f"-DARTSY_CUDA_BUILD=none: {why}"], f"no CUDA ops: {why}"
        architectures = toolkits.architectures(os.environ.get("TORCH_CUDA_ARCH_LIST"), toolkit)
    except toolkits.ToolkitError as error:
        sys.exit(f"artsy_ext: {error}")
    built = f"nvcc {toolkit.version}, " + " ".join(
        f"PTX {name.removesuffix('-virtual')}" if name.endswith("-virtual") else f"sm_{name.removesuffix('-real')}"
        for name in architectures
    )
    return [
        "-DARTSY_CUDA=ON",
        f"-DARTSY_CUDA_BUILD={built}",
        f"-DARTSY_CUDART={toolkit.cudart}",
        f"-DCMAKE_CUDA_COMPILER={toolkit.nvcc}",
        f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(architectures)}",
    ], f"CUDA ops: {built}, {toolkit.origin} ({toolkit.root})"


class CMakeBuild(build_ext):
    def run(self) -> None:
        try:
            import torch
        except ImportError:
            sys.exit("artsy_ext: the build needs torch >= 2.10: pip install torch, or build with isolation")
        cuda, line = cuda_arguments(torch.version.cuda)
        print(f"artsy_ext: building against torch {torch.__version__}: CPU ops; {line}", flush=True)
        build = Path(self.build_temp).resolve() / "cmake"
        # A cache of another torch, toolkit or Python would be trusted silently; configuring anew takes seconds.
        shutil.rmtree(build, ignore_errors=True)
        package = (
            ROOT / "artsy_ext" if self.inplace or self.editable_mode else Path(self.build_lib).resolve() / "artsy_ext"
        )
        # cmake and ninja as they were installed beside this Python, wherever there may be older ones.
        scripts = sysconfig.get_path("scripts")
        environment = {**os.environ, "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)])}
        subprocess.run(
            [
                "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
                f"-DARTSY_TORCH_DIR={Path(torch.__file__).parent}",
                f"-DARTSY_TORCH_VERSION={torch.__version__}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-DARTSY_WERROR={os.environ.get('ARTSY_WERROR', 'OFF')}",
                *cuda,
                *pybind11_directory(),
            ],
            check=True,
            env=environment,
        )  # fmt: skip
        subprocess.run(["cmake", "--build", str(build)], check=True, env=environment)
        for stale in [*package.glob("libartsy_ops*"), *package.glob("_build.*")]:
            stale.unlink()
        subprocess.run(["cmake", "--install", str(build), "--prefix", str(package)], check=True, env=environment)


if __name__ == "__main__":  # so, a test can import the functions above
    setup(ext_modules=[Extension("artsy_ext._build", [])], cmdclass={"build_ext": CMakeBuild})
