"""The CPU kernel of stdp against the definition: every instruction set, path and size; threads, callers and memory.

`test_stdp.py` says what the op means; here are the sizes and densities at which the kernel takes its different ways.
"""

import math
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from properties import assert_same_bits, tensors
from stdp_cases import Problem
from torch import Tensor

from artsy_ext import ops
from artsy_ext.ops import STDPRule, Traces, Triplet, reference

ISAS = ["portable", "avx2", "avx512"]


def supported(isa: str) -> bool:
    capability = torch.backends.cpu.get_cpu_capability()
    return isa == "portable" or capability == "AVX512" or (isa, capability) == ("avx2", "AVX2")


@pytest.fixture(params=[isa for isa in ISAS if supported(isa)])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ARTSY_CPU_ISA", request.param)
    return request.param


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def random_rule(generator: torch.Generator, S: int, dtype: torch.dtype) -> STDPRule:
    def number(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    def choice(*options: Any) -> Any:
        return options[int(torch.randint(len(options), (), generator=generator))]

    def amplitude() -> float | Tensor:
        return choice(number(-0.1, 0.1), torch.rand(S, generator=generator, dtype=dtype) / 10)

    dependence = choice("none", "none", "proportional", "soft", "hard")
    w_min, w_max = choice((-math.inf, math.inf), (-0.3, 0.4)) if dependence != "soft" else (-0.6, 0.7)
    return STDPRule(
        decay_pre=choice(0.0, number(0, 1), 1.0),
        decay_post=choice(0.0, number(0, 1), 1.0),
        gain_pre=number(-1, 1),
        gain_post=choice(0.0, number(-1, 1)),
        a_plus=amplitude(),
        a_minus=amplitude(),
        x_target=choice(0.0, number(-1, 1)),
        pairing=choice("all", "all", "nearest"),
        timing=choice("inclusive", "exclusive"),
        dependence=dependence,
        exponent=choice(0.0, 1.0, 2.0, 1.3),
        evaluate=choice("call", "step"),
        w_min=w_min,
        w_max=w_max,
        clamp=choice("never", "end", "step"),
        reduction=choice("sum", "mean"),
        weight_decay=choice(0.0, 0.05, 1.0),
        eligibility=choice(None, None, None, 0.0, number(0, 1)),
        modulation_delay=choice(0, 1),
        triplet=choice(None, None, Triplet(number(0, 1), number(0, 1), number(-0.1, 0.1), number(-0.1, 0.1))),
    )


def random_problem(seed: int, sizes: tuple[int, int, int, int, int], rate: float, dtype: torch.dtype) -> Problem:
    """Sizes are T, B, S, J, I."""
    T, B, S, J, I = sizes
    generator = torch.Generator().manual_seed(seed)
    rule = random_rule(generator, S, dtype)

    def choice(*options: Any) -> Any:
        return options[int(torch.randint(len(options), (), generator=generator))]

    def spikes(*shape: int) -> Tensor:
        fired = torch.rand(shape, generator=generator) < rate
        kind = choice(torch.bool, torch.bool, torch.uint8, dtype, "graded")
        if kind == "graded":
            return fired * torch.randn(shape, generator=generator).to(choice(torch.bfloat16, torch.float64))
        return fired.to(kind)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    pre_shape = choice((B, I), (B, S, I))
    slow, eligible = rule.triplet is not None, rule.eligibility is not None
    traces = Traces(
        normal(*pre_shape),
        normal(B, S, J),
        normal(*pre_shape) if slow else None,
        normal(B, S, J) if slow else None,
        normal(B, S, J, I) / 10 if eligible else None,
    )
    modulation = choice(None, normal(T, B), normal(T, B, S))
    mask = torch.rand(B, S, generator=generator) < 0.7
    keywords = {"traces": choice(None, traces), "modulation": modulation, "mask": choice(None, mask)}
    return Problem(normal(S, J, I) / 3, spikes(T, *pre_shape), spikes(T, B, S, J), rule, keywords)


def run(op: Any, problem: Problem, **changed: Any) -> Any:
    return op(problem.weight, problem.pre, problem.post, problem.rule, **{**problem.keywords, **changed})


def assert_close(actual: Any, expected: Any) -> None:
    """Sums in another order: relative to the largest number of each tensor."""
    for a, b in zip(tensors(actual), tensors(expected), strict=True):
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        tolerance = scale * (1e-11 if b.dtype == torch.float64 else 2e-5)
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def jumps(rule: STDPRule) -> bool:
    """A weight at a bound may be taken for one beyond it in single precision."""
    return rule.dependence == "hard" and rule.evaluate == "step"


# One vector and a part, several tiles and a part, blocks of post-synaptic neurons, batches over and under the number
# from which events are added, several chunks of time.
SIZES = [
    (6, 3, 2, 5, 7),
    (5, 12, 2, 17, 33),
    (9, 20, 1, 70, 70),
    (4, 70, 3, 9, 130),
    (300, 2, 2, 3, 19),
    (40, 16, 2, 66, 17),
    (7, 1, 3, 33, 81),
]


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
