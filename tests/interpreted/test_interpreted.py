"""Triton kernels on the CPU, in sessions of their own: Triton asks once, when it is loaded, who is to run them."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton: pip install triton")
pytestmark = pytest.mark.interpreted

ROOT = Path(__file__).parents[2]


def interpreted(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TRITON_INTERPRET": "1", "ARTSY_TEST_DEVICE": "interpreted", "PYTHONFAULTHANDLER": "1"}
    # Not in the checkout's own folder, whose package may never have been built.
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT / "tests", env=environment, capture_output=True, text=True
    )


def test_small_kernels() -> None:
    done = interpreted("-m", "pytest", "-q", "interpreted/small_kernels.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)


def test_the_ops_that_have_triton_kernels() -> None:
    for path in sorted((ROOT / "artsy_ext/ops").glob("*/triton.py")):
        tests = f"ops/test_{path.parent.name}.py"
        done = interpreted("-m", "pytest", "-q", "-m", "interpreted", tests)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("line", ["b_x = tl.load(x + i)", "tl.store(out + i, b_x)"])
def test_an_access_beyond_the_end_dies_with_its_line(line: str) -> None:
    size = {"x": 100, "out": 128} if "load" in line else {"x": 128, "out": 100}
    done = interpreted(
        "-c",
        "import torch\n"
        "from interpreted import kernels\n"
        "from interpreted.guard import guarded_launches\n"
        "with guarded_launches():\n"
        f"    kernels.copy_kernel[(2,)](torch.ones({size['x']}), torch.ones({size['out']}), 100, 64, False)\n",
    )
    assert done.returncode == -signal.SIGSEGV
    source = (ROOT / "tests/interpreted/kernels.py").read_text().splitlines()
    (number,) = [i for i, text in enumerate(source, 1) if text.strip() == line]
    assert re.search(rf'kernels\.py", line {number} in copy_kernel', done.stderr), done.stderr
