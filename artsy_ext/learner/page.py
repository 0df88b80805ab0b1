"""One HTML page about one or several runs: tables, pictures, settings and environment, in a single file.

Reads nothing but the content of results.json. The page has no script and loads nothing; page.html is its template.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any, NamedTuple

import jinja2
import matplotlib
from matplotlib.figure import Figure

from artsy_ext.learner.compare import differences, in_words
from artsy_ext.learner.config import settings
from artsy_ext.learner.report import (
    LEGEND,
    accuracy_figure,
    draw_functional,
    draw_matrix,
    draw_quality,
    draw_routing,
    spread,
    summary,
    title,
    with_synapses,
)
from artsy_ext.learner.silence import draw_counts, draw_silence, draw_silent_by_task, with_silence

__all__ = ["report_page"]

Results = Mapping[str, Any]


class _Picture(NamedTuple):
    alt: str
    source: str
    narrow: str | None = None
    """For small screens, where it is another one."""


def report_page(runs: Mapping[str, Results]) -> str:
    """The page as HTML. The same runs give the same page.

    Args:
        runs: by the name that each is to have on the page, contents of results.json; at least one.
    """
    text = resources.files("artsy_ext.learner").joinpath("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    methods = list(dict.fromkeys(name for results in runs.values() for name in results["methods"]))
    return environment.from_string(text).render(
        heading=f"Artsy: {title(next(iter(runs.values())))}" if len(runs) == 1 else f"Artsy: {len(runs)} runs",
        runs=[_run(name, results) for name, results in runs.items()],
        last_accuracy={
            method: [
                spread(results["methods"][method]["last_accuracy"], 1) if method in results["methods"] else "–"
                for results in runs.values()
            ]
            for method in methods
        },
        differences={name: list(map(in_words, values)) for name, values in differences(list(runs.values())).items()},
    )


def _run(name: str, results: Results) -> dict[str, Any]:
    methods = results["methods"]
    headings, rows = summary(results)
    curves = {name: method["incremental_accuracy"]["mean"] for name, method in methods.items()}
    return {
        "name": name,
        "title": title(results),
        "created": results["created"],
        "headings": [heading.replace("-\n", "").replace("\n", " ") for heading in headings],
        "rows": rows,
        "summaries": {name: method["summary"] for name, method in methods.items()},
        "legend": LEGEND,
        "accuracy": _Picture(
            "Accuracy over all classes seen so far after each task, one line per method; numbers in the table below",
            _accuracy(results, width=8.4),
            _accuracy(results, width=4.8),
        ),
        "curves": [
            [f"{curve[task]:.1f}" for curve in curves.values()] for task in range(len(next(iter(curves.values()))))
        ],
        "matrices": [_panel(f"Accuracy matrix of {name}", draw_matrix, results, name) for name in methods],
        "synapses": _synapses(results),
        "settings": _settings(results),
        "images": results["arguments"].get("images", []),
        "versions": results["versions"],
    }


def _accuracy(results: Results, width: float) -> str:
    figure = accuracy_figure(results, width)
    figure.axes[0].set_title("")  # the page has a heading
    return _source(figure)


def _synapses(results: Results) -> list[_Picture]:
    names = with_synapses(results)
    if not names:
        return []
    listed = ", ".join(names)
    return [
        _panel(f"Recall and precision of the synapses of {listed}", draw_quality, results, legend=True),
        _panel(f"Functional sub-networks per sample of {listed}", draw_functional, results),
        *(
            _panel(f"How often {name} runs each sub-network for the samples of each task", draw_routing, results, name)
            for name in names
        ),
        *(
            _panel(alt, draw, results, name)
            for name in with_silence(results)
            for alt, draw in (
                (f"Share of silent synapses of {name} while it learns", draw_silence),
                (f"Share of silent synapses of each sub-network of {name} after each task", draw_silent_by_task),
                (f"For how many samples {name} has so many functional sub-networks", draw_counts),
            )
        ),
    ]


def _panel(alt: str, draw: Callable[..., Any], *arguments: Any, legend: bool = False) -> _Picture:
    figure = Figure(figsize=(3.9, 3.7), layout="constrained")
    draw(figure.subplots(), *arguments)
    if legend:
        figure.legend(loc="outside lower left", frameon=False)
    return _Picture(alt, _source(figure))


def _source(figure: Figure) -> str:
    """The figure as the address of an image that holds it."""
    file = io.BytesIO()
    # Without a salt and a date of its own it would be another file each time.
    with matplotlib.rc_context({"svg.hashsalt": "artsy"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def _settings(results: Results) -> list[dict[str, Any]]:
    """Every setting of the run, and whether it has the default."""
    arguments = results["arguments"]
    given = {**arguments.get("run", {}), **arguments["config"]}
    known = settings()
    rows = []
    for name, value in given.items():
        default = known[name].default if name in known else None
        rows.append(
            {
                "name": name,
                "value": in_words(value),
                "default": name in known and _plain(default) == _plain(value),
                "help": known[name].help if name in known else "",
            }
        )
    return rows


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
