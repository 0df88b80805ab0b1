"""The named rules beside the packages they are named after: SpikingJelly, BindsNET and Norse run their own classes.

`pip install -e ".[peers]"` brings them; where one is missing its tests are skipped.
"""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from artsy_ext.ops import STDPRule, stdp

T, B, I, J = 120, 3, 11, 7
FACTORS: dict[str, Callable[[Tensor], Any]] = {"proportional": lambda w: w, "none": lambda w: 1.0}
NODES = {"tc_trace": 8.0, "trace_scale": 0.7}


def spikes(*shape: int, rate: float = 0.15) -> Tensor:
    return (torch.rand(shape) < rate).float()


def trained(weight: Tensor, pre: Tensor, post: Tensor, rule: STDPRule, **keywords: Any) -> Tensor:
    """[J, I], [T, B, I], [T, B, J] -> [J, I]: one sub-network."""
    return stdp(weight[None], pre, post[:, :, None], rule, **keywords)[0][0]


def assert_learned(ours: Tensor, theirs: Tensor, before: Tensor) -> None:
    """Equal to 1e-5 after a change that is a thousand times that for the typical weight."""
    assert (theirs - before).abs().median() > 1e-2
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


class TestSpikingJelly:
    @pytest.fixture
    def learning(self) -> ModuleType:
        reason = "needs spikingjelly (the extra `peers`)"
        return pytest.importorskip("spikingjelly.activation_based.learning", reason=reason)

    @staticmethod
    def layer() -> tuple[nn.Linear, nn.Identity, Tensor]:
        """A synapse, a stand-in for its neurons that emits the spikes it is given, and the weights."""
        synapse = nn.Linear(I, J, bias=False)
        nn.init.uniform_(synapse.weight, 0.2, 0.8)
        return synapse, nn.Identity(), synapse.weight.detach().clone()

    @pytest.mark.parametrize("dependence", FACTORS)
    def test_stdp_over_a_whole_sequence(self, learning: ModuleType, dependence: str) -> None:
        synapse, sn, before = self.layer()
        f = FACTORS[dependence]
        learner = learning.STDPLearner("m", synapse, sn, tau_pre=3.0, tau_post=5.0, f_pre=f, f_post=f)
        pre, post = spikes(T, B, I), spikes(T, B, J)
        synapse(pre), sn(post)
        learner.step(on_grad=True, scale=8e-3)
        torch.optim.SGD([synapse.weight], lr=0.5).step()
        rule = STDPRule.spikingjelly("m", tau_pre=3.0, tau_post=5.0, scale=4e-3, dependence=dependence)
        assert_learned(trained(before, pre, post, rule), synapse.weight.detach(), before)

    @pytest.mark.parametrize("dependence", FACTORS)
    def test_stdp_at_each_step(self, learning: ModuleType, dependence: str) -> None:
        synapse, sn, before = self.layer()
        f = FACTORS[dependence]
        learner = learning.STDPLearner("s", synapse, sn, tau_pre=3.0, tau_post=5.0, f_pre=f, f_post=f)
        optimizer = torch.optim.SGD([synapse.weight], lr=4e-3)
        pre, post = spikes(T, B, I), spikes(T, B, J)
        for t in range(T):
            optimizer.zero_grad()
            synapse(pre[t]), sn(post[t])
            learner.step()
            optimizer.step()
        rule = STDPRule.spikingjelly("s", tau_pre=3.0, tau_post=5.0, scale=4e-3, dependence=dependence)
        assert_learned(trained(before, pre, post, rule), synapse.weight.detach(), before)

    def test_soft_bounds_as_weight_factors(self, learning: ModuleType) -> None:
        synapse, sn, before = self.layer()
        factors = {"f_pre": lambda w: w - 0.1, "f_post": lambda w: 0.9 - w}
        learner = learning.STDPLearner("m", synapse, sn, tau_pre=2.0, tau_post=2.0, **factors)
        pre, post = spikes(T, B, I), spikes(T, B, J)
        synapse(pre), sn(post)
        theirs = before + 4e-3 * learner.step(on_grad=False)
        rule = STDPRule.spikingjelly("m", 2.0, 2.0, scale=4e-3, dependence="soft", w_min=0.1, w_max=0.9)
        assert_learned(trained(before, pre, post, rule), theirs, before)

    @pytest.mark.parametrize("per_sample", [False, True])
    @pytest.mark.parametrize("dependence", FACTORS)
    def test_mstdp(self, learning: ModuleType, dependence: str, per_sample: bool) -> None:
        synapse, sn, before = self.layer()
        f = FACTORS[dependence]
        learner = learning.MSTDPLearner("s", synapse, sn, tau_pre=3.0, tau_post=5.0, f_pre=f, f_post=f)
        optimizer = torch.optim.SGD([synapse.weight], lr=1e-2)
        pre, post = spikes(T, B, I), spikes(T, B, J)
        reward = torch.randn(T, B) if per_sample else torch.randn(T, 1).expand(T, B)
        for t in range(T):
            optimizer.zero_grad()
            synapse(pre[t]), sn(post[t])
            learner.step(reward[t] if per_sample else float(reward[t, 0]))
            optimizer.step()
        rule = STDPRule.spikingjelly(
            "s", tau_pre=3.0, tau_post=5.0, learner="MSTDPLearner", scale=1e-2, dependence=dependence
        )
        assert_learned(trained(before, pre, post, rule, modulation=reward), synapse.weight.detach(), before)

    @pytest.mark.parametrize("dependence", FACTORS)
    def test_mstdpet(self, learning: ModuleType, dependence: str) -> None:
        synapse, sn, before = self.layer()
        f = FACTORS[dependence]
        taus = {"tau_pre": 3.0, "tau_post": 5.0, "tau_trace": 4.0}
        learner = learning.MSTDPETLearner("s", synapse, sn, **taus, f_pre=f, f_post=f)
        optimizer = torch.optim.SGD([synapse.weight], lr=5e-2)
        pre, post, reward = spikes(T, 1, I), spikes(T, 1, J), torch.randn(T, 1)
        for t in range(T):
            optimizer.zero_grad()
            synapse(pre[t, 0]), sn(post[t, 0])
            learner.step(float(reward[t, 0]))
            optimizer.step()
        rule = STDPRule.spikingjelly("s", **taus, learner="MSTDPETLearner", scale=5e-2, dependence=dependence)
        assert_learned(trained(before, pre, post, rule, modulation=reward), synapse.weight.detach(), before)


class TestBindsNET:
    @pytest.fixture
    def bindsnet(self) -> ModuleType:
        return pytest.importorskip("bindsnet", reason="needs bindsnet (the extra `peers`)")

    @staticmethod
    def learned(
        learning_rule: type, pre: Tensor, post: Tensor, nodes: dict[str, Any], dt: float = 1.0, **connection: Any
    ) -> tuple[Tensor, Tensor]:
        """[J, I] weights before and after T steps of a network whose two layers emit the given spikes."""
        from bindsnet.network import Network
        from bindsnet.network.nodes import Input
        from bindsnet.network.topology import Connection

        network = Network(dt=dt, batch_size=pre.shape[1])
        source, target = Input(n=I, traces=True, **nodes), Input(n=J, traces=True, **nodes)
        weight = 0.2 + 0.6 * torch.rand(I, J)
        between = Connection(source, target, w=weight.clone(), update_rule=learning_rule, **connection)
        network.add_layer(source, "source")
        network.add_layer(target, "target")
        network.add_connection(between, "source", "target")
        # The source's spikes also drive the target; an Input passes on what it gets, so the weights leave for the run.
        between.compute = lambda s: torch.zeros(len(s), J)  # type: ignore[method-assign]
        network.run({"source": pre, "target": post}, time=round(T * dt))
        return weight.t(), between.w.t()

    @pytest.mark.parametrize("bounds", [{}, {"wmin": 0.3, "wmax": 0.6}], ids=["free", "clamp"])
    @pytest.mark.parametrize("traces_additive", [False, True], ids=["nearest", "additive"])
    @pytest.mark.parametrize("reduction", ["sum", "mean"])
    def test_postpre(
        self, bindsnet: ModuleType, traces_additive: bool, bounds: dict[str, float], reduction: str
    ) -> None:
        pre, post = spikes(T, B, I), spikes(T, B, J)
        nodes = {**NODES, "traces_additive": traces_additive}
        before, theirs = self.learned(
            bindsnet.learning.PostPre,
            pre,
            post,
            nodes,
            nu=(1e-2, 7e-3),
            reduction=getattr(torch, reduction),
            **bounds,
        )
        rule = STDPRule.bindsnet_postpre((1e-2, 7e-3), reduction=reduction, **nodes, **bounds)
        assert_learned(trained(before.clamp(rule.w_min, rule.w_max), pre, post, rule), theirs, before)

    def test_postpre_with_weight_decay_and_another_dt(self, bindsnet: ModuleType) -> None:
        pre, post = spikes(T, B, I), spikes(T, B, J)
        options = {"nu": 5e-3, "weight_decay": 0.02, "wmin": 0.0, "wmax": 1.0}
        before, theirs = self.learned(bindsnet.learning.PostPre, pre, post, NODES, dt=0.5, **options)
        rule = STDPRule.bindsnet_postpre(**options, **NODES, dt=0.5)
        assert_learned(trained(before, pre, post, rule), theirs, before)

    @pytest.mark.parametrize("traces_additive", [False, True], ids=["nearest", "additive"])
    def test_weight_dependent(self, bindsnet: ModuleType, traces_additive: bool) -> None:
        pre, post = spikes(T, B, I), spikes(T, B, J)
        nodes = {**NODES, "traces_additive": traces_additive}
        options = {"nu": (1e-2, 2e-2), "wmin": -0.2, "wmax": 1.1}
        before, theirs = self.learned(bindsnet.learning.WeightDependentPostPre, pre, post, nodes, **options)
        rule = STDPRule.bindsnet_weight_dependent(**options, **nodes)
        assert_learned(trained(before, pre, post, rule), theirs, before)

    @pytest.mark.parametrize("wmin", [-math.inf, 0.0])
    @pytest.mark.parametrize(("x_tar", "mu"), [(0.0, 1.0), (0.4, 1.0), (0.4, 0.5), (0.8, 2.0)])
    def test_diehl_and_cook(self, bindsnet: ModuleType, x_tar: float, mu: float, wmin: float) -> None:
        pre, post = spikes(T, B, I), spikes(T, B, J)
        nodes = {**NODES, "traces_additive": True}
        options = {"nu": (0.0, 2e-2), "wmin": wmin, "wmax": 1.0, "x_tar": x_tar, "mu": mu}
        before, theirs = self.learned(bindsnet.learning.DiehlAndCook, pre, post, nodes, **options)
        rule = STDPRule.bindsnet_diehl_cook(**options, **nodes)
        assert_learned(trained(before, pre, post, rule), theirs, before)


class TestNorse:
    @pytest.mark.parametrize("hardbound", [True, False])
    @pytest.mark.parametrize("algorithm", ["additive", "additive_step", "multiplicative_pow", "multiplicative_relu"])
    def test_linear(self, algorithm: str, hardbound: bool) -> None:
        norse = pytest.importorskip("norse.torch.functional.stdp", reason="needs norse (the extra `peers`)")
        # Without hard bounds a weight may leave them, where Norse's power is NaN: room enough that none does.
        w_min, w_max = (-0.1, 1.2) if algorithm == "multiplicative_pow" and not hardbound else (0.25, 0.75)
        options = {"stdp_algorithm": algorithm, "hardbound": hardbound, "w_min": w_min, "w_max": w_max, "mu": 0.5}
        options |= {"eta_plus": 3e-2, "eta_minus": 4.5e-2}
        dynamics = {"a_pre": 1.5, "a_post": 0.8, "tau_pre_inv": 1 / 10e-3, "tau_post_inv": 1 / 20e-3}
        parameters = norse.STDPParameters(**options, **{name: torch.tensor(v) for name, v in dynamics.items()})
        pre, post = spikes(T, B, I), spikes(T, B, J)
        before = 0.3 + 0.4 * torch.rand(J, I)
        state, theirs = norse.STDPState(torch.zeros(B, I), torch.zeros(B, J)), before
        for t in range(T):
            theirs, state = norse.stdp_step_linear(pre[t], post[t], theirs, state, parameters, dt=0.002)
        rule = STDPRule.norse(**options, **dynamics, dt=0.002)
        assert_learned(trained(before, pre, post, rule), theirs, before)
        if algorithm.startswith("additive"):
            assert ((theirs <= w_min) | (theirs >= w_max)).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: STDPRule.spikingjelly("m", 2.0, 2.0, learner="stdp"), "learner"),
        (lambda: STDPRule.spikingjelly("t", 2.0, 2.0), "step_mode"),
        (lambda: STDPRule.spikingjelly("m", 2.0, 2.0, learner="MSTDPLearner"), "step_mode"),
        (lambda: STDPRule.spikingjelly("m", 0.5, 2.0), "tau_pre"),
        (lambda: STDPRule.spikingjelly("s", 2.0, math.nan, learner="MSTDPLearner"), "tau_post"),
        (lambda: STDPRule.spikingjelly("s", 2.0, 2.0, learner="MSTDPETLearner"), "tau_trace"),
        (lambda: STDPRule.spikingjelly("s", 2.0, 2.0, tau_trace=2.0), "tau_trace"),
        (lambda: STDPRule.bindsnet_postpre((1.0, 2.0, 3.0)), "nu"),
        (lambda: STDPRule.bindsnet_postpre(1.0, tc_trace=(20.0, 0.0)), "tc_trace"),
        (lambda: STDPRule.bindsnet_postpre(1.0, dt=0.0), "dt"),
        (lambda: STDPRule.bindsnet_weight_dependent(1.0, wmin=0.0, wmax=math.inf), "w_max"),
        (lambda: STDPRule.norse("soft"), "stdp_algorithm"),
        (lambda: STDPRule.norse(dt=1.0), "tau_pre_inv"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], STDPRule], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert str(caught.value).startswith("STDPRule")
    assert "\n" not in str(caught.value)
