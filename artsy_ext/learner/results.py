"""results.json: how the numbers of single runs become the record of an experiment.

`experiment` measures one tree of numbers per method and seed; `aggregate` turns the trees of all seeds into metrics,
and `build_results` adds where they come from. `results.schema.json` describes the outcome field by field,
docs/results.md in words.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import resources
from typing import Any

from artsy_ext.info import versions

__all__ = ["SCHEMA_VERSION", "aggregate", "build_results", "metric", "schema", "to_json", "without_times"]

SCHEMA_VERSION = 2
"""Grows by one when a field changes its meaning or disappears; new fields leave it as it is."""

_TIMES = ("seconds", "images_per_second")


def metric(values: Sequence[Any]) -> dict[str, Any]:
    """Sum up one value per seed.

    Args:
        values: numbers, or lists of equal shape of numbers and None.

    Returns:
        `{"mean", "std", "values"}`; mean and population standard deviation are taken element by element, and are None
        where the element is None.
    """
    return {
        "mean": _elementwise(_mean, values),
        "std": _elementwise(_std, values),
        "values": list(values),
    }


def aggregate(trees: Sequence[Any]) -> Any:
    """Merge the measurements of all seeds: dicts key by key, numbers and lists into a `metric`, None stays None.

    Args:
        trees: one per seed, all of the same layout.
    """
    first = trees[0]
    if first is None:
        return None
    if isinstance(first, Mapping):
        return {key: aggregate([tree[key] for tree in trees]) for key in first}
    return metric(trees)


def build_results(
    stream: str,
    seeds: Sequence[int],
    arguments: Mapping[str, Any],
    methods: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The content of results.json.

    Args:
        stream: name of the stream.
        seeds: in the order of every metric's `values`.
        arguments: what was asked for, with the full configuration under "config".
        methods: per method its "summary" and its aggregated measurements.

    Returns:
        Plain dicts, lists, strings, numbers and None, as `json.loads` would give them back.

    Raises:
        ValueError: if a number is infinite or not a number.
        TypeError: if `arguments` holds what JSON can't.
    """
    results = {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "stream": stream,
        "seeds": list(seeds),
        "arguments": dict(arguments),
        "versions": versions(),
        "methods": dict(methods),
    }
    plain: dict[str, Any] = json.loads(json.dumps(results, allow_nan=False))
    return plain


def without_times(results: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the results without what differs from run to run: `created`, `seconds` and `images_per_second`."""
    copy = {key: value for key, value in results.items() if key != "created"}
    copy["methods"] = {
        name: {key: value for key, value in method.items() if key not in _TIMES}
        for name, method in results["methods"].items()
    }
    return copy


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of results.json."""
    text = resources.files("artsy_ext.learner").joinpath("results.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def to_json(value: Any, indent: str = "") -> str:
    """Indented JSON that keeps a row of numbers on one line, so that matrices can be read.

    Raises:
        ValueError: if a number is infinite or not a number.
    """
    inner = indent + "  "
    if isinstance(value, dict) and value:
        items = [f"{json.dumps(key)}: {to_json(item, inner)}" for key, item in value.items()]
        opening, closing = "{", "}"
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        items = [to_json(item, inner) for item in value]
        opening, closing = "[", "]"
    else:
        return json.dumps(value, allow_nan=False)
    return opening + ",".join(f"\n{inner}{item}" for item in items) + f"\n{indent}{closing}"


def _elementwise(function: Any, values: Sequence[Any]) -> Any:
    if isinstance(values[0], (list, tuple)):
        return [_elementwise(function, items) for items in zip(*values, strict=True)]
    return None if values[0] is None else function(values)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _std(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.sqrt(_mean([(value - mean) ** 2 for value in values]))
