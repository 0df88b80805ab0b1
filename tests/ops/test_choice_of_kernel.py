"""Which kernel serves a call: Triton's on a GPU for the calls that they take, else the definition; compilers see it."""

import sys
import types
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode, dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from artsy_ext import ops
from artsy_ext.ops import _kernels, _register, reference
from artsy_ext.ops._kernels import Served

FOLDER = Path(ops.__file__).parent
WEIGHT, FUNCTIONAL = torch.tensor([[[0.1, 0.4, 0.9]]]), torch.tensor([[[True, True, False]]])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """As if `consolidate` had a Triton kernel that serves tensors with fewer than 9 numbers, on the CPU too."""
    calls: list[str] = []

    def kernel(weight: Tensor, functional: Tensor, on: float, off: float) -> Tensor:
        calls.append("kernel")
        return reference.consolidate(weight, functional, on, off)

    module = types.ModuleType("artsy_ext.ops.consolidate.triton")
    module.KERNELS = {"consolidate": kernel}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    served = Served(fits=lambda weight, *_: weight.numel() < 9, devices=("cpu",))
    monkeypatch.setattr(_kernels, "TRITON", {"consolidate": served})
    _kernels._has_triton.cache_clear()
    yield calls
    _kernels._has_triton.cache_clear()


def call(weight: Tensor = WEIGHT, functional: Tensor = FUNCTIONAL) -> Tensor:
    return _register.KERNELS["consolidate"](weight, functional, 0.8, 0.3)


def test_a_kernel_serves_what_it_takes(calls: list[str]) -> None:
    pytest.importorskip("triton")
    assert call().tolist() == [[[False, True, True]]]
    assert calls == ["kernel"]
    call(WEIGHT.double())
    call(torch.ones(1, 1, 9), torch.ones(1, 1, 9, dtype=torch.bool))
    assert calls == ["kernel"]


def test_other_devices_run_the_definition(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_kernels.TRITON, "consolidate", Served())
    assert call().tolist() == [[[False, True, True]]]
    assert calls == []


def test_bad_input_does_not_reach_a_kernel(calls: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^consolidate: functional must be"):
        call(functional=FUNCTIONAL[..., 1:])
    assert calls == []


class Broken:
    @property
    def __version__(self) -> str:
        raise OSError("libtriton.so: cannot open shared object file")


@pytest.mark.parametrize(
    ("triton", "words"),
    [
        (None, "it does not load: import of triton halted"),
        (types.SimpleNamespace(__version__="3.5.1+git1"), "found 3.5.1+git1"),
        (Broken(), "it does not load: libtriton.so: cannot open"),
    ],
    ids=["missing", "old", "broken"],
)
def test_without_a_fitting_triton_the_definition_runs_and_says_so_once(
    triton: Any, words: str, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "triton", triton)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert call().tolist() == [[[False, True, True]]]
    (warning,) = caught
    text = str(warning.message)
    assert text.startswith("artsy_ext: Triton >= 3.6 is needed for fast kernels of consolidate, ")
    assert words in text
    assert text.endswith("To add it: pip install 'triton>=3.6'")
    assert calls == []


@pytest.mark.parametrize("version", ["3.6.0", "3.6.1+git2", "3.10.0", "4.0.0"])
def test_versions_that_fit(version: str, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(__version__=version))
    call()
    assert calls == ["kernel"]


def test_ops_with_triton_kernels_are_those_that_are_served() -> None:
    assert {path.parent.name for path in FOLDER.glob("*/triton.py")} == set(_kernels.TRITON)


@pytest.mark.parametrize("op", sorted(_kernels.TRITON))
def test_an_op_and_its_gradient_have_kernels(op: str) -> None:
    pytest.importorskip("triton")
    module = __import__(f"artsy_ext.ops.{op}.triton", fromlist=["KERNELS"])
    assert set(module.KERNELS) == {name for name in _register.KERNELS if name in (op, f"{op}_backward")}
    assert module.VARIANTS


# What compilers see: functional graphs of tensors without data, as torch.compile traces them.


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tracing asks of a GPU, where there may be none."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    target = GPUTarget("cuda", 90, 32)
    monkeypatch.setattr(driver, "_active", types.SimpleNamespace(get_current_target=lambda: target))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert triton.runtime.driver.active.get_current_target() == target


def graph_of(function: Any, *args: Tensor) -> torch.fx.Graph:
    return make_fx(dispatch_functionalize(function, FunctionalTensorMode()))(*args).graph


def on_a_gpu(*tensors: Tensor) -> list[Tensor]:
    with FakeTensorMode():
        return [torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda") for tensor in tensors]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compilers_see_the_triton_kernels(
    dtype: torch.dtype, calls: list[str], hopper: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interpreted.kernels import copy_kernel

    def kernel(weight: Tensor, functional: Tensor, on: float, off: float) -> Tensor:
        out = torch.empty_like(functional)
        torch.library.wrap_triton(copy_kernel)[(1,)](functional, out, out.numel(), 64, True)
        return out

    monkeypatch.setitem(sys.modules["artsy_ext.ops.consolidate.triton"].KERNELS, "consolidate", kernel)
    monkeypatch.setitem(_kernels.TRITON, "consolidate", Served())
    graph = graph_of(lambda *given: ops.consolidate(*given, 0.8, 0.3), *on_a_gpu(WEIGHT.to(dtype), FUNCTIONAL))
    (launch,) = [node for node in graph.nodes if "triton" in str(node.target) or "artsy" in str(node.target)]
    if dtype == torch.float64:
        assert launch.target is torch.ops.artsy.consolidate.default
    else:
        assert launch.target is torch.ops.higher_order.triton_kernel_wrapper_functional
        assert launch.kwargs["tensors_to_clone"] == ["out"]  # the compiler knows what the kernel writes


def arguments_of(op: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Tensors for the op's schema."""
    B, S, D, R, J = 5, 3, 8, 2, 4
    new = partial(torch.ones, dtype=dtype)
    if op == "synapse_currents":
        return new(B, D), new(S, J, D), new(S, J, D, dtype=torch.bool), new(S, J)
    if op == "synapse_scores":
        return new(B, D), new(S, R, D), new(S, R), new(S, R), new(S)
    raise NotImplementedError(op)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", sorted(_kernels.TRITON))
def test_compilers_see_nothing_but_kernels_of(op: str, dtype: torch.dtype, hopper: None) -> None:
    arguments = on_a_gpu(*arguments_of(op, dtype))
    call = getattr(torch.ops.artsy, op).default
    grad = torch.empty_like(call(*arguments))
    needs = [argument.is_floating_point() for argument in arguments]
    backward = getattr(torch.ops.artsy, f"{op}_backward").default
    for graph in (
        graph_of(lambda *given: call(*given), *arguments),
        graph_of(lambda grad, *given: backward(grad, *given, needs=needs), grad, *arguments),
    ):
        targets = [node.target for node in graph.nodes]
        assert torch.ops.higher_order.triton_kernel_wrapper_functional in targets
        assert not [target for target in targets if "artsy" in str(target)]
