"""The STDP window of docs/examples/stdp_window.py against the analytic curve."""

import subprocess
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from artsy_ext.ops import STDPRule

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "stdp_window.py"
spec = spec_from_file_location("stdp_window", SCRIPT)
example = module_from_spec(spec)
spec.loader.exec_module(example)

LAGS = torch.arange(-100, 101)


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("rule", [example.PAIR, example.SOFT], ids=["pair", "soft"])
def test_is_the_analytic_curve(rule: STDPRule, weight: float) -> None:
    curve = example.analytic(rule, LAGS.double(), weight)
    torch.testing.assert_close(example.window(rule, LAGS, weight), curve, rtol=0, atol=1e-12)


def test_a_coincident_pair_counts_in_both_terms_when_inclusive() -> None:
    inclusive = replace(example.PAIR, timing="inclusive")
    exclusive = example.window(example.PAIR, LAGS)
    difference = example.window(inclusive, LAGS) - exclusive
    assert exclusive[LAGS == 0].item() == 0
    torch.testing.assert_close(difference, 0.004 * (LAGS == 0).double(), rtol=0, atol=1e-12)


def test_the_script_draws_it(tmp_path: Path) -> None:
    picture = tmp_path / "window.png"
    subprocess.run([sys.executable, str(SCRIPT), str(picture)], check=True)
    assert picture.read_bytes().startswith(b"\x89PNG")
