"""Progress bars of long runs: seeds, methods, tasks and epochs, one bar inside the other.

Experiments and methods receive a `Progress` and wrap their loops in `track`; only the command line shows bars.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import TypeVar

import rich.progress
from rich.console import Console

__all__ = ["Progress"]

Item = TypeVar("Item")


class Progress:
    """A stack of progress bars on stderr, shown between `__enter__` and `__exit__`.

    Nothing is shown, and tracking costs nothing, where `quiet` is set or stderr is no terminal.

    Args:
        quiet: show nothing.
        console: where to draw instead of stderr.
    """

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._bars: rich.progress.Progress | None = None
        if console.is_terminal and not quiet:
            self._bars = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TimeElapsedColumn(),
                console=console,
                transient=True,
                # What the caller prints belongs on stdout, not on the bars' console.
                redirect_stdout=False,
            )

    @classmethod
    def silent(cls) -> Progress:
        """A `Progress` that never shows anything, for use as a library."""
        return cls(quiet=True)

    def __enter__(self) -> Progress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def track(self, iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
        """Yield the items of `iterable` under a bar that disappears with the last of them.

        Args:
            iterable: what to go through.
            description: what stands before the bar.
            total: number of items; by default `len(iterable)`, and where it has none the bar has no end.
        """
        if self._bars is None:
            yield from iterable
            return
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        bar = self._bars.add_task(description, total=total)
        try:
            for item in iterable:
                yield item
                self._bars.advance(bar)
        finally:
            self._bars.remove_task(bar)
