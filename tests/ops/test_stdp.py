"""stdp, stdp_ and stdp_consolidate: tables worked by hand, a second version number by number, gradients, manners."""

import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from properties import (
    DEVICES,
    LAYOUTS,
    REAL,
    assert_any_layout,
    assert_only_asked,
    assert_pure,
    assert_refused,
    assert_same_bits,
    laid_out,
    sliced,
    tensors,
)
from stdp_cases import Problem, jumps, problems, scalar_stdp
from stdp_cases import random_problem as any_problem
from torch import Tensor

from artsy_ext import ops
from artsy_ext.ops import STDPRule, Traces, Triplet

# One synapse, four steps: decay_pre = 1/2, decay_post = 1/4, a_plus = 16, a_minus = 32
#
#                  t = 0   1     2     3         read with "exclusive" timing:
# pre                  1   1     0     1
# post                 0   1     1     1
# x, all               1   3/2   3/4   11/8      0   1/2   3/4   3/8
# y, all               0   1     5/4   21/16     0   0     1/4   5/16
# x, nearest           1   1     1/2   1         0   1/2   1/2   1/4
# y, nearest           0   1     1     1         0   0     1/4   1/4
#
# Inclusive, all: LTP = Σ post·x = 3/2 + 3/4 + 11/8 = 29/8, LTD = Σ pre·y = 0 + 1 + 21/16 = 37/16, so
# ΔW = 16·29/8 − 32·37/16 = 58 − 74 = −16. Step by step:
#   t=0: 0;  t=1: 16·3/2 − 32·1 = −8;  t=2: 16·3/4 = 12;  t=3: 16·11/8 − 32·21/16 = 22 − 42 = −20.
PRE, POST = [1, 1, 0, 1], [0, 1, 1, 1]
BASE = {"decay_pre": 0.5, "decay_post": 0.25, "a_plus": 16.0, "a_minus": 32.0}
UNIT_AMPLITUDES = {"a_plus": 1.0, "a_minus": 2.0}


def train(values: list, *, dtype: torch.dtype = torch.bool, device: str = "cpu") -> Tensor:
    """[T] -> [T, 1, 1]: one sample, one pre-synaptic neuron."""
    return torch.tensor(values, device=device).to(dtype).view(-1, 1, 1)


def synapse(value: float, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    return torch.full((1, 1, 1), value, dtype=dtype, device=device)


def one_synapse(
    before: float, pre: list, post: list, fields: dict, dtype: torch.dtype, device: str, **more: Any
) -> tuple[float, Traces]:
    spikes = (train(pre, dtype=dtype, device=device), train(post, dtype=dtype, device=device)[:, :, None])
    weight, traces = ops.stdp(synapse(before, dtype, device), *spikes, STDPRule(**{**BASE, **fields}), **more)
    return weight.item(), traces


RULE_TABLE = [
    pytest.param({}, 64, 48, id="inclusive-all"),
    # LTP 1/2 + 3/4 + 3/8 = 13/8, LTD 5/16: 26 − 10.
    pytest.param({"timing": "exclusive"}, 64, 80, id="exclusive-all"),
    # LTP 1 + 1/2 + 1 = 5/2, LTD 1 + 1 = 2: 40 − 64.
    pytest.param({"pairing": "nearest"}, 64, 40, id="inclusive-nearest"),
    # LTP 1/2 + 1/2 + 1/4 = 5/4, LTD 1/4: 20 − 8.
    pytest.param({"pairing": "nearest", "timing": "exclusive"}, 64, 76, id="exclusive-nearest"),
    # x doubles, y halves: 116 − 37, and for nearest 80 − 32.
    pytest.param({"gain_pre": 2.0, "gain_post": 0.5}, 1, 80, id="gain-all"),
    pytest.param({"gain_pre": 2.0, "gain_post": 0.5, "pairing": "nearest"}, 1, 49, id="gain-nearest"),
    # Three post spikes, each 16·1/2 less: −16 − 24; exclusive: 16 − 24.
    pytest.param({"x_target": 0.5}, 64, 24, id="x_target"),
    pytest.param({"x_target": 0.5, "timing": "exclusive"}, 64, 56, id="x_target-exclusive"),
    # Nothing decays: x = 1 2 2 3, y = 0 1 2 3: 16·7 − 32·4.
    pytest.param({"decay_pre": 1.0, "decay_post": 1.0}, 64, 48, id="decay-1"),
    # Only coincidences: t=1 and t=3, 16 − 32 each; with exclusive timing nothing.
    pytest.param({"decay_pre": 0.0, "decay_post": 0.0}, 64, 32, id="decay-0"),
    pytest.param({"decay_pre": 0.0, "decay_post": 0.0, "timing": "exclusive"}, 64, 64, id="decay-0-exclusive"),
    # Anti-Hebbian: the sign of the amplitudes is free.
    pytest.param({"a_plus": -16.0, "a_minus": -32.0}, 64, 80, id="negative-amplitudes"),
    pytest.param({"a_plus": 0.0}, 64, -10, id="only-ltd"),
    pytest.param({"a_minus": 0.0}, 64, 122, id="only-ltp"),
    # 64 → 32 + 0 → 16 − 8 → 4 + 12 → 8 − 20.
    pytest.param({"weight_decay": 0.5}, 64, -12, id="weight_decay"),
    # Decayed to 0 at each step: only the last change is left.
    pytest.param({"weight_decay": 1.0}, 64, -20, id="weight_decay-1"),
    # ΔW = W₀·(−16).
    pytest.param({"dependence": "proportional"}, 2, -30, id="proportional-call"),
    # W ← W·(1 + Δ): 2 · 1 · (−7) · 13 · (−19).
    pytest.param({"dependence": "proportional", "evaluate": "step"}, 2, 3458, id="proportional-step"),
    # f = W₀ = 2, read before the first decay: 1 + 0; 1/2 − 16 = −31/2; −31/4 + 24 = 65/4; 65/8 − 40 = −255/8.
    pytest.param({"dependence": "proportional", "weight_decay": 0.5}, 2, -31.875, id="proportional-call-decay"),
    # f is read after the decay, W ← W/2·(1 + Δ): 2 → 1 → −7/2 → −91/4 → 1729/8.
    pytest.param(
        {"dependence": "proportional", "weight_decay": 0.5, "evaluate": "step"},
        2,
        216.125,
        id="proportional-step-decay",
    ),
    # f₊ = 4 − 1 = 3, f₋ = 1 − 0: 58·3 − 74·1 = 100; squared: 58·9 − 74 = 448; from 3: 58·1 − 74·9 = −608.
    pytest.param({"dependence": "soft", "w_min": 0.0, "w_max": 4.0}, 1, 101, id="soft"),
    pytest.param({"dependence": "soft", "w_min": 0.0, "w_max": 4.0, "exponent": 2.0}, 1, 449, id="soft-squared"),
    pytest.param({"dependence": "soft", "w_min": 0.0, "w_max": 4.0, "exponent": 2.0}, 3, -605, id="soft-squared-3"),
    # Beyond a bound nothing goes further: f₊ = 0, f₋ = 6: −444; f₊ = 5, f₋ = 0: 290.
    pytest.param({"dependence": "soft", "w_min": 0.0, "w_max": 4.0}, 6, -438, id="soft-above"),
    pytest.param({"dependence": "soft", "w_min": 0.0, "w_max": 4.0}, -1, 289, id="soft-below"),
    # With a_plus = 1, a_minus = 2:  t=1: 2 + 2·3/2 − 2·2·1 = 1;  t=2: 1 + 3·3/4 = 13/4;
    # t=3: 13/4 + 3/4·11/8 − 2·13/4·21/16 = (104 + 33 − 273)/32 = −17/4.
    pytest.param(
        {**UNIT_AMPLITUDES, "dependence": "soft", "w_min": 0.0, "w_max": 4.0, "evaluate": "step"},
        2,
        -4.25,
        id="soft-step",
    ),
    # [W < 4], [W > 0]: at 4 only depression (−74), at 0 only potentiation (+58), between them both.
    pytest.param({"dependence": "hard", "w_min": 0.0, "w_max": 4.0}, 4, -70, id="hard-at-w_max"),
    pytest.param({"dependence": "hard", "w_min": 0.0, "w_max": 4.0}, 0, 58, id="hard-at-w_min"),
    pytest.param({"dependence": "hard", "w_min": 0.0, "w_max": 4.0}, 2, -14, id="hard-between"),
    # 2 → 2 − 8 = −6 → −6 + 12 = 6 → potentiation off: 6 − 42.
    pytest.param({"dependence": "hard", "w_min": 0.0, "w_max": 4.0, "evaluate": "step"}, 2, -36, id="hard-step"),
    # Without bounds hard is none.
    pytest.param({"dependence": "hard"}, 64, 48, id="hard-unbounded"),
    # 60 − 16 = 44; at the end into [0, 30]; at each step 60 → 30 → 22 → 34 → 30 → 10.
    pytest.param({"w_min": 0.0, "w_max": 30.0}, 60, 44, id="clamp-never"),
    pytest.param({"w_min": 0.0, "w_max": 30.0, "clamp": "end"}, 60, 30, id="clamp-end"),
    pytest.param({"w_min": 0.0, "w_max": 30.0, "clamp": "step"}, 60, 10, id="clamp-step"),
    # One bound only: 4 → −4 → 0 → 12 → −8 → 0;  4 → 0 → −8 → 4 → 0 → −20.
    pytest.param({"w_min": 0.0, "clamp": "step"}, 4, 0, id="clamp-step-below"),
    pytest.param({"w_max": 0.0, "clamp": "step"}, 4, -20, id="clamp-step-above"),
    # Clamping and hard bounds together: 2 → −6 → 0 → 12 → 4 → f₊ off: 4 − 42 → 0.
    pytest.param(
        {"dependence": "hard", "evaluate": "step", "clamp": "step", "w_min": 0.0, "w_max": 4.0},
        2,
        0,
        id="hard-clamp",
    ),
    # e = 1/2·e + Δ: 0, −8, 8, −16, and their sum.
    pytest.param({"eligibility": 0.5}, 64, 48, id="eligibility"),
    # Read one step later: 0 + 0 − 8 + 8.
    pytest.param({"eligibility": 0.5, "modulation_delay": 1}, 64, 64, id="eligibility-delay"),
    # Forgotten at once: the plain rule, one step later without its last step (−16 + 20).
    pytest.param({"eligibility": 0.0}, 64, 48, id="eligibility-0"),
    pytest.param({"eligibility": 0.0, "modulation_delay": 1}, 64, 68, id="eligibility-0-delay"),
    # Never forgotten: 0 − 8 + 4 − 16.
    pytest.param({"eligibility": 1.0}, 64, 44, id="eligibility-1"),
    # Slow traces, decay 1/2 both, read without this step's spike: pre 0 1/2 3/4 3/8, post 0 0 1/2 3/4.
    # LTP Σ post·x·(16 + 8·slow post) = 3/2·16 + 3/4·20 + 11/8·22 = 24 + 15 + 121/4
    # LTD Σ pre·y·(32 + 16·slow pre) = 1·40 + 21/16·38 = 40 + 399/8;  together −165/8.
    pytest.param({"triplet": Triplet(0.5, 0.5, 8.0, 16.0)}, 64, 43.375, id="triplet"),
    # Exclusive: 1/2·16 + 3/4·20 + 3/8·22 − 5/16·38 = 8 + 15 + 33/4 − 95/8 = 155/8.
    pytest.param({"triplet": Triplet(0.5, 0.5, 8.0, 16.0), "timing": "exclusive"}, 64, 83.375, id="triplet-exclusive"),
    # Different decays, 1/4 and 1: slow pre 0 1/4 5/16 5/64, slow post 0 0 1 2; triplet terms alone:
    # 8·(3/4·1 + 11/8·2) − 16·(1·1/4 + 21/16·5/64) = 28 − 4 − 105/64.
    pytest.param(
        {"triplet": Triplet(0.25, 1.0, 8.0, 16.0), "a_plus": 0.0, "a_minus": 0.0}, 0, 22.359375, id="triplet-alone"
    ),
    # No effect: bounds that nothing reads, an exponent without soft bounds, a delay without eligibility,
    # a triplet of amplitude 0.
    pytest.param({"w_min": 0.0, "w_max": 1.0}, 64, 48, id="bounds-unread"),
    pytest.param({"exponent": 3.0}, 64, 48, id="exponent-unread"),
    pytest.param({"modulation_delay": 1}, 64, 48, id="delay-unread"),
    pytest.param({"evaluate": "step"}, 64, 48, id="evaluate-unread"),
    pytest.param({"triplet": Triplet(0.5, 0.5, 0.0, 0.0)}, 64, 48, id="triplet-0"),
]


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("fields", "before", "after"), RULE_TABLE)
def test_rule_table(fields, before, after, dtype, device):
    assert one_synapse(before, PRE, POST, fields, dtype, device)[0] == after


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(
    ("pre", "post", "fields", "change"),
    [
        # Nothing fires, or only one side does: no pair.
        ([0] * 4, [0] * 4, {}, 0),
        ([0, 1, 0, 0], [0] * 4, {}, 0),
        ([0] * 4, [0, 1, 0, 0], {}, 0),
        # … but x_target depresses where post fires alone: −16·1/2.
        ([0] * 4, [0, 1, 0, 0], {"x_target": 0.5}, -8),
        # One pair, pre first: 16·(1/2)²; post first: −32·(1/4)²; together: 16 − 32, or nothing.
        ([1, 0, 0, 0], [0, 0, 1, 0], {}, 4),
        ([0, 0, 1, 0], [1, 0, 0, 0], {}, -2),
        ([0, 1, 0, 0], [0, 1, 0, 0], {}, -16),
        ([0, 1, 0, 0], [0, 1, 0, 0], {"timing": "exclusive"}, 0),
        # All fire: x = 1 3/2 7/4 15/8, Σ = 49/8; y = 1 5/4 21/16 85/64, Σ = 313/64: 98 − 156.5.
        ([1] * 4, [1] * 4, {}, -58.5),
        # Read a step before, x = 0 1/2 3/4 7/8, Σ = 17/8; y = 0 1/4 5/16 21/64, Σ = 57/64: 34 − 28.5.
        ([1] * 4, [1] * 4, {"timing": "exclusive"}, 5.5),
        ([1] * 4, [1] * 4, {"pairing": "nearest"}, -64),
        # 1/2 and 1/4 three times: 24 − 24.
        ([1] * 4, [1] * 4, {"pairing": "nearest", "timing": "exclusive"}, 0),
        # Graded and signed. x = 2 2 1 −1/2, y = 0 1/2 −7/8 25/32:
        # LTP 1/2·2 − 1·1 − 1·1/2 = −1/2; LTD 1·1/2 − 1·25/32 = −9/32: −8 + 9.
        ([2, 1, 0, -1], [0, 0.5, -1, 1], {}, 1),
        # A spike of any size sets a nearest trace to the gain. x = 1 1 1/2 1, y = 0 1 1 1:
        # LTP 1/2·1 − 1·1/2 + 1·1 = 1; LTD 1·1 − 1·1 = 0.
        ([2, 1, 0, -1], [0, 0.5, -1, 1], {"pairing": "nearest"}, 16),
    ],
)
def test_spike_table(pre, post, fields, change, dtype):
    assert one_synapse(0, pre, post, fields, dtype, "cpu")[0] == change


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(
    ("modulation", "fields", "change"),
    [
        # Changes 0, −8, 12, −20 of the single steps.
        ([1, 2, 3, 4], {}, -60),
        ([1, -1, 0.5, 0], {}, 14),
        # Eligibility 0, −8, 8, −16: −16 + 24 − 64; read a step later: 3·(−8) + 4·8.
        ([1, 2, 3, 4], {"eligibility": 0.5}, -56),
        ([1, 2, 3, 4], {"eligibility": 0.5, "modulation_delay": 1}, 8),
        # A reward at the last step only pays for all that is still eligible.
        ([0, 0, 0, 1], {"eligibility": 0.5}, -16),
        ([0, 0, 0, 1], {"eligibility": 0.5, "modulation_delay": 1}, 8),
        # The weight decays whatever the modulation.
        ([0, 0, 0, 0], {"weight_decay": 0.5}, -60),
    ],
)
def test_modulation_table(modulation, fields, change, dtype):
    factors = torch.tensor(modulation, dtype=dtype)
    for shape in ((4, 1), (4, 1, 1)):
        assert one_synapse(64, PRE, POST, fields, dtype, "cpu", modulation=factors.view(shape))[0] == 64 + change


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(
    ("fields", "traces", "change", "after"),
    [
        # The traces do not depend on the timing; slow traces: 1 3/2 3/4 11/8 and 0 1 3/2 7/4.
        ({}, None, -16, [11 / 8, 21 / 16]),
        ({"timing": "exclusive"}, None, 16, [11 / 8, 21 / 16]),
        ({"pairing": "nearest"}, None, -24, [1, 1]),
        ({"triplet": Triplet(0.5, 0.5, 8.0, 16.0)}, None, -20.625, [11 / 8, 21 / 16, 11 / 8, 7 / 4]),
        ({"eligibility": 0.5}, None, -16, [11 / 8, 21 / 16, None, None, -16]),
        # From x = 8, y = 16: x = 5 7/2 7/4 15/8, y = 4 2 3/2 11/8.
        # LTP 7/2 + 7/4 + 15/8 = 57/8, LTD 4 + 2 + 11/8 = 59/8: 114 − 236.
        ({}, [8, 16], -122, [15 / 8, 11 / 8]),
        # Read a step before: x = 4 5/2 7/4 7/8, y = 4 1 1/2 3/8: LTP 41/8, LTD 43/8: 82 − 172.
        ({"timing": "exclusive"}, [8, 16], -90, [15 / 8, 11 / 8]),
        # The first post spike meets the old x nowhere, the first pre spike the old y: y = 4 1 1 1, x as from zero.
        ({"pairing": "nearest"}, [8, 16], -152, [1, 1]),
        # e from 4: 2, −7, 17/2, −63/4, sum −49/4; a step later: 4 + 2 − 7 + 17/2.
        ({"eligibility": 0.5}, [0, 0, None, None, 4], -12.25, [11 / 8, 21 / 16, None, None, -63 / 4]),
        (
            {"eligibility": 0.5, "modulation_delay": 1},
            [0, 0, None, None, 4],
            7.5,
            [11 / 8, 21 / 16, None, None, -63 / 4],
        ),
        # Slow traces from 4 and 8, read 2 3/2 5/4 5/8 and 4 2 3/2 5/4, end 13/8 and 9/4. Triplet terms alone:
        # 8·(3/2·2 + 3/4·3/2 + 11/8·5/4) = 8·(96 + 36 + 55)/32 = 187/4; 16·(3/2 + 21/16·5/8) = 24 + 105/8.
        (
            {"triplet": Triplet(0.5, 0.5, 8.0, 16.0), "a_plus": 0.0, "a_minus": 0.0},
            [0, 0, 4, 8],
            9.625,
            [11 / 8, 21 / 16, 13 / 8, 9 / 4],
        ),
        # What the rule does not keep is ignored.
        ({}, [0, 0, 5, 5, 5], -16, [11 / 8, 21 / 16]),
    ],
)
def test_trace_table(fields, traces, change, after, dtype):
    shapes = ((1, 1), (1, 1, 1), (1, 1), (1, 1, 1), (1, 1, 1, 1))

    def as_traces(values: list) -> Traces:
        values = [*values, *[None] * (5 - len(values))]
        return Traces(
            *(None if v is None else torch.full(s, float(v), dtype=dtype) for v, s in zip(values, shapes, strict=True))
        )

    given_traces = None if traces is None else as_traces(traces)
    weight, kept = one_synapse(64, PRE, POST, fields, dtype, "cpu", traces=given_traces)
    assert weight == 64 + change
    assert isinstance(kept, Traces)
    assert_same_bits(kept, as_traces(after))


@pytest.mark.parametrize("dtype", REAL)
def test_which_spike_meets_which_synapse(dtype: torch.dtype, device: str) -> None:
    """Two samples, sub-networks and post-synaptic, three pre-synaptic neurons; every number tells where it came from.

    Exclusive timing, T = 2, decay_pre = 1/2, decay_post = 1/4. Before t = 0 nothing is traced, so that all happens at
    t = 1: ΔW[s,j,i] = Σ_b a_plus[s] · post₁[b,s,j] · pre₀[b,i]/2 − a_minus[s] · pre₁[b,i] · post₀[b,s,j]/4.
    """

    def tensor(values: list) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    rule = STDPRule(0.5, 0.25, a_plus=tensor([2, 4]), a_minus=tensor([4, 16]), timing="exclusive")
    pre = tensor([[[1, 2, 3], [4, 5, 6]], [[0, 1, 0], [1, 0, 0]]])
    post = tensor([[[[1, 2], [3, 4]], [[5, 6], [7, 8]]], [[[1, 0], [0, 1]], [[0, 2], [1, 1]]]])
    # LTP, a_plus/2 = 1, 2:
    #   s=0, j=0: 1·(1, 2, 3) + 0                      = (1, 2, 3)
    #   s=0, j=1: 0 + 2·(4, 5, 6)                      = (8, 10, 12)
    #   s=1, j=0: 2·(0 + 1·(4, 5, 6))                  = (8, 10, 12)
    #   s=1, j=1: 2·(1·(1, 2, 3) + 1·(4, 5, 6))        = (10, 14, 18)
    # LTD, a_minus/4 = 1, 4; sample 0 reaches i = 1, sample 1 reaches i = 0:
    #   s=0, j=0: (5, 1, 0);  s=0, j=1: (6, 2, 0);  s=1, j=0: 4·(7, 3, 0);  s=1, j=1: 4·(8, 4, 0)
    expected = tensor([[[-4, 1, 3], [2, 8, 12]], [[-20, -2, 12], [-22, -2, 18]]])
    weight = torch.zeros(2, 2, 3, dtype=dtype, device=device)
    assert_same_bits(ops.stdp(weight, pre, post, rule)[0], expected)

    # Pre-synaptic neurons of their own: sub-network 1 sees them in reverse order.
    own = torch.stack((pre, pre.flip(-1)), dim=2)
    expected[1] = expected[1].flip(-1)
    assert_same_bits(ops.stdp(weight, own, post, rule)[0], expected)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(
    ("reduction", "mask", "modulation", "expected"),
    [
        # Sample 0 is the table above (−16), sample 1 a coincidence at t = 3 (16 − 32 = −16) whose post amplitude is
        # halved in sub-network 1 (8 − 16 = −8).
        ("sum", None, None, [-32, -24]),
        ("mean", None, None, [-16, -12]),
        ("sum", [[1, 0], [0, 1]], None, [-16, -8]),
        # Divided by B = 2 whatever the mask.
        ("mean", [[1, 0], [0, 1]], None, [-8, -4]),
        ("mean", [[0, 0], [0, 0]], None, [0, 0]),
        # By sample: sample 1 counts three times. By step (t = 3 only, −20 in sample 0). By sub-network.
        ("sum", None, [[1, 3]] * 4, [-64, -40]),
        ("sum", None, [[0, 0]] * 3 + [[1, 1]], [-36, -28]),
        ("sum", None, [[[1, 2], [3, 4]]] * 4, [-64, -64]),
        ("mean", [[0, 1], [1, 1]], [[[1, 2], [3, 4]]] * 4, [-24, -32]),
    ],
)
def test_batch_table(reduction, mask, modulation, expected, dtype):
    pre = torch.tensor([PRE, [0, 0, 0, 1]], dtype=dtype).T[..., None]
    post = torch.tensor([[POST, POST], [[0, 0, 0, 1], [0, 0, 0, 0.5]]], dtype=dtype).permute(2, 0, 1)[..., None]
    rule = STDPRule(**BASE, reduction=reduction)
    keywords = {
        "mask": None if mask is None else torch.tensor(mask, dtype=torch.bool),
        "modulation": None if modulation is None else torch.tensor(modulation, dtype=dtype),
    }
    weight, traces = ops.stdp(torch.zeros(2, 1, 1, dtype=dtype), pre, post, rule, **keywords)
    assert weight.flatten().tolist() == expected
    # Neither mask nor modulation touches the traces.
    assert_same_bits(traces, ops.stdp(torch.zeros(2, 1, 1, dtype=dtype), pre, post, rule)[1])


def test_mask_and_modulation_leave_the_eligibility_alone():
    """An eligible pair that was masked, or not rewarded, can still be paid for later."""
    spikes = (train(PRE), train(POST)[:, :, None])
    rule = STDPRule(**BASE, eligibility=0.5)
    for keywords in ({"mask": torch.zeros(1, 1, dtype=torch.bool)}, {"modulation": torch.zeros(4, 1).double()}):
        weight, traces = ops.stdp(synapse(64), *spikes, rule, **keywords)
        assert weight.item() == 64
        assert traces.eligibility.item() == -16


@pytest.mark.parametrize("kind", ["inclusive", "exclusive"])
def test_window(kind):
    """One pair Δt steps apart: A₊·exp(−Δt·dt/τ₊) where pre came first, −A₋·exp(Δt·dt/τ₋) where post did."""
    reach, dt, tau_pre, tau_post, a_plus, a_minus = 20, 0.5, 16.8, 33.7, 0.01, 0.0105
    gaps = torch.arange(-reach, reach + 1, dtype=torch.float64)
    # Pre-synaptic neuron i fires at its own step, the post-synaptic one in the middle.
    pre = torch.eye(2 * reach + 1).flip(0)[:, None]
    post = torch.zeros(2 * reach + 1, 1, 1, 1)
    post[reach] = 1
    rule = STDPRule.from_time_constants(tau_pre, tau_post, dt, a_plus=a_plus, a_minus=a_minus, timing=kind)
    window = ops.stdp(torch.zeros(1, 1, 2 * reach + 1).double(), pre, post, rule)[0].flatten()
    expected = torch.where(
        gaps > 0, a_plus * torch.exp(-gaps * dt / tau_pre), -a_minus * torch.exp(gaps * dt / tau_post)
    )
    expected[reach] = a_plus - a_minus if kind == "inclusive" else 0
    torch.testing.assert_close(window, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("device", DEVICES)
@given(problem=problems())
@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_random_rules_number_by_number(device, problem):
    expected = scalar_stdp(problem.weight, problem.pre, problem.post, problem.rule, **problem.keywords)
    given_ = problem.to(torch.float64, device)
    actual = ops.stdp(given_.weight, given_.pre, given_.post, given_.rule, **given_.keywords)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9, check_device=False)
    definition = ops.reference.stdp(given_.weight, given_.pre, given_.post, given_.rule, **given_.keywords)
    torch.testing.assert_close(actual, definition, rtol=1e-9, atol=1e-9)


TRIPLET = Triplet(0.9, 0.8, 0.02, 0.03)
RULES = {
    "plain": STDPRule(0.8, 0.7, a_plus=0.2, a_minus=0.1),
    "exclusive-mean": STDPRule(0.8, 0.7, a_plus=0.2, a_minus=0.1, timing="exclusive", reduction="mean", x_target=0.3),
    "nearest": STDPRule(0.8, 0.7, gain_pre=0.5, pairing="nearest", weight_decay=0.01),
    "proportional": STDPRule(0.8, 0.7, a_plus=0.1, dependence="proportional", evaluate="step", weight_decay=0.01),
    "soft": STDPRule(0.8, 0.7, dependence="soft", exponent=2.0, evaluate="step", w_min=-4.0, w_max=4.0),
    "soft-call": STDPRule(0.8, 0.7, dependence="soft", exponent=2.0, w_min=-4.0, w_max=4.0),
    "hard": STDPRule(0.8, 0.7, dependence="hard", evaluate="step", clamp="step", w_min=-0.5, w_max=0.5),
    "triplet": STDPRule(0.8, 0.7, triplet=TRIPLET),
    "triplet-nearest": STDPRule(0.8, 0.7, triplet=TRIPLET, pairing="nearest", timing="exclusive"),
    "eligibility": STDPRule(0.8, 0.7, eligibility=0.9),
    "eligibility-delay": STDPRule(0.8, 0.7, eligibility=0.9, modulation_delay=1, triplet=TRIPLET, reduction="mean"),
    "everything": STDPRule(
        0.8,
        0.7,
        gain_pre=0.7,
        gain_post=1.3,
        x_target=0.1,
        timing="exclusive",
        dependence="soft",
        evaluate="step",
        w_min=-4.0,
        w_max=4.0,
        clamp="step",
        weight_decay=0.01,
        eligibility=0.5,
        modulation_delay=1,
        triplet=TRIPLET,
    ),
}
EVERY_STEP = {name: rule for name, rule in RULES.items() if name != "soft-call"}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def random_traces(rule: STDPRule, pre: Tensor, post: Tensor, I: int, dtype: torch.dtype) -> Traces:
    pre_shape, post_shape = pre.shape[1:], post.shape[1:]
    slow = rule.triplet is not None
    return Traces(
        torch.rand(pre_shape, dtype=dtype),
        torch.rand(post_shape, dtype=dtype),
        torch.rand(pre_shape, dtype=dtype) if slow else None,
        torch.rand(post_shape, dtype=dtype) if slow else None,
        None if rule.eligibility is None else torch.randn(*post_shape, I, dtype=dtype),
    )


def random_problem(
    rule: STDPRule,
    sizes: tuple[int, ...] = (7, 3, 2, 3, 5),
    *,
    dtype: torch.dtype = torch.float64,
    shared: bool = True,
    graded: bool = False,
    traces: bool = True,
    factors: bool = True,
) -> Problem:
    """Sizes are T, B, S, J, I."""
    T, B, S, J, I = sizes
    pre, post = torch.rand(T, B, *(() if shared else (S,)), I), torch.rand(T, B, S, J)
    pre, post = (pre.to(dtype) + 0.1, post.to(dtype) + 0.1) if graded else (pre < 0.4, post < 0.4)
    keywords: dict[str, Any] = {}
    if traces:
        keywords["traces"] = random_traces(rule, pre, post, I, dtype)
    if factors:
        keywords["modulation"] = torch.randn(T, B, S, dtype=dtype)
        keywords["mask"] = torch.rand(B, S) < 0.7
    return Problem(torch.rand(S, J, I, dtype=dtype) - 0.5, pre, post, rule, keywords)


def run(op: Any, problem: Problem, **changed: Any) -> Any:
    return op(problem.weight, problem.pre, problem.post, problem.rule, **{**problem.keywords, **changed})


def flat(problem: Problem) -> tuple[Any, ...]:
    """The positional arguments of torch.ops.artsy.stdp."""
    weight, keywords = problem.weight, problem.keywords
    amplitudes = (
        a if isinstance(a, Tensor) else weight.new_full(weight.shape[:1], a)
        for a in (problem.rule.a_plus, problem.rule.a_minus)
    )
    traces = keywords.get("traces") or (None,) * 5
    factors = (keywords.get("modulation"), keywords.get("mask"))
    return (weight, problem.pre, problem.post, *amplitudes, *traces, *factors)


@pytest.mark.parametrize("rule", EVERY_STEP.values(), ids=EVERY_STEP.keys())
@pytest.mark.parametrize("shared", [True, False])
def test_chunks_equal_the_whole(rule, shared):
    problem = random_problem(rule, shared=shared)
    whole = run(ops.stdp, problem)
    weight, traces = problem.weight, problem.keywords["traces"]
    for a, b in ((0, 3), (3, 3), (3, 4), (4, 7)):
        chunk = Problem(weight, problem.pre[a:b], problem.post[a:b], rule, dict(problem.keywords))
        weight, traces = run(ops.stdp, chunk, traces=traces, modulation=problem.keywords["modulation"][a:b])
    torch.testing.assert_close((weight, traces), whole, rtol=1e-12, atol=1e-12)


@every_rule
def test_shared_pre_equals_a_copy_per_subnetwork(rule):
    problem = random_problem(rule, traces=False)
    weight, traces = run(ops.stdp, problem)
    problem.pre = problem.pre[:, :, None].expand(-1, -1, 2, -1)
    own_weight, own_traces = run(ops.stdp, problem)
    torch.testing.assert_close(own_weight, weight, rtol=1e-12, atol=1e-12)
    for own, common in zip(own_traces, traces, strict=True):
        if common is not None:
            torch.testing.assert_close(own, common[:, None].expand_as(own) if own.dim() > common.dim() else common)


@every_rule
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_spikes_of_any_dtype(rule, dtype):
    problem = random_problem(rule, dtype=torch.float32)
    expected = run(ops.stdp, problem)
    problem.pre, problem.post = problem.pre.to(dtype), problem.post.to(dtype)
    torch.testing.assert_close(run(ops.stdp, problem), expected)


@every_rule
def test_float32_is_near_float64(rule):
    problem = random_problem(rule)
    expected = run(ops.stdp, problem)
    actual = run(ops.stdp, problem.to(torch.float32, "cpu"))
    assert all(tensor.dtype == torch.float32 for tensor in tensors(actual))
    torch.testing.assert_close(actual, expected, check_dtype=False, rtol=1e-5, atol=1e-5)


@every_rule
@pytest.mark.parametrize("traces", [True, False])
def test_pure_and_any_layout(rule, traces):
    problem = random_problem(rule, shared=traces, traces=traces)
    arguments = (problem.weight, problem.pre, problem.post, rule)
    assert_pure(ops.stdp, *arguments, **problem.keywords)
    assert_any_layout(ops.stdp, *arguments, **problem.keywords)


@every_rule
def test_no_steps_share_no_memory(rule):
    """With T = 0 the results are the inputs, in memory of their own; also backwards."""
    problem = random_problem(rule, (0, 3, 2, 3, 5))
    assert_pure(ops.stdp, problem.weight, problem.pre, problem.post, rule, **problem.keywords)
    weight, traces = run(ops.stdp, problem)
    assert_same_bits(weight, problem.weight)
    assert_same_bits(traces, problem.keywords["traces"])
    inputs = [tensor.requires_grad_() for tensor in (problem.weight, problem.keywords["traces"].pre)]
    weight, traces = run(ops.stdp, problem)
    outer = [torch.randn_like(weight), torch.randn_like(traces.pre)]
    gradients = torch.autograd.grad([weight, traces.pre], inputs, outer)
    assert_same_bits(gradients, outer)
    assert not {g.data_ptr() for g in gradients} & {g.data_ptr() for g in outer}


@every_rule
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("empty", range(5))
def test_empty(rule, shared, empty):
    sizes = [7, 3, 2, 3, 5]
    sizes[empty] = 0
    problem = random_problem(rule, tuple(sizes), shared=shared, graded=True)
    inputs = tensors((problem.weight, problem.pre, problem.post, problem.keywords["traces"]))
    for tensor in inputs:
        tensor.requires_grad_()
    weight, traces = run(ops.stdp, problem)
    assert weight.shape == problem.weight.shape
    assert [t if t is None else t.shape for t in traces] == [
        t if t is None else t.shape for t in problem.keywords["traces"]
    ]
    gradients = torch.autograd.grad(
        weight.sum() + sum(t.sum() for t in tensors(traces)), inputs, allow_unused=True, materialize_grads=True
    )
    assert [gradient.shape for gradient in gradients] == [tensor.shape for tensor in inputs]
    assert all(gradient.isfinite().all() for gradient in gradients)
    if empty == 1:  # nothing to learn from, but the weight still decays
        decayed = (1 - rule.weight_decay) ** 7 * problem.weight
        if rule.clamp == "step":
            decayed = decayed.clamp(rule.w_min, rule.w_max)
        torch.testing.assert_close(weight, decayed)


SMOOTH = [name for name in RULES if name != "hard"]


@pytest.mark.parametrize(
    ("name", "shared"),
    [*((name, True) for name in SMOOTH), ("plain", False), ("nearest", False), ("everything", False)],
)
def test_gradcheck(name, shared):
    """All arguments at once: weight, spikes, both amplitudes, modulation and every trace.

    Graded spikes stay away from 0, where the nearest trace jumps.
    """
    problem = random_problem(RULES[name], (3, 2, 2, 1, 2), shared=shared, graded=True)
    amplitudes = torch.rand(2, 2).double()
    traces = problem.keywords["traces"]
    kept = [field for field in Traces._fields if getattr(traces, field) is not None]

    def stdp(weight: Tensor, pre: Tensor, post: Tensor, a_plus: Tensor, a_minus: Tensor, *rest: Tensor) -> Any:
        rule = replace(problem.rule, a_plus=a_plus, a_minus=a_minus)
        modulation, *given_traces = rest
        new, after = ops.stdp(
            weight,
            pre,
            post,
            rule,
            traces=traces._replace(**dict(zip(kept, given_traces, strict=True))),
            modulation=modulation,
            mask=problem.keywords["mask"],
        )
        return new, *tensors(after)

    inputs = (problem.weight, problem.pre, problem.post, *amplitudes, problem.keywords["modulation"], *tensors(traces))
    inputs = tuple(tensor.clone().requires_grad_() for tensor in inputs)
    torch.autograd.gradcheck(stdp, inputs)


@pytest.mark.parametrize("name", ["plain", "nearest", "soft", "eligibility"])
def test_gradcheck_modulation_per_sample_and_no_traces(name):
    problem = random_problem(RULES[name], (3, 2, 2, 1, 2), graded=True, traces=False)
    modulation = torch.randn(3, 2).double().requires_grad_()
    weight = problem.weight.requires_grad_()

    def stdp(weight: Tensor, modulation: Tensor) -> Tensor:
        return ops.stdp(weight, problem.pre, problem.post, problem.rule, modulation=modulation)[0]

    torch.autograd.gradcheck(stdp, (weight, modulation))


@pytest.mark.parametrize(
    ("fields", "before", "gradient"),
    [
        ({}, 64, 1),
        ({"weight_decay": 0.5}, 64, 1 / 16),
        # 1 + ΔW/W₀, or the product of the steps.
        ({"dependence": "proportional"}, 2, -15),
        ({"dependence": "proportional", "evaluate": "step"}, 2, 1729),
        # d/dW (58·(4 − W) − 74·W) = −132.
        ({"dependence": "soft", "w_min": 0.0, "w_max": 4.0}, 1, -131),
        # Inside the bounds clamp passes the gradient, beyond them none.
        ({"clamp": "end", "w_min": 0.0, "w_max": 30.0}, 30, 1),
        ({"clamp": "end", "w_min": 0.0, "w_max": 30.0}, 60, 0),
        ({"clamp": "step", "w_min": 0.0, "w_max": 30.0}, 60, 0),
        # [W < w_max] switches without a gradient of its own.
        ({"dependence": "hard", "w_min": 0.0, "w_max": 4.0}, 2, 1),
    ],
)
def test_weight_gradient_table(fields, before, gradient):
    weight = synapse(before).requires_grad_()
    new, _ = ops.stdp(weight, train(PRE), train(POST)[:, :, None], STDPRule(**{**BASE, **fields}))
    assert torch.autograd.grad(new.sum(), weight)[0].item() == gradient


def test_amplitude_gradients_are_the_pairings():
    """ΔW is linear in the amplitudes: LTP = 29/8, LTD = 37/16, to each sub-network its own."""
    amplitudes = torch.tensor([[16.0, 1.0], [32.0, 2.0]], requires_grad=True)
    post = train(POST)[:, :, None].repeat(1, 1, 2, 1)
    rule = STDPRule(0.5, 0.25, a_plus=amplitudes[0], a_minus=amplitudes[1])
    new, _ = ops.stdp(torch.zeros(2, 1, 1), train(PRE), post, rule)
    assert new.flatten().tolist() == [-16, -1]
    (gradient,) = torch.autograd.grad(new.flatten() @ torch.tensor([1.0, 4.0]), amplitudes)
    assert gradient.tolist() == [[29 / 8, 29 / 2], [-37 / 16, -37 / 4]]


@pytest.mark.parametrize(
    "asked", [[0], [1], [2], [3], [4], [5], [7], [9], [10], [0, 10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]
)
def test_only_the_gradients_asked_for(asked):
    rule = RULES["everything"]
    arguments = flat(random_problem(rule, graded=True))
    assert_only_asked("stdp", lambda *args: torch.ops.artsy.stdp(*args, **rule.flatten()), arguments, asked)


def test_a_gradient_of_the_gradient_is_refused():
    """Better than one that is silently 0."""
    weight = synapse(2).requires_grad_()
    rule = STDPRule(**BASE, dependence="proportional")
    new, _ = ops.stdp(weight, train(PRE), train(POST)[:, :, None], rule)
    (gradient,) = torch.autograd.grad(new.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^stdp: "):
        gradient.sum().backward()


def test_no_gradient_where_none_is_asked():
    results = run(ops.stdp, random_problem(RULES["everything"]))
    assert not any(tensor.requires_grad for tensor in tensors(results))


@every_rule
@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_place_changes_the_weight_and_nothing_else(rule, layout):
    problem = random_problem(rule)
    weight, traces = run(ops.stdp, problem)
    problem.weight = LAYOUTS[layout](problem.weight)
    others = tensors((problem.pre, problem.post, problem.keywords))
    before, version, address = [other.clone() for other in others], problem.weight._version, problem.weight.data_ptr()
    changed, changed_traces = run(ops.stdp_, problem)
    assert changed is problem.weight
    assert changed.data_ptr() == address
    assert changed._version > version
    torch.testing.assert_close((changed, changed_traces), (weight, traces))
    assert_same_bits(others, before)
    memory = {tensor.untyped_storage().data_ptr() for tensor in (changed, *others)}
    assert not memory & {trace.untyped_storage().data_ptr() for trace in tensors(changed_traces)}


def test_in_place_reaches_a_part_of_a_larger_tensor():
    problem = random_problem(RULES["plain"])
    all_weights = torch.zeros(4, 3, 5).double()
    all_weights[1:3] = problem.weight
    expected, _ = run(ops.stdp, problem)
    problem.weight = all_weights[1:3]
    run(ops.stdp_, problem)
    assert_same_bits(all_weights[1:3], expected)
    assert not all_weights[[0, 3]].any()


def test_in_place_refuses_what_it_could_not_differentiate():
    problem = random_problem(RULES["plain"])
    expected, _ = run(ops.stdp, problem)
    before = problem.weight.clone()
    problem.weight.requires_grad_()
    assert_refused("stdp_", "weight", lambda: run(ops.stdp_, problem))
    assert_same_bits(problem.weight.detach(), before)
    with torch.no_grad():
        run(ops.stdp_, problem)
    assert_same_bits(problem.weight.detach(), expected)


def test_in_place_records_its_change_for_autograd():
    """A weight that a graph still needs must not be changed behind its back."""
    problem = random_problem(RULES["plain"])
    x = torch.ones_like(problem.weight, requires_grad=True)
    product = x * problem.weight
    run(ops.stdp_, problem)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


@every_rule
def test_stdp_consolidate_is_stdp_then_consolidate(rule):
    problem = random_problem(rule)
    functional = torch.rand_like(problem.weight) < 0.5
    weight, traces, state = ops.stdp_consolidate(
        problem.weight, functional, problem.pre, problem.post, rule, 0.4, 0.2, **problem.keywords
    )
    expected, expected_traces = run(ops.stdp, problem)
    assert_same_bits((weight, traces), (expected, expected_traces))
    assert_same_bits(state, ops.consolidate(expected, functional, 0.4, 0.2))
    assert_pure(
        ops.stdp_consolidate, problem.weight, functional, problem.pre, problem.post, rule, 0.4, 0.2, **problem.keywords
    )


@pytest.mark.parametrize("name", SMOOTH)
def test_stdp_consolidate_has_the_gradients_of_stdp(name):
    problem = random_problem(RULES[name], graded=True)
    inputs = tensors((problem.weight, problem.pre, problem.post, problem.keywords))[:-1]
    for tensor in inputs:
        tensor.requires_grad_(tensor.is_floating_point())
    inputs = [tensor for tensor in inputs if tensor.requires_grad]
    functional = torch.rand_like(problem.weight) < 0.5
    weight, _, state = ops.stdp_consolidate(
        problem.weight, functional, problem.pre, problem.post, problem.rule, 0.4, 0.2, **problem.keywords
    )
    assert not state.requires_grad
    expected, _ = run(ops.stdp, problem)
    actual, expected = (torch.autograd.grad(w.square().sum(), inputs) for w in (weight, expected))
    assert_same_bits(actual, expected)


def test_time_constants():
    exact = STDPRule.from_time_constants(20, 10, dt=2, a_plus=0.5, pairing="nearest")
    assert (exact.decay_pre, exact.decay_post) == pytest.approx((math.exp(-0.1), math.exp(-0.2)), rel=1e-15)
    assert (exact.a_plus, exact.pairing) == (0.5, "nearest")
    euler = STDPRule.from_time_constants(20, 10, dt=2, discretization="euler")
    assert (euler.decay_pre, euler.decay_post) == (0.9, 0.8)


def test_the_rule_is_frozen():
    with pytest.raises(FrozenInstanceError):
        STDPRule().decay_pre = 0.5
    assert STDPRule(0.5, 0.5) == STDPRule(0.5, 0.5)


def test_traces_name_what_the_rule_keeps():
    for rule in RULES.values():
        _, traces = run(ops.stdp, random_problem(rule, traces=False))
        kept = {name for name in Traces._fields if getattr(traces, name) is not None}
        slow = {"pre_slow", "post_slow"} if rule.triplet else set()
        assert kept == {"pre", "post"} | slow | ({"eligibility"} if rule.eligibility is not None else set())


@pytest.mark.parametrize(
    ("argument", "fields"),
    [
        *(
            (name, {name: value})
            for name in ("decay_pre", "decay_post", "weight_decay")
            for value in (-0.1, 1.1, math.nan)
        ),
        ("eligibility", {"eligibility": 1.5}),
        *((name, {name: math.nan}) for name in ("gain_pre", "gain_post", "a_plus", "a_minus", "x_target", "exponent")),
        *(
            (name, {name: "sometimes"})
            for name in ("pairing", "timing", "dependence", "evaluate", "clamp", "reduction")
        ),
        ("modulation_delay", {"modulation_delay": 2}),
        ("w_min", {"w_min": 1.0, "w_max": 0.0}),
        ("w_min", {"w_min": math.nan}),
        ("w_max", {"w_max": math.nan}),
        ("w_max", {"dependence": "soft", "w_min": 0.0}),
        ("triplet", {"triplet": (0.5, 0.5, 1.0, 1.0)}),
    ],
)
def test_bad_rule(argument, fields):
    assert_refused("STDPRule", argument, lambda: STDPRule(**fields))


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("decay_pre_slow", (1.5, 0.5, 1.0, 1.0)),
        ("decay_post_slow", (0.5, math.nan, 1.0, 1.0)),
        ("a_plus_3", (0.5, 0.5, math.inf, 1.0)),
        ("a_minus_3", (0.5, 0.5, 1.0, math.nan)),
    ],
)
def test_bad_triplet(argument, values):
    assert_refused("Triplet", argument, lambda: Triplet(*values))


@pytest.mark.parametrize(
    ("argument", "fields"),
    [
        ("tau_pre", {"tau_pre": 0.0}),
        ("tau_post", {"tau_post": -1.0}),
        ("tau_post", {"tau_post": math.nan}),
        ("dt", {"dt": 0.0}),
        ("discretization", {"discretization": "midpoint"}),
        # 1 − dt/τ < 0.
        ("decay_pre", {"dt": 25.0, "tau_post": 30.0, "discretization": "euler"}),
    ],
)
def test_bad_time_constants(argument, fields):
    assert_refused(
        "STDPRule", argument, lambda: STDPRule.from_time_constants(**{"tau_pre": 20.0, "tau_post": 20.0, **fields})
    )


META = {"device": "meta"}
F64 = {"dtype": torch.float64}
GOOD_TRACES = Traces(torch.zeros(3, 5), torch.zeros(3, 2, 3))
BAD = [
    ("weight", {"weight": torch.zeros(3, 5)}),
    ("weight", {"weight": torch.zeros(2, 3, 5, dtype=torch.int64)}),
    ("weight", {"weight": torch.zeros(2, 3, 5, dtype=torch.bfloat16)}),
    ("pre", {"pre": torch.zeros(7, 5)}),
    ("pre", {"pre": torch.zeros(7, 3, 6)}),
    ("pre", {"pre": torch.zeros(7, 3, 4, 5)}),
    ("pre", {"pre": torch.zeros(7, 3, 5, dtype=torch.int64)}),
    ("pre", {"pre": torch.zeros(7, 3, 5, dtype=torch.complex64)}),
    ("pre", {"pre": torch.zeros(7, 3, 5, **META)}),
    ("post", {"post": torch.zeros(7, 3, 3)}),
    ("post", {"post": torch.zeros(6, 3, 2, 3)}),
    ("post", {"post": torch.zeros(7, 4, 2, 3)}),
    ("post", {"post": torch.zeros(7, 3, 4, 3)}),
    ("post", {"post": torch.zeros(7, 3, 2, 4)}),
    ("post", {"post": torch.zeros(7, 3, 2, 3, dtype=torch.int32)}),
    ("post", {"post": torch.zeros(7, 3, 2, 3, **META)}),
    ("rule", {"rule": {"decay_pre": 0.5}}),
    ("rule", {"rule": None}),
    ("a_plus", {"rule": STDPRule(a_plus=torch.zeros(3))}),
    ("a_plus", {"rule": STDPRule(a_plus=torch.tensor(0.5))}),
    ("a_plus", {"rule": STDPRule(a_plus=torch.zeros(2, **F64))}),
    ("a_minus", {"rule": STDPRule(a_minus=torch.zeros(2, 3))}),
    ("a_minus", {"rule": STDPRule(a_minus=torch.zeros(2, **META))}),
    ("modulation", {"modulation": torch.zeros(7)}),
    ("modulation", {"modulation": torch.zeros(7, 4)}),
    ("modulation", {"modulation": torch.zeros(7, 3, 3)}),
    ("modulation", {"modulation": torch.zeros(7, 3, dtype=torch.int64)}),
    ("modulation", {"modulation": torch.zeros(7, 3, **F64)}),
    ("modulation", {"modulation": torch.zeros(7, 3, **META)}),
    ("mask", {"mask": torch.ones(3, 2)}),
    ("mask", {"mask": torch.ones(2, 3, dtype=torch.bool)}),
    ("mask", {"mask": torch.ones(7, 3, 2, dtype=torch.bool)}),
    ("mask", {"mask": torch.ones(3, 2, dtype=torch.bool, **META)}),
    ("traces", {"traces": tuple(GOOD_TRACES)}),
    ("traces.pre", {"traces": GOOD_TRACES._replace(pre=torch.zeros(3, 2, 5))}),
    ("traces.pre", {"traces": GOOD_TRACES._replace(pre=torch.zeros(3, 5, **F64))}),
    ("traces.pre", {"traces": GOOD_TRACES._replace(pre=None)}),
    ("traces.post", {"traces": GOOD_TRACES._replace(post=torch.zeros(3, 2, 4))}),
    ("traces.post", {"traces": GOOD_TRACES._replace(post=torch.zeros(3, 2, 3, **META))}),
    ("traces.pre_slow", {"traces": GOOD_TRACES, "rule": STDPRule(triplet=TRIPLET)}),
    (
        "traces.post_slow",
        {"traces": GOOD_TRACES._replace(pre_slow=torch.zeros(3, 5)), "rule": STDPRule(triplet=TRIPLET)},
    ),
    ("traces.eligibility", {"traces": GOOD_TRACES, "rule": STDPRule(eligibility=0.5)}),
    (
        "traces.eligibility",
        {"traces": GOOD_TRACES._replace(eligibility=torch.zeros(2, 3, 5)), "rule": STDPRule(eligibility=0.5)},
    ),
]


def good() -> dict[str, Any]:
    return {
        "weight": torch.zeros(2, 3, 5),
        "pre": torch.ones(7, 3, 5, dtype=torch.bool),
        "post": torch.ones(7, 3, 2, 3, dtype=torch.bool),
        "rule": STDPRule(0.5, 0.5),
    }


@pytest.mark.parametrize(("argument", "change"), BAD)
def test_bad_input(argument, change):
    assert_refused("stdp", argument, lambda: ops.stdp(**{**good(), **change}))


@pytest.mark.parametrize(("argument", "change"), BAD)
def test_bad_input_in_place_changes_nothing(argument, change):
    arguments = {**good(), **change}
    weight = arguments["weight"]
    before, version = weight.clone(), weight._version
    assert_refused("stdp_", argument, lambda: ops.stdp_(**arguments))
    assert_same_bits(weight, before)
    assert weight._version == version


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        *BAD,
        ("functional", {"functional": torch.ones(2, 3, 5)}),
        ("functional", {"functional": torch.ones(2, 5, 3, dtype=torch.bool)}),
        ("functional", {"functional": torch.ones(2, 3, 5, dtype=torch.bool, **META)}),
        ("off", {"off": 2.0}),
        ("off", {"off": -1.0}),
        ("on", {"on": math.nan}),
    ],
)
def test_bad_input_stdp_consolidate(argument, change):
    arguments = {**good(), "functional": torch.ones(2, 3, 5, dtype=torch.bool), "on": 1.0, "off": 0.5, **change}
    assert_refused("stdp_consolidate", argument, lambda: ops.stdp_consolidate(**arguments))


@every_rule
def test_autocast_stays_in_float32(rule):
    """Forward, backward (also called inside the region), in place and with consolidate: the very bits of outside."""
    problem = random_problem(rule, dtype=torch.float32, graded=True)
    functional = torch.rand_like(problem.weight) < 0.5
    inputs = [tensor.requires_grad_() for tensor in (problem.weight, problem.pre, problem.post)]
    expected = run(ops.stdp, problem)
    gradients = torch.autograd.grad(expected[0].square().sum(), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = run(ops.stdp, problem)
        inside = torch.autograd.grad(actual[0].square().sum(), inputs)
        both = ops.stdp_consolidate(
            problem.weight, functional, problem.pre, problem.post, rule, 0.4, 0.2, **problem.keywords
        )
        problem.weight = problem.weight.detach()
        in_place = run(ops.stdp_, problem)
    assert_same_bits(actual, expected)
    assert_same_bits(inside, gradients)
    assert_same_bits(both, (*expected, ops.consolidate(expected[0], functional, 0.4, 0.2)))
    assert_same_bits(in_place, tuple(expected))


def test_autocast_takes_what_a_region_made():
    """Whatever comes in bfloat16, from ops that follow the region, is read as float32."""
    problem = random_problem(RULES["plain"], dtype=torch.float32)
    functional = torch.zeros_like(problem.weight, dtype=torch.bool)
    low = problem.to(torch.bfloat16, "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = run(ops.stdp, low)
        both = ops.stdp_consolidate(low.weight, functional, low.pre, low.post, low.rule, 0.4, 0.2, **low.keywords)
    expected = run(ops.stdp, low.to(torch.float32, "cpu"))
    assert_same_bits(actual, expected)
    assert_same_bits((both[0], both[1]), tuple(expected))


def test_autocast_never_changes_a_copy_in_place():
    """A weight that stdp_ cannot change is refused; silence would lose the update."""
    problem = random_problem(RULES["plain"], dtype=torch.float32)
    problem.weight = problem.weight.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_refused("stdp_", "weight", lambda: run(ops.stdp_, problem))


SAMPLES = {
    "absent": lambda: random_problem(RULES["plain"], traces=False, factors=False, dtype=torch.float32),
    "nearest": lambda: random_problem(RULES["nearest"], shared=False, graded=True),
    "everything": lambda: random_problem(RULES["everything"], graded=True),
    "hard": lambda: random_problem(RULES["hard"], shared=False, factors=False),
    "empty": lambda: random_problem(RULES["eligibility"], (7, 0, 2, 3, 5), graded=True),
    "no-steps": lambda: random_problem(RULES["everything"], (0, 3, 2, 3, 5), graded=True),
}
# Two samples between them have every argument and both forms of pre; the others need not be in every layout.
SAMPLE_LAYOUTS = [
    (sample, layout)
    for sample in SAMPLES
    for layout in (LAYOUTS if sample in ("nearest", "everything") else ["contiguous"])
]


@pytest.mark.parametrize(("sample", "layout"), SAMPLE_LAYOUTS)
def test_opcheck(sample, layout):
    problem = SAMPLES[sample]()
    arguments = laid_out(flat(problem), layout)
    for tensor in tensors(arguments):
        tensor.requires_grad_(tensor.is_floating_point())
    torch.library.opcheck(torch.ops.artsy.stdp.default, arguments, problem.rule.flatten())


@pytest.mark.parametrize(("sample", "layout"), SAMPLE_LAYOUTS)
def test_opcheck_backward(sample, layout):
    problem = SAMPLES[sample]()
    flags = problem.rule.flatten()
    results = torch.ops.artsy.stdp(*flat(problem), **flags)
    arguments = laid_out(([torch.randn_like(result) for result in results], *flat(problem)), layout)
    all_needed = [isinstance(a, Tensor) and a.is_floating_point() for a in arguments[1:]]
    for needs in (all_needed, [i == 0 for i in range(len(all_needed))]):
        torch.library.opcheck(torch.ops.artsy.stdp_backward.default, arguments, {**flags, "needs": needs})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sample", ["absent", "everything"])
def test_opcheck_in_place(sample, layout):
    problem = SAMPLES[sample]()
    torch.library.opcheck(torch.ops.artsy.stdp_.default, laid_out(flat(problem), layout), problem.rule.flatten())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sample", ["absent", "everything"])
def test_opcheck_stdp_consolidate(sample, layout):
    problem = SAMPLES[sample]()
    weight, *rest = flat(problem)
    arguments = laid_out((weight, torch.rand_like(weight) < 0.5, *rest), layout)
    arguments[0].requires_grad_()
    torch.library.opcheck(
        torch.ops.artsy.stdp_consolidate.default, arguments, {**problem.rule.flatten(), "on": 0.4, "off": 0.2}
    )


def test_opcheck_stdp_consolidate_backward():
    problem = SAMPLES["everything"]()
    weight, *rest = flat(problem)
    keywords = {**problem.rule.flatten(), "on": 0.4, "off": 0.2}
    arguments = (weight, torch.rand_like(weight) < 0.5, *rest)
    results = torch.ops.artsy.stdp_consolidate(*arguments, **keywords)
    grads = [torch.ones_like(result) for result in results]
    needs = [isinstance(a, Tensor) and a.is_floating_point() for a in arguments]
    torch.library.opcheck(
        torch.ops.artsy.stdp_consolidate_backward.default, (grads, *arguments), {**keywords, "needs": needs}
    )


@pytest.mark.parametrize("name", ["nearest", "everything"])
def test_compile(name):
    """Without graph breaks, rule and traces passed in as they are; also with an amplitude that is learned."""
    torch.compiler.reset()
    compiled = torch.compile(ops.stdp, fullgraph=True, backend="aot_eager")
    a_plus = torch.rand(2).double().requires_grad_()
    for layout in ("contiguous", "sliced"):
        problem = random_problem(replace(RULES[name], a_plus=a_plus), graded=True)
        problem.weight, problem.pre, problem.post = (
            LAYOUTS[layout](tensor).requires_grad_() for tensor in (problem.weight, problem.pre, problem.post)
        )
        actual, expected = run(compiled, problem), run(ops.stdp, problem)
        assert_same_bits(actual, expected)
        inputs = (problem.weight, problem.pre, problem.post, a_plus)
        actual, expected = (torch.autograd.grad(w.square().sum(), inputs) for w, _ in (actual, expected))
        assert_same_bits(actual, expected)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_a_training_step(backend):
    """Currents, in-place STDP over two chunks of time and consolidation, one graph."""

    def step(weight: Tensor, functional: Tensor, x: Tensor, rule: STDPRule) -> tuple[Tensor, Tensor, Traces]:
        spikes = ops.encode_spikes(x, 4, seed=1)
        currents = ops.synapse_currents(spikes[0].to(x.dtype), weight, functional, torch.zeros_like(weight[..., 0]))
        post = (currents > 0).expand(4, *currents.shape)
        _, traces = ops.stdp_(weight, spikes, post, rule)
        weight, traces, functional = ops.stdp_consolidate(
            weight + 0.5, functional, spikes, post, rule, 0.5, 0.2, traces=traces
        )
        return weight, functional, traces

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    rule = STDPRule(0.8, 0.7, a_plus=0.1, a_minus=0.2, pairing="nearest", timing="exclusive")
    weight, x = torch.rand(2, 3, 5) - 0.5, torch.rand(4, 5)
    functional = torch.rand(2, 3, 5) < 0.5
    weights = [LAYOUTS["contiguous"](weight), sliced(weight)]
    expected = step(weights[0], functional, x, rule)
    actual = compiled(weights[1], functional, x, rule)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(weights[1], weights[0])
    assert not torch.equal(weights[0], weight)


# On a GPU. Tiles are 64 by 128, or 32 (16 in fp64) by 64, with 16 rows or 8 samples at a time.


def frozen(problem: Problem) -> Problem:
    """With a rule that does not look at the weights of the steps: what a GPU sums on tensor cores, in fp32."""
    clamp = "end" if problem.rule.clamp == "step" else problem.rule.clamp
    rule = replace(problem.rule, evaluate="call", clamp=clamp, eligibility=None)
    traces = problem.keywords["traces"]
    keywords = problem.keywords | {"traces": traces and traces._replace(eligibility=None)}
    return Problem(problem.weight, problem.pre, problem.post, rule, keywords)


def assert_equals_the_definition(problem: Problem, gpu: str) -> None:
    dtype = problem.weight.dtype
    exact = problem.to(torch.float64, "cpu")
    weight, traces = run(ops.reference.stdp, exact)
    ours, our_traces = run(ops.stdp, problem.to(dtype, gpu))
    assert all(tensor.dtype == dtype for tensor in tensors((ours, our_traces)))
    for actual, expected in zip(tensors((ours, our_traces)), tensors((weight, traces)), strict=True):
        scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
        tolerance = scale * (1e-11 if dtype == torch.float64 else 1e-6 if actual is not ours else 1e-5)
        torch.testing.assert_close(actual.double().cpu(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "sizes",  # within a tile; over the edges of both; of one; many samples; a product cut in two
    [(6, 3, 2, 5, 7), (5, 2, 2, 69, 133), (3, 2, 1, 16, 132), (4, 19, 3, 9, 12), (17, 32, 1, 16, 8)],
    ids=str,
)
def test_random_rules_on_a_gpu(sizes: tuple[int, ...], gpu: str) -> None:
    for seed in range(6):
        dtype = torch.float64 if seed == 5 else torch.float32
        problem = any_problem(100 * sum(sizes) + seed, sizes, (0.02, 0.2, 1.0)[seed % 3], dtype)
        if seed < 3:
            problem = frozen(problem)
        if not jumps(problem.rule):
            assert_equals_the_definition(problem, gpu)


@pytest.mark.parametrize("dtype", REAL)
def test_rule_table_on_a_gpu(dtype: torch.dtype, gpu: str) -> None:
    for case in RULE_TABLE:
        fields, before, after = case.values
        assert one_synapse(before, PRE, POST, fields, dtype, gpu)[0] == after, case.id


@pytest.mark.parametrize("shared", [True, False])
def test_every_row_of_the_scan_on_a_gpu(shared: bool, gpu: str) -> None:
    """Neuron k of the post-synaptic side spikes in row k alone, so that its weights are that row of Z."""
    T, B, S, I = 9, 3, 2, 20
    post = torch.eye(T * B, dtype=torch.bool).view(T, B, 1, T * B).expand(-1, -1, S, -1)
    for name, amplitudes in (("plain", [0.2, 0.2]), ("plain", [0.2, 0.1]), ("exclusive-mean", [1e-9, 3e-9])):
        a_plus = torch.tensor(amplitudes)
        rule = replace(RULES[name], a_plus=a_plus, a_minus=a_plus / 2)
        problem = random_problem(rule, (T, B, S, T * B, I), dtype=torch.float32, shared=shared, graded=not shared)
        problem.post, problem.weight = post, torch.zeros(S, T * B, I)
        problem.keywords["traces"] = problem.keywords["mask"] = None
        expected = run(ops.reference.stdp, problem.to(torch.float64, "cpu"))[0]
        actual = run(ops.stdp, problem.to(torch.float32, gpu))[0].double().cpu()
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["plain", "nearest", "soft-call", "hard", "everything"])
def test_pure_in_place_and_consolidated_on_a_gpu(name: str, gpu: str) -> None:
    problem = random_problem(RULES[name], (5, 3, 2, 16, 12), dtype=torch.float32, traces=name != "plain")
    problem.keywords["mask"] = None if name == "plain" else problem.keywords["mask"]
    problem = problem.to(torch.float32, gpu)
    arguments = (problem.weight, problem.pre, problem.post, problem.rule)
    assert_pure(ops.stdp, *arguments, **problem.keywords)
    assert_any_layout(ops.stdp, *arguments, **problem.keywords)
    expected = run(ops.stdp, problem)
    functional = torch.rand_like(problem.weight) < 0.5
    both = ops.stdp_consolidate(
        problem.weight, functional, problem.pre, problem.post, problem.rule, 0.4, 0.2, **problem.keywords
    )
    assert_same_bits(both, (*expected, ops.consolidate(expected[0], functional, 0.4, 0.2)))
    version = problem.weight._version
    assert_same_bits(run(ops.stdp_, problem), expected)
    assert problem.weight._version > version


@pytest.mark.parametrize("name", ["plain", "triplet", "soft", "eligibility"])
def test_empty_on_a_gpu(name: str, gpu: str) -> None:
    for empty in range(5):
        sizes = [3, 2, 2, 3, 5]
        sizes[empty] = 0
        problem = random_problem(RULES[name], tuple(sizes), dtype=torch.float32)
        assert_equals_the_definition(problem, gpu)


def test_a_bool_of_any_byte_is_one_spike_on_a_gpu(gpu: str) -> None:
    problem = random_problem(RULES["plain"], (4, 3, 1, 16, 8), dtype=torch.float32, traces=False, factors=False)
    problem = problem.to(torch.float32, gpu)
    expected = run(ops.stdp, problem)
    for factor in (2, 128, 255):
        problem.pre, problem.post = ((s.to(torch.uint8) * factor).view(torch.bool) for s in (problem.pre, problem.post))
        assert_same_bits(run(ops.stdp, problem), expected)
        problem.pre, problem.post = ((s.view(torch.uint8) != 0) for s in (problem.pre, problem.post))


@pytest.mark.parametrize("name", ["absent", "everything"])
def test_opcheck_on_a_gpu(name: str, gpu: str) -> None:
    problem = SAMPLES[name]().to(torch.float32, gpu)
    torch.library.opcheck(torch.ops.artsy.stdp.default, flat(problem), problem.rule.flatten())
