"""clang-tidy over the kernels as the emulation sees them: an index is 64 bits wide before it is multiplied."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.static

ROOT = Path(__file__).parents[2]
KERNELS = sorted((ROOT / "csrc/cuda").glob("*.cuh"))


Tidy = Callable[[Path], subprocess.CompletedProcess[str]]


@pytest.fixture
def tidy(clang_tidy: str) -> Tidy:
    command = [clang_tidy, "--quiet", f"--config-file={ROOT / 'csrc/.clang-tidy'}"]
    flags = ["-std=c++20", "-x", "c++", "-I", str(ROOT / "csrc")]
    return lambda source: subprocess.run([*command, str(source), "--", *flags], capture_output=True, text=True)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.name)
def test_kernels_are_tidy(kernel: Path, tidy: Tidy) -> None:
    done = tidy(kernel)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_product_of_32_bits_is_found(tmp_path: Path, tidy: Tidy) -> None:
    source = tmp_path / "kernel.cuh"
    source.write_text(
        '#include "cuda/port.cuh"\n'
        "__global__ void row_kernel(float* x, int width) { x[blockIdx.x * width] = 0; }\n"
        "__global__ void narrow_kernel(float* x, int64_t i) { int j = i; x[j] = 0; }\n"
    )
    done = tidy(source)
    assert done.returncode == 1
    for line, check in ((2, "bugprone-implicit-widening"), (3, "bugprone-narrowing-conversions")):
        assert any(f"kernel.cuh:{line}:" in shown and check in shown for shown in done.stdout.splitlines()), check
