"""The CPU kernels for AMX's tiles, on tiles in software (amx.h): few processors have them."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

import artsy_ext

ROOT = Path(__file__).parents[2]
FLAGS = (
    "-std=c++20",
    "-O1",
    "-g1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-Wall",
    "-Wextra",
    "-Werror",
)
INCLUDE = ("-Icsrc", "-Itests/tiles", "-Itests/tiles/include")

pytestmark = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="tiles are x86-64's"
)


def has_avx512() -> bool:
    return "avx512vl" in Path("/proc/cpuinfo").read_text()


@pytest.mark.skipif(not has_avx512(), reason="the kernels around the tiles need AVX-512")
def test_routed_adapter_in_tiles(tmp_path: Path) -> None:
    program = tmp_path / "routed_adapter"
    subprocess.run(["g++", *FLAGS, *INCLUDE, "tests/tiles/routed_adapter.cpp", "-o", program], cwd=ROOT, check=True)
    run = subprocess.run([program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 180  # problems
    for line in lines:
        hidden, y = map(float, line.partition(": ")[2].split())
        assert hidden <= 2e-6, line  # sums in fp32 of up to 768 products
        assert y <= 1.02 * 2**-8, (
            line
        )  # half a unit in the last place of bfloat16; a hidden value may round the other way


def test_the_library_multiplies_in_tiles() -> None:
    """Compiled in, whatever this processor can."""
    if shutil.which("objdump") is None:
        pytest.skip("needs objdump")
    library = Path(artsy_ext.__file__).parent / "libartsy_ops.so"
    code = subprocess.run(["objdump", "-d", "--no-show-raw-insn", library], capture_output=True, text=True, check=True)
    for instruction in ("ldtilecfg", "tileloadd", "tdpbf16ps", "tilestored", "tilerelease"):
        assert f"\t{instruction}" in code.stdout, instruction
