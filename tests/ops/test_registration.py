"""One name per op, everywhere: schema, public function, definition, test, and a benchmark of every CPU kernel."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from artsy_ext import ops
from artsy_ext.ops import reference
from artsy_ext.ops._register import call

ROOT = Path(__file__).parents[2]
SCHEMAS = (ROOT / "csrc" / "ops.cpp").read_text()
DIFFERENTIABLE = re.findall(r'define_differentiable\(\s*m, "(\w+)"', SCHEMAS)
OPS = sorted([*DIFFERENTIABLE, *re.findall(r'define\(\s*m, "(\w+)"', SCHEMAS)])


def compiled(op: str, device: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"artsy::{op}", device)


def folder(op: str) -> Path:
    """Where the public function lives; variants (`stdp_`, `stdp_consolidate`) share the folder of their op."""
    found = Path(inspect.getfile(getattr(ops, op))).parent
    assert op.startswith(found.name)
    return found


def test_registered_ops_are_the_schemas() -> None:
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("artsy::")}
    assert registered == {f"artsy::{op}" for op in OPS} | {f"artsy::{op}_backward" for op in DIFFERENTIABLE}


@pytest.mark.parametrize(("device", "files"), [("CPU", "csrc/cpu/*.cpp"), ("CUDA", "csrc/cuda/*.cu")])
def test_every_kernel_file_is_the_kernel_of_an_op(device: str, files: str, request: pytest.FixtureRequest) -> None:
    # Only what is registered for a device of its own has one.
    if device == "CUDA":
        request.getfixturevalue("cuda_library")
    backward = {f"{folder(op).name}_backward" for op in DIFFERENTIABLE if compiled(f"{op}_backward", device)}
    found = {path.stem for path in ROOT.glob(files)}
    # A gradient stands with its op or in a file of its own.
    assert found - backward == {folder(op).name for op in OPS if compiled(op, device)}


@pytest.mark.parametrize("op", OPS)
def test_an_op_is_complete(op: str) -> None:
    assert op in ops.__all__
    assert op in reference.__all__
    assert (folder(op) / "reference.py").is_file()
    assert inspect.getfile(getattr(reference, op)) == str(folder(op) / "reference.py")
    assert (ROOT / "tests" / "ops" / f"test_{folder(op).name}.py").is_file()
    if compiled(op, "CPU"):
        assert (ROOT / "bench" / "ops" / f"{folder(op).name}.py").is_file()


@pytest.mark.parametrize("op", OPS)
def test_the_definition_has_the_signature_of_the_function(op: str) -> None:
    ours, defined = (inspect.signature(getattr(module, op)) for module in (ops, reference))
    assert [(p.name, p.kind, p.default) for p in ours.parameters.values()] == [
        (p.name, p.kind, p.default) for p in defined.parameters.values()
    ]


@pytest.mark.parametrize("op", OPS)
def test_the_function_is_documented(op: str) -> None:
    text = inspect.getdoc(getattr(ops, op))
    assert text is not None
    if folder(op).name != op:  # a variant says how it differs
        assert f"`{folder(op).name}`" in text
        assert "\nRaises" in text
        return
    sections = re.findall(r"^(Args|Returns|Raises):$", text, re.MULTILINE)
    assert sections == ["Args", "Returns", "Raises"]
    for name in inspect.signature(getattr(ops, op)).parameters:
        assert re.search(rf"\b{name}\b.*:", text), name


@pytest.mark.parametrize("op", OPS)
def test_opcheck_selects_every_op(op: str) -> None:
    # `pytest -k opcheck` selects by name.
    text = (ROOT / "tests" / "ops" / f"test_{folder(op).name}.py").read_text()
    checks = [body for body in text.split("\ndef ") if body.startswith("test_opcheck")]
    for name in [op, f"{op}_backward"] if op in DIFFERENTIABLE else [op]:
        assert any(f"torch.ops.artsy.{name}.default" in body for body in checks), name


@pytest.mark.parametrize("error", [ValueError, RuntimeError])
def test_what_a_kernel_refuses_is_a_value_error(error: type[Exception]) -> None:
    def plan_routes(mask: object) -> None:
        raise error(f"plan_routes: mask must be another, got {mask}")

    with pytest.raises(ValueError, match=r"^plan_routes: mask must be another, got 1$"):
        call(plan_routes, 1)


def test_other_errors_stay() -> None:
    def plan_routes() -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        call(plan_routes)
