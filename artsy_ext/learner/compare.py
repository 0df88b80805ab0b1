"""Two runs side by side: what was asked for differently, and what it made of the numbers.

Reads nothing but the content of results.json. Times are not compared: those of two runs say nothing about each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from artsy_ext.learner.results import metric, without_times

__all__ = ["compare", "differences", "in_words", "print_comparison"]

Results = Mapping[str, Any]

_METRICS = {
    "last_accuracy": ("last\nacc %", 1),
    "average_accuracy": ("avg\nacc %", 1),
    "forgetting": ("forget-\nting", 1),
    "synapses.recall": ("recall", 2),
    "synapses.precision": ("preci-\nsion", 2),
    "synapses.mean_functional": ("funct.", 2),
    "synapses.silent_fraction": ("silent", 2),
    "parameters.total": ("params", 0),
    "parameters.statistics_bytes": ("kept\nbytes", 0),
}
"""What is compared: its heading, where a line may break marked by a newline, and its digits."""


def compare(first: Results, second: Results) -> dict[str, Any]:
    """What differs between two runs, over the seeds that both have.

    Args:
        first, second: contents of results.json.

    Returns:
        `same` (whether all numbers are equal, times aside), `seeds` (that both have), `differences` (as `differences`
        gives them) and `methods`: by the name of every method that both have, by the name of a metric, its mean
        `first` and `second` and its `difference`, second minus first, seed by seed: a metric as in results.json. None
        where one of the two has no such metric.

    Raises:
        ValueError: they have no seed or no method in common.
    """
    seeds = [seed for seed in first["seeds"] if seed in second["seeds"]]
    if not seeds:
        raise ValueError(f"compare: runs must have a seed in common, got {first['seeds']} and {second['seeds']}")
    names = [name for name in first["methods"] if name in second["methods"]]
    if not names:
        raise ValueError(
            "compare: runs must have a method in common, "
            f"got {', '.join(first['methods'])} and {', '.join(second['methods'])}"
        )
    methods: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name in names:
        for key in _METRICS:
            a, b = (_values(results, name, key, seeds) for results in (first, second))
            methods[name][key] = (
                None
                if a is None or b is None
                else {
                    "first": metric(a)["mean"],
                    "second": metric(b)["mean"],
                    "difference": metric([y - x for x, y in zip(a, b, strict=True)]),
                }
            )
    return {
        "same": first["seeds"] == second["seeds"]
        and without_times(first)["methods"] == without_times(second)["methods"],
        "seeds": seeds,
        "differences": differences([first, second]),
        "methods": methods,
    }


def differences(runs: Sequence[Results]) -> dict[str, list[Any]]:
    """What runs were asked for, or depend on, differently: name -> what it is in each of them, None where absent."""
    facts = []
    for run in runs:
        arguments = run["arguments"]
        facts.append(
            {
                **arguments.get("run", {}),
                **arguments["config"],
                "stream": run["stream"],
                "seeds": run["seeds"],
                "methods": list(run["methods"]),
                "images": arguments.get("images"),
                **{f"version of {name}": version for name, version in run["versions"].items()},
            }
        )
    names = dict.fromkeys(name for fact in facts for name in fact)
    found = {name: [fact.get(name) for fact in facts] for name in names}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}


def in_words(value: Any) -> str:
    """A setting as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    return "–" if value is None else str(value)


def print_comparison(comparison: Mapping[str, Any], console: Console) -> None:
    """Print what differs, and a table of the numbers.

    Args:
        comparison: what `compare` returned.
        console: where to print.
    """

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    for name, (first, second) in comparison["differences"].items():
        say(f"{name}: {in_words(first)} → {in_words(second)}")
    if comparison["same"]:
        say("The numbers are the same, times aside.")
        return
    seeds = comparison["seeds"]
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        title=f"First → second (difference; seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))})",
        title_justify="left",
    )
    table.add_column("method", no_wrap=True)
    for heading, _ in _METRICS.values():
        table.add_column(heading, justify="right")
    for name, values in comparison["methods"].items():
        table.add_row(
            name,
            *(_cell(values[key], digits) for key, (_, digits) in _METRICS.items()),
            style="bold" if name == "artsy" else None,
        )
    console.print(table)


def _values(results: Results, method: str, key: str, seeds: Sequence[int]) -> list[float] | None:
    found: Any = results["methods"][method]
    for part in key.split("."):
        found = None if found is None else found[part]
    return None if found is None else [found["values"][results["seeds"].index(seed)] for seed in seeds]


def _cell(compared: Mapping[str, Any] | None, digits: int) -> str:
    if compared is None:
        return "–"
    first, second = (f"{compared[key]:,.{digits}f}" for key in ("first", "second"))
    difference = compared["difference"]
    if not any(difference["values"]):
        return first
    spread = f" ± {difference['std']:.{digits}f}" if len(difference["values"]) > 1 else ""
    return f"{first} → {second}\n({difference['mean']:+,.{digits}f}{spread})"
