"""The CPU kernel of stdp against the definition: every instruction set, path and size; threads, callers and memory.

`test_stdp.py` says what the op means; here are the sizes and densities at which the kernel takes its different ways.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from properties import ISAS, assert_same_bits, supported, tensors
from stdp_cases import SIZES, Problem, assert_close, jumps, random_problem, run

from artsy_ext import ops
from artsy_ext.ops import STDPRule, reference


@pytest.mark.parametrize("rate", [0.02, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_random_rules(isa: str, sizes: tuple[int, int, int, int, int], rate: float) -> None:
    for seed in range(12):
        problem = random_problem(1000 * SIZES.index(sizes) + seed, sizes, rate, torch.float64)
        assert_close(run(ops.stdp, problem), run(reference.stdp, problem))


@pytest.mark.parametrize("sizes", SIZES[:4] + SIZES[5:], ids=str)
def test_random_rules_in_single_precision(isa: str, sizes: tuple[int, int, int, int, int]) -> None:
    for seed in range(40):
        problem = random_problem(seed, sizes, (0.02, 0.2, 0.7, 1.0)[seed % 4], torch.float32)
        exact = problem.to(torch.float64, "cpu")
        if not jumps(problem.rule):
            actual, expected = run(ops.stdp, problem), run(reference.stdp, exact)
            # Steps that multiply the weights multiply the rounding errors as well.
            if all(bool(tensor.abs().max() < 1e2) for tensor in tensors(expected)):
                assert_close(actual, tuple(t.float() for t in tensors(expected)))


@pytest.mark.parametrize("rate", [0.05, 0.6])
def test_instruction_sets_agree(monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    for seed in range(20):
        problem = random_problem(seed, (9, 20, 2, 35, 70), rate, torch.float64)
        results = []
        for isa in filter(supported, ISAS):
            monkeypatch.setenv("ARTSY_CPU_ISA", isa)
            results.append(run(ops.stdp, problem))
        for result in results[1:]:
            assert_close(result, results[0])


def test_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARTSY_CPU_ISA", "mmx")
    with pytest.raises((ValueError, RuntimeError), match="ARTSY_CPU_ISA"):
        run(ops.stdp, random_problem(0, SIZES[0], 0.2, torch.float32))


@pytest.mark.parametrize("which", ["pre", "post"])
def test_single_spike(isa: str, which: str) -> None:
    """Wherever it falls: first and last step, sample, neuron, in and out of a whole vector; the other side fires."""
    T, B, S, J, I = 5, 3, 2, 18, 67
    rule = STDPRule(0.5, 0.25, a_plus=1.0, a_minus=2.0, timing="exclusive")
    count = I if which == "pre" else J
    for t in (0, 2, T - 1):
        for neuron in (0, 15, 16, count - 1):
            pre, post = torch.ones(T, B, S, I), torch.ones(T, B, S, J)
            spikes = pre if which == "pre" else post
            spikes.zero_()[t, B - 1, S - 1, neuron] = 1
            problem = Problem(torch.zeros(S, J, I, dtype=torch.float64), pre.bool(), post.bool(), rule, {})
            assert_same_bits(run(ops.stdp, problem), run(reference.stdp, problem))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_any_number_of_threads_gives_the_same_bits(two_threads: None, sizes: tuple[int, int, int, int, int]) -> None:
    # Large enough, in all but time, that two threads do take part.
    T, B, S, J, I = sizes
    for seed in range(6):
        problem = random_problem(seed, (T, B, S, 4 * J, 4 * I), 0.3, torch.float32)
        torch.set_num_threads(1)
        one = run(ops.stdp, problem)
        torch.set_num_threads(2)
        assert_same_bits(run(ops.stdp, problem), one)
        torch.set_num_threads(5)
        assert_same_bits(run(ops.stdp, problem), one)


def test_concurrent_calls() -> None:
    """Different problems at the same time, from threads of Python: nothing is shared between calls."""
    problems = [random_problem(seed, (8, 12, 2, 40, 70), 0.2, torch.float32) for seed in range(24)]
    alone = [run(ops.stdp, problem) for problem in problems]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            together = list(pool.map(lambda problem: run(ops.stdp, problem), problems))
            for a, b in zip(together, alone, strict=True):
                assert_same_bits(a, b)


def test_chunks_of_a_long_train_equal_the_whole() -> None:
    """Longer than the kernel's own chunks of time."""
    for seed in range(30):
        problem = random_problem(seed, (700, 2, 2, 5, 9), 0.2, torch.float64)
        rule = replace(problem.rule, evaluate="step", clamp="never")
        problem = Problem(problem.weight, problem.pre, problem.post, rule, {**problem.keywords, "traces": None})
        modulation = problem.keywords["modulation"]
        whole = run(ops.stdp, problem)
        weight, traces = problem.weight, None
        for a, b in ((0, 1), (1, 300), (300, 700)):
            chunk = Problem(weight, problem.pre[a:b], problem.post[a:b], rule, problem.keywords)
            weight, traces = run(
                ops.stdp, chunk, traces=traces, modulation=None if modulation is None else modulation[a:b]
            )
        if whole[0].isfinite().all() and whole[0].abs().max() < 1e6:
            assert_close((weight, traces), whole)


def test_consolidate_in_one_pass(isa: str) -> None:
    for seed in range(30):
        problem = random_problem(seed, (5, 12, 2, 17, 70), 0.2, torch.float32)
        functional = torch.rand_like(problem.weight) < 0.5
        weight, traces = run(ops.stdp, problem)
        result = ops.stdp_consolidate(
            problem.weight, functional, problem.pre, problem.post, problem.rule, 0.3, 0.1, **problem.keywords
        )
        assert_same_bits(result, (weight, traces, ops.consolidate(weight, functional, 0.3, 0.1)))


def test_in_place_gives_the_same_bits(isa: str) -> None:
    for seed in range(40):
        problem = random_problem(seed, (300 if seed % 2 else 9, 3, 2, 17, 70), 0.2, torch.float32)
        expected = run(ops.stdp, problem)
        problem.weight = problem.weight.clone()
        assert_same_bits(run(ops.stdp_, problem), expected)


PEAK = """
import sys, torch
from artsy_ext.ops import STDPRule, Triplet, stdp
torch.set_num_threads(1)

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

T, B, S, J, I = 1000, 8, 2, 100, 200
rule = eval(sys.argv[1])
pre, post = torch.rand(T, B, I) < {rate}, torch.rand(T, B, S, J) < {rate}
weight = torch.rand(S, J, I)
stdp(weight, pre[:3], post[:3], rule)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts anew
before = status("VmRSS")
new, traces = stdp(weight, pre, post, rule)
outputs = sum(t.nbytes for t in (new, *traces) if t is not None)
inputs = weight.nbytes + pre.nbytes + post.nbytes
print(status("VmHWM") - before - outputs, inputs + outputs)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("rate", [0.1, 1.0])
@pytest.mark.parametrize(
    "rule",
    [
        "STDPRule(0.9, 0.9)",
        "STDPRule(0.9, 0.9, pairing='nearest', triplet=Triplet(0.9, 0.9, 0.1, 0.1))",
        "STDPRule(0.9, 0.9, clamp='step', w_min=0.0, w_max=1.0)",
        "STDPRule(0.9, 0.9, eligibility=0.5)",
    ],
)
def test_extra_memory_is_bounded(rule: str, rate: float) -> None:
    """No more than twice inputs and outputs at T = 1000; the traces of all steps alone would be more than that."""
    script = PEAK.replace("{rate}", str(rate))
    shown = subprocess.run([sys.executable, "-c", script, rule], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    extra, arguments = map(int, shown.stdout.split())
    assert extra <= 2 * arguments + 2**20
