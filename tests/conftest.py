"""What every test relies on: fresh memory is poisoned, and random numbers start from the same seed."""

from collections.abc import Iterator

import pytest
import torch

# The tests' tensors are small: more threads bring nothing, and on a busy machine they wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fills new tensors with NaN or the largest integer, in compiled kernels too: what is left unwritten shows."""
    previous = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(previous)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
