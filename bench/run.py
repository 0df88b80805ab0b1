"""`artsy bench`: correctness first, then every op beside its peers, in one process; results.json, tables and pictures.

An op whose tests fail is red: nothing of it is timed. Neither is a candidate whose result differs from the definition.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from artsy_ext import info
from artsy_ext.learner._files import foreign, replacing
from bench import machine as machines
from bench import report
from bench.case import OURS, Case
from bench.interleave import compare

SCHEMA_VERSION = 1
ROOT = Path(__file__).resolve().parents[1]
Say = Callable[[str], None]


def known_ops(root: Path = ROOT) -> list[str]:
    return sorted(path.stem for path in (root / "bench" / "ops").glob("*.py"))


def load_cases(ops: Sequence[str]) -> list[Case]:
    return [case for op in ops for case in import_module(f"bench.ops.{op}").CASES]


def gate(ops: Sequence[str], *, quick: bool, root: Path = ROOT) -> dict[str, dict[str, Any]]:
    """Runs each op's tests on this device: per op how many passed and what failed. `quick` keeps to test_<op>.py."""
    tests = root / "tests" / "ops"
    files = {op: [tests / f"test_{op}.py"] if quick else sorted(tests.glob(f"test_{op}*.py")) for op in ops}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable, "-m", "pytest", "-q", "-m", "not emulated and not interpreted and not static",
            "-o", "junit_family=xunit1", f"--junitxml={report}", *(["-n", "auto"] if _has_xdist() else []),
            *(str(file.relative_to(root)) for group in files.values() for file in group),
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        found: dict[str, dict[str, Any]] = {op: {"passed": 0, "failed": []} for op in ops}
        if not report.exists():
            said = (done.stderr or done.stdout).strip().splitlines() or ["pytest said nothing"]
            return {op: {"passed": 0, "failed": [said[-1]]} for op in ops}
        for case in ElementTree.parse(report).iter("testcase"):
            name = (case.get("classname") or "").split(".")[-1]
            op = next((op for op, group in files.items() if name in [file.stem for file in group]), None)
            wrong = [child for child in case if child.tag in ("failure", "error")]
            for one in [op] if op else ops:  # what belongs to no file, such as a broken conftest, speaks against all
                if wrong:
                    found[one]["failed"].append(f"{name}::{case.get('name')}")
                elif case.find("skipped") is None:
                    found[one]["passed"] += 1
    for op, outcome in found.items():
        if not outcome["passed"] and not outcome["failed"]:
            outcome["failed"].append(f"tests/ops/test_{op}.py has no test that ran")
    return found


def measure_case(case: Case, machine: machines.Machine, *, quick: bool) -> dict[str, Any]:
    """One entry of results.json's `cases`; "red" without a figure where ours is wrong."""
    entry: dict[str, Any] = {
        "op": case.op, "case": case.label, "pass": case.wanted, "dtype": case.dtype_name, "sizes": dict(case.sizes),
        "red": None, "ours": None, "peers": {}, "limits": {}, "floor": None,
    }  # fmt: skip
    with torch.set_grad_enabled(case.wanted != "forward"):
        work = case.work(compiled=case.headline and not quick)
        calls, peaks = {}, {}
        for name, call in work.candidates.items():
            try:
                work.check(name, call())
            except Exception as error:  # whatever a broken kernel raises
                message = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
                if name == OURS:
                    return {**entry, "red": message}
                entry["peers"][name] = {"red": message}
                continue
            calls[name] = call
            peaks[name] = peak_bytes(call)
        found = compare(calls.pop(OURS), {**calls, **work.limits}, rounds=case.rounds)

    def timing(name: str) -> dict[str, Any]:
        return {"seconds": asdict(found.busy[name]), "wall_seconds": found.wall[name]}

    def beside(name: str) -> dict[str, Any]:
        ratio = found.ratios[name]
        return {**timing(name), "ratio": asdict(ratio.busy), "wall_ratio": ratio.wall}

    floor = machine.floor(work.cost, case.dtype)
    return {
        **entry,
        "ours": {**timing(""), "peak_bytes": peaks[OURS]},
        "peers": {**entry["peers"], **{name: {**beside(name), "peak_bytes": peaks[name]} for name in calls}},
        "limits": {name: beside(name) for name in work.limits},
        "floor": {**work.cost._asdict(), "seconds": floor, "fraction": floor / found.busy[""].median},
    }


def peak_bytes(call: Callable[[], object]) -> int | None:
    """How much more memory the process holds during a call than before, whoever allocates; None where it can't be told.

    Counts pages: what is less than some hundred kB is rough.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    least = None
    for _ in range(2):
        trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")
            before = _status("VmRSS")
            call()
            after = _status("VmHWM")
        except (OSError, KeyError):
            return None
        least = after - before if least is None else min(least, after - before)
    return max(least or 0, 0)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: int(value.split()[0]) * 1024 for name, value in (line.split(":") for line in lines if "kB" in line)}[
        field
    ]


def run(ops: Sequence[str], *, quick: bool = False, threads: int = 1, say: Say = print) -> dict[str, Any]:
    """Measures, and returns the content of results.json (bench/schema.json).

    Raises:
        ValueError: an op is not known.
    """
    known = known_ops()
    for op in ops:
        if op not in known:
            raise ValueError(f"op: expected one of {', '.join(known)}, got {op!r}")
    ops = list(ops) or known
    torch.set_num_threads(threads)
    facts = info.collect()
    say(f"{facts['versions']['processor']}, {isa()}, threads: {threads}")
    gates = gate(ops, quick=quick)
    for op, outcome in gates.items():
        if outcome["failed"]:
            say(f"RED {op}: {len(outcome['failed'])} tests fail, nothing is measured: {outcome['failed'][0]}")
        else:
            say(f"{op}: {outcome['passed']} tests passed")
    machine = machines.measure()
    entries = []
    for case in load_cases([op for op in ops if not gates[op]["failed"]]):
        if quick and not case.headline:
            continue
        entries.append(measure_case(case, machine, quick=quick))
        say(_progress(entries[-1]))
    # Measured again, and the floors with it: at the beginning a neighbour may have been in the way.
    machine = machines.best(machine, machines.measure())
    for entry in entries:
        if entry["floor"]:
            cost = machines.Cost(entry["floor"]["bytes"], entry["floor"]["operations"])
            seconds = machine.floor(cost, getattr(torch, entry["dtype"]))
            entry["floor"].update(seconds=seconds, fraction=seconds / entry["ours"]["seconds"]["median"])
    return {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["artsy bench", *(o for o in ops if len(ops) < len(known)), *(["--quick"] * quick)])
        + f" --threads {threads}",
        "commit": commit(),
        "quick": quick,
        "threads": threads,
        "device": {"name": facts["versions"]["processor"], "kind": "cpu", "isa": isa()},
        "versions": facts["versions"],
        "machine": {
            "bytes_per_second": {str(size): rate for size, rate in machine.bandwidth.items()},
            "operations_per_second": machine.products,
        },
        "gates": gates,
        "cases": entries,
    }


def main(ops: Sequence[str], output: Path, *, overwrite: bool = False, **options: Any) -> None:
    """`run`, into the folder `output`; progress goes to stderr, the table to stdout.

    Raises:
        ValueError: as `run`, or the folder holds what is not to be replaced.
    """
    if output.exists() and (others := foreign(output, report.FILES)):
        raise ValueError(f"output: {output} holds other things than a benchmark's, such as {others[0]}")
    if output.exists() and any(output.iterdir()) and not overwrite:
        raise ValueError(f"output: {output} holds an earlier run, which is replaced only by --overwrite")
    results = run(ops, **options, say=lambda line: print(line, file=sys.stderr, flush=True))
    with replacing(output) as folder:
        report.write(results, folder)
    print(report.table(results, colour=sys.stdout.isatty()))
    print(f"written to {output.resolve()}")


def isa() -> str:
    """The instruction set that the kernels choose here."""
    best = {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "portable")
    return os.environ.get("ARTSY_CPU_ISA", best)


def commit() -> str | None:
    """The checkout's commit, with "+changes" where it has such; None outside of git."""
    try:
        head = _git("rev-parse", "HEAD")
        return f"{head}+changes" if _git("status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _progress(entry: dict[str, Any]) -> str:
    name = f"{entry['op']} {entry['case']} {entry['dtype']} {entry['pass']}"
    if entry["red"]:
        return f"RED {name}: {entry['red']}"
    ratios = (f"{p['ratio']['median']:.2f} {n}" for n, p in entry["peers"].items() if "ratio" in p)
    return f"{name}: {entry['ours']['seconds']['median'] * 1e6:.0f} µs; {', '.join(ratios)}"


def _has_xdist() -> bool:
    from importlib.util import find_spec

    return find_spec("xdist") is not None
