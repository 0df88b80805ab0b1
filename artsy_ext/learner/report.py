"""Shows results to people: the table at the end of a run, the pictures, and the folder that holds everything.

Reads nothing but the content of results.json (docs/results.md), so a run can be shown again from its file.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from rich import box
from rich.console import Console
from rich.table import Table

from artsy_ext.learner._files import foreign, replacing
from artsy_ext.learner.results import SCHEMA_VERSION, to_json

__all__ = [
    "CHECKPOINT",
    "CONFIG",
    "CORTEX",
    "DPI",
    "LEGEND",
    "accuracy_figure",
    "check_output",
    "draw_functional",
    "draw_matrix",
    "draw_quality",
    "draw_routing",
    "heat_map",
    "matrix_figure",
    "print_evaluation",
    "print_table",
    "read_results",
    "spread",
    "styles_of",
    "summary",
    "synapses_figure",
    "title",
    "with_synapses",
    "write_run",
]

Results = Mapping[str, Any]

# Okabe & Ito's palette, which colour-blind readers can tell apart. Bounds are black, methods without memory are grey.
_STYLES: dict[str, dict[str, Any]] = {
    "finetune": {"color": "#999999", "linestyle": "-", "marker": "v"},
    "random": {"color": "#999999", "linestyle": ":", "marker": "X"},
    "simplecil": {"color": "#56B4E9", "linestyle": "-", "marker": "s"},
    "ease": {"color": "#0072B2", "linestyle": "-", "marker": "D"},
    "lda": {"color": "#009E73", "linestyle": "-", "marker": "^"},
    "synapses": {"color": "#CC79A7", "linestyle": "-", "marker": "P"},
    "artsy": {"color": "#D55E00", "linestyle": "-", "marker": "o", "linewidth": 3.0, "zorder": 5},
    "artsy-mlp": {"color": "#E69F00", "linestyle": "--", "marker": "o", "zorder": 4},
    "joint": {"color": "#000000", "linestyle": "--", "marker": "*"},
    "oracle": {"color": "#000000", "linestyle": ":", "marker": "*"},
}
_OTHER_STYLES = [
    {"color": color, "linestyle": "-.", "marker": "h"} for color in ("#882255", "#44AA99", "#117733", "#88CCEE")
]
# The matrices worth a look first: no memory, prototypes with all sub-networks, chosen ones, all data at once.
_MATRIX_METHODS = ("finetune", "ease", "artsy", "joint")
_MOST_NUMBERS = 12
"""Rows or columns of a matrix whose numbers can be read in its picture."""
CHECKPOINT = "checkpoint"
CONFIG = "config.toml"
LEGEND = "funct.: functional sub-networks per sample; kept: statistics of the data"
_PICTURES = ("accuracy", "matrix", "synapses", "silence", "weights", "spikes")
_FILES = ("results.json", CONFIG, CHECKPOINT, *(f"{name}.png" for name in _PICTURES))
DPI = 160
# Silent synapses of the adult mouse's cortex, %: about 25 of 2,234 synapses lack AMPA receptors, and about 30 of all
# dendritic protrusions are filopodia, which carry such synapses (Vardalaki, Chung & Harnett, Nature 612:323, 2022).
CORTEX = (25.0, 30.0)


def print_table(results: Results, console: Console) -> None:
    """Print one row per method, mean ± standard deviation where there are several seeds, and what the methods are.

    Args:
        results: content of results.json.
        console: where to print.
    """
    methods = results["methods"]
    table = Table(
        box=box.SIMPLE_HEAD, padding=0, pad_edge=False, title=f"Learning {title(results)}", title_justify="left"
    )
    table.add_column("method", no_wrap=True)
    headings, rows = summary(results)
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, cells in rows.items():
        table.add_row(name, *cells, style="bold" if name == "artsy" else None)
    console.print(table)
    for name, method in methods.items():
        console.print(f"{name:<11}{method['summary']}", highlight=False, markup=False, soft_wrap=True)
    console.print(LEGEND, highlight=False, markup=False, soft_wrap=True)


def summary(results: Results) -> tuple[list[str], dict[str, list[str]]]:
    """What is said of every method: headings, where a line may break marked by a newline, and its cells by name."""
    rows = {}
    for name, method in results["methods"].items():
        synapses = method["synapses"] or {}
        rows[name] = [
            spread(method["last_accuracy"], 1),
            spread(method["average_accuracy"], 1),
            spread(method["forgetting"], 1),
            spread(synapses.get("recall"), 2),
            spread(synapses.get("precision"), 2),
            _mean(synapses.get("mean_functional"), 2),
            _mean(synapses.get("silent_fraction"), 0, scale=100),
            _mean(method["parameters"]["total"], 0),
            _mean(method["parameters"]["statistics_bytes"], 0, scale=1e-3),
            _mean(method["seconds"]["training"], 1),
            _mean(method["images_per_second"]["inference"], 0),
        ]
    headings = [
        "last\nacc %",
        "avg\nacc %",
        "forget-\nting",
        "recall",
        "preci-\nsion",
        f"funct.\nof {_task_count(results)}",
        "silent\n%",
        "params",
        "kept\nkB",
        "train\ns",
        "images\n/s",
    ]
    return headings, rows


def print_evaluation(evaluation: Mapping[str, Any], console: Console) -> None:
    """Print one row per task: its classes, the accuracy on them, and what the synapses did.

    Args:
        evaluation: what `artsy_ext.learner.run.FinishedRun.evaluate` returned.
        console: where to print.
    """
    synapses, tasks = evaluation["synapses"], range(len(evaluation["accuracy"]))
    others = "" if evaluation["same_images"] else ", other images than those of the run"
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        title=f"Test images of {evaluation['data']}{others} (seed {evaluation['seed']})",
        title_justify="left",
    )
    table.add_column("task", justify="right")
    table.add_column("classes", overflow="ellipsis", no_wrap=True)
    for heading in ("accuracy\n%", "own\nfunctional", "functional\nper image"):
        table.add_column(heading, justify="right")
    for t in tasks:
        shares = synapses["routing_matrix"][t]
        table.add_row(
            str(t + 1),
            ", ".join(evaluation["classes"][t]),
            f"{evaluation['accuracy'][t]:.1f}",
            f"{shares[t]:.2f}",
            f"{sum(shares):.2f}",
        )
    table.add_section()
    table.add_row(
        "all",
        f"{sum(map(len, evaluation['classes']))} classes",
        f"{evaluation['last_accuracy']:.1f}",
        f"{synapses['recall']:.2f}",
        f"{synapses['mean_functional']:.2f}",
        style="bold",
    )
    console.print(table)


def read_results(folder: Path) -> dict[str, Any]:
    """The content of a run folder's results.json.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: the file is damaged, or of another version than this package reads.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run: there is no {path.name}")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = content["schema_version"]
        if version == SCHEMA_VERSION:
            content["arguments"]["config"], content["methods"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path} has schema version {version}, this version of artsy_ext reads {SCHEMA_VERSION}")
    return content


def check_output(output: Path, overwrite: bool = False) -> None:
    """Find out, before anything is computed, whether `write_run` may write to `output`.

    Args:
        output: a folder to be made or replaced.
        overwrite: allow a folder that holds an earlier run.

    Raises:
        FileExistsError: if `output` is a file, the current folder, or a folder that is not empty, unless it is an
            earlier run's and `overwrite` is set.
        NotADirectoryError: if something above `output` is no folder.
        PermissionError: if the folder above can't be written to.
    """
    output = output.resolve()
    parent = next(folder for folder in output.parents if folder.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"output: {parent} is not a folder")
    # Replacing the current folder would leave the caller in one that no longer exists.
    if output == Path.cwd():
        raise FileExistsError("output: expected a folder other than the current one")
    if output.exists():
        if not output.is_dir():
            raise FileExistsError(f"output: {output} is a file, expected a folder")
        if any(output.iterdir()):
            if not _is_run(output):
                raise FileExistsError(f"output: {output} is not empty and holds no run that could be replaced")
            if not overwrite:
                raise FileExistsError(f"output: {output} holds an earlier run, which is replaced only by overwriting")
            others = foreign(output, _FILES)
            if others:
                raise FileExistsError(f"output: {output} holds more than a run and is not replaced: {others[0]}")
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=parent):
        pass


def write_run(
    output: Path,
    results: Results,
    extra_writer: Callable[[Path], None] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write a run folder: results.json, accuracy.png, matrix.png and, where a method has synapses, synapses.png.

    Everything is written to a hidden folder beside `output`, which then takes its place: a failure leaves `output` as
    it was.

    Args:
        output: the folder; folders above it are made as needed.
        results: content of results.json.
        extra_writer: gets the folder before it is moved, to add to it (a checkpoint).
        overwrite: replace `output` if it holds an earlier run.

    Raises:
        FileExistsError, NotADirectoryError, PermissionError: as `check_output`, before anything is written.
    """
    check_output(output, overwrite)
    output = output.resolve()
    with replacing(output) as folder:
        (folder / "results.json").write_text(to_json(results) + "\n", encoding="utf-8")
        for name, figure in (
            ("accuracy", accuracy_figure(results)),
            ("matrix", matrix_figure(results)),
            ("synapses", synapses_figure(results)),
        ):
            if figure is not None:
                figure.savefig(folder / f"{name}.png", dpi=DPI, bbox_inches="tight")
        if extra_writer is not None:
            extra_writer(folder)
        check_output(output, overwrite)


def accuracy_figure(results: Results, width: float = 8.4) -> Figure:
    """Accuracy over all classes seen so far after each task, one line per method, labelled with the last accuracy.

    width: in inches.
    """
    methods, count = results["methods"], _task_count(results)
    figure = Figure(figsize=(width, 5.0), layout="constrained")
    axes = figure.add_subplot()
    steps = list(range(1, count + 1))
    styles = styles_of(methods)
    curves = {name: method["incremental_accuracy"]["mean"] for name, method in methods.items()}
    for name, curve in curves.items():
        axes.plot(steps, curve, **{"linewidth": 1.8, "markersize": 6, "zorder": 3, "clip_on": False, **styles[name]})
    axes.set(
        title=f"Accuracy while learning {title(results)}",
        xlabel="tasks learned",
        ylabel="accuracy over all classes seen so far (%)",
        xlim=(1 - 0.03 * count, 1.02 * count),
        ylim=(10 * max(0, min(map(min, curves.values())) // 10 - 1), 101.5),
    )
    axes.set_xticks(steps[:: max(1, count // 10)])
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _label_ends(axes, {name: method["last_accuracy"] for name, method in methods.items()}, styles)
    return figure


def matrix_figure(results: Results) -> Figure:
    """Accuracy matrices of up to four methods as heat maps: what each task's accuracy was after each task."""
    methods = results["methods"]
    chosen = [name for name in _MATRIX_METHODS if name in methods]
    chosen += [name for name in methods if name not in chosen]
    # In the table's order, however they were picked.
    names = [name for name in methods if name in chosen[: len(_MATRIX_METHODS)]]
    figure = Figure(figsize=(1.5 + 2.7 * len(names), 3.7), layout="compressed")
    all_axes = figure.subplots(1, len(names), squeeze=False)[0]
    for name, axes in zip(names, all_axes, strict=True):
        image = draw_matrix(axes, results, name)
    all_axes[0].set_ylabel("after learning task")
    figure.colorbar(image, ax=all_axes, shrink=0.8, label="accuracy (%)")
    figure.suptitle(f"Accuracy on each task of {title(results)}")
    return figure


def draw_matrix(axes: Axes, results: Results, name: str) -> AxesImage:
    """A method's accuracy matrix."""
    method = results["methods"][name]
    image = heat_map(axes, method["accuracy_matrix"]["mean"], 100, "{:.0f}")
    axes.set(title=f"{name} (last {method['last_accuracy']['mean']:.1f} %)", xlabel="accuracy on task")
    return image


def synapses_figure(results: Results) -> Figure | None:
    """How well synapses find the right sub-network, how many run, and which ones; None if no method has synapses."""
    names = with_synapses(results)
    if not names:
        return None
    figure = Figure(figsize=(11.0, 4.0), layout="constrained")
    quality, active, routing = figure.subplots(1, 3, width_ratios=(1.25, 1.0, 1.25))
    draw_quality(quality, results)
    figure.legend(loc="outside lower left", ncols=2, frameon=False)
    draw_functional(active, results)
    active.set_yticks(range(len(names)), [""] * len(names))
    image = draw_routing(routing, results, "artsy" if "artsy" in names else names[0])
    figure.colorbar(image, ax=routing, shrink=0.8, label="share of samples")
    figure.suptitle(f"What the synapses choose on {title(results)}")
    return figure


def draw_quality(axes: Axes, results: Results) -> None:
    """Recall and precision of every method with synapses."""
    names = with_synapses(results)
    for key, whole, color, marker, offset in (
        ("recall", "samples", "#0072B2", "o", -0.12),
        ("precision", "functional pairs", "#D55E00", "s", 0.12),
    ):
        values = [results["methods"][name]["synapses"][key] for name in names]
        axes.errorbar(
            [value["mean"] for value in values],
            [row + offset for row in range(len(names))],
            xerr=[value["std"] for value in values] if len(results["seeds"]) > 1 else None,
            fmt=marker,
            color=color,
            label=f"{key} (of {whole})",
            capsize=3,
            clip_on=False,
        )
    axes.set(title="Is the right one functional?", xlabel="share", xlim=(0, 1))
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    _a_row_for_each(axes, names)


def draw_functional(axes: Axes, results: Results) -> None:
    """How many sub-networks are functional for a sample, for every method with synapses."""
    names, count = with_synapses(results), _task_count(results)
    functional = [results["methods"][name]["synapses"]["mean_functional"] for name in names]
    bars = axes.barh(
        range(len(names)),
        [value["mean"] for value in functional],
        xerr=[value["std"] for value in functional] if len(results["seeds"]) > 1 else None,
        height=0.6,
        color=[style["color"] for style in styles_of(names).values()],
    )
    axes.bar_label(bars, fmt="%.2f", padding=4)
    axes.set(title="How many are functional?", xlabel=f"sub-networks per sample, of {count}", xlim=(0, 1.15 * count))
    _a_row_for_each(axes, names)


def draw_routing(axes: Axes, results: Results, name: str) -> AxesImage:
    """Which sub-networks a method's synapses make functional for the samples of which task."""
    image = heat_map(axes, results["methods"][name]["synapses"]["routing_matrix"]["mean"], 1, "{:.2f}")
    axes.set(title=f"Which are functional? ({name})", xlabel="sub-network", ylabel="true task of the sample")
    return image


def heat_map(axes: Axes, matrix: Sequence[Sequence[float | None]], highest: float, number: str) -> AxesImage:
    """Draw a matrix from 0 to `highest`, small ones with their numbers, None left blank; tasks are counted from 1."""
    colors = colormaps["Blues"]
    scale = Normalize(0, highest)
    image = axes.imshow(
        [[float("nan") if value is None else value for value in row] for row in matrix], cmap=colors, norm=scale
    )
    count = max(len(matrix), len(matrix[0]))
    if count <= _MOST_NUMBERS:
        for i, row in enumerate(matrix):
            for j, value in enumerate(row):
                if value is not None:
                    color = "white" if scale(value) > 0.55 else "black"
                    size = max(5.0, 10.5 - 0.45 * count)
                    axes.text(j, i, number.format(value), ha="center", va="center", color=color, fontsize=size)
    step = max(1, count // 10)
    axes.set_xticks(range(0, len(matrix[0]), step), [str(j + 1) for j in range(0, len(matrix[0]), step)])
    axes.set_yticks(range(0, len(matrix), step), [str(i + 1) for i in range(0, len(matrix), step)])
    axes.spines[:].set_visible(False)
    return image


def with_synapses(results: Results) -> list[str]:
    """Names of the methods with synapses, of which there are numbers."""
    return [name for name, method in results["methods"].items() if method["synapses"] is not None]


def _a_row_for_each(axes: Axes, names: Sequence[str]) -> None:
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def title(results: Results) -> str:
    """The stream in words, with its tasks and the seeds."""
    tasks, seeds = _task_count(results), len(results["seeds"])
    return f"the stream '{results['stream']}' ({tasks} task{'s' * (tasks > 1)}, " + (
        f"mean of {seeds} seeds)" if seeds > 1 else f"seed {results['seeds'][0]})"
    )


def _task_count(results: Results) -> int:
    return len(next(iter(results["methods"].values()))["incremental_accuracy"]["mean"])


def _mean(metric: Mapping[str, Any] | None, digits: int, scale: float = 1) -> str:
    return "–" if metric is None else f"{scale * metric['mean']:,.{digits}f}"


def spread(metric: Mapping[str, Any] | None, digits: int) -> str:
    """A metric's mean ± standard deviation where there are several seeds; a dash for None."""
    if metric is None or len(metric["values"]) == 1:
        return _mean(metric, digits)
    return f"{metric['mean']:.{digits}f} ± {metric['std']:.{digits}f}"


def _is_run(folder: Path) -> bool:
    try:
        content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"schema_version", "methods"} <= content.keys()


def styles_of(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, line and marker of each method."""
    others = cycle(_OTHER_STYLES)
    return {name: _STYLES[name] if name in _STYLES else next(others) for name in methods}


def _label_ends(axes: Axes, ends: Mapping[str, Mapping[str, Any]], styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Write name and last accuracy beside the end of each line, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    names = sorted(ends, key=lambda name: -ends[name]["mean"])
    heights = _spaced([ends[name]["mean"] for name in names], (high - low) / 21, low, high)
    for name, height in zip(names, heights, strict=True):
        # x in fractions of the axes, y in data coordinates.
        axes.annotate(
            f"{name} {spread(ends[name], 1)}",
            xy=(1.0, ends[name]["mean"]),
            xycoords=axes.get_yaxis_transform(),
            xytext=(1.06, height),
            textcoords=axes.get_yaxis_transform(),
            fontweight="bold" if name == "artsy" else "normal",
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": styles[name]["color"],
                "linestyle": styles[name]["linestyle"],
                "linewidth": 1.2,
                "relpos": (0, 0.5),
                "shrinkA": 2,
                "shrinkB": 0,
            },
        )


def _spaced(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Nearest heights (least squares) in [low, high] that are `gap` apart or more; `heights` must not ascend."""
    # Adding index * gap turns "gap apart" into "not ascending", which pooling adjacent violators solves, and bounds
    # on the first and the last into bounds on all.
    blocks: list[list[float]] = []
    for index, height in enumerate(heights):
        blocks.append([height + index * gap])
        while len(blocks) > 1 and _average(blocks[-2]) < _average(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    levels = [_average(block) for block in blocks for _ in block]
    lowest = low + (len(heights) - 1) * gap
    return [min(max(level, lowest), high) - index * gap for index, level in enumerate(levels)]


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)
