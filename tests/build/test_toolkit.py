"""Which CUDA toolkit is built with, and what is said where there is none; on toolkits made of empty files."""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from artsy_ext import _library, _toolkit, info
from artsy_ext._toolkit import ToolkitError

ROOT = Path(__file__).parents[2]
INSTALL = 'pip install "cuda-toolkit[nvcc,cccl,cudart]==13.*"'
SEARCHED = os.environ["PATH"]  # before the tests hide it
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(name: str, version: str = "13.0.88", without: tuple[str, ...] = ()) -> Path:
        root = tmp_path / name
        for file in {*_toolkit._NEEDED, "lib/libcudart.so.13"}.difference(without):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).touch()
        if "bin/nvcc" not in without:
            (root / "bin/nvcc").write_text(f"#!/bin/sh\necho Cuda compilation tools, release x, V{version}\n")
            (root / "bin/nvcc").chmod(0o755)
        return root

    return make


@pytest.fixture(autouse=True)
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("CUDA_HOME", "CUDA_PATH", "ARTSY_CUDA", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(_toolkit.importlib.util, "find_spec", lambda name: None)


def installed_by_pip(monkeypatch: pytest.MonkeyPatch, *roots: Path) -> None:
    folders = [str(root.parent) for root in roots]
    spec = SimpleNamespace(submodule_search_locations=folders)
    monkeypatch.setattr(_toolkit.importlib.util, "find_spec", lambda name: spec)


def test_the_order_is_cuda_home_then_pip_then_path(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    home, pip, path = make("home"), make("site/cu13"), make("path")
    monkeypatch.setenv("PATH", f"{path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert _toolkit.find().root == path
    installed_by_pip(monkeypatch, pip)
    assert _toolkit.find().root == pip
    monkeypatch.setenv("CUDA_HOME", str(home))
    found = _toolkit.find()
    assert (found.root, found.origin, found.version) == (home, "CUDA_HOME", "13.0.88")
    assert found.cudart == home / "lib/libcudart.so.13"


def test_a_script_on_path_leads_to_its_toolkit(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make("opt/cuda")
    script = tmp_path / "usr" / "nvcc"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\necho '#$ TOP={root}/bin/..'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent))
    assert _toolkit.find().root == root


@pytest.mark.parametrize("part", [*_toolkit._NEEDED, "lib/libcudart.so.13"])
def test_an_incomplete_toolkit_is_refused_by_name(make: Make, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    installed_by_pip(monkeypatch, make("site/cu13", without=(part,)))
    with pytest.raises(ToolkitError, match=r"^the pip toolkit \(.*cu13\) lacks ") as caught:
        _toolkit.find()
    assert str(caught.value).endswith(part.removeprefix("lib/").removesuffix(".13"))


def test_what_a_torch_install_leaves_is_no_toolkit(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    left = make("site/cu13", without=("bin/nvcc", "bin/ptxas", "nvvm/bin/cicc", "include/crt/host_config.h"))
    whole = make("home")
    installed_by_pip(monkeypatch, left)
    assert _toolkit.choose("auto", "13.0")[0] is None
    monkeypatch.setenv("CUDA_PATH", str(whole))
    assert _toolkit.find().root == whole


def test_the_major_version_is_that_of_torch(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = make("home", "12.8.93"), make("site/cu13", "13.2.1")
    monkeypatch.setenv("CUDA_HOME", str(old))
    with pytest.raises(ToolkitError, match=r"^ARTSY_CUDA=1, but: CUDA_HOME \(.*\) is CUDA 12.8.93 and torch needs 13;"):
        _toolkit.choose("1", "13.0")
    toolkit, why = _toolkit.choose("auto", "13.0")
    assert toolkit is None
    assert "CUDA 12.8.93 and torch needs 13" in why
    assert why.endswith(INSTALL)
    installed_by_pip(monkeypatch, new)  # a minor version of its own is all right
    assert _toolkit.choose("1", "13.0")[0].root == new
    assert _toolkit.choose("1", "12.6")[0].root == old
    with pytest.raises(ToolkitError, match=r"to add a toolkit: install CUDA 11 and set CUDA_HOME$"):
        _toolkit.choose("1", "11.8")


@pytest.mark.parametrize(
    ("setting", "torch_cuda", "words"),
    [
        ("1", "13.0", ["ARTSY_CUDA=1, but: ", "no nvcc on PATH", INSTALL]),
        ("1", None, ["ARTSY_CUDA=1, but: this torch is built without CUDA; install one that is built with it"]),
        ("yes", "13.0", ["ARTSY_CUDA must be 0, 1 or auto, got 'yes'"]),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(setting: str, torch_cuda: str | None, words: list[str]) -> None:
    with pytest.raises(ToolkitError) as caught:
        _toolkit.choose(setting, torch_cuda)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_zero_asks_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(make("home")))
    assert _toolkit.choose("0", "13.0") == (None, "ARTSY_CUDA=0")


@pytest.mark.parametrize(
    ("wanted", "version", "expected"),
    [
        (None, "13.0.88", ["80-real", "90-real", "100-real", "100-virtual"]),
        ("", "12.6.20", ["80-real", "90-real", "90-virtual"]),
        ("8.6;9.0a+PTX", "13.0.88", ["86-real", "90a-real", "90a-virtual"]),
        ("7.5 8.0 12.0+PTX", "13.0.88", ["80-real", "120-real", "120-virtual"]),  # 7.5 is older than the kernels need
        ("8.0, 8.0", "13.0.88", ["80-real"]),
    ],
)
def test_architectures(make: Make, wanted: str | None, version: str, expected: list[str]) -> None:
    toolkit = _toolkit.Toolkit(make("home"), "CUDA_HOME", version, Path("libcudart.so"))
    assert _toolkit.architectures(wanted, toolkit) == expected


@pytest.mark.parametrize(
    ("wanted", "words"), [("Ampere", "entries like 8.0 or 9.0a+PTX, got 'Ampere'"), ("7.0", "8.0 or newer, got '7.0'")]
)
def test_bad_architectures(make: Make, wanted: str, words: str) -> None:
    toolkit = _toolkit.Toolkit(make("home"), "CUDA_HOME", "13.0.88", Path("libcudart.so"))
    with pytest.raises(ToolkitError, match="^TORCH_CUDA_ARCH_LIST must hold " + re.escape(words)):
        _toolkit.architectures(wanted, toolkit)


def test_setup_hands_cmake_what_was_found(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_arguments = runpy.run_path(str(ROOT / "setup.py"))["cuda_arguments"]
    root = make("home")
    monkeypatch.setenv("CUDA_HOME", str(root))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0+PTX")
    arguments, line = cuda_arguments("13.0")
    assert line == f"CUDA ops: nvcc 13.0.88, sm_90 PTX 90, CUDA_HOME ({root})"
    assert set(arguments) == {
        "-DARTSY_CUDA=ON",
        "-DARTSY_CUDA_BUILD=nvcc 13.0.88, sm_90 PTX 90",
        f"-DARTSY_CUDART={root}/lib/libcudart.so.13",
        f"-DCMAKE_CUDA_COMPILER={root}/bin/nvcc",
        "-DCMAKE_CUDA_ARCHITECTURES=90-real;90-virtual",
    }
    monkeypatch.setenv("ARTSY_CUDA", "0")
    assert cuda_arguments("13.0") == (["-DARTSY_CUDA_BUILD=none: ARTSY_CUDA=0"], "no CUDA ops: ARTSY_CUDA=0")


@pytest.mark.parametrize(("torch_cuda", "words"), [("13.0", INSTALL), (None, "install one that is built with it")])
def test_info_says_what_the_cuda_ops_lack(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], torch_cuda: str | None, words: str
) -> None:
    monkeypatch.setattr(_library, "_CUDA_LIBRARY", make("nowhere") / "libartsy_ops_cuda.so")
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    info.print_info()
    assert re.search(rf"\ncuda ops    not built\n +.*{re.escape(words)}\n", capsys.readouterr().out)
    monkeypatch.setenv("CUDA_HOME", str(make("home")))
    if torch_cuda:
        assert info.collect()["cuda"]["missing"].endswith("to build: ARTSY_CUDA=1 pip install --no-build-isolation .")


def build(tmp_path: Path, setting: str) -> subprocess.CompletedProcess[str]:
    """Builds this tree into tmp_path where no toolkit is to be found: empty ones stand before those of the machine."""
    empty = tmp_path / "empty"
    for file in ("nvidia/__init__.py", "bin/nvcc"):
        (empty / file).parent.mkdir(parents=True)
        (empty / file).touch()
    (empty / "bin/nvcc").chmod(0o755)
    environment = os.environ | {
        "ARTSY_CUDA": setting,
        "CUDA_HOME": str(empty),
        "PATH": os.pathsep.join([str(empty / "bin"), str(Path(sys.executable).parent), SEARCHED]),
        "PYTHONPATH": str(empty),
    }
    folders = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", *folders], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_a_build_that_must_have_cuda_fails_at_once(tmp_path: Path) -> None:
    done = build(tmp_path, "1")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("artsy_ext: ARTSY_CUDA=1, but: ")
    assert "install" in line
    assert not (tmp_path / "temp").exists()


def test_a_build_without_a_toolkit_has_the_cpu_ops_and_says_so(tmp_path: Path) -> None:
    package = tmp_path / "lib" / "artsy_ext"
    package.mkdir(parents=True)
    (package / "libartsy_ops_cuda.so").touch()  # of an earlier build
    done = build(tmp_path, "auto")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("artsy_ext: building")]
    assert "CPU ops; no CUDA ops: " in line
    assert "install" in line
    assert {path.name.partition(".")[0] for path in package.iterdir()} == {"libartsy_ops", "_build"}


def test_make_installs_the_toolkit_of_the_extra() -> None:
    # It has to be there before the package is built, hence before its extras are.
    (extra,) = re.findall(r'^cuda = \["(.+)"\]$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert f"TOOLKIT ?= {extra}\n" in (ROOT / "Makefile").read_text()
