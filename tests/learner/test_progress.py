"""Progress bars: shown on a terminal, nowhere else, and never in the way of the items."""

import io

import pytest
from rich.console import Console

from artsy_ext.learner.progress import Progress


def terminal() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=True, width=80), stream


def nested(progress: Progress) -> list[tuple[int, str]]:
    with progress:
        return [(a, b) for a in progress.track(range(2), "outer") for b in progress.track(iter("xy"), "inner", total=2)]


def test_a_terminal_shows_bars() -> None:
    console, stream = terminal()
    assert nested(Progress(console=console)) == [(0, "x"), (0, "y"), (1, "x"), (1, "y")]
    assert "outer" in stream.getvalue()


def test_quiet_shows_nothing() -> None:
    console, stream = terminal()
    assert len(nested(Progress(quiet=True, console=console))) == 4
    assert stream.getvalue() == ""


def test_no_terminal_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(nested(Progress())) == 4
    assert capsys.readouterr() == ("", "")


def test_finished_bars_disappear() -> None:
    progress = Progress(console=terminal()[0])
    assert progress._bars is not None
    for _ in progress.track(range(2), "outer"):
        for _ in progress.track(range(2), "inner"):
            assert [bar.description for bar in progress._bars.tasks] == ["outer", "inner"]
        assert [bar.description for bar in progress._bars.tasks] == ["outer"]
    assert progress._bars.tasks == []
