"""Pictures of silent synapses: how many there are while tasks are learned, what the others have learned, their spikes.

`silence_figure` reads the content of results.json, the others the classifier that a run keeps. Samples in the pictures
are drawn from the kept Gaussians of the classes: no image is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from artsy_ext.learner.classifier import ArtsyClassifier
from artsy_ext.learner.report import CORTEX, heat_map, styles_of, title, with_synapses
from artsy_ext.learner.training import generator
from artsy_ext.nn import STDPSynapses

__all__ = [
    "draw_accuracy_against_count",
    "draw_counts",
    "draw_silence",
    "draw_silent_by_task",
    "silence_figure",
    "spikes_figure",
    "weights_figure",
    "with_silence",
]

Results = Mapping[str, Any]

_SILENT, _FUNCTIONAL, _CORTEX = "#BBBBBB", "#D55E00", "#009E73"
_MOST_CLASSES = 10
"""Of which a picture shows spikes."""


def silence_figure(results: Results) -> Figure | None:
    """How often synapses are silent; None if no method has silent synapses, or all are of an earlier version."""
    shown = with_silence(results)
    if not shown:
        return None
    name = "artsy" if "artsy" in shown else shown[0]
    figure = Figure(figsize=(11.0, 8.0), layout="constrained")
    (training, tasks), (counts, against) = figure.subplots(2, 2)
    draw_silence(training, results, name)
    image = draw_silent_by_task(tasks, results, name)
    figure.colorbar(image, ax=tasks, shrink=0.8, label="silent synapses (%)")
    draw_counts(counts, results, name)
    draw_accuracy_against_count(against, results)
    figure.suptitle(f"Silent synapses of {name} on {title(results)}")
    return figure


def with_silence(results: Results) -> list[str]:
    """Names of the methods whose silent synapses were recorded."""
    methods = results["methods"]
    return [name for name in with_synapses(results) if methods[name]["synapses"].get("silent_by_epoch") is not None]


def draw_silence(axes: Axes, results: Results, name: str) -> None:
    """The share of silent synapses over the passes of all tasks, beside that of the adult cortex."""
    silence = results["methods"][name]["synapses"]["silent_by_epoch"]
    tasks, passes = len(silence["mean"]), len(silence["mean"][0]) - 1
    low, high = CORTEX
    axes.axhspan(low, high, color=_CORTEX, alpha=0.25, linewidth=0)
    source = f"adult cortex, {low:.0f}–{high:.0f} % (Vardalaki et al. 2022)"
    axes.text(0.01, low - 1, source, color="#00664C", va="top", fontsize=8, transform=axes.get_yaxis_transform())
    curves: list[tuple[Any, dict[str, Any]]] = []
    if len(silence["values"]) > 1:
        curves += [(seed, {"color": _SILENT, "linewidth": 0.8}) for seed in silence["values"]]
    marker = "o" if tasks <= 10 else ""
    curves += [(silence["mean"], {"color": _FUNCTIONAL, "linewidth": 2.0, "marker": marker, "markersize": 3.5})]
    for curve, style in curves:
        for task, row in enumerate(curve):
            axes.plot([task + epoch / passes for epoch in range(passes + 1)], [100 * v for v in row], **style)
    for task in range(1, tasks) if tasks <= 20 else ():
        axes.axvline(task, color="#dddddd", linewidth=0.8, zorder=0)
    step = max(1, tasks // 10)
    axes.set_xticks([task + 0.5 for task in range(0, tasks, step)], [str(task + 1) for task in range(0, tasks, step)])
    axes.set(
        title="While tasks are learned",
        xlabel=f"task, {passes} passes of the synapses over each",
        ylabel="silent synapses (%)",
        xlim=(0, tasks),
        ylim=(0, 101),
    )
    axes.tick_params(axis="x", length=0)
    axes.spines[["top", "right"]].set_visible(False)


def draw_silent_by_task(axes: Axes, results: Results, name: str) -> AxesImage:
    """The share of silent synapses of each sub-network after each task."""
    silence = results["methods"][name]["synapses"]["silent_by_task"]["mean"]
    percent = [[None if value is None else 100 * value for value in row] for row in silence]
    image = heat_map(axes, percent, 100, "{:.0f}")
    axes.set(title="Of each sub-network's synapse", xlabel="sub-network", ylabel="after learning task")
    return image


def draw_counts(axes: Axes, results: Results, name: str) -> None:
    """For how many samples so many sub-networks are functional."""
    found = results["methods"][name]["synapses"]["functional_counts"]
    last = max(k for k, share in enumerate(found["mean"]) if share > 0)
    shown = range(max(last, 3) + 1) if len(found["mean"]) > 3 else range(len(found["mean"]))
    bars = axes.bar(
        shown,
        [100 * found["mean"][k] for k in shown],
        yerr=[100 * found["std"][k] for k in shown] if len(found["values"]) > 1 else None,
        color=_FUNCTIONAL,
        width=0.7,
    )
    axes.bar_label(bars, fmt="%.1f", padding=2)
    axes.set_xticks(shown)
    axes.set(
        title="How many sub-networks a sample makes functional",
        xlabel=f"functional sub-networks, of {len(found['mean']) - 1}",
        ylabel="test samples (%)",
        ylim=(0, 108),
    )
    axes.spines[["top", "right"]].set_visible(False)


def draw_accuracy_against_count(axes: Axes, results: Results) -> None:
    """What methods that choose among sub-networks reach, and how many they run."""
    methods = results["methods"]
    styles = styles_of(methods)
    for name in with_synapses(results):
        count, accuracy, style = (
            methods[name]["synapses"]["mean_functional"],
            methods[name]["last_accuracy"],
            styles[name],
        )
        axes.errorbar(
            count["mean"],
            accuracy["mean"],
            xerr=count["std"] or None,
            yerr=accuracy["std"] or None,
            color=style["color"],
            marker=style["marker"],
            linestyle="",
            markersize=8,
            label=f"{name} {accuracy['mean']:.1f}",
        )
    axes.set(title="Accuracy against mean functional count", xlabel="functional sub-networks per sample",
             ylabel="last accuracy (%)", xlim=(0, None))  # fmt: skip
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center right")


def weights_figure(classifier: ArtsyClassifier) -> Figure | None:
    """The receptive weights of the STDP synapses' units; None where the synapses are of another kind.

    A row is a unit, a column an afferent, next to those of the same preferred unit. Silent synapses are grey.
    """
    synapses = _stdp(classifier)
    if synapses is None:
        return None
    used = synapses.unit_class >= 0
    weight, functional = synapses.weight[used].cpu(), synapses.functional[used].cpu()
    if synapses.on is None:
        functional = torch.ones_like(functional)
    names = [_class_name(classifier, int(c)) for c in synapses.unit_class[used]]
    J = len(weight)
    preferred = torch.where(functional, weight, 0.0).argmax(0)
    order = (preferred * 2.0 - torch.where(functional, weight, 0.0).amax(0).clamp(max=1.9)).argsort()
    figure = Figure(figsize=(13.0, 1.9 + min(0.28 * J, 9.0)), layout="constrained")
    matrix, sizes = figure.subplots(1, 2, width_ratios=(3.4, 1))
    shown = torch.where(functional, weight, math.nan)[:, order]
    bound = weight.abs().quantile(0.995).item()
    matrix.set_facecolor(_SILENT)
    image = matrix.imshow(
        shown.numpy(), cmap="RdBu_r", norm=TwoSlopeNorm(0, -bound, bound), aspect="auto", interpolation="none"
    )
    step = max(1, J // 40)
    matrix.set_yticks(range(0, J, step), names[::step])
    tasks = (used.sum(1).cumsum(0) - 0.5).tolist()[:-1]
    for edge in tasks:
        matrix.axhline(edge, color="black", linewidth=0.6)
    matrix.set(
        title="Receptive weights: red excites, blue inhibits, grey is silent",
        xlabel="afferents (ON and OFF of each feature of E0), next to those of the same preferred unit",
        ylabel="units, a class each; lines part sub-networks",
    )
    figure.colorbar(image, ax=matrix, shrink=0.8, label="weight", extend="both")
    bins = torch.linspace(0, weight.abs().max().item(), 41).tolist()
    parts = [weight.abs()[~functional].tolist(), weight.abs()[functional].tolist()]
    share = 100 * len(parts[0]) / weight.numel()
    labels = [f"silent, {share:.0f} %", f"functional, {100 - share:.0f} %"]
    sizes.hist(parts, bins, stacked=True, color=[_SILENT, _FUNCTIONAL], label=labels)
    for threshold, name in ((synapses.on, "on"), (synapses.off, "off")):
        if threshold is not None:
            sizes.axvline(threshold, color="black", linewidth=0.8, linestyle="--")
            sizes.text(threshold, 1.0, f" {name}", transform=sizes.get_xaxis_transform(), fontsize=8,
                       va="top", ha="right" if name == "off" else "left")  # fmt: skip
    sizes.set(title="Sizes of the weights", xlabel="|weight|", ylabel="synapses")
    sizes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1.0, 0.93))
    sizes.spines[["top", "right"]].set_visible(False)
    return figure


def spikes_figure(classifier: ArtsyClassifier) -> Figure | None:
    """What the STDP synapses see and do: spikes, potentials and functional sub-networks, for a sample of each class.

    The samples are drawn from the Gaussians of the classes. None where the synapses are of another kind.
    """
    synapses = _stdp(classifier)
    if synapses is None:
        return None
    C = len(classifier.classes_)
    chosen = torch.arange(C)[:: math.ceil(C / _MOST_CLASSES)]
    random = generator(classifier.seed, "spikes to look at")
    z, _ = classifier.statistics_.sample(chosen, 1, random)
    spikes = synapses.spikes(synapses.rates(z), seed=classifier.seed)  # [T, B, 2D+1]
    T, B, I = spikes.shape
    used = synapses.unit_class >= 0
    potentials = torch.stack([synapses.potentials(step)[:, used] for step in spikes.cumsum(0).unbind()])  # [T, B, J]
    potentials = potentials / torch.arange(1, T + 1).to(potentials)[:, None, None]
    mask = synapses.mask(z).cpu()
    S = mask.shape[1]

    figure = Figure(figsize=(12.0, 9.0), layout="constrained")
    raster, units, gates = figure.subplots(3, 1, sharex=True, height_ratios=(2.2, 1.3, 1.0))
    steps, afferents = spikes[..., :-1].transpose(0, 1).flatten(0, 1).cpu().nonzero().unbind(1)
    on = afferents < (I - 1) // 2
    for rows, color in ((on, "#0072B2"), (~on, "#CC79A7")):
        raster.plot(
            steps[rows].tolist(), afferents[rows].tolist(), "|", color=color, markersize=2.6, markeredgewidth=0.9
        )
    raster.set(title="Spikes of the afferents: ON (blue) and OFF (pink)", ylabel="afferent", ylim=(-1, I - 1))
    image = units.imshow(
        potentials.transpose(0, 1).flatten(0, 1).t().cpu().numpy(), aspect="auto", cmap="PuOr_r", interpolation="none",
        norm=TwoSlopeNorm(0, -potentials.abs().max().item(), potentials.abs().max().item()),
        extent=(-0.5, B * T - 0.5, potentials.shape[2] - 0.5, -0.5),
    )  # fmt: skip
    names = [_class_name(classifier, int(c)) for c in synapses.unit_class[used]]
    step = max(1, len(names) // 20)
    units.set_yticks(range(0, len(names), step), names[::step])
    units.set(title="Potentials of the units, from the spikes so far", ylabel="unit, a class each")
    figure.colorbar(image, ax=units, label="potential", aspect=12, pad=0.01)
    shown = mask.t()[:, :, None].expand(S, B, T).flatten(1).numpy()
    gates.imshow(shown, aspect="auto", cmap="Oranges", vmin=0, vmax=1.4, interpolation="none",
                 extent=(-0.5, B * T - 0.5, S - 0.5, -0.5))  # fmt: skip
    tasks = [classifier.task_of_class_[int(c)] for c in chosen]
    gates.plot([b * T + (T - 1) / 2 for b in range(B)], tasks, "x", color="black", markersize=6)
    gates.set_yticks(range(0, S, max(1, S // 10)), [str(s + 1) for s in range(0, S, max(1, S // 10))])
    gates.set(title="Functional sub-networks (orange); × the sample's own", ylabel="sub-network")
    gates.set_xticks([b * T + (T - 1) / 2 for b in range(B)], [_class_name(classifier, int(c)) for c in chosen])
    gates.set_xlabel(f"class of the sample, {T} steps each")
    for axes in (raster, units, gates):
        axes.tick_params(axis="x", length=0)
        for b in range(1, B):
            axes.axvline(b * T - 0.5, color="#888888", linewidth=0.8)
    figure.suptitle("Samples drawn from what is kept of the classes")
    return figure


def _stdp(classifier: ArtsyClassifier) -> STDPSynapses | None:
    assert classifier.network_ is not None
    synapses = classifier.network_.synapses
    return synapses if isinstance(synapses, STDPSynapses) else None


def _class_name(classifier: ArtsyClassifier, c: int) -> str:
    names: Sequence[str] = classifier.class_names_ or [str(label) for label in classifier.classes_]
    return names[c]
