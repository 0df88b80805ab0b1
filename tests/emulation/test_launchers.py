"""The launchers themselves, csrc/cuda/<op>.cu: compiled for the emulation, they serve the ops' ordinary tests.

In a session of its own, because a library that is loaded cannot be taken back.
"""

import os
import re
import subprocess
import sys

import pytest
from emulation.emulator import IS_SUPPORTED, ROOT

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(not IS_SUPPORTED, reason="the emulation needs an x86-64 processor"),
]

LAUNCHERS = sorted((ROOT / "csrc/cuda").glob("*.cu"))

BAD_INPUT = """
import torch, pytest
from emulation.launchers import load
from artsy_ext.ops import STDPRule
load()
ops = torch.ops.artsy
mask = torch.tensor([[True, False], [True, True]])
routes = ops.plan_routes(mask, 2)
assert routes[-1], "the launchers answer: the CPU kernel would refuse a capacity that is too small"
routes = ops.plan_routes(mask)
y, weight, base = torch.randn(3, 5), torch.randn(3), torch.randn(2, 5)
needs = [True] + [False] * 8
good = {"y": y, **dict(zip(("sample", "subnetwork", "offsets", "order", "sample_offsets", "overflow"), routes)),
        "weight": weight, "base": base}
def refused(words, call, *arguments, **keywords):
    with pytest.raises(ValueError) as caught:
        call(*arguments, **keywords)
    assert str(caught.value).startswith(words), caught.value
refused("plan_routes: mask must be [B, S], got [2]", ops.plan_routes, mask[0])
refused("plan_routes: mask must be bool, got float32", ops.plan_routes, mask.float())
refused("plan_routes: capacity must be >= 0, got -1", ops.plan_routes, mask, -1)
for name, value, words in (
    ("y", y.long(), "y must be float32 or float64 or bfloat16 or float16, got int64"),
    ("sample", routes[0][1:], "routes.sample must be [P] with P=3, got [2]"),
    ("order", routes[3].int(), "routes.order must be int64, got int32"),
    ("offsets", routes[2][None], "routes.offsets must be [S+1], got [1, 3]"),
    ("overflow", routes[5][None], "routes.overflow must be [], got [1]"),
    ("weight", weight.double(), "weight must be float32, got float64"),
    ("base", base[:, :4], "base must be [B, ...] with B=2 and the row shape of y [3, 5], got [2, 4]"),
):
    arguments = list((good | {name: value}).values())
    refused("combine_routes: " + words, ops.combine_routes, *arguments)
    refused("combine_routes_backward: " + words, ops.combine_routes_backward, base, *arguments, needs=needs)
refused("consolidate: functional must be [S, J, I] with J=2, got [1, 3, 2]",
        ops.consolidate, torch.zeros(1, 2, 2), torch.zeros(1, 3, 2, dtype=torch.bool), 1.0, 0.5)
refused("encode_spikes: code must be one of 'rate', 'latency', got 'burst'", ops.encode_spikes, y, 3, code="burst")
rule = STDPRule()
spikes = {"weight": torch.zeros(1, 2, 3), "pre": torch.zeros(4, 2, 3), "post": torch.zeros(4, 2, 1, 2),
          "a_plus": torch.ones(1), "a_minus": torch.ones(1)}
for name, value, words in (
    ("weight", torch.zeros(2, 3), "weight must be [S, J, I], got [2, 3]"),
    ("pre", torch.zeros(4, 2, 5), "pre must be [T, B, I] or [T, B, S, I] with I=3, got [4, 2, 5]"),
    ("post", torch.zeros(4, 2, 1, 2).long(), "post must be bool or uint8 or float32 or"),
    ("a_plus", torch.ones(1).double(), "a_plus must be float32, got float64"),
):
    for op in (ops.stdp, ops.stdp_):
        refused(op.__name__ + ": " + words, op, *(spikes | {name: value}).values(), **rule.flatten())
refused("stdp: decay_pre must be in [0, 1], got 2", ops.stdp, *spikes.values(), **rule.flatten() | {"decay_pre": 2.0})
refused("combine_routes_backward: grad must be shaped as the result of the op, got [3, 5]",
        ops.combine_routes_backward, y, *good.values(), needs=needs)
refused("combine_routes_backward: needs must have 9 flags, got 1",
        ops.combine_routes_backward, base, *good.values(), needs=[True])
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ARTSY_TEST_DEVICE": "launchers"}
    # Not in the checkout's own folder, whose package may never have been built.
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT / "tests", env=environment, capture_output=True, text=True
    )


def test_launchers_pass_the_tests_of_their_ops() -> None:
    files = [f"ops/test_{path.stem}.py" for path in LAUNCHERS]
    done = python("-m", "pytest", "-q", "-m", "emulated", *files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ passed", done.stdout, re.MULTILINE)


def test_launchers_refuse_bad_input_in_a_line() -> None:
    done = python("-c", BAD_INPUT)
    assert done.returncode == 0, done.stderr
