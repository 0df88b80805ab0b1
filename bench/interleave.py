"""Compares callables that do the same work, in rounds, so that the ratio survives a busy machine.

What slows one candidate (a neighbour, the clock) slows the others of the same round alike. So every round times every
candidate, in changing order; the ratio is taken within the round, and the median over the rounds is reported.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Timing:
    """Seconds per call: medians over the rounds."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class Ratio:
    """Ours over a peer, below 1 where ours is faster: median, and the 20 % and 80 % quantiles over the rounds."""

    cpu: float
    low: float
    high: float
    wall: float


@dataclass(frozen=True)
class Comparison:
    ours: Timing
    peers: dict[str, Timing]
    ratios: dict[str, Ratio]

    @property
    def best(self) -> str:
        """The peer that takes the least CPU time."""
        return min(self.peers, key=lambda name: self.peers[name].cpu)


def compare(
    ours: Callable[[], object],
    peers: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 31,
    seconds: float = 0.005,
) -> Comparison:
    """Times ours and its peers in `rounds` rounds of about `seconds` of CPU time for each.

    CPU time is that of all threads of this process: the work done, also where a neighbour holds the cores. Wall time
    stands beside it, because more threads shorten it while they add work.
    """
    candidates = {"": ours, **peers}
    calls = {name: _calls_in(call, seconds) for name, call in candidates.items()}
    found: dict[str, list[Timing]] = {name: [] for name in candidates}
    names = list(candidates)
    with _no_collection():
        for turn in range(rounds):
            # Rotated, so that nobody always follows the same neighbour; every second round backwards.
            order = names[turn % len(names) :] + names[: turn % len(names)]
            for name in order if turn % 2 else reversed(order):
                found[name].append(_time(candidates[name], calls[name]))
    timings = {name: Timing(median(t.cpu for t in ts), median(t.wall for t in ts)) for name, ts in found.items()}
    return Comparison(
        ours=timings[""],
        peers={name: timings[name] for name in peers},
        ratios={name: _ratio(found[""], found[name]) for name in peers},
    )


def _time(call: Callable[[], object], calls: int) -> Timing:
    _settle()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        call()
    return Timing((time.process_time() - cpu) / calls, (time.perf_counter() - wall) / calls)


def _calls_in(call: Callable[[], object], seconds: float) -> int:
    """How many calls fill a round; warms up on the way."""
    calls = 1
    while (taken := _time(call, calls).cpu * calls) < seconds / 2:
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
    cpu = [a.cpu / b.cpu for a, b in zip(ours, peer, strict=True)]
    wall = [a.wall / b.wall for a, b in zip(ours, peer, strict=True)]
    low, *_, high = quantiles(cpu, n=5) if len(cpu) > 1 else cpu * 2
    return Ratio(median(cpu), low, high, median(wall))


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
    lines = [
        f"{'':44} {'ours':>9} {'best peer':>9}   {'CPU time: ours / peer':24} {'wall':>6}   peer",
        f"{'':44} {'µs CPU':>9} {'µs CPU':>9}   {'median [20 %, 80 %]':24} {'ratio':>6}",
    ]
    for case, comparison in comparisons.items():
        peer, ratio = comparison.best, comparison.ratios[comparison.best]
        spread = f"{ratio.cpu:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
        ours, theirs = comparison.ours.cpu * 1e6, comparison.peers[peer].cpu * 1e6
        others = "; ".join(f"{r.cpu:.3f} {name}" for name, r in comparison.ratios.items() if name != peer)
        line = f"{case:44} {ours:9.1f} {theirs:9.1f}   {spread:24} {ratio.wall:6.3f}   {peer}"
        lines.append(f"{line} ({others})" if others else line)
    return "\n".join(lines)
