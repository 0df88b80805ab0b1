"""The benchmarks run, and their comparison finds the ratio it should."""

import functools
import importlib.util
import subprocess
import sys
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


class Clock:
    """A clock that only work and waiting move, so that no test times anything."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0

    def process_time(self) -> float:
        return self.cpu

    def perf_counter(self) -> float:
        return self.wall

    def sleep(self, seconds: float) -> None:
        self.wall += seconds

    def work(self, seconds: float, waits: float = 0.0) -> Callable[[], object]:
        def call() -> None:
            self.cpu += seconds
            self.wall += seconds + waits

        return call


@pytest.fixture
def clock(interleave: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(interleave, "time", clock)
    return clock


def test_compare_finds_the_ratio_of_the_work(interleave: ModuleType, clock: Clock) -> None:
    peers = {"thrice": clock.work(3e-4), "twice": clock.work(2e-4)}
    found = interleave.compare(clock.work(1e-4), peers, rounds=11, seconds=0.002)
    assert found.best == "twice"
    for name, expected in (("thrice", 1 / 3), ("twice", 1 / 2)):
        ratio = found.ratios[name]
        assert [ratio.low, ratio.cpu, ratio.high, ratio.wall] == pytest.approx([expected] * 4)
    assert found.ours.cpu == pytest.approx(1e-4)


def test_compare_counts_work_and_not_waiting(interleave: ModuleType, clock: Clock) -> None:
    # A neighbour that holds the core makes a call wait; what it waits is no work of its own.
    found = interleave.compare(clock.work(1e-4), {"waits": clock.work(1e-4, waits=9e-4)}, rounds=11, seconds=0.001)
    assert found.ratios["waits"].cpu == pytest.approx(1)
    assert found.ratios["waits"].wall == pytest.approx(0.1)


def test_table_has_a_line_for_every_case(interleave: ModuleType, clock: Clock) -> None:
    found = interleave.compare(clock.work(1e-4), {"same": clock.work(1e-4)}, rounds=1, seconds=0)
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


def test_end_to_end_runs() -> None:
    command = [sys.executable, "end_to_end.py", "--models", "vit_tiny_patch16_224", "--img-size", "32"]
    options = ["--batch", "2", "--subnetworks", "3", "--rank", "8", "--rounds", "1"]
    run = subprocess.run([*command, *options], cwd=BENCH, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("vit_tiny_patch16_224") == 3


@functools.cache
def estimate(name: str) -> str:
    command = [sys.executable, str(BENCH / "roofline" / f"{name}.py")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", ["stdp", "routing"])
def test_the_estimate_is_the_one_in_the_docs(name: str) -> None:
    assert estimate(name) in (BENCH.parent / "docs" / f"{name}.md").read_text()


def test_the_estimate_of_the_adapter() -> None:
    # By hand: x and y in bf16, the weights of 20 sub-networks, their 21 offsets; two products.
    rows, S, D, R = 512 * 197, 20, 768, 64
    numbers = 2 * rows * D + S * (R * D + R + D * R + D)
    moved, products = 2 * numbers + 8 * 21, 2 * (2 * rows * D * R)
    times = " | ".join(f"{moved / bytes_per_us:.1f}" for bytes_per_us in (2.039e6, 3.35e6, 4.8e6))
    report = estimate("routing")
    assert f"| `routed_adapter`, base=x | {moved / 1e6:.1f} | {products / 1e9:.1f} | {times} |" in report
    # Unfused, x is read twice and y written twice, y read once more, and the hidden values cross the bus four times.
    unfused = 2 * numbers + 2 * (3 * rows * D + 4 * rows * R)
    assert f"{unfused / moved:.2f} (H100 SXM)" in report
    assert (round(moved / 3.35e6), round(unfused / moved, 2)) == (94, 2.65)


def test_make_bench_runs_every_benchmark() -> None:
    shown = subprocess.run(["make", "-n", "bench"], cwd=BENCH.parent, capture_output=True, text=True, check=True)
    named = {word for word in shown.stdout.split() if word.startswith("bench/")}
    assert named == {f"bench/ops/{path.name}" for path in (BENCH / "ops").glob("*.py") if path.name != "conftest.py"}
