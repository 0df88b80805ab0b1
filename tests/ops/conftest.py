"""Fixtures of the op tests."""

import pytest


@pytest.fixture
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU kernels run with the named instruction set; None for the one they choose."""
    if request.param is None:
        monkeypatch.delenv("ARTSY_CPU_ISA", raising=False)
    else:
        monkeypatch.setenv("ARTSY_CPU_ISA", request.param)
