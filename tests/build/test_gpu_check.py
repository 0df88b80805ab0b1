"""`make gpu-check` takes all its steps here with the device emulated, so that none is new where there is a GPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


# The other sanitizers are called as these are; the other steps are folders that this session runs itself.
STEPS = [
    "build",
    "info",
    "kernels",
    *(f"sanitizer-{tool}check" for tool in ("mem", "race")),
    "benchmarks",
]


def gpu_check(tree: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(tree / "tests/gpu_check.py"), *arguments]
    environment = os.environ | environment
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of this checkout: building it in place would pull the libraries from under the other tests."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in ("artsy_ext", "bench", "csrc", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


def test_every_step_is_taken(tree: Path, tmp_path: Path) -> None:
    # The real sanitizer runs a program and looks; this one only runs it.
    sanitizer = tmp_path / "bin" / "compute-sanitizer"
    sanitizer.parent.mkdir()
    sanitizer.write_text('#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n')
    sanitizer.chmod(0o755)
    done = gpu_check(
        tree, "--device", "emulated", "--steps", ",".join(STEPS), "--select", "test_table or test_ratio",
        "--output", str(tmp_path / "found"),
        ARTSY_CUDA="0", PATH=f"{sanitizer.parent}{os.pathsep}{os.environ['PATH']}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found" / "summary.json").read_text())
    outcomes = {step["step"]: step["outcome"] for step in found["steps"]}
    assert outcomes == dict.fromkeys(STEPS, "passed")
    for name in STEPS:
        assert f"| {name} | passed |" in (tmp_path / "found" / "summary.md").read_text()
        assert (tmp_path / "found" / f"{name}.log").read_text().startswith("$ ")


def test_what_is_missing_and_what_fails_is_named(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    arguments = ("--device", "emulated", "--steps", "sanitizer-memcheck,benchmarks", "--select", "no_such_benchmark")
    done = gpu_check(ROOT, *arguments, "--output", str(tmp_path / "found"), PATH=str(tools), CUDA_HOME=str(tools))
    assert done.returncode == 0
    summary = (tmp_path / "found" / "summary.md").read_text()
    assert (
        "| sanitizer-memcheck | skipped | 0 | needs compute-sanitizer, which comes with a full CUDA toolkit |"
        in summary
    )
    assert "| benchmarks | skipped |" in summary


def test_unknown_steps_are_refused(tmp_path: Path) -> None:
    done = gpu_check(ROOT, "--device", "emulated", "--steps", "build,paint", "--output", str(tmp_path / "found"))
    assert done.returncode == 2
    assert "--steps must be of build, info, kernels" in done.stderr
    assert done.stderr.strip().endswith("got paint")
