"""What importing the ops loads and needs, in a fresh interpreter; and what a broken installation says."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import artsy_ext

HEAVY = (
    "timm",
    "torchvision",
    "matplotlib",
    "sklearn",
    "scipy",
    "PIL",
    "click",
    "rich",
    "safetensors",
    "pandas",
    "triton",
)
PACKAGE = Path(artsy_ext.__file__).parent


def python(code: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    return subprocess.run([sys.executable, "-c", code], env=environment, cwd=path, capture_output=True, text=True)


def test_ops_load_torch_and_nothing_else_heavy() -> None:
    run = python("import json, sys, artsy_ext.ops; print(json.dumps(sorted(sys.modules)))")
    assert run.returncode == 0, run.stderr
    loaded = {name.partition(".")[0] for name in json.loads(run.stdout)}
    assert "torch" in loaded
    assert not loaded.intersection(HEAVY)
    layers = {name.split(".")[1] for name in json.loads(run.stdout) if name.startswith("artsy_ext.")}
    assert layers == {"ops", "_library"}


def test_modules_load_without_the_packages_that_they_stand_in_for() -> None:
    run = python("import json, sys, artsy_ext.nn; print(json.dumps(sorted(sys.modules)))")
    assert run.returncode == 0, run.stderr
    loaded = {name.partition(".")[0] for name in json.loads(run.stdout)}
    assert not loaded.intersection((*HEAVY, "spikingjelly", "bindsnet", "norse"))


@pytest.mark.parametrize("broken", [None, b"not a library"], ids=["missing", "damaged"])
def test_a_library_that_does_not_load_says_what_to_do(tmp_path: Path, broken: bytes | None) -> None:
    copy = tmp_path / "artsy_ext"
    shutil.copytree(PACKAGE / "ops", copy / "ops", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "_library.py"):
        shutil.copy(PACKAGE / name, copy)
    if broken is not None:
        (copy / "libartsy_ops.so").write_bytes(broken)
    run = python("import artsy_ext.ops", tmp_path)
    assert run.returncode == 1
    error = run.stderr.strip().splitlines()[-1]
    assert error.startswith("ImportError: artsy_ext: ")
    assert "pip install" in error
    assert "libartsy_ops.so" in error if broken else "missing" in error


def test_without_extras_torch_and_numpy_are_all() -> None:
    required = [r for r in importlib.metadata.requires("artsy_ext") or [] if "extra ==" not in r]
    assert {re.match(r"[\w-]+", r).group() for r in required} == {"torch", "numpy"}
