"""The gradients of stdp: the definition's against finite differences, the compiled ones against the definition's.

`test_stdp.py` has tables of gradients worked by hand; here are random rules, every instruction set, size and layout,
threads and memory.
"""

import math
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from properties import LAYOUTS, REAL, assert_same_bits, laid_out, tensors
from stdp_cases import SIZES, Problem, random_problem, run
from torch import Tensor

from artsy_ext import ops
from artsy_ext.ops import STDPRule, Traces, Triplet, reference

Gradients = dict[str, Tensor]


def arriving(outputs: list[Tensor], seed: int) -> list[Tensor]:
    """Gradients of the outputs; those of some are 0, as of results that nobody uses."""
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outputs]
    used = [True] * len(grads) if seed % 2 else [k == seed // 2 % len(grads) for k in range(len(grads))]
    return [g if use else torch.zeros_like(g) for g, use in zip(grads, used, strict=True)]


def with_leaves(problem: Problem) -> tuple[Problem, Gradients]:
    """The problem with every floating argument asking for its gradient, and these by name."""
    leaves: Gradients = {}

    def leaf(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        leaves[name] = value.detach().clone().requires_grad_()
        return leaves[name]

    weight = leaf("weight", problem.weight)
    amplitudes = {
        name: leaf(name, torch.as_tensor(getattr(problem.rule, name), dtype=weight.dtype).expand(weight.shape[0]))
        for name in ("a_plus", "a_minus")
    }
    traces = problem.keywords["traces"]
    if traces is not None:
        traces = Traces._make(leaf(f"traces.{name}", t) for name, t in zip(Traces._fields, traces, strict=True))
    modulation = leaf("modulation", problem.keywords["modulation"])
    keywords = {**problem.keywords, "traces": traces, "modulation": modulation}
    spikes = leaf("pre", problem.pre), leaf("post", problem.post)
    return Problem(weight, *spikes, replace(problem.rule, **amplitudes), keywords), leaves


def gradients(op: Callable[..., Any], problem: Problem, seed: int) -> Gradients:
    differentiable, leaves = with_leaves(problem)
    outputs = tensors(run(op, differentiable))
    pairs = [(o, g) for o, g in zip(outputs, arriving(outputs, seed), strict=True) if o.requires_grad]
    outputs, grads = [o for o, _ in pairs], [g for _, g in pairs]
    found = torch.autograd.grad(outputs, list(leaves.values()), grads, allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def assert_gradients_agree(actual: Gradients, expected: Gradients, tolerance: float) -> None:
    """Relative to the largest number of each; spikes in fewer bits have gradients rounded to theirs."""
    assert actual.keys() == expected.keys()
    for name, e in expected.items():
        a = actual[name]
        assert (a.shape, a.dtype) == (e.shape, e.dtype), name
        rounding = torch.finfo(e.dtype).eps if e.dtype != torch.float64 else 0.0
        scale = max(1.0, e.abs().max().item()) if e.numel() else 1.0
        difference = (a.double() - e.double()).abs()
        assert not bool((difference > scale * (tolerance + rounding)).any()), (name, difference.max().item() / scale)


SMOOTH: dict[str, STDPRule] = {
    f"{pairing}-{timing}-{dependence}-{evaluate}-{more}": STDPRule(
        0.8,
        0.7,
        gain_pre=0.7,
        gain_post=1.3,
        x_target=0.2,
        pairing=pairing,
        timing=timing,
        dependence=dependence,
        exponent=1.5,
        evaluate=evaluate,
        w_min=-9.0,
        w_max=9.0,
        reduction="mean" if timing == "exclusive" else "sum",
        weight_decay=0.05 if pairing == "all" else 0.0,
        **fields,
    )
    for pairing in ("all", "nearest")
    for timing in ("inclusive", "exclusive")
    for dependence, evaluate in (("none", "call"), ("proportional", "call"), ("soft", "call"), ("soft", "step"))
    for more, fields in {
        "pair": {},
        "triplet-step": {"triplet": Triplet(0.9, 0.6, 0.02, 0.03), "clamp": "step"},
        "eligibility-end": {"eligibility": 0.6, "clamp": "end"},
        "delayed-triplet": {"eligibility": 0.4, "modulation_delay": 1, "triplet": Triplet(0.5, 0.9, 0.04, 0.01)},
    }.items()
}


@pytest.mark.parametrize("op", [reference.stdp, ops.stdp], ids=["definition", "op"])
@pytest.mark.parametrize("name", SMOOTH)
def test_gradcheck(name: str, op: Callable[..., Any]) -> None:
    """Every argument and result at once; graded spikes stay away from 0, where a nearest trace jumps."""
    T, B, S, J, I = 3, 2, 2, 1, 2
    rule, own = SMOOTH[name], len(name) % 2 == 0

    def numbers(*shape: int) -> Tensor:
        return torch.rand(shape, dtype=torch.float64) + 0.1

    pre_shape = (B, S, I) if own else (B, I)
    slow = rule.triplet is not None
    traces = Traces(
        numbers(*pre_shape),
        numbers(B, S, J),
        numbers(*pre_shape) if slow else None,
        numbers(B, S, J) if slow else None,
        None if rule.eligibility is None else numbers(B, S, J, I),
    )
    keywords = {
        "traces": traces,
        "modulation": numbers(T, B, S) if own else numbers(T, B),
        "mask": torch.tensor([[True, False], [True, True]]),
    }
    rule = replace(rule, a_plus=numbers(S), a_minus=numbers(S))
    problem, leaves = with_leaves(
        Problem(numbers(S, J, I), numbers(T, *pre_shape), numbers(T, B, S, J), rule, keywords)
    )

    def results(*_: Tensor) -> tuple[Tensor, ...]:  # gradcheck changes the leaves in place
        return tuple(out for out in tensors(run(op, problem)) if out.requires_grad)

    assert torch.autograd.gradcheck(results, tuple(leaves.values()), fast_mode=True)


@pytest.mark.parametrize("rate", [0.02, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_random_rules(isa: str, sizes: tuple[int, int, int, int, int], rate: float) -> None:
    """Smooth or not: where a weight lies on a bound both have the same sub-gradient."""
    for seed in range(begin := 1000 * SIZES.index(sizes) + int(100 * rate), begin + 4):
        problem = random_problem(seed, sizes, rate, torch.float64)
        expected = gradients(reference.stdp, problem, seed)
        if all(bool(e.isfinite().all()) for e in expected.values()):
            assert_gradients_agree(gradients(ops.stdp, problem, seed), expected, 1e-11)


def test_what_is_beyond_the_neurons_stays_out_of_it(isa: str) -> None:
    """Where a vector has no neuron its weights must not grow: −x_target would drive them to infinity."""
    rule = STDPRule(
        0.5, 0.5, x_target=1.0, dependence="soft", exponent=2.0, w_min=-1.0, w_max=1.0, evaluate="step",
        a_plus=torch.tensor([0.02]).double(), a_minus=torch.tensor([0.0]).double(),
    )  # fmt: skip
    ones = torch.ones(200, 1, 1, 2).double()
    problem = Problem(
        torch.zeros(1, 2, 3).double(),
        torch.ones(200, 1, 3).double(),
        ones,
        rule,
        {"traces": None, "modulation": None, "mask": None},
    )
    assert_gradients_agree(gradients(ops.stdp, problem, 1), gradients(reference.stdp, problem, 1), 1e-11)


def test_weights_that_nobody_uses_have_no_part_in_it() -> None:
    rule = STDPRule(0.5, 0.5, a_plus=1e300, dependence="proportional", evaluate="step")
    pre = torch.rand(9, 2, 3).double().requires_grad_()
    weight, traces = ops.stdp(torch.ones(1, 4, 3).double(), pre, torch.ones(9, 2, 1, 4).double(), rule)
    assert not weight.isfinite().all()
    (found,) = torch.autograd.grad(traces.pre.sum(), pre)
    (expected,) = torch.autograd.grad(reference.stdp(weight, pre, torch.ones(9, 2, 1, 4), rule)[1].pre.sum(), pre)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("own", [False, True])
def test_more_spikes_than_are_listed_at_a_time(own: bool) -> None:
    """Lists are as long as the arguments are large: with small types, long trains and values, a few samples each."""
    T, B, S, J, I = 300, 7, 2, 20, 600
    rule = STDPRule(0.9, 0.8, pairing="nearest", timing="exclusive", triplet=Triplet(0.9, 0.6, 0.02, 0.03))
    pre = torch.randint(0, 3, (T, B, S, I) if own else (T, B, I)).to(torch.uint8)
    post = torch.randint(0, 3, (T, B, S, J)).to(torch.uint8)
    keywords = {"traces": None, "modulation": torch.randn(T, B).double(), "mask": torch.rand(B, S) < 0.7}
    problem = Problem(torch.rand(S, J, I).double(), pre, post, rule, keywords)
    assert_gradients_agree(gradients(ops.stdp, problem, 1), gradients(reference.stdp, problem, 1), 1e-11)


@pytest.mark.parametrize("sizes", SIZES[:4], ids=str)
def test_random_rules_in_single_precision(isa: str, sizes: tuple[int, int, int, int, int]) -> None:
    for seed in range(40):
        problem = random_problem(seed, sizes, (0.02, 0.2, 0.7, 1.0)[seed % 4], torch.float32)
        if math.isfinite(problem.rule.w_max):
            # In single precision a weight on a bound may be taken for one beyond it, which has another gradient.
            problem.rule = replace(problem.rule, w_min=-9.0, w_max=9.0)
        expected = gradients(reference.stdp, problem.to(torch.float64, "cpu"), seed)
        if all(bool(e.abs().max() < 1e3) for e in expected.values()):
            actual = {name: a.to(expected[name].dtype) for name, a in gradients(ops.stdp, problem, seed).items()}
            assert_gradients_agree(actual, expected, 1e-5)


def gradients_in_chunks(problem: Problem, ends: list[int], seed: int) -> Gradients:
    differentiable, leaves = with_leaves(problem)
    traces, modulation = differentiable.keywords["traces"], differentiable.keywords["modulation"]
    weight, begin = differentiable.weight, 0
    for end in ends:
        chunk = replace(differentiable, weight=weight, pre=differentiable.pre[begin:end])
        chunk.post = differentiable.post[begin:end]
        weight, traces = run(
            ops.stdp, chunk, traces=traces, modulation=None if modulation is None else modulation[begin:end]
        )
        begin = end
    outputs = tensors((weight, traces))
    found = torch.autograd.grad(
        outputs, list(leaves.values()), arriving(outputs, seed), allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, found, strict=True))


def test_chunks_have_the_gradients_of_the_whole() -> None:
    """Gradients pass from chunk to chunk through weights and traces."""
    for seed in range(40):
        problem = random_problem(seed, (70, 3, 2, 9, 20), 0.2, torch.float64)
        rule = replace(problem.rule, evaluate="step", clamp="step" if seed % 3 else "never")
        problem = replace(problem, rule=rule)
        whole = gradients(ops.stdp, problem, seed)
        if all(bool(g.abs().max() < 1e6) for g in whole.values()):
            chunks = gradients_in_chunks(problem, [1, 40, 40, 70], seed)
            whole = {name: whole[name].to(chunk.dtype) for name, chunk in chunks.items()}
            assert_gradients_agree(chunks, whole, 1e-10)


@pytest.mark.parametrize("empty", range(5))
def test_empty(empty: int) -> None:
    sizes = [7, 3, 2, 3, 5]
    sizes[empty] = 0
    for seed in range(30):
        problem = random_problem(seed, (sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]), 0.3, torch.float64)
        assert_gradients_agree(gradients(ops.stdp, problem, seed), gradients(reference.stdp, problem, seed), 1e-12)


def flat(problem: Problem) -> tuple[Any, ...]:
    """The positional arguments of torch.ops.artsy.stdp."""
    S = problem.weight.shape[0]
    amplitudes = (
        torch.as_tensor(a, dtype=problem.weight.dtype).expand(S) for a in (problem.rule.a_plus, problem.rule.a_minus)
    )
    traces = problem.keywords["traces"] or (None,) * 5
    modulation, mask = problem.keywords["modulation"], problem.keywords["mask"]
    return (problem.weight, problem.pre, problem.post, *amplitudes, *traces, modulation, mask)


def backward(problem: Problem, grads: list[Tensor], needs: list[bool], layout: str = "contiguous") -> list[Tensor]:
    grads, arguments = laid_out((grads, flat(problem)), layout)
    return torch.ops.artsy.stdp_backward(grads, *arguments, **problem.rule.flatten(), needs=needs)


def differentiable_arguments(problem: Problem) -> list[bool]:
    return [isinstance(a, Tensor) and a.is_floating_point() for a in flat(problem)]


def test_each_subset_of_needs_gives_the_same_bits() -> None:
    for seed in range(30):
        problem = random_problem(seed, (9, 4, 2, 11, 20), 0.3, torch.float64)
        results = torch.ops.artsy.stdp(*flat(problem), **problem.rule.flatten())
        grads = arriving(list(results), seed)
        possible = differentiable_arguments(problem)
        everything = iter(backward(problem, grads, possible))
        of = {k: next(everything) for k, needed in enumerate(possible) if needed}
        generator = torch.Generator().manual_seed(seed)
        subsets = [[k == only for k in range(12)] for only in of]
        subsets += [(torch.rand(12, generator=generator) < 0.5).tolist() for _ in range(8)]
        for subset in subsets:
            needs = [a and b for a, b in zip(subset, possible, strict=True)]
            assert_same_bits(backward(problem, grads, needs), [of[k] for k in range(12) if needs[k]])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout: str) -> None:
    for seed in range(20):
        problem = random_problem(seed, (6, 3, 2, 5, 7), 0.3, torch.float64)
        results = torch.ops.artsy.stdp(*flat(problem), **problem.rule.flatten())
        grads, needs = arriving(list(results), seed), differentiable_arguments(problem)
        assert_same_bits(backward(problem, grads, needs, layout), backward(problem, grads, needs))


def test_expanded_gradients() -> None:
    """As `sum` hands them on: one number for all elements."""
    for seed in range(10):
        problem, leaves = with_leaves(random_problem(seed, (6, 3, 2, 5, 7), 0.3, torch.float64))
        weight, _ = run(ops.stdp, problem)
        inputs = list(leaves.values())
        expanded, whole = (
            torch.autograd.grad(weight, inputs, grad, retain_graph=True)
            for grad in (torch.tensor(0.5, dtype=torch.float64).expand_as(weight), torch.full_like(weight, 0.5))
        )
        assert_same_bits(expanded, whole)


def test_a_trace_that_the_rule_does_not_keep_has_the_gradient_0() -> None:
    problem = random_problem(0, (6, 3, 2, 5, 7), 0.3, torch.float64)
    B, S, J, I = 3, 2, 5, 7
    shapes = ((B, I), (B, S, J), (B, I), (B, S, J), (B, S, J, I))
    traces = Traces(*(torch.rand(shape, dtype=torch.float64) for shape in shapes))
    problem = Problem(problem.weight, torch.rand(6, B, I), torch.rand(6, B, S, J), STDPRule(0.5, 0.5), problem.keywords)
    problem.keywords["traces"] = traces
    found = gradients(ops.stdp, problem, 1)
    for name in ("pre_slow", "post_slow", "eligibility"):
        assert not found[f"traces.{name}"].any()
    assert found["traces.pre"].any()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_any_number_of_threads_gives_the_same_bits(two_threads: None, sizes: tuple[int, int, int, int, int]) -> None:
    T, B, S, J, I = sizes
    for seed in range(6):
        problem = random_problem(seed, (T, B, S, 4 * J, 4 * I), 0.3, torch.float32)
        torch.set_num_threads(1)
        one = gradients(ops.stdp, problem, 1)
        for threads in (2, 5):
            torch.set_num_threads(threads)
            assert_same_bits(gradients(ops.stdp, problem, 1), one)


def test_concurrent_calls() -> None:
    """From threads of Python: nothing is shared between calls."""
    problems = [random_problem(seed, (8, 12, 2, 40, 70), 0.2, torch.float32) for seed in range(24)]
    alone = [gradients(ops.stdp, problem, 1) for problem in problems]
    with ThreadPoolExecutor(6) as pool:
        assert_same_bits(list(pool.map(lambda problem: gradients(ops.stdp, problem, 1), problems)), alone)


@pytest.mark.parametrize("dtype", REAL)
def test_stdp_consolidate_has_the_gradients_of_stdp(dtype: torch.dtype) -> None:
    def consolidating(weight: Tensor, *args: Any, **keywords: Any) -> Any:
        functional = torch.ones_like(weight, dtype=torch.bool)
        return ops.stdp_consolidate(weight, functional, *args, 0.3, 0.1, **keywords)[:2]

    for seed in range(20):
        problem = random_problem(seed, (5, 12, 2, 17, 33), 0.2, dtype)
        assert_same_bits(gradients(consolidating, problem, seed), gradients(ops.stdp, problem, seed))


@pytest.mark.parametrize(
    ("fields", "before", "gradient"),
    [
        # Nothing passes at a bound of the clamp, or of the soft dependence; the pair of spikes changes the weight by 0.
        ({"clamp": "end", "w_min": 0.0, "w_max": 4.0}, 4.0, 0.0),
        ({"clamp": "step", "w_min": 0.0, "w_max": 4.0}, 0.0, 0.0),
        ({"clamp": "step", "w_min": 0.0, "w_max": 4.0}, 2.0, 1.0),
        ({"dependence": "soft", "a_plus": 1.0, "w_min": 0.0, "w_max": 4.0}, 4.0, 1.0),
        ({"dependence": "soft", "a_plus": 1.0, "w_min": 0.0, "w_max": 4.0}, 2.0, 0.0),
        ({"dependence": "soft", "evaluate": "step", "a_plus": 1.0, "w_min": 0.0, "w_max": 4.0}, 4.0, 1.0),
        ({"dependence": "hard", "a_plus": 1.0, "w_min": 0.0, "w_max": 4.0}, 4.0, 1.0),
    ],
)
@pytest.mark.parametrize("op", [reference.stdp, ops.stdp], ids=["definition", "op"])
def test_subgradient_at_a_bound(op: Callable[..., Any], fields: dict, before: float, gradient: float) -> None:
    weight = torch.full((1, 1, 1), before, dtype=torch.float64, requires_grad=True)
    rule = STDPRule(**{"a_plus": 0.0, "a_minus": 0.0, **fields})
    new, _ = op(weight, torch.ones(1, 1, 1), torch.ones(1, 1, 1, 1), rule)
    assert torch.autograd.grad(new.sum(), weight)[0].item() == gradient


def test_a_second_gradient_is_refused() -> None:
    weight = torch.rand(1, 3, 4, requires_grad=True)
    pre, post = torch.rand(5, 2, 4, requires_grad=True), torch.rand(5, 2, 1, 3)
    for rule in (STDPRule(0.5, 0.5), STDPRule(0.5, 0.5, clamp="step", w_min=0.0, w_max=1.0)):
        new, _ = ops.stdp(weight, pre, post, rule)
        (gradient,) = torch.autograd.grad(new.square().sum(), pre, create_graph=True)
        with pytest.raises(RuntimeError, match=r"^stdp: differentiable once"):
            gradient.sum().backward()


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (r"grads must have 6 entries, got 5", {"grads": slice(0, 5)}),
        (r"needs must have 12 entries, got 2", {"needs": [True, False]}),
        (r"needs must not ask for pre, which is bool", {"needs": [False, True] + [False] * 10}),
        (r"needs must not ask for modulation, which is absent", {"needs": [False] * 10 + [True, False]}),
        (r"grads\[0\] must be \[S, J, I\] with S=1, got \[2, 3, 4\]", {"weight": torch.zeros(2, 3, 4)}),
        (r"grads\[2\] must be float32, got float64", {"post": torch.zeros(2, 1, 3, dtype=torch.float64)}),
    ],
)
def test_bad_input(message: str, change: dict[str, Any]) -> None:
    rule = STDPRule(0.5, 0.5)
    arguments = (torch.zeros(1, 3, 4), torch.ones(5, 2, 4).bool(), torch.ones(5, 2, 1, 3).bool())
    amplitudes = (torch.ones(1), torch.ones(1), *[None] * 7)
    grads = list(torch.ops.artsy.stdp(*arguments, *amplitudes, **rule.flatten()))
    grads[0], grads[2] = change.get("weight", grads[0]), change.get("post", grads[2])
    needs = change.get("needs", [True] + [False] * 11)
    with pytest.raises(ValueError, match="^stdp_backward: " + message):
        torch.ops.artsy.stdp_backward(
            grads[change.get("grads", slice(6))], *arguments, *amplitudes, **rule.flatten(), needs=needs
        )


def test_compile_a_training_step() -> None:
    """Surrogate spikes, plasticity with learned amplitudes, a loss and its gradients, one graph."""

    def step(x: Tensor, projection: Tensor, weight: Tensor, a_plus: Tensor, a_minus: Tensor) -> Tensor:
        spikes = torch.sigmoid(x @ projection)
        post = torch.sigmoid(torch.einsum("tbi,sji->tbsj", spikes, weight))
        rule = STDPRule(0.8, 0.7, a_plus=a_plus, a_minus=a_minus, clamp="step", w_min=-1.0, w_max=1.0)
        new, traces = ops.stdp(weight, spikes, post, rule)
        return new.square().sum() + traces.pre.sum()

    x, projection, weight = torch.rand(5, 2, 6), torch.rand(6, 4) - 0.5, torch.rand(2, 3, 4) - 0.5
    arguments = [t.requires_grad_() for t in (x, projection, weight, torch.rand(2) / 10, torch.rand(2) / 10)]
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(step(*arguments), arguments)
    assert_same_bits(torch.autograd.grad(compiled(*arguments), arguments), expected)


PEAK = """
import ctypes, sys, torch
from artsy_ext.ops import STDPRule, Triplet, reference, stdp
torch.set_num_threads(1)

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

T, B, S, J, I = 1000, 8, 2, 100, 200
op, rule, kind = eval(sys.argv[1]), eval(sys.argv[2]), sys.argv[3]
pre, post = torch.rand(T, B, I) < 0.2, torch.rand(T, B, S, J) < 0.2
weight = torch.rand(S, J, I, requires_grad=True)
leaves = [weight]
if kind == "float":
    pre, post = pre.float().requires_grad_(), post.float().requires_grad_()
    leaves += [pre, post]
grad = torch.randn(S, J, I)
new, _ = stdp(weight, pre[:3], post[:3], rule)
torch.autograd.grad(new, leaves, grad, allow_unused=True)
ctypes.CDLL(None).malloc_trim(0)  # what was freed does not count as there
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts anew
before = status("VmRSS")
new, traces = op(weight, pre, post, rule)
found = torch.autograd.grad(new, leaves, grad)
inputs = sum(t.nbytes for t in (weight, pre, post, grad))
outputs = sum(t.nbytes for t in (*found, new, *traces) if t is not None)
print(status("VmHWM") - before - outputs, inputs + outputs)
"""


def extra_memory(op: str, rule: str, kind: str) -> tuple[int, int]:
    """Of a forward and a backward pass: bytes beyond results, and bytes of arguments and results."""
    shown = subprocess.run([sys.executable, "-c", PEAK, op, rule, kind], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    extra, arguments = map(int, shown.stdout.split())
    return extra, arguments


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize(
    "rule",
    [
        "STDPRule(0.9, 0.9)",
        "STDPRule(0.9, 0.9, dependence='soft', w_min=0.0, w_max=1.0, clamp='end')",
        "STDPRule(0.9, 0.9, pairing='nearest', triplet=Triplet(0.9, 0.9, 0.1, 0.1))",
        "STDPRule(0.9, 0.9, clamp='step', w_min=0.0, w_max=1.0)",
        "STDPRule(0.9, 0.9, eligibility=0.5)",
        "STDPRule(0.9, 0.9, eligibility=0.5, clamp='step', w_min=0.0, w_max=1.0)",
    ],
)
def test_extra_memory_is_bounded(rule: str, kind: str) -> None:
    """At most twice arguments and results at T = 1000: the weights of all steps would be a hundred times more."""
    extra, arguments = extra_memory("stdp", rule, kind)
    assert extra <= 2 * arguments


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_extra_memory_of_the_definition_is_found() -> None:
    """The measure above can fail: autograd keeps the weights of every step."""
    extra, arguments = extra_memory("reference.stdp", "STDPRule(0.9, 0.9, clamp='step', w_min=0.0, w_max=1.0)", "bool")
    assert extra > 20 * arguments
