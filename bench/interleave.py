"""Compares callables that do the same work, in rounds, so that the ratio survives a busy machine.

What slows one candidate (a neighbour, the clock) slows the others of the same round alike. So every round times every
candidate, in changing order; the ratio is taken within the round, and the median over the rounds is reported.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds per call. busy: CPU time of all threads; wall: what a clock on the wall shows."""

    busy: float
    wall: float


@dataclass(frozen=True)
class Spread:
    """Over the rounds: the median, and the 20 % and 80 % quantiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Ratio:
    """Ours over a peer, below 1 where ours is faster."""

    busy: Spread
    wall: float


@dataclass(frozen=True)
class Comparison:
    """busy and wall: seconds per call, of ours (under "") and of each peer; ratios: of ours over each peer."""

    busy: dict[str, Spread]
    wall: dict[str, float]
    ratios: dict[str, Ratio]

    @property
    def best(self) -> str:
        """The peer that keeps the processor busy for the least time."""
        return min(self.ratios, key=lambda name: self.busy[name].median)


def cpu_time(call: Call, calls: int) -> Timing:
    """CPU time is that of all threads of this process: the work done, also where a neighbour holds the cores. Wall time
    stands beside it, because more threads shorten it while they add work.
    """
    _settle()
    wall, busy = time.perf_counter(), time.process_time()
    for _ in range(calls):
        call()
    return Timing((time.process_time() - busy) / calls, (time.perf_counter() - wall) / calls)


def compare(
    ours: Call,
    peers: Mapping[str, Call],
    *,
    rounds: int = 31,
    seconds: float = 0.005,
    timer: Callable[[Call, int], Timing] = cpu_time,
) -> Comparison:
    """Times ours and its peers in `rounds` rounds of about `seconds` for each."""
    candidates = {"": ours, **peers}
    calls = {name: _calls_in(call, seconds, timer) for name, call in candidates.items()}
    found: dict[str, list[Timing]] = {name: [] for name in candidates}
    names = list(candidates)
    with _no_collection():
        for turn in range(rounds):
            # Rotated, so that nobody always follows the same neighbour; every second round backwards.
            order = names[turn % len(names) :] + names[: turn % len(names)]
            for name in order if turn % 2 else reversed(order):
                found[name].append(timer(candidates[name], calls[name]))
    return Comparison(
        busy={name: spread([t.busy for t in timings]) for name, timings in found.items()},
        wall={name: median(t.wall for t in timings) for name, timings in found.items()},
        ratios={name: _ratio(found[""], found[name]) for name in peers},
    )


def spread(values: Sequence[float]) -> Spread:
    low, *_, high = quantiles(values, n=5) if len(values) > 1 else [*values] * 2
    return Spread(median(values), low, high)


def _calls_in(call: Call, seconds: float, timer: Callable[[Call, int], Timing]) -> int:
    """How many calls fill a round; warms up on the way."""
    calls = 1
    while (taken := timer(call, calls).busy * calls) < seconds / 2:
        calls = max(2 * calls, int(calls * seconds / max(taken, 1e-6) / 2))
    return max(1, round(calls * seconds / max(taken, 1e-9)))


def _settle() -> None:
    """Waits until the worker threads of the one before have stopped spinning: their time is not of the next one."""
    for _ in range(50):
        before = time.process_time()
        time.sleep(0.001)
        if time.process_time() - before < 0.0003:
            return


def _ratio(ours: list[Timing], peer: list[Timing]) -> Ratio:
    busy = [a.busy / b.busy for a, b in zip(ours, peer, strict=True)]
    return Ratio(spread(busy), median(a.wall / b.wall for a, b in zip(ours, peer, strict=True)))


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def table(comparisons: Mapping[str, Comparison]) -> str:
    """One line per case: times in µs, ours over the best peer, and the ratios to the others behind it."""
    width = max(44, *(len(case) for case in comparisons))
    lines = [
        f"{'':{width}} {'ours':>9} {'best peer':>9}   {'CPU time: ours / peer':24} {'wall':>6}   peer",
        f"{'':{width}} {'µs CPU':>9} {'µs CPU':>9}   {'median [20 %, 80 %]':24} {'ratio':>6}",
    ]
    for case, comparison in comparisons.items():
        peer, ratio = comparison.best, comparison.ratios[comparison.best]
        shown = f"{ratio.busy.median:.3f} [{ratio.busy.low:.3f}, {ratio.busy.high:.3f}]"
        ours, theirs = comparison.busy[""].median * 1e6, comparison.busy[peer].median * 1e6
        others = "; ".join(f"{r.busy.median:.3f} {name}" for name, r in comparison.ratios.items() if name != peer)
        line = f"{case:{width}} {ours:9.1f} {theirs:9.1f}   {shown:24} {ratio.wall:6.3f}   {peer}"
        lines.append(f"{line} ({others})" if others else line)
    return "\n".join(lines)
