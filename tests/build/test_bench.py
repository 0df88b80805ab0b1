"""The benchmarks: the comparison finds the ratio it should, every case runs, and what is wrong gets no figure."""

import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from artsy_ext.cli import main

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from bench import interleave, machine, report, run  # noqa: E402 - needs the path
from bench.case import OURS, Case, Cost, Work, assert_close, work  # noqa: E402


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

    def work(self, seconds: float, waits: float = 0.0, result: Any = None) -> Callable[[], Any]:
        def call() -> Any:
            self.cpu += seconds
            self.wall += seconds + waits
            return result

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(interleave, "time", clock)
    return clock


def test_compare_finds_the_ratio_of_the_work(clock: Clock) -> None:
    peers = {"thrice": clock.work(3e-4), "twice": clock.work(2e-4)}
    found = interleave.compare(clock.work(1e-4), peers, rounds=11, seconds=0.002)
    assert found.best == "twice"
    for name, expected in (("thrice", 1 / 3), ("twice", 1 / 2)):
        ratio = found.ratios[name]
        assert [ratio.busy.low, ratio.busy.median, ratio.busy.high, ratio.wall] == pytest.approx([expected] * 4)
    assert found.busy[""].median == pytest.approx(1e-4)


def test_compare_counts_work_and_not_waiting(clock: Clock) -> None:
    # A neighbour that holds the core makes a call wait; what it waits is no work of its own.
    found = interleave.compare(clock.work(1e-4), {"waits": clock.work(1e-4, waits=9e-4)}, rounds=11, seconds=0.001)
    assert found.ratios["waits"].busy.median == pytest.approx(1)
    assert found.ratios["waits"].wall == pytest.approx(0.1)


def test_table_has_a_line_for_every_case(clock: Clock) -> None:
    found = interleave.compare(clock.work(1e-4), {"same": clock.work(1e-4)}, rounds=1, seconds=0)
    lines = interleave.table({"first 1x1": found, "second 2x2": found}).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["first", "second"]
    assert all(line.endswith("same") for line in lines[2:])
    assert f"{found.ratios['same'].busy.median:.3f}" in lines[2]


def test_spread_is_median_and_quantiles() -> None:
    assert interleave.spread([5, 1, 2, 3, 4]) == interleave.Spread(3, 1.2, 4.8)
    assert interleave.spread([2]) == interleave.Spread(2, 2, 2)


MACHINE = machine.Machine({100: 100.0, 10000: 50.0}, {"float32": 1000.0, "bfloat16": 4000.0})


@pytest.mark.parametrize(
    ("cost", "dtype", "seconds"),
    [
        (Cost(100), torch.float32, 1),  # moved at 100 bytes per second
        (Cost(1), torch.float32, 0.01),  # as fast as the smallest that was measured
        (Cost(1000), torch.bool, 1000 / 75),  # half way between, in the logarithm
        (Cost(1000000), torch.float32, 20000),
        (Cost(100, 5000), torch.float32, 5),  # the arithmetic takes longer
        (Cost(100, 5000), torch.bfloat16, 1.25),
        (Cost(100, 5000), torch.float16, 5),  # not measured: as float32
    ],
)
def test_floor(cost: Cost, dtype: torch.dtype, seconds: float) -> None:
    assert MACHINE.floor(cost, dtype) == pytest.approx(seconds)


def test_the_machine_is_measured(clock: Clock) -> None:
    def timer(call: Callable[[], object], calls: int) -> interleave.Timing:
        for _ in range(min(calls, 2)):
            call()
        return interleave.Timing(0.5, 0.5)

    found = machine.measure(timer, sizes=[1200], products=8, rounds=2)
    assert found.bandwidth == {1200: 2400}
    assert found.products == dict.fromkeys(("float32", "float64", "bfloat16"), 2 * 8**3 / 0.5)
    slower = machine.Machine({1200: 1.0}, {**found.products, "float32": 1e9})
    assert machine.best(found, slower) == machine.Machine({1200: 2400}, {**found.products, "float32": 1e9})


@pytest.mark.parametrize("wanted", ["forward", "backward", "both"])
def test_candidates_are_held_against_the_definition(wanted: str) -> None:
    x, routes = torch.rand(3, 4), torch.arange(3)
    functions = {
        OURS: lambda x, r: x.square(),
        "wrong": lambda x, r: 1.01 * x.square(),
        "NaN": lambda x, r: x.square() * torch.nan,
    }
    cost = {"forward": Cost(1, 2), "backward": Cost(10, 20)}
    made = work(wanted, functions, lambda x, r: x * x, (x, routes), cost=cost, tolerance=1e-6, differentiate=(0,))
    made.check(OURS, made.candidates[OURS]())
    for name in ("wrong", "NaN"):
        with pytest.raises(AssertionError, match="error"):
            made.check(name, made.candidates[name]())
    assert made.cost == {**cost, "both": Cost(11, 22)}[wanted]
    (gradient,) = made.candidates[OURS]() if wanted != "forward" else (None,)
    assert gradient is None or gradient.shape == x.shape


def test_assert_close_looks_at_shapes_integers_and_infinities() -> None:
    same = (torch.tensor([1.0, torch.inf]), torch.arange(2))
    assert_close(same, same, 0)
    for found, expected in (
        (torch.ones(2), torch.ones(1, 2)),
        (torch.arange(2), torch.arange(1, 3)),
        (torch.tensor([1.0, 5.0]), torch.tensor([1.0, torch.inf])),
        (torch.tensor([1.0, -torch.inf]), torch.tensor([1.0, torch.inf])),
    ):
        with pytest.raises(AssertionError):
            assert_close(found, expected, 1e-3)


def test_red_tests_are_named_and_an_op_without_tests_is_red(tmp_path: Path) -> None:
    folder = tmp_path / "tests" / "ops"
    folder.mkdir(parents=True)
    (folder / "test_good.py").write_text("def test_a(): pass\n")
    (folder / "test_bad.py").write_text("def test_a(): pass\ndef test_b(): assert 1 == 2\n")
    (folder / "test_none.py").write_text("")
    found = run.gate(["good", "bad", "none"], quick=True, root=tmp_path)
    assert found == {
        "good": {"passed": 1, "failed": []},
        "bad": {"passed": 1, "failed": ["test_bad::test_b"]},
        "none": {"passed": 0, "failed": ["tests/ops/test_none.py has no test that ran"]},
    }


@pytest.fixture
def results(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run over stand-ins: an op that is twice as fast as its peer, one with a broken kernel, one with red tests."""

    def check(name: str, found: Any) -> None:
        assert found == 1, f"found {found}"

    def build(wanted: str, dtype: torch.dtype, ours: int, S: int) -> Work:
        calls = {
            OURS: clock.work(1e-3, result=ours),
            "twice": clock.work(2e-3, result=1),
            "broken": clock.work(1e-9, result=0),
        }
        return Work(calls, check, Cost(1000, 10), {"limit": clock.work(5e-4)})

    def cases(op: str, ours: int) -> list[Case]:
        return [Case(op, build, {"ours": ours, "S": S}, headline=S < 3, rounds=3) for S in (1, 2, 3)]

    found = {"an_op_with_a_rather_long_name": cases("an_op_with_a_rather_long_name", 1), "broken": cases("broken", 2)}
    gates = {op: {"passed": 5, "failed": []} for op in found} | {"red": {"passed": 4, "failed": ["test_red::test_it"]}}
    monkeypatch.setattr(run, "known_ops", lambda: list(gates))
    monkeypatch.setattr(run, "gate", lambda ops, quick: gates)
    monkeypatch.setattr(run, "load_cases", lambda ops: [case for op in ops for case in found[op]])
    monkeypatch.setattr(machine, "measure", lambda: machine.Machine({1000: 1e7}, {"float32": 1e9}))
    made: dict[str, Any] = json.loads(report.to_json(run.run([], quick=True, say=lambda line: None)))
    return made


def test_results_are_as_the_schema_says(results: dict[str, Any]) -> None:
    schema = json.loads((ROOT / "bench" / "schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(results, schema)
    entry = results["cases"][0]
    for change in ({"red": "wrong"}, {"ours": None}, {"peers": {"x": {"seconds": 1}}}, {"more": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**results, "cases": [{**entry, **change}]}, schema)


def test_ratio_fraction_and_quick(results: dict[str, Any]) -> None:
    entries = [entry for entry in results["cases"] if entry["op"] == "an_op_with_a_rather_long_name"]
    assert [entry["sizes"]["S"] for entry in entries] == [1, 2]  # the headline cases
    for entry in entries:
        assert entry["peers"]["twice"]["ratio"]["median"] == pytest.approx(0.5)
        assert entry["limits"]["limit"]["ratio"]["median"] == pytest.approx(2)
        assert entry["ours"]["seconds"]["median"] == pytest.approx(1e-3)
        assert entry["floor"]["fraction"] == pytest.approx(0.1)


def test_what_is_wrong_is_red_and_has_no_figure(results: dict[str, Any]) -> None:
    assert "red" not in {entry["op"] for entry in results["cases"]}
    for entry in results["cases"]:
        if entry["op"] == "broken":
            assert entry["red"] == "AssertionError: found 2"
            assert entry["ours"] is entry["floor"] is None
        else:
            assert entry["peers"]["broken"] == {"red": "AssertionError: found 0"}
    lines = report.table(results, colour=True).splitlines()
    for line in lines:
        assert ("\x1b[31m" in line) == line.lstrip("\x1b[31m").startswith(("broken", "red"))
    (line,) = (line for line in lines if "test_red::test_it" in line)
    assert not re.search(r"\d+\.\d", line)
    assert sum("RED" in line for line in lines) == 1 + 2 + 2


def test_files_of_a_run(results: dict[str, Any], tmp_path: Path) -> None:
    report.write(results, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(report.FILES)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    rows = (tmp_path / "results.csv").read_text().splitlines()
    assert len(rows) == 1 + 1 + 2 + 2 * 4  # header, red op, red cases, ours with two peers and a limit
    for name in ("table.md", "results.csv"):
        assert "an_op_with_a_rather_long_name" in (tmp_path / name).read_text()
    row = "| `an_op_with_a_rather_long_name` | ours1 S1 float32 | forward | 1000.0 | 0.50 [0.50, 0.50] twice"
    assert row in (tmp_path / "table.md").read_text()


def test_bad_input_is_refused_before_anything_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "plan_roots", "--output", str(tmp_path / "new")]) == 2
    assert "op: expected one of combine_routes, consolidate, " in capsys.readouterr().err
    (tmp_path / "results.json").write_text("{}")
    assert main(["bench", "plan_routes", "--output", str(tmp_path)]) == 2
    assert "holds an earlier run" in capsys.readouterr().err
    (tmp_path / "thesis.tex").write_text("")
    assert main(["bench", "plan_routes", "--overwrite", "--output", str(tmp_path)]) == 2
    assert "such as thesis.tex" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_every_benchmark_runs() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-disable", "bench/ops"]
    done = subprocess.run([*command, "-k", "ratio and not bfloat16"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for case in run.load_cases(run.known_ops()):
        if case.dtype != torch.bfloat16:
            assert f"\n{case}-1-thread " in done.stdout  # its line in the table of ratios


def test_end_to_end_runs() -> None:
    command = [sys.executable, "-m", "bench.end_to_end", "--models", "vit_tiny_patch16_224", "--img-size", "32"]
    options = ["--batch", "2", "--subnetworks", "3", "--rank", "8", "--rounds", "1"]
    run = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("vit_tiny_patch16_224") == 3


@functools.cache
def estimate(name: str) -> str:
    command = [sys.executable, str(ROOT / "bench" / "roofline" / f"{name}.py")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", ["stdp", "routing"])
def test_the_estimate_is_the_one_in_the_docs(name: str) -> None:
    assert estimate(name) in (ROOT / "docs" / f"{name}.md").read_text()


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
