"""Drives CMakeLists.txt with ninja against the torch that is installed; everything else is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def pybind11_directory() -> list[str]:
    """For the info module, which is left out where there is no pybind11."""
    try:
        import pybind11
    except ImportError:
        return []
    return [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]


class CMakeBuild(build_ext):
    def run(self) -> None:
        try:
            import torch
        except ImportError:
            sys.exit("artsy_ext: the build needs torch >= 2.10: pip install torch, or build with isolation")
        build = Path(self.build_temp).resolve() / "cmake"
        # A cache of another torch or Python would be trusted silently; configuring anew costs two seconds.
        shutil.rmtree(build, ignore_errors=True)
        package = (
            ROOT / "artsy_ext" if self.inplace or self.editable_mode else Path(self.build_lib).resolve() / "artsy_ext"
        )
        for stale in [*package.glob("libartsy_ops*"), *package.glob("_build.*")]:
            stale.unlink()
        print(f"artsy_ext: building the CPU ops against torch {torch.__version__}", flush=True)
        subprocess.run(
            [
                "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
                f"-DARTSY_TORCH_DIR={Path(torch.__file__).parent}",
                f"-DARTSY_TORCH_VERSION={torch.__version__}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-DARTSY_WERROR={os.environ.get('ARTSY_WERROR', 'OFF')}",
                *pybind11_directory(),
            ],
            check=True,
        )  # fmt: skip
        subprocess.run(["cmake", "--build", str(build)], check=True)
        subprocess.run(["cmake", "--install", str(build), "--prefix", str(package)], check=True)


setup(ext_modules=[Extension("artsy_ext._build", [])], cmdclass={"build_ext": CMakeBuild})
