"""docs/examples/learn_plasticity.py: its gradient is that of its loss, and it learns."""

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "learn_plasticity.py"
spec = spec_from_file_location("learn_plasticity", SCRIPT)
example = module_from_spec(spec)
spec.loader.exec_module(example)


@pytest.mark.parametrize("amplitudes", [[0.0, 0.0], [0.1, -0.2], [0.3, 0.15]])
def test_analytic_is_finite_differences(amplitudes: list[float]) -> None:
    at = torch.tensor(amplitudes, dtype=torch.float64)
    (analytic,) = torch.autograd.grad(example.recall_error(at.requires_grad_(), 3, 7), at)
    step = 1e-4
    finite = [
        (example.recall_error(at.detach() + d, 3, 7) - example.recall_error(at.detach() - d, 3, 7)) / (2 * step)
        for d in step * torch.eye(2, dtype=torch.float64)
    ]
    torch.testing.assert_close(analytic, torch.stack(finite), rtol=1e-8, atol=1e-10)


def test_the_loss_falls_at_least_tenfold() -> None:
    losses, amplitudes = example.learn()
    assert losses[-1] < losses[0] / 10
    # Also on lifetimes that were never seen, and potentiation and depression each as they should be.
    assert example.recall_error(amplitudes, 16, 12345).item() < losses[0] / 10
    assert (amplitudes > 0.05).all()


def test_the_script_prints_a_table() -> None:
    shown = subprocess.run([sys.executable, str(SCRIPT)], check=True, capture_output=True, text=True).stdout
    head, *rows = shown.splitlines()
    assert head.split() == ["iteration", "loss", "a_plus", "a_minus"]
    assert [row.split()[0] for row in rows] == ["0", "20", "40", "60", "80"]
