"""The GPU kernels as machine code: no local memory, what they promise, and no more registers than their budget.

Nothing runs: a CUDA toolkit is enough. Where a change of a kernel changes what it needs, `make budget` writes it down.
"""

import os
import subprocess
import sys
from pathlib import Path

import gate
import pytest
from gate import AMD, NVIDIA, Kernel, Needs

pytestmark = [pytest.mark.static, pytest.mark.usefixtures("toolkit")]

DEFECTS = Path(__file__).with_name("kernels") / "defects.cu"


def each(sources: list[Path], architectures: tuple[str, ...]) -> pytest.MarkDecorator:
    pairs = [(source, architecture) for source in sources for architecture in architectures]
    ids = [f"{source.relative_to(gate.ROOT)}-{architecture}" for source, architecture in pairs]
    return pytest.mark.parametrize(("source", "architecture"), pairs, ids=ids)


each_cuda_source = each(gate.cuda_sources(), NVIDIA)
each_small_kernel = each(gate.small_kernels(), NVIDIA)
each_triton_source = each(gate.triton_sources(), (*NVIDIA, *AMD))


def held_to_budget(kernels: list[Kernel]) -> list[str]:
    budget = gate.read_budget()
    if not {kernel.key.compiler for kernel in kernels} <= {key.compiler for key in budget}:
        known = " and ".join(sorted({key.compiler for key in budget}))
        reason = f"the budget is that of {known}; here is {kernels[0].key.compiler}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return gate.over_budget(kernels, budget)


@each_cuda_source
def test_cuda_kernels_do_without_local_memory(source: Path, architecture: str) -> None:
    kernels = gate.cuda_kernels(source, architecture)
    assert [kernel.key.kernel for kernel in kernels if gate.uses_local_memory(kernel)] == []


def broken_promises(source: Path, architecture: str) -> list[str]:
    declared = {kernel.name: kernel for kernel in gate.declared(gate.headers_of(source))}
    broken = []
    for kernel in gate.cuda_kernels(source, architecture):
        of_source = declared[kernel.key.kernel.partition("<")[0]]
        broken += gate.broken_promises(kernel, gate.promises_of(kernel, of_source))
    return broken


@each_cuda_source
def test_cuda_kernels_keep_their_promises(source: Path, architecture: str) -> None:
    assert broken_promises(source, architecture) == []


@each_small_kernel
def test_small_kernels_are_cuda_and_keep_their_promises(source: Path, architecture: str) -> None:
    assert broken_promises(source, architecture) == []


@each_cuda_source
def test_cuda_kernels_are_within_budget(source: Path, architecture: str) -> None:
    assert held_to_budget(gate.cuda_kernels(source, architecture)) == []


@pytest.mark.parametrize("source", gate.cuda_sources(), ids=lambda source: source.name)
def test_every_kernel_is_compiled(source: Path) -> None:
    # One that no launcher instantiates would be neither inspected nor there.
    compiled = {kernel.key.kernel.partition("<")[0] for kernel in gate.cuda_kernels(source, NVIDIA[0])}
    assert compiled == {kernel.name for kernel in gate.declared(gate.headers_of(source))}


def test_every_header_with_kernels_has_a_launcher() -> None:
    headers = [path for path in (gate.ROOT / "csrc/cuda").glob("*.cuh") if gate.declared(path)]
    assert {path.stem for path in headers} == {path.stem for path in (gate.ROOT / "csrc/cuda").glob("*.cu")}


@each_triton_source
def test_triton_kernels(source: Path, architecture: str) -> None:
    pytest.importorskip("triton")
    kernels = gate.triton_kernels(source, architecture)
    for kernel in kernels:
        assert not gate.uses_local_memory(kernel), kernel.key.kernel
        assert gate.broken_promises(kernel, kernel.promises) == []
    assert held_to_budget(kernels) == []


@pytest.mark.parametrize("source", gate.triton_sources(), ids=lambda source: source.parent.name)
def test_triton_kernels_take_sizes_of_1(source: Path) -> None:
    # Triton makes a constant of such an argument, which has no methods.
    pytest.importorskip("triton")
    for variant in gate.load_module(source).VARIANTS:
        tensors = {name: kind for name, kind in variant.signature.items() if kind.startswith("*")}
        ones = {name: 1 for name in variant.signature if name not in tensors}
        few = variant._replace(signature=tensors, constants=variant.constants | ones, aligned=tuple(tensors))
        assert not gate.uses_local_memory(gate.triton_kernel(source, few, "sm_90"))


def test_the_budget_names_nothing_that_is_gone() -> None:
    files = {str(path.relative_to(gate.ROOT)) for path in (*gate.cuda_sources(), *gate.triton_sources())}
    budget = gate.read_budget()
    assert {key.source for key in budget} <= files
    for source in gate.cuda_sources():
        name = str(source.relative_to(gate.ROOT))
        names = {key.kernel.partition("<")[0] for key in budget if key.source == name}
        assert names <= {kernel.name for kernel in gate.declared(gate.headers_of(source))}


def test_the_table_is_up_to_date() -> None:
    pytest.importorskip("triton")
    assert gate.TABLE.read_text() == gate.table(), "make budget"


def test_every_op_with_a_launcher_has_emulated_tests() -> None:
    files = {str(gate.ROOT / "tests/ops" / f"test_{source.stem}.py") for source in gate.cuda_sources()}
    collect = ["-m", "pytest", "-q", "--collect-only", "-m", "emulated", *files]
    shown = subprocess.run([sys.executable, *collect], cwd=gate.ROOT / "tests", capture_output=True, text=True)
    assert {str(gate.ROOT / line.partition("::")[0]) for line in shown.stdout.splitlines() if "::" in line} == files


# The gate itself: what it is there to find, it finds.


@pytest.mark.parametrize("what", Needs._fields)
def test_a_budget_lowered_by_one_is_exceeded(what: str) -> None:
    kernels = gate.cuda_kernels(gate.cuda_sources()[-1], "sm_90")
    budget = {kernel.key: kernel.needs for kernel in kernels}
    assert gate.over_budget(kernels, budget) == []
    key, needs, *_ = kernels[0]
    need = getattr(needs, what)
    (line,) = gate.over_budget(kernels, budget | {key: needs._replace(**{what: need - 1})})
    assert line == f"{key.kernel} on sm_90 needs {need} {what}, its budget is {need - 1}"


def test_a_kernel_without_a_budget_is_named() -> None:
    kernels = gate.cuda_kernels(gate.cuda_sources()[-1], "sm_90")
    lines = gate.over_budget(kernels, {})
    assert len(lines) == len(kernels)
    assert all(line.endswith(" on sm_90 has no budget") for line in lines)


@pytest.mark.parametrize("architecture", NVIDIA)
def test_defects_are_found(architecture: str) -> None:
    kernels = {kernel.key.kernel: kernel for kernel in gate.cuda_kernels(DEFECTS, architecture)}
    local = {name for name, kernel in kernels.items() if gate.uses_local_memory(kernel)}
    assert local == {"array_in_local_memory_kernel", "spilling_kernel"}
    assert kernels["spilling_kernel"].needs.spills > 0
    assert broken_promises(DEFECTS, architecture) == [
        f"in_any_order_kernel on {architecture}: no global atomics",
        f"in_any_order_kernel on {architecture}: at most 4 registers",
        f"one_by_one_kernel on {architecture}: 128-bit loads",
        f"one_by_one_kernel on {architecture}: 128-bit stores",
    ]


def test_warnings_are_errors() -> None:
    with pytest.raises(gate.GateError, match="does not compile for sm_90") as caught:
        gate.cuda_kernels(DEFECTS.with_name("warning.cu"), "sm_90")
    assert "warning.cu(2): error #177-D: variable" in str(caught.value)


def test_an_unknown_promise_is_refused() -> None:
    kernel = gate.cuda_kernels(DEFECTS, "sm_90")[0]
    with pytest.raises(gate.GateError, match=r"a promise must be one of 128-bit loads, .*, got 'speed'"):
        gate.broken_promises(kernel, ["speed"])
