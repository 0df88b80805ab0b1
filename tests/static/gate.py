"""Compiles the GPU kernels for the GPUs they are for and reads what came out: no GPU is needed.

`make budget` (python tests/static/gate.py) writes what the kernels need into budget.csv, to which test_gate.py holds
them, and the table in docs/gpu-kernels.md.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from artsy_ext import _toolkit

ROOT = Path(__file__).parents[2]
BUDGET = Path(__file__).with_name("budget.csv")
TABLE = ROOT / "docs/gpu-kernels.md"
CACHE = ROOT / "build" / "static"
NVIDIA = ("sm_80", "sm_90", "sm_100")
AMD = ("gfx942",)

LOCAL = r"(LDL|STL)\b.*|scratch_\w+"
PROMISES = {  # instructions on NVIDIA's and AMD's GPUs, or wider; None where an architecture has nothing of the kind
    "128-bit loads": (r"LDG\.E\b.*\b(128|256)\b.*|LDGSTS\b.*\b128", r"global_load_dwordx4"),
    "128-bit stores": (r"STG\.E\b.*\b(128|256)\b.*", r"global_store_dwordx4"),
    "tensor cores": (r"(HMMA|HGMMA|UTCHMMA|IMMA|DMMA)\b.*", r"v_mfma_\w+"),
    "asynchronous copies": (r"(LDGSTS|UTMALDG|UBLKCP)\b.*", None),
}
PROHIBITIONS = {
    "no global atomics": (r"(ATOM|ATOMG|RED|REDG)\b.*", r"(global|buffer|flat)_atomic_\w+"),
}
REGISTERS = r"at most (\d+) registers"


class GateError(Exception):
    """A kernel does not compile, or a tool is missing."""


class Needs(NamedTuple):
    """What a kernel needs of a multiprocessor."""

    registers: int  # per thread; on AMD vector registers
    stack: int  # bytes per thread
    spills: int  # bytes stored and loaded; of a Triton kernel the kinds of instructions that do
    shared: int  # bytes per block


class Key(NamedTuple):
    """A line of the budget. Another compiler needs other registers, so that its version is part of it."""

    compiler: str
    source: str
    kernel: str
    architecture: str


class Kernel(NamedTuple):
    key: Key
    needs: Needs
    opcodes: frozenset[str]
    promises: tuple[str, ...] = ()  # of a Triton kernel; those of a CUDA kernel stand in its source


class Declared(NamedTuple):
    """A kernel as it stands in the source."""

    name: str
    parameters: tuple[str, ...]  # of the template
    promises: tuple[str, ...]


# --- Where kernels are


def cuda_sources() -> list[Path]:
    """The launchers, which instantiate every kernel of the package."""
    return sorted((ROOT / "csrc/cuda").glob("*.cu"))


def small_kernels() -> list[Path]:
    """The kernels on which the emulation is tested: what they use must be CUDA, too."""
    return sorted((ROOT / "tests/emulation/kernels").glob("*.cuh"))


def headers_of(source: Path) -> Path:
    """The file with the kernels of a launcher; a file without a header holds them itself."""
    header = source.with_suffix(".cuh")
    return header if header.exists() else source


def triton_sources() -> list[Path]:
    return sorted([*(ROOT / "artsy_ext/ops").glob("*/triton.py"), *(ROOT / "tests/interpreted").glob("kernels.py")])


def declared(source: Path) -> list[Declared]:
    """The kernels of a CUDA source, with the promises in the `// Machine code` lines above each."""
    pattern = (
        r"(?P<promises>(?:// Machine code.*\n)*)"
        r"(?:template <(?P<template>[^>]*)>\n)?"
        r"__global__ void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(?P<name>\w+)\s*\("
    )
    return [
        Declared(
            found["name"],
            tuple(parameter.split()[-1] for parameter in (found["template"] or "").split(",") if parameter),
            tuple(line.removeprefix("// ") for line in found["promises"].splitlines()),
        )
        for found in re.finditer(pattern, source.read_text())
    ]


# --- CUDA


@functools.cache
def toolkit() -> _toolkit.Toolkit:
    return _toolkit.find()


@functools.cache
def cuda_kernels(source: Path, architecture: str) -> list[Kernel]:
    """Compiles with the options of the build and warnings as errors; keeps the result under build/static."""
    cubin, report = _cubin(source, architecture)
    needs = {
        found["symbol"]: Needs(
            int(found["registers"]),
            int(found["stack"]),
            int(found["stores"]) + int(found["loads"]),
            int(found["shared"] or 0),
        )
        for found in re.finditer(
            r"Compiling entry function '(?P<symbol>\w+)'(?:.*\n)+?.*?(?P<stack>\d+) bytes stack frame, "
            r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
            r".*Used (?P<registers>\d+) registers(?:.*?(?P<shared>\d+) bytes smem)?",
            report,
        )
    }
    names = _demangled(needs)
    opcodes = _opcodes(cubin)
    compiler = f"nvcc {toolkit().version}"
    return [
        Kernel(Key(compiler, _relative(source), names[symbol], architecture), needs[symbol], opcodes[symbol])
        for symbol in sorted(needs, key=names.__getitem__)
    ]


def _cubin(source: Path, architecture: str) -> tuple[Path, str]:
    include = Path(torch.__file__).parent / "include"
    command = [
        str(toolkit().nvcc), f"--options-file={ROOT / 'csrc/cuda/nvcc.options'}", "-isystem", str(include),
        "-isystem", str(include / "torch/csrc/api/include"), "-I", str(ROOT / "csrc"), "-Werror=all-warnings",
        "-Xptxas=-v", "--cubin", f"-arch={architecture}",
    ]  # fmt: skip
    headers = (path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cuh", ".h"))
    inputs = [source, ROOT / "csrc/cuda/nvcc.options", *sorted(headers)]
    key = hashlib.sha256(repr((command, toolkit().version, torch.__version__)).encode())
    for path in inputs:
        key.update(path.read_bytes())
    folder = CACHE / f"{source.stem}-{architecture}-{key.hexdigest()[:16]}"
    cubin, report = folder / "kernels.cubin", folder / "ptxas.txt"
    if not report.exists():
        beside = folder.with_name(f"{folder.name}.{os.getpid()}")
        beside.mkdir(parents=True, exist_ok=True)
        unit = beside / "kernels.cu"
        unit.write_text(f'#include "{source}"\n')  # a header is no source by itself
        done = subprocess.run([*command, "-o", str(beside / cubin.name), str(unit)], capture_output=True, text=True)
        if done.returncode != 0:
            shutil.rmtree(beside)
            raise GateError(f"{_relative(source)} does not compile for {architecture}:\n{done.stdout}{done.stderr}")
        (beside / report.name).write_text(done.stdout + done.stderr)
        try:
            beside.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(beside)
    return cubin, report.read_text()


def _demangled(symbols: Iterable[str]) -> dict[str, str]:
    """combine_routes_kernel<float, 4> for its symbol."""
    symbols = list(symbols)
    shown = subprocess.run(["c++filt", "-p"], input="\n".join(symbols), capture_output=True, text=True, check=True)
    names = [line.split("(")[0].rpartition("::")[2] for line in shown.stdout.splitlines()]
    return dict(zip(symbols, names, strict=True))


def _opcodes(cubin: Path) -> dict[str, frozenset[str]]:
    """By symbol, the instructions that the machine code consists of: LDG.E.128.CONSTANT, …"""
    shown = subprocess.run([nvidia_tool("nvdisasm"), "-c", str(cubin)], capture_output=True, text=True)
    if shown.returncode != 0:
        raise GateError(f"nvdisasm does not read {cubin}: {shown.stderr}")
    parts = re.split(r"^//-+ \.text\.(\w+) +-+\n", shown.stdout, flags=re.MULTILINE)
    instruction = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([A-Z][A-Z0-9_.]*)")
    return {symbol: frozenset(instruction.findall(code)) for symbol, code in zip(parts[1::2], parts[2::2], strict=True)}


def nvidia_tool(name: str) -> str:
    """nvdisasm or cuobjdump: of the toolkit, or those that Triton brings along."""
    triton = importlib.util.find_spec("triton")
    folders = [toolkit().root / "bin"]
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends/nvidia/bin")
    for folder in folders:
        if (folder / name).exists():
            return str(folder / name)
    found = shutil.which(name)
    if found is None:
        raise GateError(f"needs {name}: pip install triton")
    return found


# --- Triton


def load_module(path: Path) -> ModuleType:
    """artsy_ext/ops/<op>/triton.py, or a file of the tests."""
    if path.is_relative_to(ROOT / "artsy_ext"):
        return importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def triton_kernels(source: Path, architecture: str) -> list[Kernel]:
    """Compiles every variant that the file lists."""
    return [triton_kernel(source, variant, architecture) for variant in load_module(source).VARIANTS]


def triton_kernel(source: Path, variant: Any, architecture: str) -> Kernel:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if architecture in AMD:
        target = GPUTarget("hip", architecture, 64)
    else:
        target = GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    names = variant.kernel.arg_names
    code = ASTSource(
        variant.kernel,
        {name: variant.signature.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in variant.constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned},
    )
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    compiled = triton.compile(code, target=target, options=options)
    shown = ", ".join([*variant.signature.values(), *(f"{k}={v}" for k, v in variant.constants.items())])
    key = Key(f"triton {triton.__version__}", _relative(source), f"{compiled.metadata.name}<{shown}>", architecture)
    needs, opcodes = _of_amd(compiled) if architecture in AMD else _of_nvidia(compiled)
    return Kernel(key, needs, opcodes, variant.promises)


def _of_nvidia(compiled: object) -> tuple[Needs, frozenset[str]]:
    CACHE.mkdir(parents=True, exist_ok=True)
    cubin = CACHE / f"{compiled.metadata.hash}.{os.getpid()}.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    try:
        shown = subprocess.run(
            [nvidia_tool("cuobjdump"), "-res-usage", str(cubin)], capture_output=True, text=True, check=True
        ).stdout
        (opcodes,) = _opcodes(cubin).values()
    finally:
        cubin.unlink()
    numbers = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", shown)}
    spills = len(_matching(LOCAL, opcodes))
    return Needs(numbers["REG"], numbers["STACK"] + numbers["LOCAL"], spills, compiled.metadata.shared), opcodes


def _of_amd(compiled: object) -> tuple[Needs, frozenset[str]]:
    text = compiled.asm["amdgcn"]
    number = {name: int(value) for name, value in re.findall(r"^\s+\.(\w+):\s+(\d+)$", text, re.MULTILINE)}
    spills = number["vgpr_spill_count"] + number["sgpr_spill_count"]
    needs = Needs(number["vgpr_count"], number["private_segment_fixed_size"], spills, compiled.metadata.shared)
    return needs, frozenset(re.findall(r"^\t([a-z]\w+)", text, re.MULTILINE))


# --- What is asked of them


def uses_local_memory(kernel: Kernel) -> bool:
    return kernel.needs.stack > 0 or kernel.needs.spills > 0 or bool(_matching(LOCAL, kernel.opcodes))


def broken_promises(kernel: Kernel, promises: Iterable[str]) -> list[str]:
    """Which of PROMISES, PROHIBITIONS and REGISTERS the machine code does not keep."""
    is_amd = kernel.key.architecture in AMD
    broken = []
    for promise in promises:
        if promise in PROMISES:
            pattern = PROMISES[promise][is_amd]
            kept = pattern is None or _matching(pattern, kernel.opcodes)
        elif promise in PROHIBITIONS:
            kept = not _matching(PROHIBITIONS[promise][is_amd], kernel.opcodes)
        elif limit := re.fullmatch(REGISTERS, promise):
            kept = kernel.needs.registers <= int(limit[1])
        else:
            known = ", ".join([*PROMISES, *PROHIBITIONS, "at most N registers"])
            raise GateError(f"{kernel.key.kernel}: a promise must be one of {known}, got {promise!r}")
        if not kept:
            broken.append(f"{kernel.key.kernel} on {kernel.key.architecture}: {promise}")
    return broken


def promises_of(kernel: Kernel, source: Declared) -> list[str]:
    """Of `// Machine code: …` and `// Machine code where N != 1: …`, what is promised of this instance."""
    arguments = [argument.strip() for argument in re.findall(r"[^<>,]+", kernel.key.kernel.partition("<")[2])]
    values = dict(zip(source.parameters, arguments, strict=True))
    promises = []
    for line in source.promises:
        found = re.fullmatch(r"Machine code(?: where (\w+) != (\w+))?: (.+)", line)
        if not found:
            raise GateError(f"{source.name}: expected '// Machine code where N != 1: …', got '// {line}'")
        if not found[1] or values[found[1]] != found[2]:
            promises += found[3].split(", ")
    return promises


def _matching(pattern: str, opcodes: Iterable[str]) -> list[str]:
    return [opcode for opcode in opcodes if re.fullmatch(pattern, opcode)]


def over_budget(kernels: Iterable[Kernel], budget: dict[Key, Needs]) -> list[str]:
    """A line for everything that a kernel needs beyond its budget."""
    lines = []
    for key, needs, *_ in kernels:
        allowed = budget.get(key)
        if allowed is None:
            lines.append(f"{key.kernel} on {key.architecture} has no budget")
            continue
        for what, need, limit in zip(Needs._fields, needs, allowed, strict=True):
            if need > limit:
                lines.append(f"{key.kernel} on {key.architecture} needs {need} {what}, its budget is {limit}")
    return lines


def read_budget() -> dict[Key, Needs]:
    with BUDGET.open(newline="") as file:
        return {
            Key(*(row[field] for field in Key._fields)): Needs(*(int(row[field]) for field in Needs._fields))
            for row in csv.DictReader(file)
        }


def all_kernels() -> Iterator[Kernel]:
    for source in cuda_sources():
        for architecture in NVIDIA:
            yield from cuda_kernels(source, architecture)
    for source in triton_sources():
        for architecture in (*NVIDIA, *AMD):
            yield from triton_kernels(source, architecture)


def write_budget() -> None:
    rows = sorted((*kernel.key, *kernel.needs) for kernel in all_kernels())
    with BUDGET.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*Key._fields, *Needs._fields])
        writer.writerows(rows)


# --- The table in docs/


def cuda_ops(source: Path) -> list[str]:
    """The ops that a launcher registers."""
    return re.findall(r'm\.impl\("(\w+)"', source.read_text())


def _forward_and_backward(ops: list[str]) -> list[list[str]]:
    backward = [op for op in ops if op.endswith("_backward")]
    return [some for some in ([op for op in ops if op not in backward], backward) if some]


def table() -> str:
    """Every op with GPU kernels, the kernels, what executes them without a GPU, and what they need."""
    lines = [
        "# The GPU kernels",
        "",
        "Written by `make budget`; a test holds it up to date. *Executed by*: the op's ordinary tests on the emulated",
        "GPU, or in Triton's interpreter; `tests/emulation/test_kernels.py` fails where a CUDA kernel is left out.",
        "*Instances*: those that are compiled, of a Triton kernel the forms that `VARIANTS` names. *Registers*: per",
        f"thread, the most of all instances, for {', '.join(NVIDIA)}, and for Triton {', '.join(AMD)}. *Machine code*:",
        "what `tests/static` finds there; no kernel has a stack frame or spills.",
        "",
        "| op | kernel | executed by | instances | registers | shared memory | machine code |",
        "|---|---|---|---|---|---|---|",
    ]
    budget = read_budget()
    for source in cuda_sources():
        for ops in _forward_and_backward(cuda_ops(source)):
            for kernel in declared(headers_of(source)):
                if len(cuda_ops(source)) > len(ops) and ops[0].endswith("_backward") != ("_grad_" in kernel.name):
                    continue
                promises = "; ".join(line.removeprefix("Machine code").lstrip(": ") for line in kernel.promises)
                executed = f"-m emulated tests/ops/test_{source.stem}.py"
                lines.append(_line(budget, ops, kernel.name, executed, NVIDIA, promises))
    for source in triton_sources():
        if source.is_relative_to(ROOT / "artsy_ext"):
            promised: dict[str, tuple[str, ...]] = {}
            for variant in load_module(source).VARIANTS:
                name = variant.kernel.fn.__name__
                promised[name] = tuple(p for p in variant.promises if p in promised.get(name, variant.promises))
            for name, promises in promised.items():
                executed, all_promises = "-m interpreted tests", ", ".join(promises)
                lines.append(_line(budget, [source.parent.name], name, executed, (*NVIDIA, *AMD), all_promises))
    return "\n".join(lines) + "\n"


def _line(
    budget: dict[Key, Needs], ops: list[str], kernel: str, executed: str, architectures: tuple[str, ...], promises: str
) -> str:
    needs = {
        architecture: [
            needs
            for key, needs in budget.items()
            if key.kernel.partition("<")[0] == kernel and key.architecture == architecture
        ]
        for architecture in architectures
    }
    registers = " / ".join(str(max(n.registers for n in needs[a])) for a in architectures)
    shared = max(n.shared for some in needs.values() for n in some)
    return (
        f"| {', '.join(f'`{op}`' for op in ops)} | `{kernel}` | `pytest {executed}` "
        f"| {len(needs[architectures[0]])} | {registers} | {shared} B | {promises} |"
    )


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


if __name__ == "__main__":
    try:
        write_budget()
        TABLE.write_text(table())
    except (GateError, _toolkit.ToolkitError) as error:
        sys.exit(f"gate: {error}")
    print(f"wrote {_relative(BUDGET)} and {_relative(TABLE)}; git diff shows what changed")
