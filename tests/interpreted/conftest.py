"""In a session with TRITON_INTERPRET=1 every launch gets guarded memory."""

import os
from collections.abc import Iterator

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    from interpreted.guard import guarded_launches

    @pytest.fixture(autouse=True)
    def guards() -> Iterator[None]:
        with guarded_launches():
            yield
