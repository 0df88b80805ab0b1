"""The library with the CUDA kernels, on a machine that may have no GPU: it loads, and PyTorch knows its ops."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from artsy_ext import _library
from artsy_ext.ops import STDPRule, combine_routes, plan_routes

pytestmark = pytest.mark.usefixtures("cuda_library")

SOURCES = (Path(__file__).parents[2] / "csrc" / "cuda").glob("*.cu")
REGISTERED = sorted(name for path in SOURCES for name in re.findall(r'm\.impl\("(\w+)"', path.read_text()))


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_every_launcher_is_registered() -> None:
    assert REGISTERED
    for name in REGISTERED:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"artsy::{name}", "CUDA"), name


def test_one_libcudart_is_mapped() -> None:
    run = python(
        "import json, artsy_ext.ops\n"
        "print(json.dumps(sorted({line.split()[-1] for line in open('/proc/self/maps') if 'libcudart' in line})))"
    )
    assert run.returncode == 0, run.stderr
    assert len(json.loads(run.stdout)) == 1


def test_cudart_is_not_linked_into_the_library(cuda_library: Path) -> None:
    # A second, static runtime would be mapped without a file of its own.
    assert re.search(rb"libcudart\.so\.\d+\0", cuda_library.read_bytes())
    assert b"cudart_static" not in cuda_library.read_bytes()


def test_the_build_says_what_is_in_it() -> None:
    info = _library.build_info()
    if not info:
        pytest.skip("built without the info module")
    assert re.fullmatch(r"nvcc \d+\.\d+\.\d+,( sm_\d+[af]?| PTX \d+[af]?)+", info["cuda"])


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"not a library", ""), (b"libcudart.so.7\0", "it is built with CUDA 7, torch with ")],
    ids=["damaged", "of another CUDA"],
)
def test_a_library_that_does_not_fit_is_a_warning(tmp_path: Path, content: bytes, words: str) -> None:
    copy = tmp_path / "artsy_ext"
    shutil.copytree(Path(_library.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "libartsy_ops_cuda.so").unlink()
    (copy / "libartsy_ops_cuda.so").write_bytes(content)
    run = python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import torch, artsy_ext.ops as ops\n"
        "assert ops.plan_routes(torch.ones(2, 3, dtype=torch.bool)).sample.tolist() == [0, 1] * 3"
    )
    assert run.returncode == 0, run.stderr
    assert "UserWarning: artsy_ext: libartsy_ops_cuda.so does not load under torch " in run.stderr
    assert "pip install" in run.stderr
    assert words in run.stderr


@pytest.mark.parametrize("capacity", [None, 4, 7])
def test_fake_tensors_on_a_gpu(capacity: int | None) -> None:
    with FakeTensorMode(shape_env=torch.fx.experimental.symbolic_shapes.ShapeEnv()):
        mask = torch.ones(3, 4, dtype=torch.bool, device="cuda")
        routes = plan_routes(mask, capacity=capacity)
        y = torch.randn(routes.sample.shape[0], 5, device="cuda")
        out = combine_routes(y, routes, base=torch.randn(3, 5, device="cuda"))
        needs = [True] + [False] * 8
        # Not by way of autograd: its engine asks for the device.
        (gradient,) = torch.ops.artsy.combine_routes_backward(out, y, *routes, None, out, needs=needs)
    assert {tensor.device for tensor in (*routes, out, gradient)} == {torch.device("cuda", 0)}
    assert (out.shape, gradient.shape) == ((3, 5), y.shape)


@pytest.mark.parametrize("name", REGISTERED)
def test_opcheck_on_fake_tensors(name: str) -> None:
    mask = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    routes = plan_routes(mask)
    arguments = (torch.randn(4, 5), *routes, torch.randn(4), torch.randn(3, 5))
    needs = [True] + [False] * 6 + [True] * 2
    weight, functional, rule = torch.randn(2, 3, 4), torch.ones(2, 3, 4, dtype=torch.bool), STDPRule().flatten()
    spikes = (torch.ones(5, 2, 4, dtype=torch.bool), torch.ones(5, 2, 2, 3), torch.ones(2), torch.ones(2))
    samples = {
        "plan_routes": ((mask, 6), {}),
        "combine_routes": (arguments, {}),
        "combine_routes_backward": ((torch.randn(3, 5), *arguments), {"needs": needs}),
        "encode_spikes": ((torch.rand(3, 4), 5), {"dtype": torch.float32}),
        "consolidate": ((weight, functional, 1.0, 0.5), {}),
        "stdp": ((weight, *spikes), rule),
        "stdp_": ((weight, *spikes), rule),
        "stdp_consolidate": ((weight, functional, *spikes), {"on": 1.0, "off": 0.5, **rule}),
    }
    op = getattr(torch.ops.artsy, name).default
    torch.library.opcheck(op, *samples[name], test_utils=("test_schema", "test_faketensor"))
