"""Every CUDA kernel of the checkout runs in all three builds, and rightly."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from emulation.emulated_ops import OPS
from emulation.emulator import BUILDS, IS_SUPPORTED, ROOT, Emulator
from emulation.runs import RUNS

FILES = [*(ROOT / "csrc" / "cuda").glob("*.cuh"), *(ROOT / "tests" / "emulation" / "kernels").glob("*.cuh")]


def kernels_of(file: Path) -> set[str]:
    return set(re.findall(r"__global__[^;{}]*?\b(\w+_kernel)\(", file.read_text()))


@pytest.mark.emulated
@pytest.mark.skipif(not IS_SUPPORTED, reason="the emulation needs an x86-64 processor")
@pytest.mark.parametrize("kind", BUILDS)
@pytest.mark.parametrize("file", RUNS)
def test_every_kernel_is_executed(file: str, kind: str, emulators: Callable[[str, str], Emulator]) -> None:
    program, run = RUNS[file]
    emulator = emulators(program, kind)
    emulator.launched.clear()
    run(emulator)
    assert emulator.launched == kernels_of(ROOT / file)


def test_every_file_of_kernels_is_run() -> None:
    # Those of primitives.cuh have test_primitives.py.
    files = {str(file.relative_to(ROOT)) for file in FILES if kernels_of(file) and file.stem != "primitives"}
    assert files == set(RUNS)


def test_every_op_with_cuda_kernels_is_tested_on_an_emulated_gpu() -> None:
    assert set(OPS) == {file.stem for file in FILES if file.parent.name == "cuda" and kernels_of(file)}
    for op in OPS:
        text = (ROOT / "tests" / "ops" / f"test_{op}.py").read_text()
        assert re.search(r"^def test_\w+\([^)]*\b(device|gpu): str", text, re.MULTILINE), op
