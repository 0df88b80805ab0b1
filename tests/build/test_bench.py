"""The benchmarks run, and their comparison finds the ratio it should."""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def interleave() -> ModuleType:
    spec = importlib.util.spec_from_file_location("interleave", BENCH / "interleave.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["interleave"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def work(amount: int) -> Callable[[], object]:
    return lambda: sum(range(amount))


def test_compare_finds_the_ratio_of_the_work(interleave: ModuleType) -> None:
    found = interleave.compare(work(2000), {"thrice": work(6000), "twice": work(4000)}, rounds=11, seconds=0.002)
    assert found.best == "twice"
    for name, expected in (("thrice", 1 / 3), ("twice", 1 / 2)):
        ratio = found.ratios[name]
        assert ratio.cpu == pytest.approx(expected, rel=0.3)
        assert ratio.low <= ratio.cpu <= ratio.high
    assert 0 < found.ours.cpu < found.peers["twice"].cpu < found.peers["thrice"].cpu
    assert found.ours.wall > 0


def test_compare_counts_work_and_not_waiting(interleave: ModuleType) -> None:
    # A neighbour that holds the core makes a call wait; what it waits is no work of its own.
    def waits() -> None:
        work(20000)()
        time.sleep(0.005)

    found = interleave.compare(work(20000), {"waits": waits}, rounds=11, seconds=0.001)
    assert found.ratios["waits"].cpu > 2 * found.ratios["waits"].wall


def test_table_has_a_line_for_every_case(interleave: ModuleType) -> None:
    found = interleave.compare(work(100), {"same": work(100)}, rounds=1, seconds=0)
    lines = interleave.table({"first 1x1": found, "second 2x2": found}).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["first", "second"]
    assert all(line.endswith("same") for line in lines[2:])
    assert f"{found.ratios['same'].cpu:.3f}" in lines[2]


def test_every_benchmark_runs() -> None:
    files = sorted(str(path) for path in (BENCH / "ops").glob("*.py") if path.name != "conftest.py")
    assert files
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-disable", *files]
    run = subprocess.run(command, cwd=BENCH.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    for path in files:
        assert f"\n{Path(path).stem} " in run.stdout  # its line in the table of ratios
