"""pytest over bench/ops: every case of every file, with pytest-benchmark's options; a table of ratios at the end.

pytest bench/ops                                     # every op
pytest bench/ops/plan_routes.py -k ratio             # ratios only
pytest bench/ops --benchmark-disable                 # does it run, is it right: one call of each, untimed
"""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.case import OURS, Case
from bench.interleave import Comparison, compare, table

_comparisons: dict[str, Comparison] = {}


def test_time(benchmark: Any, case: Case, threads: int, untimed: bool) -> None:
    """Ours by itself, for pytest-benchmark's tables and comparisons."""
    work = case.work(small=untimed)
    with torch.set_grad_enabled(case.wanted != "forward"):
        work.check(OURS, work.candidates[OURS]())
        benchmark.group = f"{case.op}, threads: {threads}"
        benchmark(work.candidates[OURS])


def test_ratio(request: pytest.FixtureRequest, case: Case, threads: int, untimed: bool) -> None:
    """Ours beside its peers, in interleaved rounds."""
    work = case.work(small=untimed, compiled=case.headline and not untimed)
    with torch.set_grad_enabled(case.wanted != "forward"):
        for name, call in work.candidates.items():
            work.check(name, call())
        calls = {**work.candidates, **work.limits}
        once: dict[str, Any] = {"rounds": 1, "seconds": 0} if untimed else {"rounds": case.rounds}
        _comparisons[request.node.callspec.id] = compare(calls.pop(OURS), calls, **once)


class Benchmarks(pytest.Module):
    """A file of bench/ops: the tests above, for its cases."""

    def _getobj(self) -> ModuleType:
        module = import_module(f"bench.ops.{self.path.stem}")
        vars(module).update(test_time=test_time, test_ratio=test_ratio)
        return module


def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> pytest.Module:
    return Benchmarks.from_parent(parent, path=module_path)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("case", metafunc.module.CASES, ids=str)
    counts = {1} if _untimed(metafunc.config) else {1, torch.get_num_threads()}
    ids = [f"{n}-threads" if n > 1 else "1-thread" for n in sorted(counts)]
    metafunc.parametrize("threads", sorted(counts), ids=ids, indirect=True)


def _untimed(config: pytest.Config) -> bool:
    return bool(config.getoption("benchmark_disable"))


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """One thread, then all of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def untimed(request: pytest.FixtureRequest) -> bool:
    """Benchmarks are disabled: a case may be made smaller, it is only asked whether it runs and is right."""
    return _untimed(request.config)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _comparisons:
        terminalreporter.section("interleaved rounds in one process")
        terminalreporter.write_line(table(_comparisons))
