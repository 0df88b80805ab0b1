"""STDP in models of other packages: one line is another and the weights are the same; and the learner by itself."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import artsy_ext.nn
from artsy_ext.nn import DiehlAndCook, PostPre, STDPLearner, WeightDependentPostPre
from artsy_ext.ops import STDPRule, stdp, stdp_conv


def assert_learned(ours: Tensor, theirs: Tensor, before: Tensor) -> None:
    assert (theirs - before).abs().median() > 1e-2
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.fixture
def spikingjelly() -> SimpleNamespace:
    pytest.importorskip("spikingjelly", reason="needs spikingjelly (the extra `peers`)")
    from spikingjelly.activation_based import functional, layer, learning, neuron

    return SimpleNamespace(functional=functional, layer=layer, learning=learning, neuron=neuron)


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("f", [{}, {"f_pre": lambda w: w.abs(), "f_post": lambda w: 1.0}], ids=["default", "factors"])
def test_in_a_spikingjelly_model(spikingjelly: SimpleNamespace, step_mode: str, f: dict[str, Any]) -> None:
    layer, neuron, functional = spikingjelly.layer, spikingjelly.neuron, spikingjelly.functional
    T, B = 40, 3
    images = torch.rand(3, T, B, 1, 8, 8).round()

    def train(Learner: type) -> tuple[list[Tensor], list[Tensor]]:
        torch.manual_seed(1)
        net = nn.Sequential(
            layer.Conv2d(1, 4, 3, stride=1, padding=1, padding_mode="circular", bias=False),
            neuron.LIFNode(),
            layer.MaxPool2d(2, 2),
            layer.Flatten(),
            layer.Linear(4 * 4 * 4, 10, bias=False),
            neuron.LIFNode(),
        )
        for synapse in (net[0], net[4]):
            nn.init.uniform_(synapse.weight, 0.2, 0.8)
        functional.set_step_mode(net, step_mode)
        before = [p.detach().clone() for p in net.parameters()]
        learners = [
            Learner(step_mode=step_mode, synapse=net[i], sn=net[i + 1], tau_pre=2.0, tau_post=3.0, **f) for i in (0, 4)
        ]
        groups = [{"params": net[0].parameters(), "lr": 2e-5}, {"params": net[4].parameters(), "lr": 2e-4}]
        optimizer = torch.optim.SGD(groups, momentum=0.9)
        for number, batch in enumerate(images):
            optimizer.zero_grad()
            for frame in [batch] if step_mode == "m" else batch:
                net(frame)
            for learner in learners:
                learner.step(on_grad=True, scale=0.5)
            optimizer.step()
            functional.reset_net(net)
            if number == 1:
                for learner in learners:
                    learner.reset()
        return [p.detach() for p in net.parameters()], before

    theirs, before = train(spikingjelly.learning.STDPLearner)
    ours, _ = train(STDPLearner)
    for o, t, b in zip(ours, theirs, before, strict=True):
        assert_learned(o, t, b)


@pytest.fixture
def run() -> Callable[..., tuple[Tensor, Tensor]]:
    """Trains a small BindsNET network with an update rule: the weights before and after."""
    pytest.importorskip("bindsnet", reason="needs bindsnet (the extra `peers`)")
    from bindsnet.network import Network
    from bindsnet.network.nodes import Input, LIFNodes
    from bindsnet.network.topology import Connection, Conv2dConnection

    def trained(update_rule: type, conv: bool = False, batch_size: int = 2, **options: Any) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        network = Network(dt=1.0, batch_size=batch_size)
        in_shape, out_shape = ((2, 8, 8), (3, 4, 4)) if conv else ((30,), (12,))
        source = Input(shape=in_shape, traces=True, tc_trace=10.0, traces_additive=True)
        target = LIFNodes(shape=out_shape, traces=True, tc_trace=15.0, trace_scale=0.5, thresh=-60.0)
        if conv:
            w = 0.3 + 0.4 * torch.rand(3, 2, 3, 3)
            options |= {"kernel_size": 3, "stride": 2, "padding": 1}
        else:
            w = 0.3 + 0.4 * torch.rand(30, 12)
        kind = Conv2dConnection if conv else Connection
        between = kind(source, target, w=w.clone(), update_rule=update_rule, **options)
        network.add_layer(source, "X")
        network.add_layer(target, "Y")
        network.add_connection(between, "X", "Y")
        for _ in range(2):
            network.run({"X": torch.rand(60, batch_size, *in_shape) < 0.2}, time=60)
            network.reset_state_variables()
        return w, between.w.detach()

    return trained


BOUNDS = {"wmin": 0.0, "wmax": 1.0}


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize(
    ("ours", "options"),
    [
        (PostPre, {"nu": (1e-2, 2e-2)}),
        (PostPre, {"nu": (1e-2, 2e-2), "weight_decay": 1e-3, "norm": 15.0, **BOUNDS}),
        (PostPre, {"nu": 2e-2, "reduction": torch.mean, **BOUNDS}),
        (PostPre, {"nu": (2e-3, 4e-3), "conv": True, **BOUNDS}),
        (PostPre, {"nu": (2e-3, 4e-3), "conv": True, "reduction": torch.mean}),
        (WeightDependentPostPre, {"nu": (1e-2, 2e-2), **BOUNDS}),
        (WeightDependentPostPre, {"nu": (2e-3, 4e-3), "conv": True, **BOUNDS}),
        (DiehlAndCook, {"nu": (0.0, 3e-2), "x_tar": 0.6, "mu": 0.8, **BOUNDS}),
        (DiehlAndCook, {"nu": 3e-2, "wmax": 1.0}),
    ],
)
def test_in_a_bindsnet_network(
    run: Callable[..., tuple[Tensor, Tensor]], ours: type, options: dict[str, Any], batch_size: int
) -> None:
    import bindsnet.learning

    before, theirs = run(getattr(bindsnet.learning, ours.__name__), batch_size=batch_size, **options)
    assert_learned(run(ours, batch_size=batch_size, **options)[1], theirs, before)


@pytest.mark.parametrize(
    ("rule", "options", "error"),
    [
        (WeightDependentPostPre, {"nu": 1.0, "weight_decay": 0.1, **BOUNDS}, ValueError),
        (DiehlAndCook, {"nu": 1.0, "conv": True, **BOUNDS}, TypeError),
        (PostPre, {"nu": (torch.ones(30, 12), torch.ones(30, 12))}, ValueError),
        (PostPre, {"nu": 1.0, "wmax": torch.ones(30, 12)}, ValueError),
        (PostPre, {"nu": 1.0, "reduction": torch.amax}, ValueError),
    ],
)
def test_bindsnet_options_without_a_counterpart(
    run: Callable[..., tuple[Tensor, Tensor]], rule: type, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=f"^{rule.__name__}: "):
        run(rule, **options)


def test_the_layers_must_record_traces() -> None:
    bounds = {"wmin": torch.tensor(0.0), "wmax": torch.tensor(1.0)}
    kind = type("Connection", (), {})
    connection = kind()
    vars(connection).update(source=SimpleNamespace(traces=True), target=SimpleNamespace(traces=False), **bounds)
    with pytest.raises(ValueError, match="target must record traces"):
        PostPre(connection, nu=1e-2)
    DiehlAndCook(connection, nu=1e-2)


# The learner by itself.

T, B = 9, 2


def recorded(synapse: nn.Module, pre: Tensor, post: Tensor, **options: Any) -> STDPLearner:
    """A learner that has seen pre at the synapse's entry and post at a stand-in for its neurons."""
    sn = nn.Identity()
    learner = STDPLearner("m", synapse, sn, 2.0, 4.0, **options)
    for hook in synapse._forward_pre_hooks.values():  # torch's convolutions take no time axis: only the hook runs
        hook(synapse, (pre,))
    sn(post)
    return learner


def linear() -> tuple[nn.Linear, Tensor, Tensor]:
    return nn.Linear(5, 3), torch.rand(T, B, 5).round(), torch.rand(T, B, 3).round()


@pytest.mark.parametrize("same", [True, False])
def test_weight_factors(same: bool) -> None:
    synapse, pre, post = linear()
    f_pre, f_post = torch.square, torch.square if same else torch.exp
    change = recorded(synapse, pre, post, f_pre=f_pre, f_post=f_post).step(on_grad=False, scale=3.0)
    zero, rule = torch.zeros(1, 3, 5), STDPRule(decay_pre=0.5, decay_post=0.75, a_plus=1.0, a_minus=0.0)
    ltp = stdp(zero, pre, post[:, :, None], rule)[0][0]
    ltd = stdp(zero, pre, post[:, :, None], STDPRule(0.5, 0.75, a_plus=0.0, a_minus=1.0))[0][0]
    W = synapse.weight.detach()
    torch.testing.assert_close(change, 3 * (f_post(W) * ltp + f_pre(W) * ltd))


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_convolution_with_dilation_and_groups(padding_mode: str) -> None:
    options = {"stride": 2, "dilation": 2, "groups": 2}
    synapse = nn.Conv1d(4, 6, 3, padding=3, padding_mode=padding_mode, **options)
    pre = torch.rand(T, B, 4, 9).round()
    post = torch.rand(T, B, 6, 6).round()
    learner = recorded(synapse, pre, post, f_pre=torch.ones_like, f_post=torch.ones_like)
    mode = "constant" if padding_mode == "zeros" else padding_mode
    padded = nn.functional.pad(pre.flatten(0, 1), (3, 3), mode).unflatten(0, (T, B))
    rule = STDPRule(0.5, 0.75, a_plus=1.0, a_minus=1.0)
    expected, traces = stdp_conv(torch.zeros(6, 2, 3), padded, post, rule, **options)
    torch.testing.assert_close(learner.step(on_grad=False), expected)
    torch.testing.assert_close(learner.traces, traces)


def test_the_gradient_accumulates_and_traces_go_on() -> None:
    synapse, pre, post = linear()
    f = {"f_pre": torch.ones_like, "f_post": torch.ones_like}
    whole = recorded(synapse, pre, post, **f).step(on_grad=False)
    learner = recorded(synapse, pre[:4], post[:4], **f)
    assert learner.step() is None
    learner._pre.append(pre[4:]), learner._post.append(post[4:])
    assert learner.step() is None
    assert learner.step() is None  # nothing was recorded
    torch.testing.assert_close(synapse.weight.grad, -whole)


def test_steps_one_by_one_are_a_sequence() -> None:
    synapse, pre, post = linear()
    expected = recorded(synapse, pre, post).step(on_grad=False)
    sn = nn.Identity()
    learner = STDPLearner("s", synapse, sn, 2.0, 4.0)
    for pre_t, post_t in zip(pre, post, strict=True):
        synapse(pre_t), sn(post_t)
    torch.testing.assert_close(learner.step(on_grad=False), expected)


def test_reset_enable_disable_close() -> None:
    synapse, pre, post = linear()
    sn = nn.Identity()
    learner = STDPLearner("m", synapse, sn, 2.0, 4.0)

    def change() -> Tensor | None:
        synapse(pre), sn(post)
        return learner.step(on_grad=False)

    first = change()
    assert not torch.equal(change(), first)
    learner.reset()
    torch.testing.assert_close(change(), first, rtol=0, atol=0)
    learner.disable()
    assert change() is None
    learner.enable()
    assert change() is not None
    synapse(pre)
    with pytest.raises(RuntimeError, match="equally often"):
        learner.step()
    learner.close()
    assert not synapse._forward_pre_hooks
    assert not sn._forward_hooks
    with pytest.raises(RuntimeError, match="closed"):
        learner.step()


@pytest.mark.parametrize(
    ("error", "change"),
    [
        (ValueError, {"step_mode": "t"}),
        (ValueError, {"tau_pre": 0.5}),
        (TypeError, {"synapse": nn.Bilinear(2, 2, 2)}),
    ],
)
def test_bad_arguments(error: type[Exception], change: dict[str, Any]) -> None:
    arguments = {"step_mode": "m", "synapse": nn.Linear(2, 2), "sn": nn.Identity(), "tau_pre": 2.0, "tau_post": 2.0}
    with pytest.raises(error, match=next(iter(change))):
        STDPLearner(**{**arguments, **change})


def test_all_are_public() -> None:
    assert {"STDPLearner", "PostPre", "WeightDependentPostPre", "DiehlAndCook"} <= set(artsy_ext.nn.__all__)
