"""Fixtures of the tests of ops with a CPU kernel."""

from collections.abc import Iterator

import pytest
import torch
from properties import ISAS, supported


@pytest.fixture(params=[isa for isa in ISAS if supported(isa)])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """The CPU kernels run with this instruction set; with the one they choose where a test asks for None."""
    if request.param is None:
        monkeypatch.delenv("ARTSY_CPU_ISA", raising=False)
    else:
        monkeypatch.setenv("ARTSY_CPU_ISA", request.param)
    return request.param


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
