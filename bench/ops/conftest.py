"""What the benchmarks of all ops share: thread counts, and the comparison table at the end of a run."""

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from interleave import Comparison, compare, table

_comparisons: dict[str, Comparison] = {}


@pytest.fixture(params=sorted({1, torch.get_num_threads()}), ids=lambda n: f"{n}-threads" if n > 1 else "1-thread")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """One thread, then all of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def untimed(request: pytest.FixtureRequest) -> bool:
    """Benchmarks are disabled: a case may be made smaller, it is only asked whether it runs and is right."""
    return bool(request.config.getoption("benchmark_disable"))


@pytest.fixture
def interleaved(request: pytest.FixtureRequest, untimed: bool) -> Callable[..., Comparison]:
    """`compare`, entered into the table; one call of each where benchmarks are disabled."""
    quick: dict[str, Any] = {"rounds": 1, "seconds": 0} if untimed else {}

    def run(ours: Callable[[], object], peers: Mapping[str, Callable[[], object]], **options: Any) -> Comparison:
        op, case = request.node.path.stem, request.node.callspec.id
        return _comparisons.setdefault(f"{op} {case}", compare(ours, peers, **{**options, **quick}))

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _comparisons:
        terminalreporter.section("interleaved rounds in one process")
        terminalreporter.write_line(table(_comparisons))
