"""stdp_conv: a table worked by hand, the same sums position by position, traces, the peers' convolutions, gradients."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from properties import DEVICES, assert_any_layout, assert_pure, assert_refused
from torch import Tensor, nn

from artsy_ext.ops import STDPRule, Traces, Triplet, stdp, stdp_conv

RULE = STDPRule(decay_pre=0.6, decay_post=0.8, gain_pre=0.5, a_plus=0.02, a_minus=0.015)
GEOMETRIES = {
    "1d": ((5,), (2,), {}),
    "1d-all": ((9,), (3,), {"stride": 2, "padding": 2, "dilation": 2, "groups": 2}),
    "1d-gaps": ((11,), (2,), {"stride": 4}),
    "2d": ((4, 5), (2, 3), {}),
    "2d-all": ((6, 7), (3, 2), {"stride": (2, 1), "padding": (1, 2), "dilation": (2, 3), "groups": 2}),
    "2d-depthwise": ((5, 5), (3, 3), {"padding": 1, "groups": 4}),
    "3d": ((3, 4, 3), (2, 2, 3), {"padding": (0, 1, 0), "stride": 2}),
}
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
C_IN, C_OUT = 4, 8


def problem(geometry: str, T: int = 6, B: int = 2, dtype: torch.dtype = torch.float64) -> tuple[tuple, dict[str, Any]]:
    size, kernel, options = GEOMETRIES[geometry]
    weight = torch.rand(C_OUT, C_IN // options.get("groups", 1), *kernel, dtype=dtype)
    pre = torch.rand(T, B, C_IN, *size) < 0.4
    size_out = CONV[len(size)](pre[:1, 0].to(dtype), weight, **options).shape[2:]
    post = torch.rand(T, B, C_OUT, *size_out) < 0.4
    return (weight, pre, post), options


def by_gradient(weight: Tensor, pre: Tensor, post: Tensor, rule: STDPRule, **options: Any) -> Tensor:
    """The additive rule by PyTorch's gradient of the convolution: Σ post·conv(W, x) has the gradient Σ post·x."""
    x, y = torch.zeros_like(pre[0], dtype=weight.dtype), torch.zeros_like(post[0], dtype=weight.dtype)
    for pre_t, post_t in zip(pre.to(weight.dtype), post.to(weight.dtype), strict=True):
        x = rule.decay_pre * x + rule.gain_pre * pre_t
        y = rule.decay_post * y + rule.gain_post * post_t
        W = weight.detach().requires_grad_()
        conv = CONV[weight.dim() - 2]
        potential = (post_t * conv(x, W, **options)).sum() * rule.a_plus
        potential = potential - (y * conv(pre_t, W, **options)).sum() * rule.a_minus
        weight = weight + torch.autograd.grad(potential, W)[0]
    return weight


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.bfloat16])
def test_by_hand(device: str, dtype: torch.dtype) -> None:
    # One channel each, kernel 2, two steps; nothing decays (x, y count spikes), amplitudes 8 and 16.
    # pre   t=0: 1 0 1    t=1: 1 1 0      x at t=1: 2 1 1
    # post  t=0: 1 0      t=1: 0 1        y at t=1: 1 1
    # LTP  t=0: patch (1, 0);  t=1: position 1 sees x = (1, 1):        (2, 1)
    # LTD  t=0: y = (1, 0), patch (1, 0);  t=1: (1, 1) + (1, 0):       (3, 1)
    pre = torch.tensor([[1, 0, 1], [1, 1, 0]], device=device).to(dtype).view(2, 1, 1, 3)
    post = torch.tensor([[1, 0], [0, 1]], device=device).to(dtype).view(2, 1, 1, 2)
    rule = STDPRule(decay_pre=1.0, decay_post=1.0, a_plus=8.0, a_minus=16.0)
    weight, traces = stdp_conv(torch.zeros(1, 1, 2, device=device), pre, post, rule)
    assert weight.flatten().tolist() == [2 * 8 - 3 * 16, 1 * 8 - 1 * 16]
    assert traces.pre.flatten().tolist() == [2, 1, 1]
    assert traces.post.flatten().tolist() == [1, 1]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_is_the_gradient_of_the_convolution(geometry: str) -> None:
    args, options = problem(geometry)
    torch.testing.assert_close(stdp_conv(*args, RULE, **options)[0], by_gradient(*args, RULE, **options))


RULES = {
    "nearest": replace(RULE, pairing="nearest", timing="exclusive", x_target=0.25),
    "soft-step-mean": replace(
        RULE, dependence="soft", evaluate="step", w_min=0.0, w_max=1.0, clamp="step", reduction="mean", weight_decay=0.1
    ),
    "triplet": replace(RULE, triplet=Triplet(0.9, 0.7, 0.01, 0.02)),
    "eligibility-mean": replace(RULE, eligibility=0.5, modulation_delay=1, reduction="mean"),
    "per-group": replace(RULE, a_plus=torch.tensor([0.01, 0.03]).double(), a_minus=torch.tensor([0.02, 0.0]).double()),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("geometry", ["1d-all", "2d-all"])
def test_is_stdp_of_patches(geometry: str, rule: str) -> None:
    # Patch by patch: what the kernel sees of an input at one position, from the identity of the convolution.
    (weight, pre, post), options = problem(geometry)
    T, B, S = *pre.shape[:2], options["groups"]
    C, kernel, conv = C_IN // S, weight.shape[2:], CONV[weight.dim() - 2]
    seen = []
    for c, *k in product(range(C_IN), *map(range, kernel)):
        one = torch.zeros(1, 1, *kernel, dtype=weight.dtype)
        one[(0, 0, *k)] = 1
        channel = pre[:, :, c].flatten(0, 1)[:, None].to(weight.dtype)
        geometry_of_one = {name: value for name, value in options.items() if name != "groups"}
        seen.append(conv(channel, one, **geometry_of_one).view(T, B, -1))
    patches = torch.stack(seen, -1).view(T, -1, S, C * kernel.numel())
    L = patches.shape[1] // B
    outputs = post.view(T, B, S, C_OUT // S, L).permute(0, 1, 4, 2, 3).reshape(T, B * L, S, -1)
    modulation, mask = torch.rand(T, B, S).double(), torch.rand(B, S) < 0.7
    summed = replace(RULES[rule], reduction="sum")
    m = modulation / B if RULES[rule].reduction == "mean" else modulation
    spread = {"modulation": m.repeat_interleave(L, 1), "mask": mask.repeat_interleave(L, 0)}
    expected, _ = stdp(weight.view(S, C_OUT // S, -1), patches, outputs, summed, **spread)
    ours, _ = stdp_conv(weight, pre, post, RULES[rule], modulation=modulation, mask=mask, **options)
    torch.testing.assert_close(ours, expected.view_as(ours))


def test_mean_divides_by_the_batch() -> None:
    (weight, pre, post), options = problem("2d", B=4)
    change, mean = (
        stdp_conv(weight, pre, post, replace(RULE, reduction=r), **options)[0] - weight for r in ("sum", "mean")
    )
    torch.testing.assert_close(mean, change / 4)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("geometry", ["1d-all", "2d-all"])
def test_chunks_equal_the_whole(geometry: str, rule: str) -> None:
    (weight, pre, post), options = problem(geometry, T=7)
    modulation = torch.rand(*pre.shape[:2]).double()
    whole, at_the_end = stdp_conv(weight, pre, post, RULES[rule], modulation=modulation, **options)
    traces = None
    for chunk in (slice(0, 1), slice(1, 4), slice(4, 4), slice(4, 7)):
        weight, traces = stdp_conv(
            weight, pre[chunk], post[chunk], RULES[rule], modulation=modulation[chunk], traces=traces, **options
        )
    torch.testing.assert_close((weight, traces), (whole, at_the_end))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_traces_are_those_of_the_neurons(geometry: str) -> None:
    (weight, pre, post), options = problem(geometry)
    traces = stdp_conv(weight, pre, post, RULE, **options)[1]
    x, y = torch.zeros_like(traces.pre), torch.zeros_like(traces.post)
    for pre_t, post_t in zip(pre.double(), post.double(), strict=True):
        x, y = RULE.decay_pre * x + RULE.gain_pre * pre_t, RULE.decay_post * y + post_t
    torch.testing.assert_close(traces.post, y)
    # An input that no patch reaches cannot change the output.
    probe = torch.ones_like(x, requires_grad=True)
    (reach,) = torch.autograd.grad(CONV[weight.dim() - 2](probe, weight, **options).sum(), probe)
    torch.testing.assert_close(traces.pre, torch.where(reach != 0, x, 0.0))
    if geometry == "1d-gaps":
        assert (reach == 0).any()


def test_empty() -> None:
    (weight, pre, post), options = problem("2d-all")
    for T, B in ((0, 2), (6, 0)):
        new, traces = stdp_conv(weight, pre[:T, :B], post[:T, :B], RULES["soft-step-mean"], **options)
        assert new.shape == weight.shape
        assert traces.pre.shape == (B, *pre.shape[2:])
        assert torch.isfinite(new).all()


def test_pure_and_of_any_layout() -> None:
    (weight, pre, post), options = problem("2d-all")
    assert_pure(stdp_conv, weight, pre, post, RULES["triplet"], **options)
    assert_any_layout(stdp_conv, weight, pre, post, RULES["triplet"], **options)


@pytest.mark.parametrize("geometry", ["1d-all", "2d"])
def test_gradcheck(geometry: str) -> None:
    (weight, pre, post), options = problem(geometry, T=3, B=1)
    smooth = replace(RULE, dependence="proportional", evaluate="step", eligibility=0.5)
    pre, post, modulation = pre.double(), post.double(), torch.rand(3, 1).double()
    traces = stdp_conv(weight, pre, post, smooth, **options)[1]
    given = [t.detach().requires_grad_() for t in (weight, pre, post, modulation, traces.pre, traces.eligibility)]

    def call(weight: Tensor, pre: Tensor, post: Tensor, modulation: Tensor, x: Tensor, e: Tensor) -> tuple[Tensor, ...]:
        start = Traces(x, traces.post, eligibility=e)
        new, kept = stdp_conv(weight, pre, post, smooth, traces=start, modulation=modulation, **options)
        return new, kept.pre, kept.post, kept.eligibility

    assert torch.autograd.gradcheck(call, given, fast_mode=True)


def test_compiles_whole() -> None:
    (weight, pre, post), options = problem("2d-all")
    compiled = torch.compile(stdp_conv, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(weight, pre, post, RULE, **options), stdp_conv(weight, pre, post, RULE, **options)
    )


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("weight", {"weight": torch.rand(8, 2)}),
        ("weight", {"weight": torch.zeros(8, 2, 3, 2, dtype=torch.int64)}),
        ("pre", {"pre": torch.zeros(6, 2, 4, 6, dtype=torch.bool)}),
        ("pre", {"pre": torch.zeros(6, 2, 4, 1, 1, dtype=torch.bool), "padding": 0}),
        ("pre", {"pre": torch.zeros(6, 2, 4, 6, 7, dtype=torch.int64)}),
        ("post", {"post": torch.zeros(6, 2, 8, 3, 3, dtype=torch.bool)}),
        ("post", {"post": torch.zeros(5, 2, 8, 2, 8, dtype=torch.bool)}),
        ("groups", {"groups": 3}),
        ("groups", {"groups": 0}),
        ("stride", {"stride": 0}),
        ("stride", {"stride": (1, 2, 3)}),
        ("padding", {"padding": "same"}),
        ("dilation", {"dilation": 1.5}),
        ("rule", {"rule": None}),
        ("traces", {"traces": (None,) * 5}),
        ("traces.pre", {"traces": Traces(torch.zeros(2, 4, 6), torch.zeros(2, 8, 2, 8))}),
        ("modulation", {"modulation": torch.zeros(6, 2, 8)}),
        ("mask", {"mask": torch.ones(2, 8, dtype=torch.bool)}),
    ],
)
def test_bad_arguments_are_named(argument: str, change: dict[str, Any]) -> None:
    (weight, pre, post), options = problem("2d-all", dtype=torch.float32)
    arguments = {"weight": weight, "pre": pre, "post": post, "rule": RULE, **options, **change}
    assert_refused("stdp_conv", argument, lambda: stdp_conv(**arguments))


def assert_learned(ours: Tensor, theirs: Tensor, before: Tensor) -> None:
    """Equal to 1e-5 after a change that is a thousand times that for the typical weight."""
    assert (theirs - before).abs().median() > 1e-2
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dims", [1, 2])
def test_spikingjelly(dims: int) -> None:
    learning = pytest.importorskip(
        "spikingjelly.activation_based.learning", reason="needs spikingjelly (the extra `peers`)"
    )
    Conv = {1: nn.Conv1d, 2: nn.Conv2d}[dims]
    synapse, sn = Conv(3, 4, 3, stride=2, padding=1, bias=False), nn.Identity()
    before = synapse.weight.detach().clone()
    learner = learning.STDPLearner("m", synapse, sn, tau_pre=3.0, tau_post=5.0)
    T, B = 100, 2
    pre = (torch.rand(T, B, 3, *[8] * dims) < 0.2).float()
    post = (torch.rand(T, B, 4, *[4] * dims) < 0.2).float()
    learner.in_spike_monitor.records.append(pre)  # as its hook would: a convolution of torch.nn takes no time axis
    sn(post)
    theirs = before + 2e-3 * learner.step(on_grad=False)
    rule = STDPRule.spikingjelly("m", tau_pre=3.0, tau_post=5.0, scale=2e-3)
    ours, _ = stdp_conv(before, pre, post, rule, stride=2, padding=1)
    assert_learned(ours, theirs, before)


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("traces_additive", [False, True], ids=["nearest", "additive"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_bindsnet(dims: int, traces_additive: bool, reduction: str) -> None:
    pytest.importorskip("bindsnet", reason="needs bindsnet (the extra `peers`)")
    from bindsnet.learning import PostPre
    from bindsnet.network import Network
    from bindsnet.network.nodes import Input
    from bindsnet.network.topology import Conv1dConnection, Conv2dConnection

    T, B = 100, 2
    # In one dimension BindsNET 0.3.4 takes its patches apart wrongly where there are several channels.
    Kind, in_shape, out_shape, kernel = (
        (Conv1dConnection, (1, 9), (4, 5), 3) if dims == 1 else (Conv2dConnection, (3, 9, 8), (4, 5, 5), (3, 2))
    )
    nodes = {"traces_additive": traces_additive, "tc_trace": 8.0}
    options = {"nu": (4e-3, 8e-3) if dims == 1 else (1e-3, 2e-3), "wmin": 0.0, "wmax": 1.0}
    network = Network(batch_size=B)
    source, target = Input(shape=in_shape, traces=True, **nodes), Input(shape=out_shape, traces=True, **nodes)
    before = 0.2 + 0.6 * torch.rand(4, in_shape[0], *((3,) if dims == 1 else (3, 2)))
    between = Kind(
        source,
        target,
        kernel_size=kernel,
        stride=2,
        padding=1,
        w=before.clone(),
        update_rule=PostPre,
        reduction=getattr(torch, reduction),
        **options,
    )
    network.add_layer(source, "source")
    network.add_layer(target, "target")
    network.add_connection(between, "source", "target")
    between.compute = lambda s: torch.zeros(B, *out_shape)  # type: ignore[method-assign]
    pre, post = (torch.rand(T, B, *in_shape) < 0.1).float(), (torch.rand(T, B, *out_shape) < 0.1).float()
    network.run({"source": pre, "target": post}, time=T)
    rule = STDPRule.bindsnet_postpre(**options, reduction=reduction, **nodes)
    ours, _ = stdp_conv(before, pre, post, rule, stride=2, padding=1)
    assert_learned(ours, between.w.detach(), before)


def test_norse() -> None:
    norse = pytest.importorskip("norse.torch.functional.stdp", reason="needs norse (the extra `peers`)")
    T, B = 100, 2
    geometry = {"stride": 2, "padding": 1, "dilation": 2}
    parameters = norse.STDPParameters(
        eta_plus=1e-2, eta_minus=1e-2, stdp_algorithm="multiplicative_relu", convolutional=True, **geometry
    )
    pre, post = (torch.rand(T, B, 3, 9, 8) < 0.2).float(), (torch.rand(T, B, 4, 4, 3) < 0.2).float()
    before = 0.2 + 0.6 * torch.rand(4, 3, 3, 3)
    state, theirs = norse.STDPState(torch.zeros_like(pre[0]), torch.zeros_like(post[0])), before
    for t in range(T):
        theirs, state = norse.stdp_step_conv2d(pre[t], post[t], theirs, state, parameters)
    rule = STDPRule.norse("multiplicative_relu", eta_plus=1e-2, eta_minus=1e-2)
    ours, _ = stdp_conv(before, pre, post, rule, **geometry)
    assert_learned(ours, theirs, before)
